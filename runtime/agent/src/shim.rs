//! The main process of an app's unit: runs the app through crun, keeps its log, serves its peers, reports its end.

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::io::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::again::Again;
use crate::args::Words;
use crate::conn::CHUNK;
use crate::crun::{pipes, Ends, Failure, Launch, Target};
use crate::frame::{flag, Message, Size};
use crate::group::Groups;
use crate::health::{Health, OnFailure, Rules};
use crate::life::Life;
use crate::log::{Log, Stream, MIN_LIMIT};
use crate::peers::Peer;
use crate::report::{now_ns, reserve_record, write_record};
use crate::reporter::Reporter;
use crate::session::{is_unhandled, Session};
use crate::sys::rights::MAX_RIGHTS;
use crate::sys::{self, Poller, Status};
use crate::volumes::{self, Empty, Fill, Place};

const ATTACH_SOCKET: &str = "/host/attach.sock";
/// Peers beyond these wait in the backlog.
const MAX_PEERS: usize = 32;
/// Ends of unknown processes that are remembered while crun is at work.
const MAX_ORPHANS: usize = 64;
/// After the app's end, peers other than the foreground one get this long to read what waits for them.
const FLUSH_TIME: Duration = Duration::from_secs(2);
/// What is kept of the beginning of an output, for crun's last words.
const MAX_SAID: usize = 512;
/// The app is always the first session.
pub(crate) const APP: usize = 0;

pub(crate) struct Options {
    pub app: String,
    pub lower: String,
    pub terminal: bool,
    pub stdin: bool,
    pub log_max: u64,
    /// The host keeps the log: it must be attached.
    pub no_log: bool,
    /// After EXIT the foreground peer closes first: the pod does not end before it has everything.
    pub linger: bool,
    /// The app begins held, as the agent; it becomes its program when the foreground peer attaches.
    pub hold: bool,
    /// The app finds so many sockets of the host's, which come with ATTACH, as its descriptors from 3 on.
    pub sockets: usize,
    /// The host cannot see the app: tell it what the kernel enforces.
    pub read_back: bool,
    /// The app may divide its control group.
    pub own_group: bool,
    pub stop_signal: i32,
    pub stop_timeout: Duration,
    pub target: Target,
    /// What is executed to learn how the app is, and when; without a program nobody asks.
    pub health_program: Vec<u8>,
    pub health: Rules,
    pub again: Option<Again>,
    /// Volumes of the pod, made by the first app that has them.
    pub empties: Vec<Empty>,
    /// Volumes that get the image's content if they are empty.
    pub fills: Vec<Fill>,
    /// What the runtime will mount in the app's root, wherever the image's links lead.
    pub places: Vec<Place>,
}

/// `--empty NAME MODE UID GID`, the mode as chmod(1) takes it.
fn empty(words: &mut Words) -> Result<Empty, String> {
    let (name, mode) = (words.value()?, words.value()?);
    if name.is_empty() || name.starts_with('.') || name.contains('/') {
        return Err(format!("--empty: {name:?} is not a volume's name"));
    }
    let mode = u32::from_str_radix(&mode, 8).ok().filter(|mode| *mode <= 0o7777);
    let mode = mode.ok_or_else(|| "--empty: the mode is not one of chmod(1)".to_string())?;
    Ok(Empty { name, mode, owner: (words.number()?, words.number()?) })
}

fn on_failure(text: &str) -> Result<OnFailure, String> {
    Ok(match text {
        "none" => OnFailure::Nothing,
        "kill" => OnFailure::Kill,
        "restart" => OnFailure::Restart,
        "stop" => OnFailure::Stop,
        _ => return Err(format!("--health-on-failure: {text:?} is not an action")),
    })
}

