"""TPM event log, quotes, evidence and their verifier."""
