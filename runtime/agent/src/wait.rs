//! The pod's resident supervisor on the host: starts stage1, connects the caller with the apps, and at the end executes
//! the program that cleans up. Everything from the pod is hostile.

use std::ffi::OsString;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::io::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::args::Words;
use crate::conn::CHUNK;
use crate::frame::{flag, Message, Size};
use crate::front;
use crate::keys::Keys;
use crate::readback::{ReadBack, Values, Verdict, MAX_REPORTS};
use crate::sys::{self, Filter, Poller, Status};
use crate::tty::{Remote, Station};

/// Stop requests that are held open until the pod ends.
const MAX_CONTROLS: usize = 16;
/// What stage1 leaves behind (processes, open connections) gets this long after its end.
const REST_TIME: Duration = Duration::from_secs(2);

#[derive(Default)]
struct Options {
    attach: Option<RawFd>,
    control: Option<RawFd>,
    procs: Option<RawFd>,
    kill: Option<RawFd>,
    seccomp: Option<RawFd>,
    expected: Option<RawFd>,
    enforced: Option<RawFd>,
    log: Option<RawFd>,
    ready: Option<RawFd>,
    notify: Option<RawFd>,
    timing: Option<RawFd>,
    front: Option<RawFd>,
    detach_keys: Option<String>,
    keep: Vec<RawFd>,
    apps: Vec<String>,
    foreground: bool,
    tty: bool,
    prefix: bool,
    stdin_app: Option<String>,
    socket_app: Option<String>,
    sockets: Vec<RawFd>,
    stop_timeout: Duration,
    finish: Vec<OsString>,
    finish_ahead: bool,
    stage1: Vec<OsString>,
}

fn parse(mut words: Words) -> Result<Options, String> {
    let mut options = Options { stop_timeout: Duration::from_secs(20), ..Options::default() };
    while let Some(option) = words.option()? {
        match option.as_str() {
            "--attach-fd" => options.attach = Some(words.fd()?),
            "--control-fd" => options.control = Some(words.fd()?),
            "--cgroup-procs-fd" => options.procs = Some(words.fd()?),
            "--cgroup-kill-fd" => options.kill = Some(words.fd()?),
            "--seccomp-fd" => options.seccomp = Some(words.fd()?),
            "--expected-fd" => options.expected = Some(words.fd()?),
            "--enforced-fd" => options.enforced = Some(words.fd()?),
            "--log-fd" => options.log = Some(words.fd()?),
            "--ready-fd" => options.ready = Some(words.fd()?),
            "--notify-fd" => options.notify = Some(words.fd()?),
            "--timing-fd" => options.timing = Some(words.fd()?),
            "--front-fd" => options.front = Some(words.fd()?),
            "--detach-keys" => options.detach_keys = Some(words.value()?),
            "--keep-fd" => options.keep.push(words.fd()?),
            "--app" => options.apps.push(words.value()?),
            "--foreground" => options.foreground = true,
            "--tty" => options.tty = true,
            "--prefix" => options.prefix = true,
            "--stdin-app" => options.stdin_app = Some(words.value()?),
            "--socket-app" => options.socket_app = Some(words.value()?),
            "--socket-fd" => options.sockets.push(words.fd()?),
            "--stop-timeout" => options.stop_timeout = Duration::from_millis(words.number()?),
            "--finish" => options.finish.push(words.os_value()?),
            "--finish-ahead" => options.finish_ahead = true,
            "--" => options.stage1 = words.rest(),
            _ => return words.unknown(),
        }
    }
    if options.stage1.is_empty() || options.finish.is_empty() || options.attach.is_none() {
        return Err("--attach-fd, --finish and -- COMMAND are needed".into());
    }
    Ok(options)
}

#[derive(Clone, Copy)]
enum Token {
    Signal,
    Front,
    Attach,
    ControlListener,
    Control(usize),
    Remote(usize),
    Output(usize),
    Input,
}

/// The finishing program, started ahead: while stage1 winds up it loads, and then waits for the status.
struct Finisher {
    pid: i32,
    status: File,
}

impl Finisher {
    fn start(finish: &[OsString], keep: &[RawFd]) -> std::io::Result<Self> {
        let (read, write) = sys::pipe()?;
        let mut command = Command::new(&finish[0]);
        command.args(&finish[1..]).arg(format!("--stage1-status-fd={}", read.as_raw_fd()));
        let mut inherited = keep.to_vec();
        inherited.push(read.as_raw_fd());
        Ok(Finisher { pid: sys::spawn_with(&mut command, inherited)?, status: File::from(write) })
    }

