/* Attempts to get out of a pod, or at something that is not its own. Each runs in a child of its own.
 *
 *   escape NAME...    tries these, without names all of them; one line each: NAME worked | NAME refused ERROR
 *   escape --list     prints the names
 *
 * ESCAPE_FILE, ESCAPE_PID, ESCAPE_ABSTRACT, ESCAPE_PORT, ESCAPE_SHM, ESCAPE_VOLUME, ESCAPE_EXE, ESCAPE_SUID and ESCAPE_SELF name what
 * belongs to the host, or to the test. With ESCAPE_PRIVATE each attempt gets mounts of its own, where it may have them.
 *
 * An attempt "worked" if the kernel did what was asked. Calls that must not succeed even on the host (a module, another
 * kernel) are made with arguments that cannot succeed: they "worked" if the kernel looked at those arguments.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/io_uring.h>
#include <linux/perf_event.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/ptrace.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef SYS_clone3
#define SYS_clone3 435
#endif
#ifndef SYS_mount_setattr
#define SYS_mount_setattr 442
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif
#ifndef SYS_open_tree
#define SYS_open_tree 428
#endif
#ifndef SYS_fsopen
#define SYS_fsopen 430
#endif
#ifndef SYS_quotactl_fd
#define SYS_quotactl_fd 443
#endif

/* 0 or more: it worked; -1: errno says why not. */
typedef long attempt(void);

static const char *given(const char *name) {
    const char *value = getenv(name);
    return value ? value : "/nonexistent";
}

/* A call that cannot succeed: it was let through if the kernel complains about one of its arguments. */
static long reached(long result, int complaint) {
    return result >= 0 || errno == complaint ? 0 : -1;
}

static int scratch(void) {
    mkdir("/tmp", 01777);
    mkdir("/tmp/escape", 0700);
    return 0;
}

/* --- mounts */

static long mount_tmpfs(void) { scratch(); return mount("none", "/tmp/escape", "tmpfs", 0, 0); }
static long mount_proc(void) { scratch(); return mount("proc", "/tmp/escape", "proc", 0, 0); }
static long mount_bind(void) { scratch(); return mount("/", "/tmp/escape", 0, MS_BIND, 0); }
static long mount_cgroup(void) {
    scratch();
    return mount("x", "/tmp/escape", "cgroup", 0, "none,name=secrun-escape");
}
static long mount_cgroup2(void) { scratch(); return mount("x", "/tmp/escape", "cgroup2", 0, 0); }
static long mount_propagation(void) { return mount(0, "/", 0, MS_REC | MS_PRIVATE, 0); }
static long umount_mask(void) { return umount2("/proc/interrupts", MNT_DETACH); }
static long remount_sys(void) { return mount(0, "/sys", 0, MS_REMOUNT | MS_BIND, 0); }
static long pivot(void) { return reached(syscall(SYS_pivot_root, "/proc", "/proc"), EBUSY) == 0 || errno == EINVAL ? 0 : -1; }
static long open_tree_clone(void) { return syscall(SYS_open_tree, AT_FDCWD, "/", 1 /* OPEN_TREE_CLONE */); }
static long fs_open(void) { return syscall(SYS_fsopen, "tmpfs", 0); }
static long mount_set(void) {
    struct { uint64_t set, clear, propagation, userns; } attributes = {1 /* RDONLY */, 0, 0, 0};
    scratch();
    /* Not a mount point: EINVAL where the call is let through. */
    return reached(syscall(SYS_mount_setattr, AT_FDCWD, "/tmp/escape", 0, &attributes, sizeof attributes), EINVAL);
}
static long break_chroot(void) {
    int here = open("/", O_RDONLY | O_DIRECTORY);
    scratch();
    if (here < 0 || chroot("/tmp/escape") || fchdir(here)) return -1;
    for (int step = 0; step < 64; step++) if (chdir("..")) return -1;
    if (chroot(".")) return -1;
    return open(given("ESCAPE_FILE"), O_RDONLY);
}
static long host_file(void) { return open(given("ESCAPE_FILE"), O_RDONLY); }
static long host_file_up(void) {
    char path[512];
    snprintf(path, sizeof path, "../../../../../../../..%s", given("ESCAPE_FILE"));
    return open(path, O_RDONLY);
}
static long host_file_by_link(void) {
    char path[512];
    snprintf(path, sizeof path, "%s/link-%d", given("ESCAPE_VOLUME"), getpid());
    if (symlink(given("ESCAPE_FILE"), path)) return -1;
    long found = open(path, O_RDONLY);
    int why = errno;
    unlink(path);
    errno = why;
    return found;
}
static long host_root_of_other(void) {
    char path[512];
    snprintf(path, sizeof path, "/proc/%s/root%s", given("ESCAPE_PID"), given("ESCAPE_FILE"));
    return open(path, O_RDONLY);
}
static long by_handle(void) {
    char room[sizeof(struct file_handle) + 128];
    struct file_handle *handle = (void *)room;
    int mount_id, folder = open("/", O_RDONLY | O_DIRECTORY);
    handle->handle_bytes = 128;
    if (name_to_handle_at(AT_FDCWD, given("ESCAPE_SELF"), handle, &mount_id, 0)) {
        /* A file system without handles: what is asked is only whether such calls are let through. */
        handle->handle_bytes = 8;
        handle->handle_type = 1;
        return reached(open_by_handle_at(folder, handle, O_RDONLY), ESTALE);
    }
    return open_by_handle_at(open(given("ESCAPE_SELF"), O_RDONLY), handle, O_RDONLY);
}

