"""Limits on what registries, layouts and archives may make secrun read, each with its reason."""

# The distribution specification 1.1 asks registries to accept manifests of 4 MiB; nothing larger travels.
MAX_MANIFEST_BYTES = 4 * 1024 * 1024
# A config holds one diff_id and one history line per layer; real ones stay below 100 KiB.
MAX_CONFIG_BYTES = 8 * 1024 * 1024
# index.json of a layout that somebody else wrote: an entry takes about 500 bytes, so 30,000 images.
MAX_LAYOUT_INDEX_BYTES = 16 * 1024 * 1024
# Multi-platform images are one index of manifests; one more level is seen in attestations, none deeper.
MAX_INDEX_DEPTH = 3
# Go knows about 50 platforms; with an attestation for each variant an index stays well below this.
MAX_INDEX_ENTRIES = 1000
# overlayfs takes 500 lower folders, so no engine can run an image of more layers.
MAX_LAYERS = 500
# Pages of referrers, each of up to MAX_INDEX_ENTRIES: more than that are not looked at.
MAX_REFERRER_PAGES = 10
# Annotations of one layer; cosign writes four.
MAX_ANNOTATIONS = 200
# OpenPGP signatures of one image in a lookaside store or beside it.
MAX_MESSAGES = 50
# The largest published images (machine learning, Windows) are below 100 GB as a whole.
MAX_LAYER_BYTES = 128 * 1024 * 1024 * 1024
# Token endpoints answer with one JWT; those with many grants reach tens of KiB.
MAX_TOKEN_BYTES = 1024 * 1024
# Of an error answer only a few words are shown.
MAX_ERROR_BYTES = 64 * 1024
# auth.json holds one line per registry.
MAX_AUTH_BYTES = 4 * 1024 * 1024
# manifest.json of a docker-archive: one object per image with its layer names.
MAX_ARCHIVE_MANIFEST_BYTES = 4 * 1024 * 1024
# Members of an archive of images: three per layer in the old form, and MAX_LAYERS bounds those.
MAX_ARCHIVE_MEMBERS = 20_000

# Podman's shortest ID is 3 digits; 4 keeps a four-letter word from being an ID by accident less often.
MIN_ID_DIGITS = 4

# Blob redirects go from the registry to its storage, seldom over a second hop.
MAX_REDIRECTS = 5
# One try and its repeats for a request that fails before an answer, or with 429 or 5xx.
MAX_ATTEMPTS = 5
# A cut download continues where it was cut; this bounds a server that cuts after every few bytes.
MAX_CUTS = 20
# Seconds: first wait, longest wait, and how long a Retry-After is believed.
BACKOFF_FIRST = 0.5
BACKOFF_LONGEST = 30.0
RETRY_AFTER_LONGEST = 120.0
# Seconds without one byte before a connection counts as dead.
CONNECT_TIMEOUT = 15.0
READ_TIMEOUT = 60.0
# Parallel downloads: registries throttle per connection, and more than this gains nothing.
DOWNLOAD_THREADS = 4
# Bytes per read: large enough to hide the interpreter, small enough to notice a cancellation.
CHUNK_BYTES = 256 * 1024
# Between root and its helper: the largest is the document with an image's signatures, 16 MiB in base64.
MAX_FRAME_BYTES = 32 * 1024 * 1024