    /// Tell it how stage1 ended and return its exit code; None if it did not come to its own end.
    fn conclude(mut self, status: u8) -> Option<u8> {
        // If it has died, nobody reads; its end says the rest.
        let _ = self.status.write_all(format!("{status}\n").as_bytes());
        drop(self.status);
        sys::await_exit(self.pid).ok().filter(|end| end.signal == 0).map(|end| end.code)
    }
}

struct Waiter {
    options: Options,
    signals: OwnedFd,
    attach: UnixListener,
    control: Option<UnixListener>,
    kill: Option<File>,
    ready: Option<File>,
    /// The service manager's socket (sd_notify(3)).
    notify: Option<File>,
    /// Takes lines `host NAME NS`: when, by CLOCK_MONOTONIC, what was reached.
    timing: Option<File>,
    /// The caller's process, if this is its child: it passes signals on, and ends first when the terminal is detached.
    front: Option<UnixStream>,
    controls: Vec<UnixStream>,
    station: Station,
    remotes: Vec<Remote>,
    /// Apps whose shims have come; none may come twice.
    seen: Vec<String>,
    started: usize,
    /// Apps whose shims have told their end.
    ended: usize,
    /// What the kernel enforces for apps is read, if somebody said what was compiled.
    read_back: Option<ReadBack>,
    finisher: Option<Finisher>,
    /// The finishing program is started ahead once at most.
    looked_ahead: bool,
    child: i32,
    status: Option<Status>,
    /// No child is left, adopted ones included.
    alone: bool,
    stopping: bool,
    interrupts: u32,
    kill_at: Option<Instant>,
    rest_until: Option<Instant>,
    /// A shim has said something since the times were last looked at.
    heard: bool,
    scratch: Box<[u8; CHUNK]>,
}

/// Run the mode; returns only if the program at the end cannot be executed.
pub fn main(words: Vec<OsString>) -> u8 {
    let options = match parse(Words::new(words)) {
        Ok(options) => options,
        Err(text) => {
            eprintln!("secrun-agent wait: {text}");
            return 2;
        }
    };
    let (finish, keep) = (options.finish.clone(), options.keep.clone());
    let status = match Waiter::start(options) {
        Ok(mut waiter) => {
            let status = waiter.run();
            match waiter.finisher.take().and_then(|finisher| finisher.conclude(status)) {
                Some(code) => return code,
                None => status,
            }
        }
        Err(error) => {
            eprintln!("secrun: cannot start stage1: {error}");
            125
        }
    };
    let error = keep.iter().try_for_each(|fd| sys::set_cloexec(*fd, false)).err().unwrap_or_else(|| {
        Command::new(&finish[0]).args(&finish[1..]).arg(format!("--stage1-status={status}")).exec()
    });
    eprintln!("secrun: cannot execute {:?}: {error}", finish[0]);
    125
}

