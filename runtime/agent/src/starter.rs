//! Starting a virtual machine by another program, which ends when the machine runs and leaves it as a child of this process.

use std::ffi::OsString;
use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::io::OwnedFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::sys::{self, Poller, Status};

/// More than `pid N` and a newline.
const MAX_SAID: usize = 64;
/// Ends of the starter's other children that are remembered.
const MAX_ENDED: usize = 256;

/// Run the starter to its end; returns the process of the machine. `signals` reports SIGTERM and SIGCHLD.
pub(crate) fn run(words: &[OsString], timeout: Duration, signals: &OwnedFd) -> Result<i32, String> {
    let name = words[0].to_string_lossy();
    let failed = |what: &str| format!("the virtual machine could not be started: {name} {what}");
    let (read, write) = sys::pipe().map_err(|error| failed(&error.to_string()))?;
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).stdin(Stdio::null()).stdout(write);
    let starter = sys::spawn_bound(&mut command, None, None).map_err(|error| failed(&error.to_string()))?;
    // Its copy of the write end must go, or the pipe never ends.
    drop(command);
    let until = Instant::now() + timeout;
    let mut ended: Vec<(i32, Status)> = Vec::new();
    let status = loop {
        let mut poller = Poller::new();
        poller.add(signals, libc::POLLIN, ());
        poller.wait(Some(until)).map_err(|error| failed(&error.to_string()))?;
        while let Some(number) = sys::next_signal(signals) {
            if number == libc::SIGTERM {
                return Err("the pod was stopped while the virtual machine was being started".into());
            }
        }
        let mut status = None;
        while let Ok(Some((pid, how))) = sys::reap() {
            if pid == starter {
                status = Some(how);
            } else if ended.len() < MAX_ENDED {
                ended.push((pid, how));
            }
        }
        if let Some(status) = status {
            break status;
        }
        if until <= Instant::now() {
            return Err(failed("did not end in time"));
        }
    };
    match status {
        Status { code: 0, signal: 0 } => (),
        Status { signal: 0, code } => return Err(failed(&format!("ended with exit status {code}"))),
        Status { signal, .. } => return Err(failed(&format!("was killed by signal {signal}"))),
    }
    let pid = said(read).ok_or_else(|| failed("did not say `pid N`"))?;
    if let Some((_, how)) = ended.iter().find(|(gone, _)| *gone == pid) {
        return Err(too_early(*how));
    }
    if parent_of(pid) != Some(std::process::id()) {
        return Err(failed(&format!("named process {pid}, which is not a machine that runs")));
    }
    Ok(pid)
}

/// What is said of a machine that ended before its guest said that it would, whenever that was noticed.
pub(crate) fn too_early(status: Status) -> String {
    match status {
        Status { signal: 0, code: 0 } => "the machine ended before the guest said so".into(),
        Status { signal: 0, code } => format!("QEMU failed with exit status {code}"),
        Status { signal, .. } => format!("QEMU was killed by signal {signal}"),
    }
}

/// The process that the starter named; it said no more than that, so a pipe holds it.
fn said(read: OwnedFd) -> Option<i32> {
    sys::set_nonblocking(&read).ok()?;
    let (mut pipe, mut text, mut chunk) = (fs::File::from(read), Vec::new(), [0; MAX_SAID]);
    while text.len() < MAX_SAID {
        match pipe.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => text.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => (),
            // The machine may have inherited the other end.
            Err(_) => break,
        }
    }
    let text = String::from_utf8(text).ok()?;
    text.strip_prefix("pid ")?.strip_suffix('\n')?.parse().ok().filter(|pid| *pid > 1)
}

/// The parent of a process, if there is such a process (proc(5), stat).
fn parent_of(pid: i32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}
