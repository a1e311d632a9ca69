"""The stage1 contract: what a flavour of isolation implements, and what it is given.

Supervision is not a flavour's business: every flavour ends in a command line that the waiter runs
(docs/agent-protocol.md), so waiting, stopping, attaching and entering are the same code everywhere.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from secrun.digest import Digest
from secrun.paths import Layout
from secrun.record import field, record
from secrun.stage1.label import Label
from secrun.stage1.machine import CommandLine, Machine, MachineRequest
from secrun.stage1.manifest import PodManifest
from secrun.stage1.secret import Disclosed
from secrun_policies.labels import LabelRequest

if TYPE_CHECKING:
    from secrun.network.connect import Connected


@record
class Problem:
    """Something a host or a request lacks; `fatal` problems forbid the start of any pod."""

    subject: str
    text: str
    hint: str = ""
    fatal: bool = True


@record
class Stage1Identity:
    """Which stage1 image a pod gets: its own digest, and that of its files."""

    digest: Digest
    tree: Digest
    kernel: str | None = None
    """The release (uname(2)) of the guest's own kernel, if the flavour boots one."""


@record
class Draft:
    """A pod that is decided but for what its flavour adds; nothing of it is on disk yet."""

    layout: Layout
    manifest: PodManifest
    asked: MachineRequest
    config: Mapping[str, bytes]
    """What the pod will see at /pod, by relative path."""
    label: LabelRequest = field(default_factory=LabelRequest)


@record
class Decided:
    """What a flavour adds to a pod: its machine, its label, and files of its own in the pod's folder."""

    machine: Machine | None = None
    label: Label | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)


@record
class PodOnDisk:
    """A pod that is about to start: its manifest and the folder it lives in."""

    layout: Layout
    path: Path
    manifest: PodManifest
    network: "Connected | None" = None
    """The namespace that the pod joins; `network.state()` waits for what is in it."""
    secrets: Disclosed = field(default_factory=Disclosed)


@record
class Launch:
    """How to start one stage1: everything is ready, only this command is left to be executed.

    Descriptors stay owned by the caller until the waiter takes them over by execve.
    """

    argv: tuple[str, ...]
    attach_fd: int
    cgroup_procs_fd: int
    cgroup_kill_fd: int
    held_fds: tuple[int, ...]
    """Locks that must live as long as the pod."""
    filter_fd: int | None = None
    """The program of a system call filter that stage1 is started under."""
    label: str = ""
    """The SELinux context of what runs inside; empty if it has none of its own."""
    file_label: str = ""
    """The SELinux context of files that the pod may write."""
    runtime_label: str = ""
    """The SELinux context of the waiter; empty leaves it in this process's."""


class Flavour(Protocol):
    """One kind of isolation."""

    name: str

    def probe(self) -> Sequence[Problem]:
        """Tell what this host lacks, in words."""

    def ensure_image(self, layout: Layout) -> Stage1Identity:
        """Build the stage1 image if it is absent or outdated; return which it is."""

    def build_image(self, layout: Layout, kernel: Path | None) -> Stage1Identity:
        """As `ensure_image`, for this and later pods with a guest kernel of the caller's; None: this host's.

        Raises UsageError if there is a kernel and the flavour boots none.
        """

    def refuse(self, manifest: PodManifest, asked: MachineRequest) -> Sequence[Problem]:
        """Tell which parts of the request cannot be honoured; any of them stops the preparation."""

    def decide(self, draft: Draft) -> Decided:
        """Decide what is the flavour's own of a pod that is not refused; changes nothing on the host."""

    def command_lines(self) -> Sequence[CommandLine]:
        """Return every kernel command line that `decide` may choose, for verifiers; pure."""

    def launch(self, pod: PodOnDisk, undo: ExitStack) -> Launch:
        """Make everything that the pod needs on the host, pushing each undo before the next step."""

    def cleanup(self, uuid: str) -> None:
        """Remove what `launch` made, from any process at any time after the pod; idempotent."""