impl Waiter {
    fn start(options: Options) -> std::io::Result<Self> {
        let named =
            [options.attach, options.control, options.procs, options.kill, options.log, options.ready];
        let more = [options.seccomp, options.timing, options.expected, options.enforced, options.notify];
        let more = more.into_iter().chain([options.front]);
        let mut fds: Vec<RawFd> = named.into_iter().chain(more).flatten().collect();
        fds.extend(options.keep.iter().chain(&options.sockets));
        sys::keep_only(&fds)?;
        use libc::{SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};
        let numbers = [SIGCHLD, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH];
        let signals = sys::signals(&numbers)?;
        sys::become_subreaper()?;
        let open = |fd: Option<RawFd>| fd.map(sys::inherited).transpose();
        let listener = |fd: OwnedFd| {
            let listener = UnixListener::from(fd);
            listener.set_nonblocking(true).map(|()| listener)
        };
        let attach = sys::inherited(options.attach.unwrap_or(-1)).and_then(listener)?;
        let control = open(options.control)?.map(listener).transpose()?;
        let file = |fd: Option<RawFd>| open(fd).map(|fd| fd.map(File::from));
        let (kill, ready, timing) = (file(options.kill)?, file(options.ready)?, file(options.timing)?);
        let notify = file(options.notify)?;
        let front = open(options.front)?.map(UnixStream::from);
        front.iter().try_for_each(|front| front.set_nonblocking(true))?;
        let read_back = match (open(options.expected)?, open(options.enforced)?) {
            (Some(expected), Some(out)) => Some(ReadBack::new(expected.into(), out.into())?),
            _ => None,
        };
        // Without input nobody would hear what a raw terminal no longer makes signals of.
        let raw = options.tty && options.stdin_app.is_some();
        let mut station = Station::new(raw, options.stdin_app.is_some())?;
        if let (Some(text), true, true) = (&options.detach_keys, raw, front.is_some()) {
            let keys = Keys::parse(text);
            station.keys = Some(keys.map_err(|text| std::io::Error::new(ErrorKind::InvalidInput, text))?);
        }
        let mut command = Command::new(&options.stage1[0]);
        command.args(&options.stage1[1..]).stdin(Stdio::null());
        match open(options.log)? {
            Some(log) => command.stdout(log.try_clone()?).stderr(log),
            None => command.stdout(Stdio::null()).stderr(Stdio::null()),
        };
        let mut waiter = Waiter {
            signals,
            attach,
            control,
            kill,
            ready,
            notify,
            timing,
            front,
            controls: Vec::new(),
            station,
            remotes: Vec::new(),
            seen: Vec::new(),
            started: 0,
            ended: 0,
            read_back,
            finisher: None,
            looked_ahead: false,
            child: 0,
            status: None,
            alone: false,
            stopping: false,
            interrupts: 0,
            kill_at: None,
            rest_until: None,
            heard: false,
            scratch: Box::new([0; CHUNK]),
            options,
        };
        let spawned = open(waiter.options.seccomp)
            .and_then(|fd| fd.map(|fd| Filter::read(File::from(fd))).transpose())
            .and_then(|filter| sys::spawn_bound(&mut command, open(waiter.options.procs)?, filter));
        match spawned {
            Ok(child) => waiter.child = child,
            Err(error) => {
                waiter.station.restore();
                waiter.tell_ready(b"failed\n");
                return Err(error);
            }
        }
        Ok(waiter)
    }

    fn run(&mut self) -> u8 {
        while !self.is_done() {
            self.step();
        }
        self.station.restore();
        self.status.map_or(125, |status| status.code)
    }

    fn is_done(&self) -> bool {
        let drained = self.remotes.is_empty() && self.station.is_empty();
        self.status.is_some() && drained && self.alone
    }

    fn is_late(&self) -> bool {
        self.rest_until.map_or(false, |at| at <= Instant::now())
    }

    fn step(&mut self) {
        let mut poller = Poller::new();
        self.interests(&mut poller);
        let look = self.read_back.as_ref().and_then(ReadBack::deadline);
        let ready = match poller.wait(self.kill_at.into_iter().chain(self.rest_until).chain(look).min()) {
            Ok(ready) => ready,
            Err(error) => {
                eprintln!("secrun: poll: {error}");
                self.kill();
                return;
            }
        };
        let mut gone = Vec::new();
        for (token, _) in ready {
            match token {
                Token::Signal => self.take_signals(),
                Token::Front => self.hear_front(),
                Token::Attach => self.accept(),
                Token::ControlListener => self.accept_control(),
                Token::Control(index) => self.obey(index),
                Token::Remote(index) => gone.extend(self.serve(index).then_some(index)),
                Token::Output(index) => self.station.flush(index),
                Token::Input => {
                    let station = &mut self.station;
                    if let Some(remote) = self.remotes.iter_mut().find(|remote| remote.wants_input(station))
                    {
                        remote.pass_input(&mut self.scratch[..], station);
                    }
                }
            }
        }
        for index in gone.into_iter().rev() {
            let remote = self.remotes.remove(index);
            self.read_over(remote.app.as_deref().unwrap_or(""));
        }
        if std::mem::take(&mut self.station.detaching) && !self.stopping && self.status.is_none() {
            self.detach();
        }
        self.check_times();
        self.read_back();
    }

    fn interests(&self, poller: &mut Poller<Token>) {
        poller.add(&self.signals, libc::POLLIN, Token::Signal);
        if let Some(front) = &self.front {
            poller.add(front, libc::POLLIN, Token::Front);
        }
        if self.remotes.len() < self.options.apps.len() && self.status.is_none() {
            poller.add(&self.attach, libc::POLLIN, Token::Attach);
        }
        if let (Some(control), true) = (&self.control, self.controls.len() < MAX_CONTROLS) {
            poller.add(control, libc::POLLIN, Token::ControlListener);
        }
        for (index, control) in self.controls.iter().enumerate() {
            poller.add(control, libc::POLLIN, Token::Control(index));
        }
        for (index, remote) in self.remotes.iter().enumerate() {
            let read = !self.station.is_full();
            poller.add(&remote.conn, remote.conn.events(read), Token::Remote(index));
        }
        for (index, fd) in self.station.waiting() {
            poller.add(&fd, libc::POLLOUT, Token::Output(index));
        }
        if self.station.input_open && self.remotes.iter().any(|remote| remote.wants_input(&self.station)) {
            poller.add(&sys::standard(0), libc::POLLIN, Token::Input);
        }
    }

