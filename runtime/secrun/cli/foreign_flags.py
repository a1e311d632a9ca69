"""Flags of podman's other commands than `run`, by podman's own command."""

from collections.abc import Mapping

from secrun.cli.foreign import Verdict, rows

# Ours, and what is theirs.
COMMANDS: Mapping[str, str] = {
    "list": "ps",
    "logs": "logs",
    "stop": "stop",
    "rm": "rm",
    "enter": "exec",
    "inspect": "inspect",
    "top": "top",
    "stats": "stats",
    "image list": "images",
    "image rm": "rmi",
    "fetch": "pull",
    "status": "wait",
    "events": "events",
    "run-prepared": "start",
}

FLAGS = (
    *rows(
        Verdict.RENAMED,
        """
ps --pod, -p = list : every line is of a pod
stop --time, -t = --stop-timeout : how long an app may take is decided when it is made, and measured
rm --time, -t = --stop-timeout : the same
stop --latest, -l = list --latest --quiet : secrun stop $(secrun list --latest --quiet)
rm --latest, -l = list --latest --quiet : secrun rm $(secrun list --latest --quiet)
logs --latest, -l = list --latest --quiet : secrun logs $(secrun list --latest --quiet)
exec --latest, -l = list --latest --quiet : secrun enter $(secrun list --latest --quiet) -- COMMAND
inspect --latest, -l = list --latest --quiet : secrun inspect $(secrun list --latest --quiet)
top --latest, -l = list --latest --quiet : secrun top $(secrun list --latest --quiet)
stats --latest, -l = list --latest --quiet : secrun stats $(secrun list --latest --quiet)
wait --latest, -l = list --latest --quiet : secrun status --wait $(secrun list --latest --quiet)
start --latest, -l = list --latest --quiet : secrun run-prepared $(secrun list --latest --quiet)
wait --condition = status --wait : --wait is for the end, --wait-ready for the start
start --filter, -f = list --filter : secrun run-prepared takes one pod
images -n = --no-legend : -n counts in secrun list
stats --no-stream = stats : once is what it does; --follow goes on
pull --os = --platform : OS/ARCH
pull --arch = --platform : OS/ARCH/VARIANT
pull --variant = --platform : OS/ARCH/VARIANT
""",
    ),
    *rows(
        Verdict.REFUSED,
        """
ps --size, -s = : what a pod wrote is counted by stats; images have sizes in image list
ps --ns = : namespaces are told by status --format json
ps --sync = : a pod's state is its folder and a lock, which cannot be out of step
ps --watch, -w = : watch secrun list, or events --follow
ps --external = : nobody else's containers are here
logs --color = : an app's own bytes are shown as they are
logs --names = : of several apps one is named; --format json is for programs
rm --depend = : a pod goes with all its apps
rm --volumes, -v = : what has no name goes with its pod; others by volume prune
exec --privileged = : what is entered has what the app has, and no more
exec --env-file = : give each by --env
inspect --format, -f = : the document is JSON: secrun inspect UUID | jq
inspect --size, -s = : stats counts what is written
inspect --type, -t = : images are told by image inspect
stats --all, -a = : without a UUID all that run are shown
stats --no-reset = : a table per interval, for a terminal and for a file
stats --no-trunc = : --format json has whole UUIDs
images --all, -a = : there are no images between
images --digests = : the ID is the digest
images --history = : an image is known by its digest, not by names that it had
images --no-trunc = : image inspect has whole digests
images --sort = : sort(1), or --format json
rmi --force, -f = : an image that a pod needs stays; remove the pod
rmi --no-prune = : what only a removed image needed goes with it
rmi --ignore, -i = : an image that is not there is told
pull --all-tags, -a = : tags are named one by one
pull --creds = : a password on a command line is everybody's to read: --authfile
pull --cert-dir = : certificates lie in /etc/containers/certs.d
pull --disable-content-trust = : signatures are checked; --insecure-options=image leaves that out
pull --quiet, -q = : progress is shown on terminals only
wait --interval, -i = : the end is told by the kernel, not asked for
events --filter = : a UUID, --since and --until; jq for the rest
events --no-trunc = : --format json has all
start --all, -a = : pods start one by one
start --attach = : in the foreground run-prepared is attached
start --interactive, -i = : what is connected was decided by prepare
start --sig-proxy = : signals that end secrun run-prepared stop the pod in good order
""",
    ),
)
