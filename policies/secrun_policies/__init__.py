"""The confinement compiler: pure functions from request, image and host to a pod's policy."""