fn parse(mut words: Words) -> Result<Options, String> {
    let mut options = Options {
        app: String::new(),
        lower: String::new(),
        terminal: false,
        stdin: false,
        log_max: 16 << 20,
        no_log: false,
        linger: false,
        hold: false,
        sockets: 0,
        read_back: false,
        own_group: false,
        stop_signal: libc::SIGTERM,
        stop_timeout: Duration::from_secs(10),
        target: Target::default(),
        health_program: Vec::new(),
        health: Rules {
            interval: Duration::from_secs(30),
            timeout: Duration::from_secs(30),
            retries: 3,
            start_period: Duration::ZERO,
            on_failure: OnFailure::Nothing,
        },
        again: None,
        empties: Vec::new(),
        fills: Vec::new(),
        places: Vec::new(),
    };
    while let Some(option) = words.option()? {
        match option.as_str() {
            "--app" => options.app = words.value()?,
            "--lower" => options.lower = words.value()?,
            "--terminal" => options.terminal = true,
            "--stdin" => options.stdin = true,
            "--log-max" => options.log_max = words.number()?,
            "--no-log" => options.no_log = true,
            "--linger" => options.linger = true,
            "--hold" => options.hold = true,
            "--sockets" => options.sockets = words.number()?,
            "--read-back" => options.read_back = true,
            "--own-group" => options.own_group = true,
            "--stop-signal" => options.stop_signal = words.number()?,
            "--stop-timeout" => options.stop_timeout = Duration::from_millis(words.number()?),
            "--program" => options.target.program = words.os_value()?.into_vec(),
            "--path" => options.target.path = words.os_value()?.into_vec(),
            "--restart" => options.again = Some(Again::parse(&words.value()?)?),
            "--health-program" => options.health_program = words.os_value()?.into_vec(),
            "--health-interval" => options.health.interval = Duration::from_millis(words.number()?),
            "--health-timeout" => options.health.timeout = Duration::from_millis(words.number()?),
            "--health-start-period" => options.health.start_period = Duration::from_millis(words.number()?),
            "--health-retries" => options.health.retries = words.number()?,
            "--health-on-failure" => options.health.on_failure = on_failure(&words.value()?)?,
            "--empty" => options.empties.push(empty(&mut words)?),
            "--place" => options.places.push(Place {
                source: PathBuf::from(words.os_value()?),
                target: PathBuf::from(words.os_value()?),
            }),
            "--fill" => options.fills.push(Fill {
                folder: PathBuf::from(words.os_value()?),
                target: words.os_value()?.into_vec(),
            }),
            _ => return words.unknown(),
        }
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if options.app.is_empty() || options.app.starts_with('.') || !options.app.bytes().all(plain) {
        return Err(format!("--app: {:?} is not a name of letters, digits, '-', '_' and '.'", options.app));
    }
    if options.lower.is_empty() {
        options.lower = format!("/images/{}", options.app);
    }
    if options.lower.contains(|char| ",:\\".contains(char)) {
        return Err(format!("--lower: {:?} has characters that separate mount options", options.lower));
    }
    if options.log_max < MIN_LIMIT {
        return Err(format!("--log-max: {} is less than {MIN_LIMIT} bytes", options.log_max));
    }
    if !options.health_program.is_empty() && options.health.interval.is_zero() {
        return Err("--health-interval: checks without a pause between them".into());
    }
    if options.sockets > MAX_RIGHTS || (options.hold && options.sockets > 0) {
        return Err(format!("--sockets: at most {MAX_RIGHTS}, and none for an app that is held"));
    }
    if !(1..=64).contains(&options.stop_signal) {
        return Err(format!("--stop-signal: {} is not a signal", options.stop_signal));
    }
    Ok(options)
}

#[derive(Clone, Copy)]
enum Token {
    Signal,
    Listener,
    Peer(usize),
    Output(usize, usize),
    Input(usize),
}

pub(crate) struct Shim {
    pub options: Options,
    pub run: PathBuf,
    pub keep: PathBuf,
    pub signals: OwnedFd,
    pub listener: Option<UnixListener>,
    pub peers: Vec<Option<Peer>>,
    pub sessions: Vec<Option<Session>>,
    /// The host's sockets, which each run of the app gets.
    pub sockets: Vec<OwnedFd>,
    pub commands: u64,
    pub log: Option<Log>,
    pub log_warned: bool,
    pub reporter: Reporter,
    pub life: Life,
    pub orphans: Vec<(i32, Status)>,
    pub groups: Option<Groups>,
    pub started_ns: u64,
    pub kill_at: Option<Instant>,
    pub flush_until: Option<Instant>,
    pub stopping: bool,
    pub scratch: Box<[u8; CHUNK]>,
}

/// Run the mode; returns the exit status.
pub fn main(words: Vec<OsString>) -> u8 {
    let options = match parse(Words::new(words)) {
        Ok(options) => options,
        Err(text) => {
            eprintln!("secrun-agent shim: {text}");
            return 2;
        }
    };
    let keep = PathBuf::from(format!("/rw/apps/{}", options.app));
    let record = keep.clone();
    match Shim::new(options, keep).and_then(Shim::run) {
        Ok(status) => status,
        Err(error) => {
            let failure = Failure::own(format!("the app's shim failed: {error}"));
            eprintln!("secrun-agent: {}", failure.text);
            if let Err(error) = write_record(&record, Status::exited(125), Some(&failure), 0) {
                eprintln!("secrun-agent: no exit record: {error}");
            }
            125
        }
    }
}

fn context<T>(result: io::Result<T>, what: &str) -> io::Result<T> {
    result.map_err(|error| io::Error::new(error.kind(), format!("{what}: {error}")))
}

fn folder(path: &Path) -> io::Result<()> {
    context(DirBuilder::new().recursive(true).mode(0o700).create(path), &path.display().to_string())
}

impl Shim {
    fn new(mut options: Options, keep: PathBuf) -> io::Result<Self> {
        let signals = sys::signals(&[libc::SIGTERM, libc::SIGINT, libc::SIGCHLD])?;
        sys::become_subreaper()?;
        let run = PathBuf::from(format!("/run/secrun/apps/{}", options.app));
        folder(&run.join("rootfs"))?;
        folder(&keep)?;
        let log = match options.no_log {
            true => None,
            false => Some(context(Log::open(&keep.join("log"), options.log_max), "log")?),
        };
        if log.is_some() {
            context(reserve_record(&keep), "exit record")?;
        }
        let groups = options.own_group.then(Groups::divide).transpose();
        let groups = context(groups, "the app's control group")?;
        let socket = keep.join("ctl.sock");
        // A socket of an earlier start of the unit.
        let _ = fs::remove_file(&socket);
        let listener = context(UnixListener::bind(&socket), "ctl.sock")?;
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        let program = std::mem::take(&mut options.health_program);
        let health = (!program.is_empty()).then(|| Health::new(options.health.clone()));
        let target = Target { program, path: options.target.path.clone() };
        let life = Life::new(options.again.take().unwrap_or_default(), health, target, options.hold);
        Ok(Shim {
            options,
            run,
            keep,
            signals,
            listener: Some(listener),
            peers: Vec::new(),
            sessions: vec![None],
            sockets: Vec::new(),
            commands: 0,
            log,
            log_warned: false,
            reporter: Reporter::default(),
            life,
            orphans: Vec::new(),
            groups,
            started_ns: 0,
            kill_at: None,
            flush_until: None,
            stopping: false,
            scratch: Box::new([0; CHUNK]),
        })
    }

    fn run(mut self) -> io::Result<u8> {
        match UnixStream::connect(ATTACH_SOCKET) {
            Ok(stream) => {
                self.greet(stream, true)?;
                if self.options.hold {
                    self.start_app(Size::default(), Vec::new())?;
                }
            }
            // Only a host that made no socket wants none; one that cannot be reached is an error.
            Err(error) if error.kind() == ErrorKind::NotFound && self.log.is_some() => {
                self.start_app(Size::default(), Vec::new())?
            }
            Err(error) => return context(Err(error), ATTACH_SOCKET),
        }
        let mut ended = None;
        loop {
            if let Some(status) = ended {
                if self.all_flushed() {
                    return Ok(status);
                }
            } else if let Some(status) = self.ended()? {
                ended = Some(status);
                continue;
            }
            self.note();
            self.step()?;
        }
    }

    fn step(&mut self) -> io::Result<()> {
        let mut poller = Poller::new();
        self.interests(&mut poller);
        for (token, events) in poller.wait(self.deadline())? {
            match token {
                Token::Signal => self.take_signals()?,
                Token::Listener => self.accept()?,
                Token::Peer(index) => self.serve(index, events),
                Token::Output(session, stream) => self.pump(session, stream),
                Token::Input(session) => self.feed(session),
            }
        }
        if self.kill_at.map_or(false, |at| at <= Instant::now()) {
            self.kill_at = None;
            self.signal_session(APP, libc::SIGKILL);
        }
        let app_ended = self.sessions[APP].as_ref().map_or(false, |app| app.status.is_some());
        if self.stopping && app_ended && self.flush_until.is_none() {
            self.flush_until = Some(Instant::now() + FLUSH_TIME);
        } else if self.flush_until.map_or(false, |at| at <= Instant::now()) {
            // A stop is not held up by a host that does not read.
            self.peers.iter_mut().flatten().for_each(|peer| peer.pressure = false);
        }
        self.report();
        self.settle();
        self.look_after();
        Ok(())
    }

    /// Tell the host what the kernel enforces for the app, from crun's end on until nothing changes.
    fn report(&mut self) {
        let pid = self.sessions[APP].as_ref().filter(|app| app.status.is_none()).and_then(|app| app.pid);
        match (pid, self.peers.iter_mut().flatten().find(|peer| peer.foreground && !peer.closing)) {
            (Some(pid), Some(peer)) => {
                if let Some(text) = self.reporter.look(pid) {
                    peer.conn.send(&Message::Enforced(text));
                }
            }
            _ => self.reporter.stop(),
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let own = self.kill_at.into_iter().chain(self.flush_until);
        own.chain(self.reporter.deadline()).chain(self.life.deadline()).min()
    }

    fn interests(&self, poller: &mut Poller<Token>) {
        poller.add(&self.signals, libc::POLLIN, Token::Signal);
        if let Some(listener) = &self.listener {
            let room = self.peers.iter().flatten().count() < MAX_PEERS;
            poller.add(listener, if room { libc::POLLIN } else { 0 }, Token::Listener);
        }
        for (index, peer) in self.peers.iter().enumerate() {
            if let Some(peer) = peer {
                // A peer that leaves its own answers unread is not asked for more.
                let asks = !peer.closing && (peer.session.is_some() || !peer.conn.out.is_full());
                let read = asks || peer.lingers();
                poller.add(&peer.conn, peer.conn.events(read), Token::Peer(index));
            }
        }
        for (index, session) in self.sessions.iter().enumerate() {
            // What the process says waits until its start has been told.
            if let Some(session) = session.as_ref().filter(|session| session.crun.is_none()) {
                for (stream, end) in session.ends.outputs.iter().enumerate() {
                    if let (Some(end), true) = (end, self.has_room(index)) {
                        poller.add(end, libc::POLLIN, Token::Output(index, stream));
                    }
                }
                if let Some(input) = &session.ends.input {
                    let wanted = if session.pending.is_empty() { 0 } else { libc::POLLOUT };
                    poller.add(input, wanted, Token::Input(index));
                }
            }
        }
    }

    // --- the app

    /// Start the app with the host's sockets, which are as many as it was prepared for.
    pub fn start_app(&mut self, size: Size, sockets: Vec<OwnedFd>) -> io::Result<()> {
        if sockets.len() != self.options.sockets {
            let text = format!("{} sockets came, {} were expected", sockets.len(), self.options.sockets);
            return Err(io::Error::new(ErrorKind::InvalidData, text));
        }
        self.sockets = sockets;
        let (upper, work) = (self.keep.join("upper"), self.keep.join("work"));
        let rootfs = self.run.join("rootfs");
        for path in [&upper, &work] {
            context(
                DirBuilder::new().recursive(true).mode(0o755).create(path),
                &path.display().to_string(),
            )?;
        }
        let lower = &self.options.lower;
        volumes::prepare(&self.options.empties, &self.options.fills, Path::new(lower))?;
        // In the first user namespace overlayfs has xattrs of its own, which every upper file system takes.
        let names = if has_user_namespace() { "userxattr,volatile" } else { "volatile" };
        let (upper, work) = (upper.display(), work.display());
        let data = format!("lowerdir={lower},upperdir={upper},workdir={work},{names}");
        context(
            sys::mount("overlay", &rootfs.display().to_string(), "overlay", libc::MS_NODEV, &data),
            &format!("overlay over {lower}"),
        )?;
        self.begin(size)
    }

    /// Begin a run of the app, in the root that it has.
    pub fn begin(&mut self, size: Size) -> io::Result<()> {
        // Again each time: an app may change where links of its root lead.
        volumes::place(&self.run.join("rootfs"), &self.options.places)?;
        let target = self.options.target.clone();
        let mut launch = Launch::new(self.run.join("run"), self.options.terminal, target)?;
        launch.held = self.options.hold;
        launch.passed = self.sockets.iter().map(OwnedFd::try_clone).collect::<io::Result<_>>()?;
        let bundle = format!("/pod/apps/{}", self.options.app);
        let words = ["run", "--no-new-keyring", "-b", &bundle];
        self.sessions[APP] = Some(self.launch(launch, &words, self.options.stdin, size)?);
        Ok(())
    }

    pub fn launch(
        &self,
        mut launch: Launch,
        words: &[&str],
        stdin: bool,
        size: Size,
    ) -> io::Result<Session> {
        let (streams, ends) = match launch.has_terminal() {
            true => (None, Ends::default()),
            false => pipes(stdin).map(|(streams, ends)| (Some(streams), ends))?,
        };
        let app = &self.options.app;
        let crun = match &self.groups {
            Some(groups) => groups.within(|| launch.start(words, app, streams)),
            None => launch.start(words, app, streams),
        };
        let crun = context(crun, "crun")?;
        Ok(Session::new(launch, Some(crun), ends, size))
    }

    fn take_signals(&mut self) -> io::Result<()> {
        while let Some(number) = sys::next_signal(&self.signals) {
            if number != libc::SIGCHLD {
                self.stop(is_shutting_down());
            }
        }
        while let Ok(Some((pid, status))) = sys::reap() {
            self.reaped(pid, status);
        }
        Ok(())
    }

    /// End the app in order; `told` if SIGTERM has already been sent to every process of the pod.
    pub fn stop(&mut self, told: bool) {
        if self.stopping {
            return;
        }
        self.stopping = true;
        self.kill_at = Some(Instant::now() + self.options.stop_timeout);
        let pid = self.sessions[APP].as_ref().and_then(|app| app.pid);
        let knows = pid.map_or(false, |pid| !is_unhandled(pid, libc::SIGTERM));
        // Many programs take a second SIGTERM for impatience and give up what they were saving.
        if !(told && knows && self.options.stop_signal == libc::SIGTERM) {
            self.signal_session(APP, self.options.stop_signal);
        }
    }

    fn reaped(&mut self, pid: i32, status: Status) {
        let known = |session: &&mut Session| session.crun == Some(pid) || session.pid == Some(pid);
        let app = self.sessions[APP].as_ref().map_or(false, |app| app.crun == Some(pid));
        match self.sessions.iter_mut().flatten().find(known) {
            Some(session) if session.crun == Some(pid) => {
                session.crun = None;
                session.created(status);
                let alone = session.alone && session.pid.is_some();
                let owner = if alone { session.owner.take() } else { None };
                if let Some(peer) = owner.and_then(|owner| self.peers[owner].as_mut()) {
                    peer.conn.send(&Message::Started { ns: now_ns() });
                    peer.closing = true;
                    peer.session = None;
                }
                if self.options.read_back && session.pid.is_some() && app {
                    self.reporter.begin(session.launch.held);
                }
                let early = self.orphans.iter().find(|(pid, _)| session.pid == Some(*pid)).copied();
                if let Some((_, status)) = early {
                    session.process_ended(status);
                }
            }
            Some(session) => session.process_ended(status),
            None if self.orphans.len() < MAX_ORPHANS => self.orphans.push((pid, status)),
            None => (),
        }
        if self.sessions.iter().flatten().all(|session| session.crun.is_none()) {
            self.orphans.clear();
        }
        self.announce();
    }

    /// Tell the peers that the app has started.
    pub fn announce(&mut self) {
        self.tell_started();
        self.tell_again();
    }

    fn tell_started(&mut self) {
        let runs = |app: &Session| app.pid.is_some() && !app.launch.held;
        let started = self.sessions[APP].as_ref().map_or(false, runs);
        if !started || self.started_ns != 0 {
            return;
        }
        self.started_ns = now_ns();
        for peer in self.peers.iter_mut().flatten().filter(|peer| peer.session == Some(APP)) {
            peer.conn.send(&Message::Started { ns: self.started_ns });
        }
    }

    pub fn signal_session(&mut self, index: usize, number: i32) {
        if let Some(session) = self.sessions.get_mut(index).and_then(Option::as_mut) {
            session.deliver(number, index == APP);
        }
    }

    /// Once the app is over: write the record, tell the peers, and return the exit status.
    fn ended(&mut self) -> io::Result<Option<u8>> {
        let (status, failure) = match self.over() {
            Some(end) => end,
            None => return Ok(None),
        };
        self.note();
        self.disappoint();
        self.log.iter_mut().for_each(Log::finish);
        self.listener = None;
        // Where the host keeps the log, it keeps the record too: a full disk of the guest's must not hide the exit.
        if self.log.is_some() {
            context(write_record(&self.keep, status, failure.as_ref(), self.started_ns), "exit record")?;
        }
        self.finish_session(APP, status, failure.as_ref());
        self.kill_at = None;
        self.flush_until = Some(Instant::now() + FLUSH_TIME);
        Ok(Some(status.code))
    }

    fn finish_session(&mut self, index: usize, status: Status, failure: Option<&Failure>) {
        let error = failure.map_or("", |failure| failure.text.as_str());
        for peer in self.peers.iter_mut().flatten().filter(|peer| peer.session == Some(index)) {
            peer.report_loss();
            peer.conn.send(&Message::Exit { code: status.code, signal: status.signal, error });
            peer.closing = true;
        }
    }

    /// Whether no peer has anything left to read. The foreground one may take its time, as a pager does, unless
    /// the pod is being stopped.
    fn all_flushed(&mut self) -> bool {
        self.settle();
        if self.flush_until.map_or(false, |at| at <= Instant::now()) {
            self.flush_until = None;
            let stopping = self.stopping;
            self.peers.retain(|peer| peer.as_ref().map_or(false, |peer| peer.foreground && !stopping));
        }
        !self.peers.iter().flatten().any(|peer| peer.closing)
    }

    /// Finish what has ended: drain the outputs, answer, drop peers.
    fn settle(&mut self) {
        for index in 0..self.sessions.len() {
            if self.sessions[index].as_ref().map_or(false, |session| session.status.is_some()) {
                self.pump(index, 0);
                self.pump(index, 1);
            }
            if index == APP || !self.sessions[index].as_ref().map_or(false, Session::is_over) {
                continue;
            }
            if let Some(mut session) = self.sessions[index].take() {
                let (status, failure) = session.outcome(&self.run.join("rootfs"));
                self.finish_session(index, status, failure.as_ref());
                self.probed(index, status, failure.as_ref(), &session.said);
            }
        }
        for index in 0..self.peers.len() {
            let gone = match &mut self.peers[index] {
                Some(peer) => {
                    let failed = peer.conn.flush().is_err();
                    failed || peer.closing && peer.conn.out.is_empty() && !peer.lingers()
                }
                None => false,
            };
            if gone {
                self.drop_peer(index);
            }
        }
        if self.log.as_ref().map_or(0, Log::lost) > 0 && !self.log_warned {
            self.log_warned = true;
            eprintln!("secrun-agent: {}: the log cannot be written; entries are lost", self.options.app);
        }
    }

    // --- streams

    fn has_room(&self, session: usize) -> bool {
        let holds = |peer: &&Peer| peer.session == Some(session) && peer.pressure && !peer.closing;
        !self.peers.iter().flatten().filter(holds).any(|peer| peer.conn.out.is_full())
    }

    /// Copy what a process wrote to the log and to its peers.
    fn pump(&mut self, index: usize, stream: usize) {
        while self.has_room(index) {
            let session = match self.sessions[index].as_mut() {
                Some(session) => session,
                None => return,
            };
            let ended = session.status.is_some();
            let end = match session.ends.outputs[stream].as_mut() {
                Some(end) => end,
                None => return,
            };
            match end.read(&mut self.scratch[..]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => (),
                // What others still hold open after the end of the process is not its output.
                Err(error) if error.kind() == ErrorKind::WouldBlock && !ended => return,
                // A terminal says EIO when its last user has gone.
                Ok(0) | Err(_) => {
                    session.ends.outputs[stream] = None;
                    return;
                }
                Ok(count) => self.distribute(index, stream, count),
            }
            if !ended {
                return;
            }
        }
    }

    fn distribute(&mut self, index: usize, stream: usize, count: usize) {
        let bytes = &self.scratch[..count];
        if let Some(session) = &mut self.sessions[index] {
            let room = MAX_SAID - session.said.len().min(MAX_SAID);
            session.said.extend_from_slice(&bytes[..count.min(room)]);
        }
        if let (APP, Some(log)) = (index, &mut self.log) {
            log.push(if stream == 0 { Stream::Out } else { Stream::Err }, bytes);
        }
        let (wanted, message) = match stream {
            0 => (flag::STDOUT, Message::Stdout(bytes)),
            _ => (flag::STDERR, Message::Stderr(bytes)),
        };
        let takes =
            |peer: &&mut Peer| peer.session == Some(index) && !peer.closing && peer.flags & wanted != 0;
        for peer in self.peers.iter_mut().flatten().filter(takes) {
            if !peer.pressure && peer.conn.out.is_full() {
                peer.lost += count as u64;
            } else {
                peer.report_loss();
                peer.conn.send(&message);
            }
        }
    }

    /// Hand waiting input to a process, and let its sender send as much again.
    pub fn feed(&mut self, index: usize) {
        let session = match self.sessions[index].as_mut() {
            Some(session) => session,
            None => return,
        };
        let waiting = session.pending.len();
        let gone = match session.ends.input.as_mut() {
            Some(input) => session.pending.flush(|bytes| input.write(bytes)),
            None => Err(ErrorKind::BrokenPipe.into()),
        };
        let gone = gone.unwrap_or_else(|_| {
            session.pending.clear();
            session.ends.input = None;
            waiting
        });
        if session.input_ended && session.pending.is_empty() {
            session.ends.input = None;
        }
        let unpaid = session.unpaid.min(gone);
        session.unpaid -= unpaid;
        if let Some(peer) = session.owner.and_then(|owner| self.peers[owner].as_mut()) {
            if gone > unpaid && !peer.closing {
                peer.conn.send(&Message::Credit((gone - unpaid) as u32));
            }
        }
    }

    /// The app could not even be handed to crun.
    pub fn fail_app(&mut self, failure: Failure) {
        if let Ok(launch) = Launch::new(self.run.join("run"), false, Target::default()) {
            self.sessions[APP] = Some(Session::failed(launch, failure));
        }
    }
}

/// Whether this is a user namespace of its own, not the first one (user_namespaces(7)).
fn has_user_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    !map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Whether systemd-shutdown has taken over as PID 1: it sends SIGTERM to every process, the app included.
fn is_shutting_down() -> bool {
    std::fs::read_to_string("/proc/1/comm").map_or(false, |name| name.starts_with("systemd-shutdow"))
}
