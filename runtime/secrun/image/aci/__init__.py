"""App container images (appc spec 0.8), as rkt ran them: read, made into OCI images, and written."""
