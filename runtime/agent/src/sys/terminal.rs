//! System calls of job control: whose terminal it is, and who is stopped.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::io::AsRawFd;

use libc::c_int;

use super::{check, decoded, Status};

/// What has become of a child.
pub enum Turn {
    /// Nothing that is new.
    Same,
    /// It is stopped, as by the terminal (job control).
    Stopped,
    /// It has ended.
    Ended(Status),
}

/// Look at a child without waiting.
pub fn look_at(child: i32) -> io::Result<Turn> {
    let mut raw = 0;
    // SAFETY: waitpid writes one int.
    let pid = check(unsafe { libc::waitpid(child, &mut raw, libc::WNOHANG | libc::WUNTRACED) })?;
    Ok(match pid {
        0 => Turn::Same,
        _ if libc::WIFSTOPPED(raw) => Turn::Stopped,
        _ => Turn::Ended(decoded(raw)),
    })
}

/// Stop this process until somebody lets it go on.
pub fn stop_here() {
    // SAFETY: takes an int.
    unsafe { libc::raise(libc::SIGSTOP) };
}

/// Let go of the standard streams and of the terminal's session: whoever has the terminal next has it alone.
pub fn leave_terminal() -> io::Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    for standard in 0..3 {
        // SAFETY: takes ints; what 0, 1 and 2 stand for is held by nobody else here.
        check(unsafe { libc::dup2(null.as_raw_fd(), standard) })?;
    }
    // SAFETY: takes nothing; it fails only for the leader of a group, which this is not.
    check(unsafe { libc::setsid() }).map(drop)
}

/// Say that nothing more will be sent; what the peer sends can still be read.
pub fn end_sending(socket: &impl AsRawFd) {
    // SAFETY: takes ints. A peer that has gone already needs no word.
    let _: c_int = unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_WR) };
}
