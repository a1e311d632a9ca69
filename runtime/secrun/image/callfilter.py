"""The system calls of processes that read what strangers wrote: no others exist for them."""

import errno
import os

from secrun.errors import HostError

# What an interpreter with its libraries does all day: memory, threads, time, open files and channels.
_COMMON = tuple(
    """
    access arch_prctl brk clock_getres clock_gettime clock_nanosleep close close_range copy_file_range
    dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_wait eventfd2 exit exit_group
    faccessat faccessat2 fadvise64 fallocate fcntl fdatasync fstat fstatfs fsync ftruncate futex
    futex_waitv get_robust_list getcwd getdents64 getegid geteuid getgid getgroups getpgid getpgrp
    getpid getppid getrandom getresgid getresuid getrlimit getrusage getsid gettid gettimeofday getuid
    lseek lstat madvise membarrier mincore mmap mprotect mremap msync munmap nanosleep newfstatat open
    openat pause pipe pipe2 poll ppoll pread64 preadv preadv2 pselect6 pwrite64 pwritev pwritev2 read
    readlink readlinkat readv recvfrom restart_syscall rseq rt_sigaction rt_sigpending rt_sigprocmask
    rt_sigreturn rt_sigsuspend rt_sigtimedwait sched_getaffinity sched_getparam sched_getscheduler
    sched_yield select sendfile sendto set_robust_list set_tid_address sigaltstack splice stat statx
    sysinfo tgkill time timerfd_create timerfd_settime times umask uname wait4 waitid write writev
    """.split()  # noqa: SIM905 - a hundred quoted names would hide the list
)
# What an intruder would try first is refused by name; whatever else there is, or will be, is not there.
_REFUSED = tuple(
    """
    accept accept4 acct add_key bind bpf chmod chown chroot clock_settime delete_module execve execveat
    fanotify_init fchmod fchmodat fchown fchownat finit_module fsconfig fsmount fsopen init_module
    io_uring_enter io_uring_register io_uring_setup kexec_load keyctl kill lchown link linkat listen
    memfd_create mkdir mkdirat mknod mknodat mount mount_setattr move_mount name_to_handle_at
    open_by_handle_at open_tree perf_event_open personality pidfd_getfd pidfd_open pidfd_send_signal
    pivot_root process_vm_readv process_vm_writev ptrace reboot rename renameat renameat2 request_key
    rmdir rt_sigqueueinfo rt_tgsigqueueinfo setgid setgroups setns setregid setresgid setresuid setreuid
    settimeofday setuid setxattr socketpair swapon symlink symlinkat tkill truncate umount2 unlink
    unlinkat unshare userfaultfd utimensat vmsplice
    """.split()  # noqa: SIM905 - a hundred quoted names would hide the list
)
# Of the network no more than a client needs, and what passes open files between parent and child.
_NETWORK = tuple(
    """
    connect getpeername getsockname getsockopt recvmmsg recvmsg sendmmsg sendmsg
    setsockopt shutdown
    """.split()  # noqa: SIM905 - a hundred quoted names would hide the list
)
_AF_INET, _AF_INET6 = 2, 10
# clone(2): what makes a thread, and what makes a namespace of its own (CLONE_NEW*).
_CLONE_THREAD = 0x00010000
_CLONE_NEW = 0x7E020080
_PR_SET_PDEATHSIG, _PR_GET_DUMPABLE, _PR_SET_NAME, _PR_SET_VMA = 1, 3, 15, 0x53564D41


# Reading extended attributes, for who reads a tree of files.
_ATTRIBUTES = ("fgetxattr", "flistxattr", "lgetxattr", "llistxattr")


def program(*, network: bool, attributes: bool = False) -> bytes:
    """Return the filter as BPF, compiled by libseccomp; raises HostError where that is missing.

    execve, ptrace, mount, bpf, keyctl, io_uring, kill and their like fail with EPERM, and what is not known
    here with ENOSYS. With `network` there are TCP and UDP sockets and threads; without it there are no
    sockets, but processes may be forked. With `attributes` those of files may be read. New namespaces there
    are for nobody.
    """
    from secrun_policies.errors import PolicyError
    from secrun_policies.libseccomp import compile_bpf
    from secrun_policies.seccomp import MACHINES, Action, Comparison, Operator
    from secrun_policies.seccomp_resolve import FlatRule, SeccompFilter

    def allow(*names: str, args: tuple[Comparison, ...] = ()) -> FlatRule:
        return FlatRule(action=Action.ALLOW, errno=None, args=args, names=names)

    def low(argument: int, value: int) -> Comparison:
        # The kernel reads 32 bits of these arguments: so does the filter.
        return Comparison(argument, Operator.MASKED_EQ, 0xFFFFFFFF, value)

    refused = FlatRule(action=Action.ERRNO, errno=errno.EPERM, args=(), names=_REFUSED)
    rules = [allow(*_COMMON), refused]
    rules += [allow("ioctl", args=(low(1, request),)) for request in (0x5401, 0x5413, 0x5421, 0x541B)]
    rules += [
        allow("prctl", args=(low(0, option),))
        for option in (_PR_SET_PDEATHSIG, _PR_GET_DUMPABLE, _PR_SET_NAME, _PR_SET_VMA)
    ]
    # Limits may be read, and of ourselves only.
    rules.append(allow("prlimit64", args=(low(0, 0), Comparison(2, Operator.EQ, 0))))
    if attributes:
        rules.append(allow(*_ATTRIBUTES))
    if network:
        rules.append(allow(*_NETWORK))
        rules += [allow("socket", args=(low(0, family),)) for family in (_AF_INET, _AF_INET6)]
        wanted = Comparison(0, Operator.MASKED_EQ, _CLONE_THREAD | _CLONE_NEW, _CLONE_THREAD)
    else:
        wanted = Comparison(0, Operator.MASKED_EQ, _CLONE_NEW, 0)
        rules.append(allow("fork", "vfork"))
        rules.append(FlatRule(action=Action.ERRNO, errno=errno.EPERM, args=(), names=("socket",)))
    # clone3 hides its flags in memory; told that it does not exist, libc takes clone.
    rules.append(allow("clone", args=(wanted,)))
    machine = os.uname().machine
    if machine not in MACHINES:
        raise HostError(f"there is no system call filter for {machine}", code="host-machine")
    try:
        return compile_bpf(
            SeccompFilter(
                default_action=Action.ERRNO,
                default_errno=errno.ENOSYS,
                architecture=MACHINES[machine],
                rules=tuple(rules),
            )
        )
    except PolicyError as error:
        raise HostError(error.message, hint=error.hint, code="host-seccomp") from error