    fn check_times(&mut self) {
        let now = Instant::now();
        if self.kill_at.map_or(false, |at| at <= now) {
            self.kill();
        }
        if self.status.is_some() && (self.heard || self.station.is_full()) {
            self.rest_until = Some(now + REST_TIME);
        } else if self.is_late() {
            // Whoever still holds a connection to the dead pod has nothing to say.
            self.remotes.clear();
            self.alone = true;
            self.rest_until = None;
        }
        self.heard = false;
    }

    // --- what the kernel enforces

    fn read_back(&mut self) {
        for verdict in self.read_back.as_mut().map_or(Vec::new(), ReadBack::look) {
            self.judge(verdict);
        }
    }

    /// A guest has told what its kernel enforces for an app.
    fn hear_report(&mut self, index: usize, report: Option<(i32, Values)>) {
        if let (Some((pid, values)), Some(read_back)) = (report, &mut self.read_back) {
            read_back.report(self.remotes[index].app.as_deref().unwrap_or(""), pid, values);
        }
    }

    /// Nothing more can be read of an app.
    fn read_over(&mut self, app: &str) {
        if let Some(verdict) = self.read_back.as_mut().and_then(|read_back| read_back.over(app)) {
            self.judge(verdict);
        }
    }

    /// Let an app begin that was held; what is not as compiled ends a pod that is held strictly.
    fn judge(&mut self, verdict: Verdict) {
        let strict = self.read_back.as_ref().map_or(false, ReadBack::is_strict);
        match (verdict.problem, strict) {
            (Some(problem), true) => {
                eprintln!("secrun: app {}: {problem}", verdict.app);
                self.kill();
            }
            // The finishing program tells what was only noticed.
            (Some(_), false) => (),
            (None, _) => {
                let of_app = |remote: &Remote| remote.app.as_deref() == Some(&verdict.app);
                if let Some(index) = self.remotes.iter().position(of_app) {
                    match self.remotes[index].greeted {
                        false => self.greet(index),
                        // A later run of the app is held as the first one was.
                        true if strict => self.remotes[index].conn.send(&Message::Go),
                        true => return,
                    }
                    // A connection that fails is seen by its next turn.
                    let _ = self.remotes[index].conn.flush();
                }
            }
        }
    }

    // --- stage1

    fn take_signals(&mut self) {
        while let Some(number) = sys::next_signal(&self.signals) {
            match number {
                libc::SIGCHLD => (),
                libc::SIGCONT => self.resume(),
                // What was sent to the job comes to its front too, and counts once.
                _ if self.front.is_some() => (),
                _ => self.take_signal(number),
            }
        }
        loop {
            match sys::reap() {
                Ok(Some((pid, status))) if pid == self.child => self.stage1_ended(status),
                // One that was killed is not waited for again: its place is taken in the end.
                Ok(Some((pid, _))) if self.finisher.as_ref().map_or(false, |ahead| ahead.pid == pid) => {
                    self.finisher = None;
                }
                Ok(Some(_)) => (),
                Ok(None) => {
                    // The finisher is a child that stays; of what the pod left, its cgroup has been killed.
                    self.alone = self.alone || (self.status.is_some() && self.finisher.is_some());
                    break;
                }
                Err(_) => {
                    self.alone = true;
                    break;
                }
            }
        }
    }

    fn take_signal(&mut self, number: i32) {
        match number {
            libc::SIGWINCH => self.broadcast(&Message::Resize(self.station.size())),
            _ if self.status.is_some() => self.station.discard(),
            libc::SIGTERM => self.stop(),
            libc::SIGHUP if self.options.foreground && self.station.lost_terminal() => self.stop(),
            libc::SIGINT => self.interrupt(),
            _ => self.broadcast(&Message::Signal(number as u8)),
        }
    }

    /// Stopped by a shell and let go on: the terminal may have been used by others, and have another size.
    fn resume(&mut self) {
        if self.station.is_raw() {
            self.station.resume();
            self.broadcast(&Message::Resize(self.station.size()));
        }
    }

