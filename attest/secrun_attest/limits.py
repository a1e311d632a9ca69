"""Limits on input that an attacker may have written, each with its reason."""

# An event names things by digest; a pod of twenty apps stays far below. It bounds what one append may cost.
MAX_EVENT_DATA = 16 * 1024

# Events nest three deep (pod, app, mount). Far below the interpreter's own limit, where errors get vague.
MAX_JSON_DEPTH = 16

# RFC 8785 numbers are IEEE 754 doubles (RFC 7493, 2.2): beyond this two parsers may read two integers.
MAX_INTEGER = 2**53 - 1

# TPM 2.0 clients have 24 PCRs (PC Client Platform TPM Profile 1.05, 4.6).
MAX_PCR = 23

# resetCount and restartCount are UINT32 (TPM 2.0 Part 2, 10.11.1).
MAX_COUNT = 2**32 - 1

# PCRs cannot be compacted, so a log ends with its epoch. Three records per pod: 300,000 pods without reboot.
MAX_RECORDS = 1_000_000

# One line: the event in hex, four digests in hex and the names around them.
MAX_LOG_LINE = 2 * MAX_EVENT_DATA + 1024

# A log or an export as a whole: what evidence may weigh.
MAX_LOG = 1024 * 1024 * 1024

# Images that the head of a log remembers as admitted. A host runs tens; an older one is admitted again.
MAX_ADMITTED = 256

# A digest of the runtime, or another short text that tells one from another.
MAX_RUNTIME = 256

# The head of a log: the images in hex, three sets of digests and the names around them.
MAX_HEAD = 32 * 1024