/* --- namespaces */

static long new_user(void) { return unshare(CLONE_NEWUSER); }
static long new_mount(void) { return unshare(CLONE_NEWNS); }
static long new_net(void) { return unshare(CLONE_NEWNET); }
static long new_pid(void) { return unshare(CLONE_NEWPID); }
static long new_cgroup(void) { return unshare(CLONE_NEWCGROUP); }
static long new_time(void) { return unshare(0x80 /* CLONE_NEWTIME */); }
static long clone_with(unsigned long flags) {
    long child = syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);
    if (child == 0) _exit(0);
    return child;
}
static long clone_user(void) { return clone_with(CLONE_NEWUSER); }
static long clone_net(void) { return clone_with(CLONE_NEWNET); }
/* Upper bits that the kernel ignores must not hide the lower ones from a filter. */
static long clone_user_high(void) { return clone_with(CLONE_NEWUSER | 1UL << 40); }
static long clone3_user(void) {
    uint64_t arguments[8] = {CLONE_NEWUSER, 0, 0, 0, SIGCHLD};
    long child = syscall(SYS_clone3, arguments, sizeof arguments);
    if (child == 0) _exit(0);
    return child;
}
static long set_ns(void) { return setns(open("/proc/self/ns/uts", O_RDONLY), 0); }
static long set_host_name(void) {
    char name[65] = "";
    gethostname(name, 64);
    return sethostname(name, strlen(name));
}

/* --- other processes */

static pid_t victim(void) {
    pid_t child = fork();
    if (child == 0) for (;;) pause();
    return child;
}
static long ended(pid_t child, long result) {
    int why = errno;
    kill(child, SIGKILL);
    waitpid(child, 0, 0);
    errno = why;
    return result;
}
static long attach(void) { pid_t child = victim(); return ended(child, ptrace(PTRACE_ATTACH, child, 0, 0)); }
static long trace_me(void) { return ptrace(PTRACE_TRACEME, 0, 0, 0); }
static long read_memory(void) {
    static char secret[8] = "secret";
    char got[8];
    struct iovec here = {got, 8}, there = {secret, 8};
    pid_t child = victim();
    return ended(child, process_vm_readv(child, &here, 1, &there, 1, 0));
}
static long write_memory(void) {
    static char place[8];
    struct iovec here = {"change", 7}, there = {place, 7};
    pid_t child = victim();
    return ended(child, process_vm_writev(child, &here, 1, &there, 1, 0));
}
static long take_descriptor(void) {
    pid_t child = victim();
    int handle = syscall(SYS_pidfd_open, child, 0);
    return ended(child, syscall(SYS_pidfd_getfd, handle, 0, 0));
}
static long compare(void) { pid_t child = victim(); return ended(child, syscall(SYS_kcmp, getpid(), child, 1, 0, 0)); }
static long signal_host(void) { return kill(atoi(given("ESCAPE_PID")), 0); }
static long move_others(void) { return syscall(SYS_move_pages, 0, 0, 0, 0, 0, 0); }

