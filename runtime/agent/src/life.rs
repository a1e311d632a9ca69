//! The life of an app beyond one run: it may begin again, and it is asked how it is.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::again::Again;
use crate::crun::{Failure, Launch, Target};
use crate::frame::{Message, Size, Violation};
use crate::group::Groups;
use crate::health::{Check, Health, OnFailure, State};
use crate::peers::place;
use crate::report::{now_ns, quoted, write_state};
use crate::session::Session;
use crate::shim::{Shim, APP};
use crate::sys::{self, Status};

/// What is kept of a text: podman keeps 500 characters of what a check wrote.
const MAX_KEPT: usize = 512;
/// PF_EXITING of linux/sched.h, in the flags of proc(5), stat.
const EXITING: u64 = 4;

/// Between two runs.
struct Pause {
    until: Instant,
    end: (Status, Option<Failure>),
}

/// A check that is being made.
struct Probe {
    session: usize,
    until: Instant,
    started_ns: u64,
    late: bool,
}

/// How the last run ended.
struct Last {
    status: Status,
    error: String,
    finished_ns: u64,
}

/// What is known of an app from one run to the next.
pub(crate) struct Life {
    again: Again,
    health: Option<Health>,
    /// What a check executes, for the diagnosis.
    target: Target,
    pause: Option<Pause>,
    /// It is being ended so that it begins again, whatever its policy.
    asked: bool,
    /// The first run was let go: before, nothing of the app has run.
    pub let_go: bool,
    /// A new run that has not been told of yet.
    untold: bool,
    restarts: u32,
    began: Instant,
    began_ns: u64,
    last: Option<Last>,
    probe: Option<Probe>,
    changed: bool,
    warned: bool,
}

impl Life {
    pub fn new(again: Again, health: Option<Health>, target: Target, held: bool) -> Self {
        // An app of which nothing more than its one run is to be told needs no record of it.
        let changed = again.is_set() || health.is_some();
        Life {
            again,
            health,
            target,
            pause: None,
            asked: false,
            let_go: !held,
            untold: false,
            restarts: 0,
            began: Instant::now(),
            began_ns: now_ns(),
            last: None,
            probe: None,
            changed,
            warned: false,
        }
    }

    /// When there is something to do.
    pub fn deadline(&self) -> Option<Instant> {
        let pause = self.pause.as_ref().map(|pause| pause.until);
        let probe = self.probe.as_ref().filter(|probe| !probe.late).map(|probe| probe.until);
        pause.into_iter().chain(probe).chain(self.health.as_ref().and_then(Health::deadline)).min()
    }

    /// The pause before the next run, if there is one.
    fn next(&mut self, code: u8) -> Option<Duration> {
        match std::mem::take(&mut self.asked) {
            true => Some(Duration::ZERO),
            false => self.again.next(code, self.began.elapsed()),
        }
    }

    /// The state record: canonical JSON, as docs/agent-protocol.md has it.
    fn text(&self) -> String {
        let last = self.last.as_ref().map_or("null".into(), |last| {
            let (status, error) = (last.status, quoted(&last.error));
            let Status { code, signal } = status;
            format!(
                "{{\"code\":{code},\"error\":{error},\"finished_ns\":{},\"signal\":{signal}}}",
                last.finished_ns
            )
        });
        format!(
            "{{\"began_ns\":{},\"health\":{},\"last\":{last},\"restarts\":{},\"waiting\":{}}}",
            self.began_ns,
            self.health.as_ref().map_or("null".into(), health_text),
            self.restarts,
            self.pause.is_some()
        )
    }
}

fn health_text(health: &Health) -> String {
    let checks: Vec<String> = health.checks.iter().map(check_text).collect();
    let state = match health.state {
        State::Starting => "starting",
        State::Healthy => "healthy",
        State::Unhealthy => "unhealthy",
    };
    format!("{{\"checks\":[{}],\"failures\":{},\"state\":\"{state}\"}}", checks.join(","), health.failures)
}

fn check_text(check: &Check) -> String {
    format!(
        "{{\"code\":{},\"ended_ns\":{},\"late\":{},\"output\":{},\"started_ns\":{}}}",
        check.code,
        check.ended_ns,
        check.late,
        quoted(&check.output),
        check.started_ns
    )
}