    // --- the front

    fn hear_front(&mut self) {
        let mut words = [0; 16];
        let count = match self.front.as_mut().map(|front| front.read(&mut words)) {
            Some(Ok(count)) => count,
            Some(Err(error)) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return
            }
            _ => 0,
        };
        if count == 0 {
            // Who started the pod was killed: the pod goes with it, as with a waiter that is killed.
            self.front = None;
            return self.kill();
        }
        words[..count].iter().for_each(|number| self.take_signal(i32::from(*number)));
    }

    /// The keys were typed: the pod runs on, and the terminal is the caller's again.
    fn detach(&mut self) {
        self.station.restore();
        for remote in self.remotes.iter_mut().filter(|remote| remote.greeted && remote.end.is_none()) {
            remote.let_go();
            // A connection that fails is seen by its next turn.
            let _ = remote.conn.flush();
        }
        self.options.foreground = false;
        self.options.tty = false;
        self.options.stdin_app = None;
        match sys::terminal::leave_terminal().and_then(|()| Station::new(false, false)) {
            Ok(station) => self.station = station,
            Err(error) => {
                eprintln!("secrun: cannot leave the terminal: {error}");
                return self.kill();
            }
        }
        if let Some(mut front) = self.front.take() {
            // One that was killed just now has nobody left to tell.
            let _ = front.write_all(&[front::DETACHED]);
        }
    }

    fn stage1_ended(&mut self, status: Status) {
        self.mark("stage1-ended");
        self.status = Some(status);
        self.kill_at = None;
        self.rest_until = Some(Instant::now() + REST_TIME);
        self.kill_cgroup();
        self.tell_ready(b"failed\n");
    }

    fn interrupt(&mut self) {
        self.interrupts += 1;
        let running = self.remotes.iter().any(|remote| remote.greeted);
        match self.interrupts {
            1 if running => self.broadcast(&Message::Signal(libc::SIGINT as u8)),
            1 | 2 => self.stop(),
            _ => self.kill(),
        }
    }

    /// Ask stage1 to end in order; asked again, end it at once.
    fn stop(&mut self) {
        if self.stopping {
            return self.kill();
        }
        self.stopping = true;
        self.notify(b"STOPPING=1\n");
        self.kill_at = Some(Instant::now() + self.options.stop_timeout);
        let reachable = self.remotes.iter().filter(|remote| remote.started && remote.end.is_none()).count();
        if reachable == self.options.apps.len() {
            // Each shim sends its app's own stop signal, once; the pod ends with its apps.
            self.broadcast(&Message::Stop);
        } else {
            self.signal_child(libc::SIGTERM);
        }
    }

    fn kill(&mut self) {
        self.stopping = true;
        self.kill_at = None;
        self.signal_child(libc::SIGKILL);
        self.kill_cgroup();
    }

    fn signal_child(&self, number: i32) {
        if self.status.is_none() {
            // It cannot fail: the child is ours and not reaped.
            let _ = sys::kill(self.child, number);
        }
    }

    fn kill_cgroup(&mut self) {
        // A group that somebody else has removed was empty: nothing is left to kill.
        match self.kill.as_mut().map(|file| file.write_all(b"1")) {
            Some(Err(error)) if error.raw_os_error() != Some(libc::ENODEV) => {
                eprintln!("secrun: cgroup.kill: {error}");
            }
            _ => (),
        }
    }

    fn broadcast(&mut self, message: &Message) {
        for remote in self.remotes.iter_mut().filter(|remote| remote.greeted && remote.end.is_none()) {
            if !remote.conn.out.is_full() {
                remote.conn.send(message);
            }
        }
    }

    /// Only apps that were expected get as far as to be named here.
    fn mark_app(&mut self, what: &str, index: usize) {
        let app = self.remotes[index].app.as_deref().unwrap_or_default();
        let name = format!("{what}:{app}");
        self.mark(&name);
    }

    fn mark(&mut self, name: &str) {
        // One write each: others append to the same file.
        let line = format!("host {name} {}\n", sys::monotonic_ns());
        if let Some(Err(error)) = self.timing.as_mut().map(|file| file.write_all(line.as_bytes())) {
            eprintln!("secrun: timing: {error}");
            self.timing = None;
        }
    }

    fn tell_ready(&mut self, word: &[u8]) {
        if let Some(mut ready) = self.ready.take() {
            // Nobody may be left to be told.
            let _ = ready.write_all(word);
        }
    }

    fn notify(&mut self, words: &[u8]) {
        if let Some(manager) = &mut self.notify {
            // A datagram: whole or not at all; a manager that is gone needs no word.
            let _ = manager.write(words);
        }
    }

    // --- peers

    fn accept_control(&mut self) {
        if let Some(Ok((stream, _))) = self.control.as_ref().map(UnixListener::accept) {
            if stream.set_nonblocking(true).is_ok() {
                self.controls.push(stream);
            }
        }
    }

    fn obey(&mut self, index: usize) {
        let mut word = [0];
        let control = match self.controls.get_mut(index) {
            Some(control) => control,
            None => return,
        };
        match control.read(&mut word) {
            Ok(1) if word == *b"T" => {
                if !self.stopping {
                    self.stop();
                }
            }
            Ok(1) if word == *b"K" => self.kill(),
            Err(error) if error.kind() == ErrorKind::WouldBlock => (),
            // Gone, or not one of ours. Another takes its index: its turn comes again.
            _ => drop(self.controls.swap_remove(index)),
        }
    }

    fn accept(&mut self) {
        if let Ok((stream, _)) = self.attach.accept() {
            let reported = self.read_back.as_ref().map_or(false, ReadBack::is_reported);
            if let Ok(remote) = Remote::new(stream, if reported { MAX_REPORTS } else { 0 }) {
                self.remotes.push(remote);
            }
        }
    }

    /// Serve one shim; true if its connection ends.
    fn serve(&mut self, index: usize) -> bool {
        self.heard = true;
        let remote = &mut self.remotes[index];
        let (was_known, was_started, had_ended) =
            (remote.app.is_some(), remote.started, remote.end.is_some());
        let mut open = remote.receive(&mut self.scratch[..], &mut self.station);
        if let (Some(app), false, Ok(_)) = (remote.app.clone(), was_known, &open) {
            if self.options.apps.contains(&app) && !self.seen.contains(&app) {
                match &mut self.read_back {
                    // Its app does not begin before it has been read.
                    Some(read_back) if read_back.is_strict() => read_back.begin(&app, remote.pid),
                    _ => self.greet(index),
                }
                self.seen.push(app);
            } else {
                open = Err(format!("an app {app:?} is not expected"));
            }
        }
        let remote = &mut self.remotes[index];
        let report = remote.reported.take();
        let started = remote.started && !was_started;
        let again = std::mem::take(&mut remote.again);
        let ended = remote.end.is_some() && !had_ended;
        if started {
            self.started += 1;
            if let Some(read_back) = self.read_back.as_mut().filter(|read_back| !read_back.is_strict()) {
                read_back.begin(remote.app.as_deref().unwrap_or(""), remote.pid);
            }
            self.mark_app("started", index);
        }
        if let (true, Some(read_back)) = (again, &mut self.read_back) {
            // A new process: what was read of the last one says nothing of it.
            let remote = &self.remotes[index];
            read_back.begin(remote.app.as_deref().unwrap_or(""), remote.pid);
        }
        self.hear_report(index, report);
        if ended {
            self.ended += 1;
            self.mark_app("ended", index);
        }
        if started && self.started == self.options.apps.len() {
            self.tell_ready(b"ready\n");
            self.notify(b"READY=1\n");
        }
        let over = self.options.finish_ahead && self.ended == self.options.apps.len();
        if over && !self.looked_ahead && self.status.is_none() {
            self.looked_ahead = true;
            // Without one nothing is lost but time.
            self.finisher = Finisher::start(&self.options.finish, &self.options.keep).ok();
        }
        let flushed = self.remotes[index].conn.flush();
        !matches!((open, flushed), (Ok(true), Ok(())))
    }

    fn greet(&mut self, index: usize) {
        let remote = &mut self.remotes[index];
        let app = remote.app.as_deref().unwrap_or("");
        if self.options.foreground {
            remote.flags |= flag::STDOUT | flag::STDERR;
        }
        if self.options.stdin_app.as_deref() == Some(app) {
            remote.flags |= flag::STDIN;
        }
        if self.options.prefix {
            remote.prefix = format!("{app} | ").into_bytes();
        }
        let size = if self.options.tty { self.station.size() } else { Size::default() };
        if self.options.socket_app.as_deref() == Some(app) {
            remote.conn.pass(&self.options.sockets);
        }
        remote.greeted = true;
        remote.conn.send(&Message::Attach { flags: remote.flags, size });
    }
}