/* --- /proc and /sys */

static long write_open(const char *path) { return open(path, O_WRONLY); }
static long proc_core_pattern(void) { return write_open("/proc/sys/kernel/core_pattern"); }
static long proc_drop_caches(void) { return write_open("/proc/sys/vm/drop_caches"); }
static long proc_hostname(void) { return write_open("/proc/sys/kernel/hostname"); }
static long proc_irq(void) { return write_open("/proc/irq/default_smp_affinity"); }
static long sys_uevent(void) { return write_open("/sys/kernel/uevent_seqnum") >= 0 || errno == EACCES ? write_open("/sys/kernel/mm/transparent_hugepage/enabled") : -1; }
static long content(const char *path) {
    char byte;
    int file = open(path, O_RDONLY);
    if (file < 0) return -1;
    errno = ENODATA;
    return read(file, &byte, 1) == 1 ? 0 : -1;
}
static long proc_interrupts(void) { return content("/proc/interrupts"); }
static long proc_kallsyms(void) { return content("/proc/kallsyms"); }
static long proc_timers(void) { return content("/proc/keys") == 0 || content("/proc/timer_list") == 0 ? 0 : -1; }
static long listing(const char *path) {
    int count = 0;
    DIR *folder = opendir(path);
    if (!folder) return -1;
    while (readdir(folder)) count++;
    errno = ENODATA;
    return count > 2 ? 0 : -1;
}
static long sys_module(void) { return listing("/sys/module"); }
static long sys_firmware(void) { return listing("/sys/firmware"); }
static long cgroup_make(void) {
    const char *paths[] = {"/sys/fs/cgroup/escape", "/sys/fs/cgroup/unified/escape"};
    for (int index = 0; index < 2; index++) if (mkdir(paths[index], 0700) == 0) return rmdir(paths[index]);
    return -1;
}
/* Keep a program of others open while it runs, and write into it when it has ended (CVE-2019-5736). */
static long others_exe(void) {
    const char *wanted = getenv("ESCAPE_EXE");
    char path[300], target[300];
    int file = -1;
    errno = ENOENT;
    for (int turn = 0; wanted && turn < 200000; turn++) {
        DIR *folder = file < 0 ? opendir("/proc") : 0;
        for (struct dirent *entry; folder && file < 0 && (entry = readdir(folder));) {
            snprintf(path, sizeof path, "/proc/%s/exe", entry->d_name);
            ssize_t length = readlink(path, target, sizeof target - 1);
            target[length < 0 ? 0 : length] = 0;
            if (strstr(target, wanted)) file = open(path, O_RDONLY);
        }
        if (folder) closedir(folder);
        if (file < 0) continue;
        snprintf(path, sizeof path, "/proc/self/fd/%d", file);
        if (open(path, O_WRONLY) >= 0) return 0;
        if (errno != ETXTBSY) return -1;
    }
    return -1;
}

/* --- devices */