/// A text to keep: bounded, and without what would drive a terminal.
fn kept(text: &str) -> String {
    let plain = |char: char| if char.is_control() && char != '\n' && char != '\t' { '?' } else { char };
    let mut text: String = text.trim_end().chars().map(plain).collect();
    let mut end = text.len().min(MAX_KEPT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

/// Whether a process is on its way out: of a container's first process the others are killed then.
fn is_exiting(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let flags = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(6)?.parse().ok());
    flags.map_or(true, |flags: u64| flags & EXITING != 0)
}

impl Shim {
    // --- beginning again

    /// How the app ended, once it is over for good.
    pub fn over(&mut self) -> Option<(Status, Option<Failure>)> {
        if let Some(pause) = &self.life.pause {
            if self.stopping {
                return self.life.pause.take().map(|pause| pause.end);
            }
            if pause.until <= Instant::now() {
                self.begin_again();
            }
            return None;
        }
        let (status, failure) = match &mut self.sessions[APP] {
            Some(app) if app.is_over() => app.outcome(&self.run.join("rootfs")),
            None if self.stopping => {
                let failure = Failure::own("stopped before it started".into());
                (Status::killed(libc::SIGTERM as u8), Some(failure))
            }
            _ => return None,
        };
        self.kill_at = None;
        let pause = match self.stopping || !self.life.let_go {
            true => None,
            false => self.life.next(status.code),
        };
        let error = failure.as_ref().map_or(String::new(), |failure| kept(&failure.text));
        self.life.last = Some(Last { status, error, finished_ns: now_ns() });
        self.life.changed |= pause.is_some() || self.life.restarts > 0;
        match pause {
            Some(pause) => {
                let end = (status, failure);
                self.life.pause = Some(Pause { until: Instant::now() + pause, end });
                None
            }
            None => Some((status, failure)),
        }
    }

    fn begin_again(&mut self) {
        self.life.pause = None;
        let last = self.sessions[APP].take();
        let size = last.as_ref().map_or(Size::default(), |last| last.size);
        self.life.began = Instant::now();
        self.life.began_ns = now_ns();
        self.life.restarts = self.life.restarts.saturating_add(1);
        self.life.untold = true;
        self.life.changed = true;
        // What crun remembers of a container whose processes are gone; without control groups it is these files alone.
        let _ = fs::remove_dir_all(Path::new("/run/crun").join(&self.options.app));
        let cleared = self.groups.as_ref().map_or(Ok(()), Groups::clear);
        if let Err(error) = cleared.and_then(|()| self.begin(size)) {
            self.fail_app(Failure::own(error.to_string()));
        }
        if let (Some(last), Some(app)) = (last, self.sessions[APP].as_mut()) {
            app.inherit(last);
        }
    }

    /// Tell those who wait for it that the app has begun again, be it held.
    pub fn tell_again(&mut self) {
        let there = self.sessions[APP].as_ref().map_or(false, |app| app.pid.is_some());
        if !there || !std::mem::take(&mut self.life.untold) {
            return;
        }
        let count = self.life.restarts;
        for peer in self.peers.iter_mut().flatten().filter(|peer| !peer.closing) {
            if peer.awaits || peer.foreground && peer.session == Some(APP) {
                peer.conn.send(&Message::Again(count));
                peer.closing = peer.awaits;
            }
        }
    }

    /// The foreground peer lets a held run go.
    pub fn go(&mut self, index: usize) -> Result<(), Violation> {
        let allowed = self.peers[index].as_ref().map_or(false, |peer| peer.foreground);
        let app = match self.sessions[APP].as_mut().filter(|_| allowed) {
            Some(app) => app,
            None => return Err(Violation("GO out of place")),
        };
        if app.launch.held && app.pid.is_some() {
            app.launch.held = false;
            app.launch.release();
            self.reporter.stop();
            self.announce();
        }
        Ok(())
    }

    /// A peer asks for a new start.
    pub fn restart_for(&mut self, index: usize) {
        if self.stopping {
            return self.refuse(index, "the pod is being stopped");
        }
        if self.sessions[APP].is_none() || !self.life.let_go {
            return self.refuse(index, "the app has not started");
        }
        if let Some(peer) = self.peers[index].as_mut() {
            peer.awaits = true;
        }
        self.restart();
    }

    /// End the app in order, and begin it again.
    fn restart(&mut self) {
        if let Some(pause) = &mut self.life.pause {
            pause.until = Instant::now();
        } else if !self.life.asked {
            self.life.asked = true;
            self.kill_at = Some(Instant::now() + self.options.stop_timeout);
            self.signal_session(APP, self.options.stop_signal);
        }
    }

    /// The app is over for good: nobody waits for it any more.
    pub fn disappoint(&mut self) {
        for index in 0..self.peers.len() {
            if self.peers[index].as_ref().map_or(false, |peer| peer.awaits && !peer.closing) {
                self.refuse(index, "the app has ended");
            }
        }
    }

    // --- health

    /// Begin a check that is due, end one that takes too long.
    pub fn look_after(&mut self) {
        let live = self.sessions[APP].as_ref().map_or(false, Session::is_live);
        let live = live && !self.life.asked && !self.stopping;
        let now = Instant::now();
        let due = match &mut self.life.health {
            None => return,
            Some(health) if !live => {
                health.rest();
                false
            }
            Some(health) if !health.is_awake() => {
                health.begin(now);
                self.life.changed = true;
                false
            }
            Some(health) => health.take_due(now),
        };
        if due && self.life.probe.is_none() {
            self.probe(now);
        }
        match &mut self.life.probe {
            Some(probe) if !probe.late && probe.until <= now => {
                probe.late = true;
                if let Some(session) = &self.sessions[probe.session] {
                    for pid in session.pid.into_iter().chain(session.crun) {
                        // One that has just ended needs no signal.
                        let _ = sys::kill(pid, libc::SIGKILL);
                    }
                }
            }
            _ => (),
        }
    }

    fn probe(&mut self, now: Instant) {
        let timeout = self.life.health.as_ref().map_or(Duration::ZERO, Health::timeout);
        let file: PathBuf = ["/pod/apps", &self.options.app, "health.json"].iter().collect();
        let started = Launch::new(self.run.join("health"), false, self.life.target.clone()).and_then(|launch| {
            let words = ["exec", "--process", &file.display().to_string()];
            self.launch(launch, &words, false, Size::default())
        });
        let started_ns = now_ns();
        match started {
            Ok(session) => {
                let session = place(&mut self.sessions, session);
                self.life.probe = Some(Probe { session, until: now + timeout, started_ns, late: false });
            }
            Err(error) => self.judge(Check {
                started_ns,
                ended_ns: started_ns,
                code: 125,
                late: false,
                output: kept(&error.to_string()),
            }),
        }
    }

    /// A session has ended: if it was the check, this is its result.
    pub fn probed(&mut self, index: usize, status: Status, failure: Option<&Failure>, said: &[u8]) {
        let probe = match self.life.probe.take() {
            Some(probe) if probe.session == index => probe,
            other => {
                self.life.probe = other;
                return;
            }
        };
        let app = self.sessions[APP].as_ref().filter(|app| app.is_live()).and_then(|app| app.pid);
        if app.map_or(true, is_exiting) {
            // It ended with the app.
            return;
        }
        let said = String::from_utf8_lossy(said);
        let output = kept(failure.map_or(&said, |failure| failure.text.as_str()));
        let Probe { started_ns, late, .. } = probe;
        self.judge(Check { started_ns, ended_ns: now_ns(), code: status.code, late, output });
    }

    fn judge(&mut self, check: Check) {
        let became = self.life.health.as_mut().and_then(|health| {
            let became = health.take(check, Instant::now());
            became.then(|| health.on_failure())
        });
        self.life.changed = true;
        if self.stopping || self.life.asked {
            return;
        }
        match became {
            Some(OnFailure::Kill) => self.signal_session(APP, libc::SIGKILL),
            Some(OnFailure::Restart) => self.restart(),
            Some(OnFailure::Stop) => self.stop(false),
            Some(OnFailure::Nothing) | None => (),
        }
    }

    // --- the record

    /// Write down how the app stands, if that has changed; in a guest the host writes it.
    pub fn note(&mut self) {
        if !self.life.changed {
            return;
        }
        let text = self.life.text();
        if self.log.is_some() {
            self.life.changed = false;
            if let Err(error) = write_state(&self.keep, &text) {
                if !std::mem::replace(&mut self.life.warned, true) {
                    eprintln!("secrun-agent: {}: its state cannot be written: {error}", self.options.app);
                }
            }
            return;
        }
        let ready = |peer: &&mut crate::peers::Peer| {
            peer.foreground && peer.session == Some(APP) && !peer.closing && !peer.conn.out.is_full()
        };
        if let Some(peer) = self.peers.iter_mut().flatten().find(ready) {
            peer.conn.send(&Message::State(&text));
            self.life.changed = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_text_is_bounded_and_drives_no_terminal() {
        assert_eq!(kept("a\u{1b}[2Jb\n\tc \n"), "a?[2Jb\n\tc");
        let long = kept(&"ä".repeat(MAX_KEPT));
        assert!(long.len() <= MAX_KEPT && long.chars().all(|char| char == 'ä'));
    }

    #[test]
    fn the_longest_state_fits_its_frame() {
        let rules = crate::health::Rules {
            interval: Duration::ZERO,
            timeout: Duration::ZERO,
            retries: 1,
            start_period: Duration::ZERO,
            on_failure: OnFailure::Nothing,
        };
        let mut health = Health::new(rules);
        let worst = "\n".repeat(MAX_KEPT - 1) + "x";
        for _ in 0..9 {
            let output = kept(&worst);
            let check = Check { started_ns: u64::MAX, ended_ns: u64::MAX, code: 255, late: false, output };
            health.take(check, Instant::now());
        }
        let mut life = Life::new(Again::default(), Some(health), Target::default(), false);
        let status = Status::killed(127);
        life.last = Some(Last { status, error: kept(&worst), finished_ns: u64::MAX });
        life.restarts = u32::MAX;
        let text = life.text();
        assert!(text.len() <= crate::frame::MAX_STATE, "{}", text.len());
    }

    #[test]
    fn this_process_is_not_on_its_way_out() {
        assert!(!is_exiting(std::process::id() as i32));
        assert!(is_exiting(i32::MAX), "one that is not there has gone");
    }
}
