"""podman's commands, and the flags of `podman run`."""

from secrun.cli.foreign import Verdict, rows

COMMANDS = (
    *rows(
        Verdict.SAME,
        """
run
run -d --pod = run IMAGE --- IMAGE : a pod is made whole, with all its apps
stop
rm
logs
top
stats
inspect
version
image list
image inspect
image rm
image push
image prune
image load
volume create
volume inspect
volume rm
network inspect
network rm
completion
sign = sign
""",
    ),
    *rows(
        Verdict.RENAMED,
        """
create = prepare
start = run-prepared : a pod starts once; what ran is measured, and another run is another pod
exec = enter : joins every namespace, the filter, the capabilities and the label of the app
ps = list
pod ps = list
pod inspect = inspect
pod logs = logs
pod rm = rm
pod stop = stop
pod top = top
pod stats = stats
wait = status --wait
kill = stop --force : other signals: enter UUID -- kill
pull = fetch
push = image push
images = image list
rmi = image rm
load = image load
untag = image untag : names the tag, not the image
image trust = trust
volume ls = volume list
network ls = network list
port = status : `ports` in status --format json
info = doctor
system info = doctor
system df = image list : sizes are in the list
system prune = gc
generate systemd = generate : from .container files, as podman's own generator reads them
volume prune = volume prune
restart = restart : apps of pods that run; one that has exited starts once: run it anew
healthcheck = status : the agent checks at its interval; the last results are in status and inspect
container prune = gc
""",
    ),
    *rows(
        Verdict.BETTER,
        """
events : from the measured log: whoever changes it is found out
image sign = sign : signatures are checked before every run, by default
attach : one types and any number look; to type is an entry, allowed by rules and measured
image scp = image copy : with the image's signatures
copy = image copy
image mount : judged like a run, its bytes checked by dm-verity or whole, nothing in it can be executed
image unmount : of what image mount mounted
image save : an OCI archive of several images, with digests and signatures, or a docker-archive
save = image save : the same
image tag : a tag is for this host alone: it shadows no name of a registry and changes no policy
tag = image tag : the same
export : an OCI archive with the image's configuration, its own layers and one of changes, not a bare tar
""",
    ),
    *rows(
        Verdict.REFUSED,
        """
init = : prepare makes a pod ready to start
search = : registries have no common search; an image is named in full
build = : images are built elsewhere (buildah), signed, and fetched
commit = : what runs is an image that was signed and measured; export writes what an app changed
import = : the same
rename = : a pod's name is its UUID; labels are for people
pause = : a frozen pod answers no attestation; stop it
unpause = : the same
update = : limits are part of the measured manifest
pod create = : pods are made whole by run and prepare
pod clone = : prepare it again
mount = : root mounts only what it digested; enter the app, or copy the image with image copy
unmount = : the same
cp = : enter UUID -- tar, or a volume
login = : registry credentials are read from auth.json as podman and skopeo write it
logout = : the same
machine = : Linux only; --stage1=kvm gives each pod a machine
unshare = : fetching needs no root, running needs it
system service = : there is no daemon and no socket
system reset = : rm --all, then remove --root
system migrate = : there is nothing to migrate
system renumber = : there are no lock numbers
system connection = : there is no remote client; ssh HOST secrun
diff = : export POD, and compare it with the image
history = : layers are told by image inspect; what their builder says of them, by skopeo inspect --config
image tree = : the same
manifest = : an index is made by buildah or skopeo, and fetched by platform
kube = : a pod from a file is --pod-manifest, in words of its own
generate kube = : the same
volume export = : tar -C $(secrun volume inspect NAME | jq -r .path) -c .
volume import = : volume create, then tar into the path that volume inspect tells
network create = : write a CNI configuration to /etc/cni/net.d
network connect = : networks are part of the measured manifest
network disconnect = : the same
network reload = : plugins' rules belong to them
auto-update = : a new digest is another measured run; let the service manager restart it
generate spec = : cat-manifest prints what is measured
secret create = : secrets are systemd's: systemd-creds encrypt --name=NAME FILE /etc/credstore.encrypted/NAME
secret ls = : ls /etc/credstore.encrypted
secret rm = : remove the file in /etc/credstore.encrypted
secret inspect = : a secret is shown to its app alone; cat-manifest tells its name, source and rights
""",
    ),
)

