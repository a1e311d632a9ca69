"""Limits on what policies, keys and signatures may make secrun read, each with its reason."""

# Policies are written by hand or generated per tenant; a scope takes about 100 bytes.
MAX_POLICY_BYTES = 4 * 1024 * 1024
# More alternatives than this are a mistake of whatever generated the file.
MAX_REQUIREMENTS = 100
# Rules of secrun's own: one per team or registry.
MAX_RULES = 1000
MAX_RULES_BYTES = 1024 * 1024
# A key ring of a whole distribution has some hundred keys of a few KiB.
MAX_KEY_BYTES = 4 * 1024 * 1024
# Keys that one prefix may have; each is tried on each signature.
MAX_RING_KEYS = 200
# An authority's file: roots and intermediates.
MAX_CERTIFICATES = 50
# Chains of public authorities have three or four certificates.
MAX_CHAIN_DEPTH = 8
# containers/image reads signatures up to 4 MiB; real ones stay below 20 KiB, provenance below 1 MiB.
MAX_SIGNATURE_BYTES = 4 * 1024 * 1024
# Payloads of simple signing have 300 bytes.
MAX_PAYLOAD_BYTES = 64 * 1024
# Annotations of a cosign signature: a certificate, its chain, an entry of a log.
MAX_ANNOTATION_BYTES = 256 * 1024
# Signatures of one image: one per signer and build; an attacker who may push could add any number.
MAX_SIGNATURES = 100
# All that is kept of one image's signatures.
MAX_SIGNATURES_BYTES = 16 * 1024 * 1024
# Images that one statement may be about: a release signs its platforms together.
MAX_SUBJECTS = 1000
# A trusted root names some dozen logs and authorities.
MAX_TRUSTED_ROOT_BYTES = 4 * 1024 * 1024
MAX_TRUSTED_ROOT_ITEMS = 200
# A proof of a log of 2^63 entries has 63 hashes.
MAX_PROOF_HASHES = 63
# Seconds by which our clock and a signer's may differ.
CLOCK_SKEW_SECONDS = 300
