"""rkt's commands and flags."""

from secrun.cli.foreign import Verdict, rows

COMMANDS = (
    *rows(
        Verdict.SAME,
        """
prepare
list
stop
rm
gc
cat-manifest
fetch
image cat-manifest
image gc
image list
version
help = --help
""",
    ),
    *rows(
        Verdict.BETTER,
        """
run : exit codes on every flavour; confined without asking; measured before it starts
run-prepared : keeps every option that was prepared, labels included
enter : joins every namespace, the filter, the capabilities, the label and the user of the app
status : --format json with all that is enforced
trust = trust : add, list, show, rm; also for sigstore, cosign and Notation
image rm : an image that a prepared or running pod needs stays until no pod does
image export : also as an OCI archive; an app container image is flattened, so it has another ID
image verify : re-hashes and judges the signatures anew
config = config show : --origin tells which file set a value
completion : bash, zsh and fish
attach : terminals too; one types and any number look; to type is an entry, and measured
export : an OCI archive; owners are those of the pod, by a reader without rights
metadata-service = --vtpm : an app proves itself by a TPM of its own
""",
    ),
    *rows(
        Verdict.RENAMED,
        """
api-service = list : every reader takes --format json; there is no daemon
""",
    ),
    *rows(
        Verdict.REFUSED,
        """
fly = : not a command in rkt either; the flavour without isolation is not there yet
image extract = : image export, then tar or umoci; root unpacks nothing of an image
image render = : the same
app sandbox = : pods are made whole, so that a measurement says what ran
app add = : the same
app start = : the same
app stop = : the same
app rm = : the same
app exec = enter
""",
    ),
)

RUN = (
    *rows(
        Verdict.SAME,
        """
--name
--hostname
--pod-manifest
--interactive
--uuid-file-save
--dns
--dns-search
--dns-opt
--hosts-entry
--net
--port
--volume
--mount
--caps-retain
--caps-remove
--seccomp
--memory
--oom-score-adj
--cpu-shares
--exec
--user
--group
--supplementary-gids
--working-dir
--readonly-rootfs
--set-env
--set-env-file
--inherit-env
--user-annotation
--user-label
--insecure-options
""",
    ),
    *rows(
        Verdict.RENAMED,
        """
--environment = --env
--cpu = --cpus : 750m is 0.75
--stage1-name = --stage1
--stage1-path = --stage1 : stage1 images are built from the host's packages: secrun stage1 build
--stage1-url = --stage1 : the same
--stage1-hash = --stage1 : the same
--stage1-from-dir = --stage1 : the same
--pull-policy = --pull : new is missing, update is always
--store-only = --pull : --pull never
--no-store = --pull : --pull always
--signature = sign : signatures are found beside the image
--dir = --root
--local-config = --config
--system-config = --config
--user-config = --config
--private-users = --userns : every pod has a user namespace
--stdin = --interactive
--stdout = logs
--stderr = logs
""",
    ),
    *rows(
        Verdict.REFUSED,
        """
--dns-domain = : --dns-search
--ipc = : an IPC namespace is the pod's own and shared by its apps
--no-overlay = : images are mounted, never copied
--mds-register = : there is no metadata service; --vtpm gives an app a TPM
--trust-keys-from-https = : a key is trusted after its fingerprint was seen: secrun trust add
--cpuprofile = : python3 -X importtime, --timing
--memprofile = : the same
""",
    ),
)
