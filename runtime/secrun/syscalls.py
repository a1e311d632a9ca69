"""The one door to system calls that Python 3.11 has no function for.

Callers take a `Syscalls`, so tests can record the calls and their order without root. Every function
raises OSError with the kernel's errno; none of them logs, retries or falls back.
"""

import errno
import os
import stat
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import ctypes

# unshare(2), setns(2)
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

# mount(2)
MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_NOSYMFOLLOW = 0x100
MS_BIND = 0x1000
MS_MOVE = 0x2000
MS_REC = 0x4000
MS_UNBINDABLE = 0x20000
MS_PRIVATE = 0x40000
MS_SLAVE = 0x80000
MS_SHARED = 0x100000

# mount_setattr(2)
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000

# umount2(2)
MNT_FORCE = 0x1
MNT_DETACH = 0x2
UMOUNT_NOFOLLOW = 0x8

# prctl(2)
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_SET_THP_DISABLE = 41
PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4

# capabilities(7); only those that secrun names itself
CAP_DAC_READ_SEARCH = 2
CAP_SYS_ADMIN = 21

# Numbers above 423 are the same on every architecture (asm-generic/unistd.h).
_NR_OPEN_TREE = 428
_NR_MOVE_MOUNT = 429
_NR_PIDFD_GETFD = 438
_NR_MOUNT_SETATTR = 442
_NR_LANDLOCK_CREATE_RULESET = 444
_NR_LANDLOCK_ADD_RULE = 445
_NR_LANDLOCK_RESTRICT_SELF = 446

# linux/fcntl.h, linux/mount.h
_AT_EMPTY_PATH = 0x1000
_OPEN_TREE_CLONE = 1
_MOUNT_ATTR_IDMAP = 0x00100000
_MOVE_MOUNT_F_EMPTY_PATH = 4

_SECCOMP_MODE_FILTER = 2
_BPF_INSTRUCTION_BYTES = 8

_LANDLOCK_CREATE_RULESET_VERSION = 1
_LANDLOCK_RULE_PATH_BENEATH = 1
_LANDLOCK_READ_FILE = 1 << 2
_LANDLOCK_READ_DIR = 1 << 3
_LANDLOCK_BIND_TCP = 1
# Rights that each Landlock ABI version knows, index = version - 1 (landlock(7); linux/landlock.h).
_LANDLOCK_FS_BITS = (13, 14, 15, 15, 16)
_LANDLOCK_NET_BITS = 2
_LANDLOCK_SCOPE_BITS = 2

_CAPABILITY_VERSION_3 = 0x20080522


class Syscalls(Protocol):
    """What secrun asks of the kernel beyond the standard library."""

    def unshare(self, flags: int) -> None:
        """Leave the namespaces in `flags` (CLONE_NEW*) for fresh ones."""

    def setns(self, fd: int, kind: int) -> None:
        """Join the namespace `fd`, or with a pidfd all kinds in `kind`."""

    def mount(self, source: str, target: str, fstype: str, flags: int, data: str = "") -> None:
        """Mount, bind, remount or change propagation; empty strings are passed as NULL."""

    def umount(self, target: str, flags: int = 0) -> None:
        """Unmount `target`."""

    def seal_mounts(self, target: str, *, read_only: bool) -> None:
        """Take set-user-ID, devices and, with `read_only`, writing from a mount and all below it."""

    def pivot_root(self, new_root: str, put_old: str) -> None:
        """Make `new_root` the root mount and move the old one to `put_old`."""

    def no_new_privs(self) -> None:
        """Give up for good to gain privileges by execve."""

    def child_subreaper(self) -> None:
        """Become the parent of orphaned descendants."""

    def no_huge_pages(self) -> None:
        """Give this process and all that it executes no memory in huge pages."""

    def parent_death_signal(self, signal: int) -> None:
        """Be sent `signal` when the parent dies; a change of credentials clears this."""

    def dumpable(self, *, on: bool) -> None:
        """Allow or refuse core dumps and ptrace by the same user."""

    def keep_capabilities(self, *, on: bool) -> None:
        """Keep the permitted set over the next change from uid 0."""

    def set_capabilities(self, mask: int) -> None:
        """Make `mask` (1 << CAP_*) the effective and permitted set and empty the inheritable one."""

    def drop_bounding_set(self) -> None:
        """Empty the bounding and the ambient set; needs CAP_SETPCAP in the user namespace."""

    def landlock_abi(self) -> int:
        """Return the Landlock version of the kernel, 0 if it has none."""

    def landlock_deny_all(self) -> int:
        """Deny this thread every file system, TCP and scope right that Landlock knows; return its version.

        Open descriptors keep working. Needs no_new_privs; errno is ENOSYS or EOPNOTSUPP without Landlock.
        """

    def landlock_read_only(self, fds: Sequence[int]) -> int:
        """Deny all that Landlock knows but to read below `fds` and to connect; return its version.

        Needs no_new_privs; errno is ENOSYS or EOPNOTSUPP without Landlock.
        """

    def filter_calls(self, program: bytes) -> None:
        """Load a seccomp filter (BPF, native byte order) into this thread; needs no_new_privs."""

    def mount_mapped(self, source_fd: int, target: str, userns_fd: int) -> None:
        """Mount what `source_fd` names at `target` with all below it, owners mapped as in `userns_fd`."""

    def pidfd_getfd(self, pidfd: int, fd: int) -> int:
        """Duplicate descriptor `fd` of the process `pidfd`, close-on-exec."""