RUN = (
    *rows(
        Verdict.SAME,
        """
--add-host
--annotation
--authfile
--blkio-weight
--cap-add
--cap-drop
--cidfile
-c, --cpu-shares = --cpu-shares
--cpuset-cpus
--cpuset-mems
--memory-reservation
--umask
--unsetenv
--cpus
-d, --detach
--detach-keys
--device
--dns
--dns-option
--dns-search
--entrypoint
-e, --env
--env-file
--env-host
--group-add
--health-cmd
--health-interval
--health-on-failure
--health-retries
--health-start-period
--health-timeout
--help
--hostname
--init
-i, --interactive
-l, --label
-m, --memory
--memory-swap
--mount
--network
--no-healthcheck
--oom-score-adj
--pids-limit
--platform
--pod-id-file
--preserve-fds : sockets only, since a folder or a device would be a way out of the pod
-p, --publish
--pull
--read-only
--read-only-tmpfs
--restart
--rm
--security-opt
--stop-signal
--stop-timeout
--sysctl
--tls-verify
--tmpfs
-t, --tty
--ulimit
-u, --user
--userns
-v, --volume
-w, --workdir
""",
    ),
    *rows(
        Verdict.BETTER,
        """
--systemd : only if asked for: an init gets a control group of its own and CAP_SETPCAP, both measured
--secret : a file in memory, never swapped and never in the environment; a file or systemd's credential
--name : names the app in its pod; the pod's name is its UUID, which --uuid-file-save saves
--privileged : refused unless a policy file allows it, and measured
""",
    ),
    *rows(
        Verdict.RENAMED,
        """
-h = --hostname : -h asks for help
--arch = --platform : OS/ARCH
--os = --platform : OS/ARCH
--variant = --platform : OS/ARCH/VARIANT
--ip = --net : --net NAME:IP=ADDRESS
--ip6 = --net : --net NAME:IP=ADDRESS
--mac-address = --net : --net NAME:MAC=ADDRESS
--cpu-quota = --cpus : the quota divided by the period
--cpu-period = --cpus : the quota divided by the period
--pod = --- : the apps of a pod are separated by ---
--replace = rm --force : a pod has no name that another could take; remove the old one by its UUID file
--tz = --env : -e TZ=Europe/Berlin, where the image knows the zone
--shm-size = --tmpfs : --tmpfs /dev/shm:size=64m
--sdnotify = run : in the foreground a unit of Type=notify is told when every app has started, healthy or not
--pidfile = status : `pid` in status --format json
--conmon-pidfile = status : `pid` in status --format json
--log-driver = logs : logs are files in the pod's folder, 64 MiB for each app
--log-opt = logs : the same
--label-file = --label : give each label by --label
--timeout = stop : timeout 60 secrun run ...: SIGTERM stops a pod in good order
""",
    ),
    *rows(
        Verdict.REFUSED,
        """
-a, --attach = : in the foreground run is attached, with -d it is not; attach comes later
--cgroup-conf = : limits have options of their own, which are measured
--cgroup-parent = : a pod has a group of its own in machine.slice
--cgroupns = : a pod always has a cgroup namespace of its own
--cgroups = : a pod always has a control group
--chrootdirs = : files of /etc are mounted for the app's root only
--cpu-rt-period = : cgroup2 has no such limit
--cpu-rt-runtime = : cgroup2 has no such limit
--device-cgroup-rule = : --device gives one device and is measured
--device-read-bps = : --blkio-weight shares the disk
--device-read-iops = : --blkio-weight shares the disk
--device-write-bps = : --blkio-weight shares the disk
--device-write-iops = : --blkio-weight shares the disk
--blkio-weight-device = : --blkio-weight shares all disks
--disable-content-trust = : signatures are checked; --insecure-options=image says loudly that they are not
--env-merge = : images' variables are not rewritten; set them with --env
--expose = : a port is published with -p; exposing alone does nothing
--gidmap = : every pod has a range of its own, which no other pod shares
--uidmap = : every pod has a range of its own, which no other pod shares
--subgidname = : ranges need no subordinate ids
--subuidname = : ranges need no subordinate ids
--hostuser = : no user of the host is in a pod
--http-proxy = : the caller's variables stay outside; --env http_proxy passes one
--image-volume = : what an image calls its volumes lies in the writable layer of the app
--init-path = : the init is the stage1's, and measured
--ipc = : an IPC namespace is the pod's own and shared by its apps
--memory-swappiness = : cgroup2 has no such limit
--network-alias = : no name server runs for pods; --add-host names others
--no-hosts = : a pod's own name resolves; a file of your own is mounted by -v FILE:/etc/hosts
--creds = : a password on a command line is everybody's to read: --authfile
--cert-dir = : certificates lie in /etc/containers/certs.d
--decryption-key = : layers are not encrypted; signatures say whose they are
--retry = : what can be tried again is, within limits
--retry-delay = : the same
--gpus = : --device gives one device and is measured
--hosts-file = : --hosts-entry host, or -v FILE:/etc/hosts
--no-hostname = : a pod has a name of its own
--oom-kill-disable = : an app beyond its limit is killed
--passwd = : the image's /etc/passwd is the image's
--passwd-entry = : the image's /etc/passwd is the image's
--personality = : the call is filtered
--pid = : a process namespace is the app's own
--publish-all, -P = : each port is published by name: --port or -p
--quiet, -q = : progress is shown on terminals only
--requires = : service managers order services
--rmi = : image rm
--rootfs = : what runs is an image that was signed and measured
--seccomp-policy = : --security-opt seccomp=FILE
--sig-proxy = : of attach; signals that end secrun run stop the pod in good order
--unsetenv-all = : name the variables
--uts = : host names are the pod's own
--volumes-from = : name the volume with -v in each app
--kernel-memory = : cgroup2 has no such limit
""",
    ),
)
