//! One process with its streams: the app, or a command executed beside it.

use std::fs::{self, File};
use std::io;
use std::os::unix::io::OwnedFd;
use std::path::Path;

use crate::conn::Queue;
use crate::crun::{Ends, Failure, Launch};
use crate::frame::Size;
use crate::sys::{self, Status};

/// A process with its streams: the app, or a command executed beside it.
pub(crate) struct Session {
    pub launch: Launch,
    pub crun: Option<i32>,
    pub pid: Option<i32>,
    pub ends: Ends,
    pub terminal: bool,
    /// The process's end of the terminal: one that has closed it, as an init does, may open it again.
    peer: Option<OwnedFd>,
    pub pending: Queue,
    pub input_ended: bool,
    pub owner: Option<usize>,
    /// So many of the first pending bytes are of an owner that has gone: nobody gets credit for them.
    pub unpaid: usize,
    /// Nobody hears of it once it has started.
    pub alone: bool,
    pub size: Size,
    /// A signal to send as soon as the process is known.
    pub signal: Option<i32>,
    /// The signal whose default action was carried out by SIGKILL.
    pub emulated: Option<u8>,
    pub status: Option<Status>,
    pub failure: Option<Failure>,
    /// The beginning of its output: crun's last words come there.
    pub said: Vec<u8>,
}

impl Session {
    pub fn new(launch: Launch, crun: Option<i32>, ends: Ends, size: Size) -> Self {
        Session {
            terminal: launch.has_terminal(),
            peer: None,
            launch,
            crun,
            pid: None,
            ends,
            pending: Queue::default(),
            input_ended: false,
            owner: None,
            unpaid: 0,
            alone: false,
            size,
            signal: None,
            emulated: None,
            status: None,
            failure: None,
            said: Vec::new(),
        }
    }

    /// One that never came to be.
    pub fn failed(launch: Launch, failure: Failure) -> Self {
        let mut session = Session::new(launch, None, Ends::default(), Size::default());
        session.status = Some(Status::exited(failure.status));
        session.failure = Some(failure);
        session
    }

    /// How it ended, once it is over.
    pub fn outcome(&mut self, rootfs: &Path) -> (Status, Option<Failure>) {
        let status = self.status.unwrap_or(Status::exited(125));
        let explain = || self.launch.explain(rootfs, self.pid.is_some(), status, &self.said);
        let failure = self.failure.take().or_else(explain);
        self.launch.clean();
        (failure.as_ref().map_or(status, |failure| Status::exited(failure.status)), failure)
    }

    /// Take over what waits for the next run of an app: who feeds it, and what was fed to the last one.
    pub fn inherit(&mut self, last: Session) {
        self.owner = last.owner;
        self.pending = last.pending;
        self.unpaid = last.unpaid;
        // A terminal's end of input was a character for the last run.
        self.input_ended = last.input_ended && !self.terminal;
        if self.input_ended && self.pending.is_empty() {
            self.ends.input = None;
        }
    }

    /// Whether its process is there and may do its work.
    pub fn is_live(&self) -> bool {
        self.pid.is_some() && self.status.is_none() && !self.launch.held
    }

    pub fn is_over(&self) -> bool {
        self.crun.is_none() && self.status.is_some() && self.ends.outputs.iter().all(Option::is_none)
    }

    /// crun has ended: learn the process, if there is one.
    pub fn created(&mut self, status: Status) {
        if status.code != 0 {
            self.status = Some(status);
        } else if let Err(error) = self.adopt() {
            self.status = Some(status);
            self.failure = Some(Failure::own(format!("crun: {error}")));
        }
    }

    fn adopt(&mut self) -> io::Result<()> {
        self.pid = Some(self.launch.pid()?);
        if let Some(master) = self.launch.terminal()? {
            self.peer = Some(sys::terminal_peer(&master)?);
            self.ends.input = Some(File::from(master.try_clone()?));
            self.ends.outputs[0] = Some(File::from(master));
            self.resize(self.size);
        }
        if !self.launch.held {
            self.launch.release();
        }
        if let Some(number) = self.signal.take() {
            self.deliver(number, true);
        }
        Ok(())
    }

    /// Its owner sends no more input.
    pub fn disown(&mut self) {
        self.owner = None;
        self.unpaid = self.pending.len();
    }

    pub fn process_ended(&mut self, status: Status) {
        self.peer = None;
        self.status = Some(match self.emulated {
            Some(number) if status.signal == libc::SIGKILL as u8 => Status::killed(number),
            _ => status,
        });
    }

    pub fn resize(&mut self, size: Size) {
        self.size = size;
        if let (true, Some(master)) = (self.terminal && size != Size::default(), &self.ends.outputs[0]) {
            // A terminal that has just gone needs no size.
            let _ = sys::set_size(master, size);
        }
    }

    /// Send a signal; to the first process of a container also one that it neither catches nor ignores.
    pub fn deliver(&mut self, number: i32, first: bool) {
        let pid = match self.pid {
            Some(pid) if self.status.is_none() => pid,
            Some(_) => return,
            None => {
                self.signal = Some(number);
                return;
            }
        };
        let mut sent = number;
        if first && ends_by_default(number) && is_unhandled(pid, number) {
            // The kernel shields PID 1 of a namespace from default actions; outside it would have ended.
            self.emulated = Some(number as u8);
            sent = libc::SIGKILL;
        }
        // A process that is about to be reaped needs no signal.
        let _ = sys::kill(pid, sent);
    }
}

fn ends_by_default(number: i32) -> bool {
    use libc::{SIGCHLD, SIGCONT, SIGKILL, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU, SIGURG, SIGWINCH};
    ![SIGCHLD, SIGCONT, SIGKILL, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU, SIGURG, SIGWINCH].contains(&number)
}

/// Whether a process neither catches, ignores nor blocks a signal (proc(5), status).
pub fn is_unhandled(pid: i32, number: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let masks = status.lines().filter_map(|line| {
        let (key, value) = line.split_once(':')?;
        let mask = u64::from_str_radix(value.trim(), 16).ok()?;
        ["SigBlk", "SigIgn", "SigCgt"].contains(&key).then_some(mask)
    });
    let masks: Vec<u64> = masks.collect();
    masks.len() == 3 && masks.iter().all(|mask| mask >> (number - 1) & 1 == 0)
}