class LinuxSyscalls:
    """The kernel itself, by way of libc."""

    def __init__(self) -> None:
        import ctypes  # 6 ms: not every command needs it

        self._ctypes = ctypes
        self._libc = ctypes.CDLL(None, use_errno=True)

    def _check(self, result: int, *names: str) -> int:
        if result >= 0:
            return result
        code = self._ctypes.get_errno()
        raise OSError(code, os.strerror(code), *names)

    def _prctl(self, option: int, argument: int = 0, argument2: int = 0) -> None:
        ulong = self._ctypes.c_ulong
        result: int = self._libc.prctl(option, ulong(argument), ulong(argument2), ulong(0), ulong(0))
        self._check(result)

    def _syscall(self, number: int, *arguments: "int | ctypes.Array[ctypes.c_char] | None") -> int:
        long = self._ctypes.c_long
        words = [long(argument) if isinstance(argument, int) else argument for argument in arguments]
        self._libc.syscall.restype = long
        result: int = self._libc.syscall(long(number), *words)
        return self._check(result)

    def unshare(self, flags: int) -> None:
        """Leave the namespaces in `flags`."""
        self._check(self._libc.unshare(flags))

    def setns(self, fd: int, kind: int) -> None:
        """Join a namespace."""
        self._check(self._libc.setns(fd, kind))

    def mount(self, source: str, target: str, fstype: str, flags: int, data: str = "") -> None:
        """Mount, bind, remount or change propagation."""
        result: int = self._libc.mount(
            os.fsencode(source) or None,
            os.fsencode(target),
            os.fsencode(fstype) or None,
            self._ctypes.c_ulong(flags),
            os.fsencode(data) or None,
        )
        self._check(result, target)

    def umount(self, target: str, flags: int = 0) -> None:
        """Unmount `target`."""
        self._check(self._libc.umount2(os.fsencode(target), flags), target)

    def seal_mounts(self, target: str, *, read_only: bool) -> None:
        """Change the attributes of a tree of mounts."""
        flags = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | (MOUNT_ATTR_RDONLY if read_only else 0)
        raw = b"".join(word.to_bytes(8, "little") for word in (flags, 0, 0, 0))
        attributes = self._ctypes.create_string_buffer(raw, len(raw))
        path = self._ctypes.create_string_buffer(os.fsencode(target))
        self._syscall(_NR_MOUNT_SETATTR, _AT_FDCWD, path, _AT_RECURSIVE, attributes, len(raw))

    def pivot_root(self, new_root: str, put_old: str) -> None:
        """Swap the root mount."""
        self._check(self._libc.pivot_root(os.fsencode(new_root), os.fsencode(put_old)), new_root)

    def no_new_privs(self) -> None:
        """Set no_new_privs."""
        self._prctl(PR_SET_NO_NEW_PRIVS, 1)

    def child_subreaper(self) -> None:
        """Become a subreaper."""
        self._prctl(PR_SET_CHILD_SUBREAPER, 1)

    def no_huge_pages(self) -> None:
        """Disable transparent huge pages."""
        self._prctl(PR_SET_THP_DISABLE, 1)

    def parent_death_signal(self, signal: int) -> None:
        """Set the parent death signal."""
        self._prctl(PR_SET_PDEATHSIG, signal)

    def dumpable(self, *, on: bool) -> None:
        """Set the dumpable flag."""
        self._prctl(PR_SET_DUMPABLE, int(on))

    def keep_capabilities(self, *, on: bool) -> None:
        """Set the keep-capabilities flag."""
        self._prctl(PR_SET_KEEPCAPS, int(on))

    def set_capabilities(self, mask: int) -> None:
        """Replace the three thread capability sets."""
        low, high = mask & 0xFFFFFFFF, mask >> 32
        word = self._ctypes.c_uint32
        header = (word * 2)(_CAPABILITY_VERSION_3, 0)
        data = (word * 6)(low, low, 0, high, high, 0)
        self._check(self._libc.capset(header, data))

    def drop_bounding_set(self) -> None:
        """Drop every capability the kernel knows from the bounding set."""
        self._prctl(PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
        for capability in range(64):
            result: int = self._libc.prctl(
                PR_CAPBSET_DROP, self._ctypes.c_ulong(capability), *[self._ctypes.c_ulong(0)] * 3
            )
            if result < 0:
                # EINVAL marks the first number beyond the kernel's last capability; 0 is CAP_CHOWN.
                if capability and self._ctypes.get_errno() == errno.EINVAL:
                    return
                self._check(result)

    def landlock_abi(self) -> int:
        """Ask for the Landlock version."""
        try:
            return self._syscall(_NR_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_CREATE_RULESET_VERSION)
        except OSError:
            # ENOSYS: not built in; EOPNOTSUPP: not enabled at boot.
            return 0

    def landlock_deny_all(self) -> int:
        """Enforce a ruleset without a rule."""
        return self._landlock((), (1 << _LANDLOCK_NET_BITS) - 1)

    def landlock_read_only(self, fds: Sequence[int]) -> int:
        """Enforce a ruleset with a rule for each of `fds`."""
        return self._landlock(fds, _LANDLOCK_BIND_TCP)

    def _landlock(self, readable: Sequence[int], network: int) -> int:
        """Enforce a ruleset that handles every file right, `network` and all scopes; return the version."""
        abi = self._syscall(_NR_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_CREATE_RULESET_VERSION)
        words = [(1 << _LANDLOCK_FS_BITS[min(abi, len(_LANDLOCK_FS_BITS)) - 1]) - 1]
        if abi >= 4:
            words.append(network)
        if abi >= 6:
            words.append((1 << _LANDLOCK_SCOPE_BITS) - 1)
        raw = b"".join(word.to_bytes(8, sys.byteorder) for word in words)
        attributes = self._ctypes.create_string_buffer(raw, len(raw))
        ruleset = self._syscall(_NR_LANDLOCK_CREATE_RULESET, attributes, len(raw), 0)
        try:
            for fd in readable:
                folder = stat.S_ISDIR(os.fstat(fd).st_mode)
                rights = _LANDLOCK_READ_FILE | (_LANDLOCK_READ_DIR if folder else 0)
                rule = rights.to_bytes(8, sys.byteorder) + fd.to_bytes(4, sys.byteorder)
                beneath = self._ctypes.create_string_buffer(rule, len(rule))
                self._syscall(_NR_LANDLOCK_ADD_RULE, ruleset, _LANDLOCK_RULE_PATH_BENEATH, beneath, 0)
            self._syscall(_NR_LANDLOCK_RESTRICT_SELF, ruleset, 0)
        finally:
            os.close(ruleset)
        return abi

    def filter_calls(self, program: bytes) -> None:
        """Hand the kernel a struct sock_fprog: how many instructions, and where they are."""
        code = self._ctypes.create_string_buffer(program, len(program))
        count = (len(program) // _BPF_INSTRUCTION_BYTES).to_bytes(2, sys.byteorder) + bytes(6)
        where = self._ctypes.addressof(code).to_bytes(8, sys.byteorder)
        header = self._ctypes.create_string_buffer(count + where, 16)
        self._prctl(PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, self._ctypes.addressof(header))

    def mount_mapped(self, source_fd: int, target: str, userns_fd: int) -> None:
        """Clone the tree of mounts, map it, attach it: open_tree(2), mount_setattr(2), move_mount(2)."""
        text = self._ctypes.create_string_buffer
        flags = _AT_EMPTY_PATH | _AT_RECURSIVE
        tree = self._syscall(_NR_OPEN_TREE, source_fd, text(b""), flags | _OPEN_TREE_CLONE | os.O_CLOEXEC)
        try:
            words = (_MOUNT_ATTR_IDMAP, 0, 0, userns_fd)
            raw = b"".join(word.to_bytes(8, "little") for word in words)
            self._syscall(_NR_MOUNT_SETATTR, tree, text(b""), flags, text(raw, len(raw)), len(raw))
            path = text(os.fsencode(target))
            self._syscall(_NR_MOVE_MOUNT, tree, text(b""), _AT_FDCWD, path, _MOVE_MOUNT_F_EMPTY_PATH)
        finally:
            os.close(tree)

    def pidfd_getfd(self, pidfd: int, fd: int) -> int:
        """Duplicate another process's descriptor."""
        return self._syscall(_NR_PIDFD_GETFD, pidfd, fd, 0)
