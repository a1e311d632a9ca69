"""Limits on what a policy file may make secrun read."""

# Policies are written by hand or generated per tenant; a scope takes about 100 bytes.
MAX_POLICY_BYTES = 4 * 1024 * 1024
# More alternatives than this are a mistake of whatever generated the file.
MAX_REQUIREMENTS = 100
