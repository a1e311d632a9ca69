//! Thin wrappers of system calls that the standard library lacks; all unsafe code of the agent is here
//! and in its submodule.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::io::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use libc::{c_int, c_short};

use crate::frame::Size;

pub mod files;
pub mod guest;
pub mod host;
pub mod rights;
pub mod terminal;

pub use files::{change_owner, change_times, lock};

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

fn owned(fd: c_int) -> io::Result<OwnedFd> {
    // SAFETY: a system call has just returned this descriptor to us alone.
    check(fd).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

fn c_string(text: &[u8]) -> io::Result<CString> {
    CString::new(text).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// Nanoseconds of CLOCK_MONOTONIC, to compare with those of other processes of this host.
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime fills one timespec; this clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Take over a descriptor that the parent handed down by number.
pub fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl only reads the number; it fails if the descriptor is not open.
    check(unsafe { libc::fcntl(fd, libc::F_GETFD) })?;
    owned(fd)
}

/// Standard input, output or error: 0, 1 or 2.
pub fn standard(fd: RawFd) -> BorrowedFd<'static> {
    // SAFETY: the standard library keeps 0, 1 and 2 open from start to end.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// Set or clear close-on-exec.
pub fn set_cloexec(fd: RawFd, on: bool) -> io::Result<()> {
    // SAFETY: F_SETFD takes an int and touches no memory.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, if on { libc::FD_CLOEXEC } else { 0 }) }).map(drop)
}

/// Close every descriptor from 3 on that is not in `keep`, and mark those close-on-exec.
pub fn keep_only(keep: &[RawFd]) -> io::Result<()> {
    let mut sorted = keep.to_vec();
    sorted.sort_unstable();
    let mut next = 3;
    for fd in sorted.into_iter().filter(|fd| *fd >= 3) {
        if fd > next {
            close_range(next, fd - 1)?;
        }
        set_cloexec(fd, true)?;
        next = fd + 1;
    }
    close_range(next, RawFd::MAX)
}

fn close_range(first: RawFd, last: RawFd) -> io::Result<()> {
    // SAFETY: called at start, before anything here owns a descriptor of the range.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } as c_int).map(drop)
}

/// Make reads and writes of this open file description return instead of wait.
pub fn set_nonblocking(fd: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: F_GETFL and F_SETFL take and return ints.
    unsafe {
        let flags = check(libc::fcntl(fd.as_raw_fd(), libc::F_GETFL))?;
        check(libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK)).map(drop)
    }
}

/// A pipe's read end and write end, both close-on-exec.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: pipe2 writes two ints into the array.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
    Ok((owned(ends[0])?, owned(ends[1])?))
}

/// Descriptors to wait for, each with the caller's word for it.
pub struct Poller<T> {
    fds: Vec<libc::pollfd>,
    tokens: Vec<T>,
}

impl<T: Copy> Poller<T> {
    /// An empty set.
    pub fn new() -> Self {
        Poller { fds: Vec::new(), tokens: Vec::new() }
    }

    /// Wait for `events` of `fd`; no events means that not even a hang-up is of interest.
    pub fn add(&mut self, fd: &impl AsRawFd, events: c_short, token: T) {
        if events != 0 {
            self.fds.push(libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 });
            self.tokens.push(token);
        }
    }

    /// Wait until `deadline`, return what is ready, and empty the set.
    pub fn wait(&mut self, deadline: Option<Instant>) -> io::Result<Vec<(T, c_short)>> {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        // Rounded up: a wake-up before the deadline would only be followed by another.
        let timeout =
            left.map_or(-1, |left| (left + Duration::from_micros(999)).as_millis().min(60_000) as c_int);
        // SAFETY: the pointer and the length describe the vector.
        let count = unsafe { libc::poll(self.fds.as_mut_ptr(), self.fds.len() as libc::nfds_t, timeout) };
        match check(count) {
            Err(error) if error.raw_os_error() != Some(libc::EINTR) => return Err(error),
            _ => (),
        }
        let ready = self.fds.drain(..).zip(self.tokens.drain(..)).filter(|(fd, _)| fd.revents != 0);
        Ok(ready.map(|(fd, token)| (token, fd.revents)).collect())
    }
}

