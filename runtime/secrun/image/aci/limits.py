"""Limits on what app container images and their servers may make secrun read, each with its reason."""

# Manifests have a few KiB; long path whitelists, one line per file, reach hundreds.
MAX_MANIFEST_BYTES = 1024 * 1024
# Entries of one list of a manifest: a whitelist names files, the others a handful.
MAX_WHITELIST = 100_000
MAX_LIST = 1000
# Images that one image depends on, and how deep; every level is fetched before it is known what is below.
MAX_DEPENDENCIES = 64
MAX_DEPTH = 16
# Ports of one range that an image names.
MAX_PORT_COUNT = 1000
# The file itself: it is mapped to check its signature, and the process that does so has 6 GiB of addresses.
# The largest published images are far smaller.
MAX_ACI_BYTES = 4 * 1024 * 1024 * 1024
# A page with meta tags: only its head counts, and that is short.
MAX_PAGE_BYTES = 512 * 1024
# Templates that one page may name, and the length of one.
MAX_TEMPLATES = 50
MAX_TEMPLATE_CHARS = 2000
# Redirects of one request, from a name's page to a storage's address.
MAX_REDIRECTS = 5
# A file of public keys that a page names.
MAX_KEYS_BYTES = 1024 * 1024
