//! Starting a virtual machine by another program, which ends when the machine runs and leaves it as a child of this process.

use std::ffi::OsString;
use std::fs;
use std::io::{ErrorKind, Read};
use std::os::unix::io::OwnedFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::sys::{self, Poller, Status};

/// What a starter may say: a line for each helper, less than a pipe holds.
const MAX_SAID: usize = 32 << 10;
/// Ends of the starter's other children that are remembered.
const MAX_ENDED: usize = 256;

/// What a starter has left behind.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Started {
    /// The process of the machine.
    pub machine: i32,
    /// Those that the machine cannot do without, each with its name.
    pub helpers: Vec<(i32, String)>,
}

/// Run the starter to its end; returns what runs now. `signals` reports SIGTERM and SIGCHLD.
pub(crate) fn run(words: &[OsString], timeout: Duration, signals: &OwnedFd) -> Result<Started, String> {
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
    let said = said(read).unwrap_or_default();
    match status {
        Status { code: 0, signal: 0 } => (),
        Status { signal: 0, .. } if reason(&said).is_some() => {
            return Err(format!("the virtual machine could not be started: {}", reason(&said).unwrap_or_default()))
        }
        Status { signal: 0, code } => return Err(failed(&format!("ended with exit status {code}"))),
        Status { signal, .. } => return Err(failed(&format!("was killed by signal {signal}"))),
    }
    let started = parse(&said).ok_or_else(|| failed("did not say `pid N`"))?;
    let how = |pid: i32| ended.iter().find(|(gone, _)| *gone == pid).map(|(_, how)| *how);
    if let Some(how) = how(started.machine) {
        return Err(too_early(how));
    }
    if let Some(text) = started.helpers.iter().find_map(|(pid, name)| how(*pid).map(|how| lost(name, how))) {
        return Err(text);
    }
    let pids = started.helpers.iter().map(|(pid, _)| *pid).chain([started.machine]);
    for pid in pids {
        if parent_of(pid) != Some(std::process::id()) {
            return Err(failed(&format!("named process {pid}, which is not one that runs for the machine")));
        }
    }
    Ok(started)
}

/// What is said of a helper without which a machine cannot go on.
pub(crate) fn lost(name: &str, status: Status) -> String {
    match status {
        Status { signal: 0, code } => format!("{name} ended with exit status {code}"),
        Status { signal, .. } => format!("{name} was killed by signal {signal}"),
    }
}

/// What is said of a machine that ended before its guest said that it would, whenever that was noticed.
pub(crate) fn too_early(status: Status) -> String {
    match status {
        Status { signal: 0, code: 0 } => "the machine ended before the guest said so".into(),
        Status { signal: 0, code } => format!("QEMU failed with exit status {code}"),
        Status { signal, .. } => format!("QEMU was killed by signal {signal}"),
    }
}

/// What the starter said; it said no more than a pipe holds.
fn said(read: OwnedFd) -> Option<String> {
    sys::set_nonblocking(&read).ok()?;
    let (mut pipe, mut text, mut chunk) = (fs::File::from(read), Vec::new(), [0; 1024]);
    while text.len() < MAX_SAID {
        match pipe.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => text.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => (),
            // The machine may have inherited the other end.
            Err(_) => break,
        }
    }
    String::from_utf8(text).ok()
}

/// Why a starter failed, if it says so: a line `failed TEXT`.
fn reason(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("failed "))
}

/// Read lines `helper N NAME`, and `pid N` at the end.
fn parse(text: &str) -> Option<Started> {
    let number = |text: &str| text.parse().ok().filter(|pid: &i32| *pid > 1);
    let mut started = Started::default();
    for line in text.strip_suffix('\n')?.split('\n') {
        let (word, rest) = line.split_once(' ')?;
        match (word, rest.split_once(' '), started.machine) {
            ("helper", Some((pid, name)), 0) => started.helpers.push((number(pid)?, name.into())),
            ("pid", None, 0) => started.machine = number(rest)?,
            _ => return None,
        }
    }
    Some(started).filter(|started| started.machine != 0)
}

/// The parent of a process, if there is such a process (proc(5), stat).
fn parent_of(pid: i32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_starter_names_helpers_and_then_the_machine() {
        let helpers = vec![(7, "virtiofsd of /a b".to_string()), (8, "swtpm".to_string())];
        let said = "helper 7 virtiofsd of /a b\nhelper 8 swtpm\npid 9\n";
        assert_eq!(parse(said), Some(Started { machine: 9, helpers }));
        assert_eq!(parse("pid 9\n"), Some(Started { machine: 9, helpers: Vec::new() }));
        assert_eq!(reason("helper 7 a\nfailed no tap: gone\n"), Some("no tap: gone"));
        assert_eq!(reason("pid 9\n"), None);
        for broken in [
            "",
            "pid 9",
            "pid 1\n",
            "pid x\n",
            "helper 7 a\n",
            "pid 9\npid 9\n",
            "pid 9\nhelper 7 a\n",
            "x\npid 9\n",
        ] {
            assert_eq!(parse(broken), None, "{broken:?}");
        }
    }
}