impl<T: Copy> Default for Poller<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// Block these signals and return a descriptor that reports them.
pub fn signals(numbers: &[c_int]) -> io::Result<OwnedFd> {
    // SAFETY: an all-zero sigset_t is valid memory for sigemptyset to fill; the calls only use that set.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for number in numbers {
            libc::sigaddset(&mut set, *number);
        }
        check(libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()))?;
        owned(libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))
    }
}

/// The next pending signal of such a descriptor.
pub fn next_signal(fd: &OwnedFd) -> Option<c_int> {
    // SAFETY: an all-zero signalfd_siginfo is valid, and read writes at most its size.
    unsafe {
        let mut info: libc::signalfd_siginfo = std::mem::zeroed();
        let size = std::mem::size_of_val(&info);
        let got = libc::read(fd.as_raw_fd(), std::ptr::addr_of_mut!(info).cast(), size);
        (got == size as isize).then_some(info.ssi_signo as c_int)
    }
}

/// How a process ended; `signal` is 0 unless it was killed by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// Exit status, 128 + signal if killed.
    pub code: u8,
    /// The signal that killed it.
    pub signal: u8,
}

impl Status {
    /// An ordinary end with this code.
    pub fn exited(code: u8) -> Self {
        Status { code, signal: 0 }
    }

    /// An end by this signal.
    pub fn killed(signal: u8) -> Self {
        Status { code: 128u8.wrapping_add(signal), signal }
    }
}

fn decoded(raw: c_int) -> Status {
    if libc::WIFSIGNALED(raw) {
        Status::killed(libc::WTERMSIG(raw) as u8)
    } else {
        Status::exited(libc::WEXITSTATUS(raw) as u8)
    }
}

/// Wait for one child to end.
pub fn await_exit(pid: i32) -> io::Result<Status> {
    let mut raw = 0;
    loop {
        // SAFETY: waitpid writes one int.
        match check(unsafe { libc::waitpid(pid, &mut raw, 0) }) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            ended => return ended.map(|_| decoded(raw)),
        }
    }
}

/// Start a child that inherits `fds`.
pub fn spawn_with(command: &mut Command, fds: Vec<RawFd>) -> io::Result<i32> {
    // SAFETY: between fork and exec the closure makes only system calls and allocates nothing.
    unsafe {
        command.pre_exec(move || fds.iter().try_for_each(|fd| set_cloexec(*fd, false)));
    }
    command.spawn().map(|child| child.id() as i32)
}

/// Start a child that finds `fds` as its descriptors from 3 on.
pub fn spawn_passing(command: &mut Command, fds: Vec<OwnedFd>) -> io::Result<i32> {
    let (mut high, first_free) = (vec![-1; fds.len()], 3 + fds.len() as c_int);
    // SAFETY: between fork and exec the closure makes only system calls and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            // First out of the way: one of them may have the number that is for another.
            for (place, fd) in high.iter_mut().zip(&fds) {
                *place = check(libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, first_free))?;
            }
            (3..).zip(&high).try_for_each(|(number, fd)| check(libc::dup2(*fd, number)).map(drop))
        });
    }
    command.spawn().map(|child| child.id() as i32)
}

/// Become another program; returns why that failed. SIGPIPE, which the standard library ignores, is as at the start.
pub fn execute(path: &[u8], words: &[OsString]) -> io::Error {
    let words: io::Result<Vec<CString>> = words.iter().map(|word| c_string(word.as_bytes())).collect();
    match (c_string(path), words) {
        (Ok(path), Ok(words)) => {
            let mut argv: Vec<_> = words.iter().map(|word| word.as_ptr()).collect();
            argv.push(std::ptr::null());
            // SAFETY: the arrays end with a null pointer and their strings outlive the call.
            unsafe {
                libc::signal(libc::SIGPIPE, libc::SIG_DFL);
                libc::execv(path.as_ptr(), argv.as_ptr());
            }
            io::Error::last_os_error()
        }
        (Err(error), _) | (_, Err(error)) => error,
    }
}