static long node(mode_t kind, int major, int minor) {
    char path[64];
    scratch();
    snprintf(path, sizeof path, "/tmp/escape/node-%d", getpid());
    long made = mknod(path, kind | 0600, (dev_t)(major << 8 | minor));
    int why = errno;
    unlink(path);
    errno = why;
    return made;
}
static long node_disk(void) { return node(S_IFBLK, 7, 0); }
static long node_memory(void) { return node(S_IFCHR, 1, 1); }
static long node_of_volume(void) {
    char path[512];
    snprintf(path, sizeof path, "%s/device", given("ESCAPE_VOLUME"));
    return open(path, O_RDONLY);
}
static long io_ports(void) { return reached(syscall(SYS_ioperm, 0x80, 1, 1), ENOSYS); }
static long io_level(void) { return reached(syscall(SYS_iopl, 3), ENOSYS); }

/* --- keys, memory, tracing */

static long key_add(void) { return syscall(SYS_add_key, "user", "escape", "x", 1, -1 /* the thread's own */); }
static long key_session(void) { return syscall(SYS_keyctl, 1 /* JOIN_SESSION_KEYRING */, 0); }
static long key_request(void) { return reached(syscall(SYS_request_key, "user", "escape", 0, 0), ENOKEY); }
static long user_fault(void) { return syscall(SYS_userfaultfd, 0); }
static long splice_memory(void) {
    int ends[2];
    struct iovec piece = {"x", 1};
    return pipe(ends) ? -1 : syscall(SYS_vmsplice, ends[1], &piece, 1, 0);
}
static long bpf_map(void) {
    union bpf_attr attributes;
    memset(&attributes, 0, sizeof attributes);
    attributes.map_type = BPF_MAP_TYPE_ARRAY;
    attributes.key_size = attributes.value_size = 4;
    attributes.max_entries = 1;
    return syscall(SYS_bpf, BPF_MAP_CREATE, &attributes, sizeof attributes);
}
static long perf(void) {
    struct perf_event_attr attributes;
    memset(&attributes, 0, sizeof attributes);
    attributes.type = PERF_TYPE_SOFTWARE;
    attributes.size = sizeof attributes;
    attributes.config = PERF_COUNT_SW_DUMMY;
    return syscall(SYS_perf_event_open, &attributes, 0, -1, -1, 0);
}
static long ring(void) {
    struct io_uring_params parameters;
    memset(&parameters, 0, sizeof parameters);
    return syscall(SYS_io_uring_setup, 1, &parameters);
}
static long no_randomisation(void) { return personality(ADDR_NO_RANDOMIZE); }
static long local_table(void) { char table[16]; return syscall(SYS_modify_ldt, 0, table, sizeof table); }
static long old_table(void) {
#if defined(__x86_64__)
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(20 /* getpid of i386 */) : "memory", "r8", "r9", "r10", "r11");
    if (result > 0) return 0;
    errno = (int)-result;
#else
    errno = ENOSYS;
#endif
    return -1;
}

/* --- sockets */

static long raw(void) { return socket(AF_INET, SOCK_RAW, IPPROTO_ICMP); }
static long packet(void) { return socket(AF_PACKET, SOCK_RAW, 0); }
static long packet_high(void) { return syscall(SYS_socket, AF_PACKET | 1UL << 32, SOCK_RAW, 0); }
static long express(void) { return socket(44 /* AF_XDP */, SOCK_RAW, 0); }
static long firewall(void) { return socket(AF_NETLINK, SOCK_RAW, 12 /* NETFILTER */); }
static long uevents(void) { return socket(AF_NETLINK, SOCK_RAW, 15 /* KOBJECT_UEVENT */); }
static long abstract(void) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *name = given("ESCAPE_ABSTRACT");
    strncpy(address.sun_path + 1, name, sizeof address.sun_path - 2);
    return connect(socket(AF_UNIX, SOCK_STREAM, 0), (void *)&address, sizeof(sa_family_t) + 1 + strlen(name));
}
static long loopback(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(given("ESCAPE_PORT")))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return connect(socket(AF_INET, SOCK_STREAM, 0), (void *)&address, sizeof address);
}
static long shared_memory(void) { return shmget(atoi(given("ESCAPE_SHM")), 0, 0); }

/* --- the terminal */

