"""Limits on what comes from configuration files, plugins and callers, each with its reason."""

# A conflist is some hundred lines; the largest published ones have 6 KiB.
MAX_CONFIG_BYTES = 256 * 1024
# As libcni's readers: more plugins than this in a chain is a mistake.
MAX_PLUGINS = 32
# Interfaces of one pod; each is a chain of programs to run.
MAX_NETWORKS = 16
# A result holds interfaces, addresses and routes of one attachment.
MAX_RESULT_BYTES = 1024 * 1024
MAX_RESULT_ITEMS = 1024
# What a plugin says on stderr is quoted, not parsed.
MAX_NOISE_BYTES = 64 * 1024
# A DHCP lease may take 10 s; whoever needs more than a minute hangs.
PLUGIN_SECONDS = 60
# A start that is to wait longer than this waits for something else.
MAX_PLUGIN_SECONDS = 3600
# Each reserves two sockets for the pod's life, and descriptors are counted (getrlimit(2), 1,024).
MAX_PORTS = 256
# resolv.conf(5), MAXNS, and what glibc takes of search domains.
MAX_DNS_SERVERS = 8
MAX_DNS_SEARCH = 32
MAX_DNS_OPTIONS = 32
MAX_HOST_ENTRIES = 1024
# What a pod's own record of its networks may hold: configurations and results of all of them.
MAX_STATE_BYTES = 16 * 1024 * 1024
# Files of the host that are copied into pods.
MAX_HOST_FILE_BYTES = 1024 * 1024