/// Reap one ended child, if there is one; an error means that there are no children.
pub fn reap() -> io::Result<Option<(i32, Status)>> {
    let mut raw = 0;
    // SAFETY: waitpid writes one int.
    let pid = check(unsafe { libc::waitpid(-1, &mut raw, libc::WNOHANG) })?;
    if pid == 0 {
        return Ok(None);
    }
    Ok(Some((pid, decoded(raw))))
}

/// Send a signal to an unreaped child.
pub fn kill(pid: i32, signal: c_int) -> io::Result<()> {
    if pid <= 1 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: takes and returns ints; the caller has not reaped the process, so the id is still its own.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// The process that connected a unix socket, as this process numbers it (unix(7), SO_PEERCRED).
pub fn peer_pid(socket: &UnixStream) -> io::Result<i32> {
    let mut found = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut size = std::mem::size_of::<libc::ucred>() as libc::socklen_t;
    let place = &mut found as *mut libc::ucred;
    // SAFETY: the kernel writes at most `size` bytes into `found`, which is of that size.
    check(unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, place.cast(), &mut size)
    })?;
    Ok(found.pid)
}

/// Adopt the descendants whose parents end.
pub fn become_subreaper() -> io::Result<()> {
    // SAFETY: this prctl takes ints.
    check(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }).map(drop)
}

/// A system call filter, as seccomp(2) takes it: classic BPF, eight bytes per instruction.
pub struct Filter(Vec<libc::sock_filter>);

impl Filter {
    /// The kernel's own limit (linux/filter.h, BPF_MAXINSNS) times the size of an instruction.
    const MAX_BYTES: u64 = 4096 * 8;

    /// Read a whole program from a file.
    pub fn read(file: File) -> io::Result<Self> {
        let mut bytes = Vec::new();
        file.take(Self::MAX_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.is_empty() || bytes.len() % 8 != 0 || bytes.len() as u64 > Self::MAX_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a system call filter"));
        }
        let one = |b: &[u8]| libc::sock_filter {
            code: u16::from_ne_bytes([b[0], b[1]]),
            jt: b[2],
            jf: b[3],
            k: u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
        };
        Ok(Filter(bytes.chunks_exact(8).map(one).collect()))
    }

    /// Put the calling thread and all that it starts under the filter.
    fn load(&mut self) -> io::Result<()> {
        let program = libc::sock_fprog { len: self.0.len() as u16, filter: self.0.as_mut_ptr() };
        // SAFETY: `program` points to `len` instructions that outlive the call; the kernel copies them.
        let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &program) };
        check(result as c_int).map(drop)
    }
}

/// Start `command` in its own session, killed when this process ends, after it joined the cgroup of `procs` and
/// went under `filter`.
pub fn spawn_bound(
    command: &mut Command,
    procs: Option<OwnedFd>,
    mut filter: Option<Filter>,
) -> io::Result<i32> {
    let parent = std::process::id();
    // SAFETY: between fork and exec the closure makes only system calls and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0))?;
            if libc::getppid() != parent as i32 {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            check(libc::setsid())?;
            if let Some(procs) = &procs {
                check(libc::write(procs.as_raw_fd(), b"0".as_ptr().cast(), 1) as c_int)?;
            }
            filter.as_mut().map_or(Ok(()), Filter::load)
        });
    }
    command.spawn().map(|child| child.id() as i32)
}