static int terminal(void) {
    int leader = posix_openpt(O_RDWR | O_NOCTTY);
    if (leader < 0 || grantpt(leader) || unlockpt(leader)) return -1;
    return open(ptsname(leader), O_RDWR | O_NOCTTY);
}
static long type_in(void) { return ioctl(terminal(), TIOCSTI, "x"); }
static long type_in_high(void) { return syscall(SYS_ioctl, terminal(), TIOCSTI | 1UL << 32, "x"); }
static long paste(void) { char code = 3; return reached(ioctl(terminal(), 0x541c /* TIOCLINUX */, &code), ENOTTY); }

/* --- the host as a whole */

static long module(void) { return reached(syscall(SYS_init_module, 0, 0, ""), ENOSYS) == 0 || errno == EFAULT || errno == ENOEXEC ? 0 : -1; }
static long module_file(void) { return reached(syscall(SYS_finit_module, -1, "", 0), EBADF) == 0 || errno == ENOSYS ? 0 : -1; }
static long other_kernel(void) { return reached(syscall(SYS_kexec_load, 0, 100, 0, 0), EINVAL) == 0 || errno == ENOSYS ? 0 : -1; }
static long boot(void) { return reached(syscall(SYS_reboot, 0, 0, 0, 0), EINVAL); }
static long swap(void) { return reached(syscall(SYS_swapon, "/nonexistent", 0), ENOENT); }
static long account(void) { return reached(syscall(SYS_acct, "/nonexistent"), ENOENT) == 0 || errno == ENOSYS ? 0 : -1; }
static long kernel_log(void) { return syscall(SYS_syslog, 3 /* READ_ALL */, (char[16]){0}, 16); }
static long clock_zone(void) {
    struct timezone zone = {0, 0};
    return syscall(SYS_settimeofday, 0, &zone);
}
static long watch_files(void) { return syscall(SYS_fanotify_init, 0, O_RDONLY); }
static long quotas(void) { return reached(syscall(SYS_quotactl, 0x800007 << 8 /* Q_GETQUOTA */, "/nonexistent", 0, 0), ENOENT) == 0 || errno == ENOSYS || errno == EINVAL ? 0 : -1; }
static long hang_up(void) { return reached(syscall(SYS_vhangup), ENOTTY); }
static long real_time(void) {
    struct sched_param parameters = {.sched_priority = 1};
    return sched_setscheduler(0, SCHED_FIFO, &parameters);
}

/* --- what was inherited */

static long leaked(void) {
    char path[32];
    for (int fd = 3; fd < 1024; fd++) {
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        if (access(path, F_OK) == 0) return 0;
    }
    errno = EBADF;
    return -1;
}
static long set_user_id(void) {
    /* The same program again, which in the image belongs to root and has the bit. */
    int status = 1;
    pid_t child = fork();
    if (child == 0) {
        if (getuid() == 0 && setuid(1000)) _exit(2);
        execl(given("ESCAPE_SUID"), "escape", "--euid", (char *)0);
        _exit(3);
    }
    waitpid(child, &status, 0);
    errno = EPERM;
    return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -1;
}

