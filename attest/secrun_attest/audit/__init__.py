"""What ran, over all boots, for whoever files it: the trail, its Merkle log, bundles, their verification."""
