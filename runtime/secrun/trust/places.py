"""Where trust policies lie: on their own, since the end of a pod looks for the files and judges nothing."""

from pathlib import Path

# containers-policy.json(5); the second place is where distributions put their default.
POLICY_PATHS = (Path("/etc/containers/policy.json"), Path("/usr/share/containers/policy.json"))
# secrun's own rules; their parser is loaded only where there are any.
RULES_NAME = "trust.toml"