static const struct { const char *name; attempt *call; } ATTEMPTS[] = {
    {"mount-tmpfs", mount_tmpfs}, {"mount-proc", mount_proc}, {"mount-bind", mount_bind},
    {"mount-cgroup", mount_cgroup}, {"mount-cgroup2", mount_cgroup2}, {"mount-propagation", mount_propagation},
    {"umount-mask", umount_mask}, {"remount-sys", remount_sys}, {"pivot-root", pivot},
    {"open-tree", open_tree_clone}, {"fsopen", fs_open}, {"mount-setattr", mount_set},
    {"chroot-break", break_chroot}, {"host-file", host_file}, {"host-file-up", host_file_up},
    {"host-file-link", host_file_by_link}, {"host-root-of-other", host_root_of_other}, {"file-handle", by_handle},
    {"unshare-user", new_user}, {"unshare-mount", new_mount}, {"unshare-net", new_net}, {"unshare-pid", new_pid},
    {"unshare-cgroup", new_cgroup}, {"unshare-time", new_time}, {"clone-user", clone_user},
    {"clone-net", clone_net}, {"clone-user-high", clone_user_high}, {"clone3-user", clone3_user},
    {"setns", set_ns}, {"sethostname", set_host_name},
    {"ptrace-attach", attach}, {"ptrace-me", trace_me}, {"memory-read", read_memory}, {"memory-write", write_memory},
    {"pidfd-getfd", take_descriptor}, {"kcmp", compare}, {"signal-host", signal_host}, {"move-pages", move_others},
    {"proc-core-pattern", proc_core_pattern}, {"proc-drop-caches", proc_drop_caches},
    {"proc-hostname", proc_hostname}, {"proc-irq", proc_irq}, {"sys-write", sys_uevent},
    {"proc-interrupts", proc_interrupts}, {"proc-kallsyms", proc_kallsyms}, {"proc-keys", proc_timers},
    {"sys-module", sys_module}, {"sys-firmware", sys_firmware}, {"cgroup-mkdir", cgroup_make}, {"exe-write", others_exe},
    {"mknod-disk", node_disk}, {"mknod-memory", node_memory}, {"volume-device", node_of_volume},
    {"ioperm", io_ports}, {"iopl", io_level},
    {"key-add", key_add}, {"key-session", key_session}, {"key-request", key_request},
    {"userfaultfd", user_fault}, {"vmsplice", splice_memory}, {"bpf", bpf_map}, {"perf", perf}, {"io-uring", ring},
    {"personality", no_randomisation}, {"modify-ldt", local_table}, {"i386-call", old_table},
    {"socket-raw", raw}, {"socket-packet", packet}, {"socket-packet-high", packet_high}, {"socket-xdp", express},
    {"socket-netfilter", firewall}, {"socket-uevent", uevents}, {"host-abstract", abstract},
    {"host-loopback", loopback}, {"host-shm", shared_memory},
    {"tiocsti", type_in}, {"tiocsti-high", type_in_high}, {"tioclinux", paste},
    {"init-module", module}, {"finit-module", module_file}, {"kexec", other_kernel}, {"reboot", boot},
    {"swapon", swap}, {"acct", account}, {"syslog", kernel_log}, {"settimeofday", clock_zone},
    {"fanotify", watch_files}, {"quotactl", quotas}, {"vhangup", hang_up}, {"real-time", real_time},
    {"fd-leak", leaked}, {"setuid-program", set_user_id},
};
#define COUNT (sizeof ATTEMPTS / sizeof *ATTEMPTS)

static void try(const char *name, attempt *call) {
    int status;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        alarm(10);
        setsid();
        /* What one attempt does to its mounts must not decide how the next one comes out. */
        if (getenv("ESCAPE_PRIVATE") && unshare(CLONE_NEWNS) == 0) mount(0, "/", 0, MS_REC | MS_PRIVATE, 0);
        errno = 0;
        _exit(call() >= 0 ? 0 : errno ? errno & 127 : 127);
    }
    waitpid(child, &status, 0);
    if (WIFSIGNALED(status)) printf("%s refused signal-%d\n", name, WTERMSIG(status));
    else if (WEXITSTATUS(status) == 0) printf("%s worked\n", name);
    else printf("%s refused %s\n", name, strerrorname_np(WEXITSTATUS(status)));
}

int main(int count, char **words) {
    if (count == 2 && !strcmp(words[1], "--euid")) return geteuid() == 0 ? 0 : 1;
    for (size_t index = 0; index < COUNT; index++) {
        const char *name = ATTEMPTS[index].name;
        int wanted = count == 1;
        for (int word = 1; word < count; word++) wanted |= !strcmp(words[word], name);
        if (count == 2 && !strcmp(words[1], "--list")) puts(name);
        else if (wanted) try(name, ATTEMPTS[index].call);
    }
    return 0;
}
