"""Rootfs images: from layer blobs to one verity-protected EROFS file."""
