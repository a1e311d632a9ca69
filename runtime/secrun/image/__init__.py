"""Images: references, registries, the store and rootfs images."""