/// mount(2): `source` to `target`.
pub fn mount(source: &str, target: &str, kind: &str, flags: libc::c_ulong, data: &str) -> io::Result<()> {
    let words = [source, target, kind, data].map(|word| c_string(word.as_bytes()));
    let [source, target, kind, data] = words;
    let (source, target, kind, data) = (source?, target?, kind?, data?);
    // SAFETY: all pointers are to NUL-terminated strings that outlive the call.
    check(unsafe {
        libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast())
    })
    .map(drop)
}

/// Open `path` for reading as if `root` were the root folder, links included (openat2, RESOLVE_IN_ROOT).
pub fn open_in_root(root: &File, path: &[u8]) -> io::Result<File> {
    let path = c_string(path)?;
    // SAFETY: open_how is plain integers; the path is NUL-terminated; size is that of the struct.
    unsafe {
        let mut how: libc::open_how = std::mem::zeroed();
        how.flags = (libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY) as u64;
        how.resolve = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;
        let size = std::mem::size_of_val(&how);
        let fd = libc::syscall(libc::SYS_openat2, root.as_raw_fd(), path.as_ptr(), &how, size);
        owned(fd as c_int).map(File::from)
    }
}

/// Receive the one descriptor that a peer sent over a unix socket.
pub fn receive_fd(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = [0u8; 256];
    let mut space = [0u64; 8];
    // SAFETY: msghdr points to local buffers with their sizes; the control buffer is aligned for cmsghdr and
    // CMSG_FIRSTHDR checks its length; the descriptor is read only from an SCM_RIGHTS message that holds one.
    unsafe {
        let mut part = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: byte.len() };
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &mut part;
        message.msg_iovlen = 1;
        message.msg_control = space.as_mut_ptr().cast();
        message.msg_controllen = std::mem::size_of_val(&space);
        check(libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_CMSG_CLOEXEC) as c_int)?;
        let header = libc::CMSG_FIRSTHDR(&message);
        if header.is_null()
            || (*header).cmsg_type != libc::SCM_RIGHTS
            || ((*header).cmsg_len as usize) != libc::CMSG_LEN(4) as usize
        {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "no descriptor came"));
        }
        owned(libc::CMSG_DATA(header).cast::<c_int>().read_unaligned())
    }
}

/// Set a terminal's size; the kernel tells its foreground processes.
pub fn set_size(fd: &impl AsRawFd, size: Size) -> io::Result<()> {
    let value = libc::winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSWINSZ, &value) }).map(drop)
}

/// A terminal's size.
pub fn get_size(fd: &impl AsRawFd) -> io::Result<Size> {
    let mut value = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ, &mut value) })?;
    Ok(Size { rows: value.ws_row, cols: value.ws_col })
}

/// Open the other end of a terminal whose master `fd` is, whatever is mounted where (ioctl_tty(2)).
pub fn terminal_peer(fd: &impl AsRawFd) -> io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes flags and returns a descriptor that nobody else owns.
    let peer = check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGPTPEER, flags) })?;
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(peer) })
}

/// A terminal's settings; fails if `fd` is not one, or if it is gone.
pub fn get_terminal(fd: &impl AsRawFd) -> io::Result<libc::termios> {
    // SAFETY: an all-zero termios is valid memory for tcgetattr to fill.
    unsafe {
        let mut settings = std::mem::zeroed();
        check(libc::tcgetattr(fd.as_raw_fd(), &mut settings))?;
        Ok(settings)
    }
}

/// Change a terminal's settings once its output has gone.
pub fn set_terminal(fd: &impl AsRawFd, settings: &libc::termios) -> io::Result<()> {
    // SAFETY: tcsetattr reads one termios.
    check(unsafe { libc::tcsetattr(fd.as_raw_fd(), libc::TCSADRAIN, settings) }).map(drop)
}

/// The same settings with every byte passed through.
pub fn raw_terminal(settings: &libc::termios) -> libc::termios {
    let mut raw = *settings;
    // SAFETY: cfmakeraw changes one termios.
    unsafe { libc::cfmakeraw(&mut raw) };
    raw
}
