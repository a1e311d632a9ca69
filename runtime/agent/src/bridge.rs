//! The host's end of a guest: keeps the logs and exit records of its apps, and lets the waiter and clients reach their shims.
//! Everything from the guest is hostile: what breaks the protocol ends it. Whatever is left of the machine when this process
//! ends is killed with the pod's cgroup by the waiter.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::io::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use crate::attach::{App, Attach};
use crate::conn::{Conn, CHUNK};
use crate::console::Console;
use crate::frame::Violation;
use crate::lane::Lane;
use crate::mux::{decode, encode, next_channel, Item, Kind, VERSION};
use crate::netplan::Part;
use crate::report::now_ns;
use crate::starter::{self, Started};
use crate::sys::{self, Poller, Status};

/// Clients of one app at a time, as many as a shim takes.
const MAX_CLIENTS: usize = 32;
/// Marks that a guest may send.
const MAX_MARKS: usize = 64;
/// What a machine said before its end comes within this time after it; one that is lost ends within it.
const REST_TIME: Duration = Duration::from_secs(1);
/// While the pod is being stopped, a waiter gets this long to read what is there.
const FLUSH_TIME: Duration = Duration::from_secs(2);

#[derive(Clone, Copy)]
enum Token {
    Signal,
    Parent,
    LinkListener,
    ConsoleListener,
    Link,
    Console,
    Waiter(u16),
    Clients(u16),
    Lane(u16),
    Rest,
}

/// How the end of a socket of QEMU's stands.
enum End<T> {
    Expected(UnixListener),
    Open(T),
    Gone,
}

/// Times of what happened, one `SIDE NAME NS` a line: of the host since 1970, of the guest since its start.
pub(crate) struct Timing(pub Option<File>);

impl Timing {
    pub fn mark(&mut self, side: &str, name: &str, ns: u64) {
        if let Some(file) = &mut self.0 {
            // A note that cannot be taken is no reason to end the pod.
            let _ = file.write_all(format!("{side} {name} {ns}\n").as_bytes());
        }
    }
}

/// What root made for the bridge.
pub(crate) struct Means {
    pub signals: OwnedFd,
    pub parent: OwnedFd,
    pub kill: Option<File>,
    pub timing: Timing,
    pub seed: [u8; 64],
    /// What the guest's interfaces have, in parts.
    pub network: Vec<(Part, Vec<u8>)>,
    /// In the order of the guest's table.
    pub secrets: Vec<Vec<u8>>,
    pub link: UnixListener,
    pub console: UnixListener,
    pub apps: Vec<App>,
    pub images: Vec<(String, String)>,
}

pub(crate) struct Bridge {
    pub signals: OwnedFd,
    /// The waiter: without it nobody kills what is left.
    parent: OwnedFd,
    orphaned: bool,
    kill: Option<File>,
    pub timing: Timing,
    seed: [u8; 64],
    network: Vec<(Part, Vec<u8>)>,
    secrets: Vec<Vec<u8>>,
    link: End<Conn>,
    console: End<UnixStream>,
    said: Console,
    /// Apps whose shims have not come.
    waiting: Vec<App>,
    attaches: BTreeMap<u16, Attach>,
    lanes: BTreeMap<u16, Lane>,
    /// Connections to the waiter that it has to read to the end.
    rests: Vec<Conn>,
    last: u16,
    ready: bool,
    marks: usize,
    bye: bool,
    /// Nothing is left to do but to let readers read.
    over: bool,
    /// SIGTERM has come; and the guest was told.
    stopping: bool,
    told: bool,
    /// Every app has come and ended, and the guest was told so.
    finished: bool,
    started: Started,
    status: Option<Status>,
    /// A helper that ended before the machine was over, and how.
    lost: Option<(String, Status)>,
    ready_by: Option<Instant>,
    /// Nothing more is expected of the guest after this.
    until: Option<Instant>,
    flush_until: Option<Instant>,
    /// Clients have this long to read how their app ended, before the guest goes.
    finish_by: Option<Instant>,
    scratch: Box<[u8; CHUNK]>,
}

fn show(bytes: &[u8]) {
    // The log of stage1 on a full disk is no reason to end the pod.
    let _ = io::stdout().lock().write_all(bytes).and_then(|()| io::stdout().flush());
}

impl Bridge {
    pub fn new(means: Means) -> Self {
        Bridge {
            signals: means.signals,
            parent: means.parent,
            orphaned: false,
            kill: means.kill,
            timing: means.timing,
            seed: means.seed,
            network: means.network,
            secrets: means.secrets,
            link: End::Expected(means.link),
            console: End::Expected(means.console),
            said: Console::new(means.images),
            waiting: means.apps,
            attaches: BTreeMap::new(),
            lanes: BTreeMap::new(),
            rests: Vec::new(),
            last: 0,
            ready: false,
            marks: 0,
            bye: false,
            over: false,
            stopping: false,
            told: false,
            finished: false,
            started: Started::default(),
            status: None,
            lost: None,
            ready_by: None,
            until: None,
            flush_until: None,
            finish_by: None,
            scratch: Box::new([0; CHUNK]),
        }
    }

    /// The machine runs: its guest has this long to say HELLO.
    pub fn expect(&mut self, started: Started, time: Duration) {
        self.started = started;
        self.ready_by = Some(Instant::now() + time);
    }

    /// Serve until the machine is over; whatever happens, logs and console are complete then.
    pub fn run(mut self) -> Result<(), String> {
        let result = loop {
            match self.step() {
                Ok(false) => (),
                Ok(true) => break Ok(()),
                Err(text) => break Err(text),
            }
        };
        for (_, attach) in std::mem::take(&mut self.attaches) {
            attach.finish();
        }
        self.said.finish(&mut show);
        if let (true, Some(kill)) = (self.orphaned, &mut self.kill) {
            // Nobody else ends the machine now. It ends this process too.
            let _ = kill.write_all(b"1");
        }
        result
    }

    /// One round; true when all is over in order.
    fn step(&mut self) -> Result<bool, String> {
        let mut poller = Poller::new();
        self.interests(&mut poller);
        let times = [self.ready_by, self.until, self.flush_until, self.finish_by];
        let ready =
            poller.wait(times.into_iter().flatten().min()).map_err(|error| format!("poll: {error}"))?;
        for (token, events) in ready {
            let beyond_output = events & !libc::POLLOUT != 0;
            match token {
                Token::Signal => self.take_signals()?,
                Token::Parent => {
                    self.orphaned = true;
                    return Err("the pod's waiter has died".into());
                }
                Token::LinkListener => self.accept_link()?,
                Token::ConsoleListener => self.accept_console()?,
                Token::Link if beyond_output => self.receive().map_err(|Violation(text)| {
                    format!("the guest broke the protocol and was ended: {text}")
                })?,
                Token::Console => self.hear(),
                Token::Waiter(channel) if beyond_output => {
                    if let Some(attach) = self.attaches.get_mut(&channel) {
                        attach.read(&mut self.scratch[..]);
                    }
                }
                Token::Clients(channel) => self.accept_client(channel),
                Token::Lane(channel) if beyond_output => {
                    if let (Some(lane), End::Open(link)) = (self.lanes.get_mut(&channel), &mut self.link) {
                        lane.read(channel, &mut self.scratch[..], &mut link.out);
                    }
                }
                _ => (),
            }
        }
        self.settle();
        self.check()
    }

    fn interests(&self, poller: &mut Poller<Token>) {
        poller.add(&self.signals, libc::POLLIN, Token::Signal);
        poller.add(&self.parent, libc::POLLIN, Token::Parent);
        match &self.console {
            End::Expected(listener) => poller.add(listener, libc::POLLIN, Token::ConsoleListener),
            End::Open(console) => poller.add(console, libc::POLLIN, Token::Console),
            End::Gone => (),
        }
        for rest in &self.rests {
            poller.add(rest, libc::POLLOUT, Token::Rest);
        }
        let room = match &self.link {
            End::Expected(listener) => return poller.add(listener, libc::POLLIN, Token::LinkListener),
            End::Open(link) => {
                poller.add(link, link.events(true), Token::Link);
                !link.out.is_full()
            }
            End::Gone => return,
        };
        let clients = room && self.lanes.len() < MAX_CLIENTS * (self.attaches.len() + 1);
        for (channel, attach) in &self.attaches {
            let app = match &attach.app {
                Some(app) => app,
                None => continue,
            };
            if let Some(waiter) = &app.waiter {
                poller.add(waiter, waiter.events(attach.wants_waiter()), Token::Waiter(*channel));
            }
            if clients && !attach.ended {
                poller.add(&app.control, libc::POLLIN, Token::Clients(*channel));
            }
        }
        for (channel, lane) in &self.lanes {
            poller.add(lane, lane.events(room), Token::Lane(*channel));
        }
    }

    /// Move on what can move.
    fn settle(&mut self) {
        if let End::Open(link) = &mut self.link {
            let out = &mut link.out;
            self.lanes.retain(|channel, lane| !lane.settle(*channel, out));
            let over =
                self.attaches.iter_mut().filter(|(_, attach)| attach.app.is_some() || attach.flow.heard);
            let over: Vec<u16> = over
                .filter_map(|(channel, attach)| attach.settle(*channel, out).then_some(*channel))
                .collect();
            for channel in over {
                self.rests.extend(self.attaches.remove(&channel).and_then(Attach::finish));
            }
            if self.ready && !self.finished && self.waiting.is_empty() && self.attaches.is_empty() {
                let now = Instant::now();
                if self.lanes.is_empty() || *self.finish_by.get_or_insert(now + FLUSH_TIME) <= now {
                    self.finished = true;
                    self.finish_by = None;
                    encode(&Item::Finish, link.out.tail());
                }
            }
            if link.flush().is_err() {
                // It hears nothing any more; what it has said is still read to its end.
                link.out.clear();
            }
        }
        self.rests.retain_mut(|rest| rest.flush().is_ok() && !rest.out.is_empty());
    }

    /// Whether the machine is over: in order (true), not yet (false), or otherwise.
    fn check(&mut self) -> Result<bool, String> {
        let now = Instant::now();
        let passed = |at: Option<Instant>| at.map_or(false, |at| at <= now);
        if passed(self.ready_by) {
            return Err(self.because("the guest was not ready in time".into()));
        }
        if self.said.is_lost() && !self.bye {
            self.set_until(REST_TIME);
        }
        let gone = matches!((&self.link, &self.console), (End::Gone, End::Gone));
        if !self.over && (self.status.is_none() || !gone) && !passed(self.until) {
            return Ok(false);
        }
        if !self.bye {
            return Err(self.because(self.end()));
        }
        // The machine may go; those who still read what it said are waited for, unless the pod is to stop.
        self.over = true;
        self.until = None;
        for (_, attach) in std::mem::take(&mut self.attaches) {
            self.rests.extend(attach.finish().filter(|rest| !rest.out.is_empty()));
        }
        if self.stopping && self.flush_until.is_none() {
            self.flush_until = Some(now + FLUSH_TIME);
        }
        Ok(self.rests.is_empty() || passed(self.flush_until))
    }

    /// The console's reason, if it has one, else what was seen from outside.
    fn because(&self, seen: String) -> String {
        self.said.cause().unwrap_or(seen)
    }

    /// What ended the machine, as seen from outside. A helper ends with status 0 when QEMU has left it.
    fn end(&self) -> String {
        match (&self.lost, self.status) {
            (Some((name, how)), _) if how.code != 0 => starter::lost(name, *how),
            (_, Some(status)) => starter::too_early(status),
            (Some((name, how)), None) => starter::lost(name, *how),
            (None, None) => "the guest cannot be reached any more".into(),
        }
    }

    fn take_signals(&mut self) -> Result<(), String> {
        while let Some(number) = sys::next_signal(&self.signals) {
            if number == libc::SIGTERM && std::mem::replace(&mut self.stopping, true) {
                return Err("the machine was ended at once, as asked".into());
            }
        }
        self.shut_down();
        while let Ok(Some((pid, status))) = sys::reap() {
            let helper = self.started.helpers.iter().find(|(helper, _)| *helper == pid);
            if pid == self.started.machine {
                self.status = Some(status);
                self.timing.mark("host", "ended", sys::monotonic_ns());
                self.set_until(REST_TIME);
            } else if let (Some((_, name)), None) = (helper, &self.lost) {
                // The guest would wait for it for ever.
                self.lost = Some((name.clone(), status));
                self.set_until(REST_TIME);
            }
        }
        Ok(())
    }

    fn shut_down(&mut self) {
        if let (End::Open(link), true) = (&mut self.link, self.stopping && self.ready && !self.told) {
            self.told = true;
            encode(&Item::Shutdown, link.out.tail());
        }
    }

    fn set_until(&mut self, time: Duration) {
        if !self.over {
            self.until.get_or_insert(Instant::now() + time);
        }
    }

    // --- QEMU's two sockets

    fn accept_link(&mut self) -> Result<(), String> {
        if let End::Expected(listener) = &self.link {
            let accepted = listener.accept().and_then(|(socket, _)| Conn::new(socket));
            self.link = End::Open(accepted.map_err(|error| format!("the guest's link: {error}"))?);
        }
        Ok(())
    }

    fn accept_console(&mut self) -> Result<(), String> {
        if let End::Expected(listener) = &self.console {
            let (socket, _) = listener.accept().map_err(|error| format!("the guest's console: {error}"))?;
            socket.set_nonblocking(true).map_err(|error| format!("the guest's console: {error}"))?;
            self.console = End::Open(socket);
        }
        Ok(())
    }

    fn hear(&mut self) {
        use io::ErrorKind::{Interrupted, WouldBlock};
        if let End::Open(console) = &mut self.console {
            match console.read(&mut self.scratch[..]) {
                Ok(count @ 1..) => self.said.push(&self.scratch[..count], &mut show),
                Err(error) if error.kind() == WouldBlock || error.kind() == Interrupted => (),
                _ => self.console = End::Gone,
            }
        }
    }

    fn link_gone(&mut self) {
        self.link = End::Gone;
        self.lanes.clear();
        self.set_until(REST_TIME);
    }

    fn receive(&mut self) -> Result<(), Violation> {
        let mut link = match std::mem::replace(&mut self.link, End::Gone) {
            End::Open(link) => link,
            other => {
                self.link = other;
                return Ok(());
            }
        };
        let open = link.fill(&mut self.scratch[..]).unwrap_or(false);
        while let Some((kind, payload)) = link.next_frame()? {
            self.handle(&decode(kind, &payload)?, &mut link)?;
        }
        self.link = End::Open(link);
        if !open {
            self.link_gone();
        }
        Ok(())
    }

    fn handle(&mut self, item: &Item, link: &mut Conn) -> Result<(), Violation> {
        match *item {
            Item::Hello { version: VERSION } if !self.ready => {
                self.ready = true;
                self.ready_by = None;
                self.timing.mark("host", "ready", sys::monotonic_ns());
                encode(&Item::Clock { ns: now_ns() }, link.out.tail());
                encode(&Item::Reseed(&self.seed), link.out.tail());
                self.seed.fill(0);
                for (part, bytes) in std::mem::take(&mut self.network) {
                    for bytes in bytes.chunks(CHUNK) {
                        encode(&Item::Network { part, bytes }, link.out.tail());
                    }
                }
                for (number, mut secret) in std::mem::take(&mut self.secrets).into_iter().enumerate() {
                    for bytes in secret.chunks(CHUNK) {
                        encode(&Item::Secret { number: number as u16, bytes }, link.out.tail());
                    }
                    secret.fill(0);
                }
                encode(&Item::Connect, link.out.tail());
            }
            Item::Hello { .. } if !self.ready => return Err(Violation("another version of the link")),
            _ if !self.ready => return Err(Violation("a frame out of place on the link")),
            // What was on its way is of no use any more.
            _ if self.bye => return Ok(()),
            Item::Mark { ns, name } if self.marks < MAX_MARKS && !name.is_empty() => {
                self.marks += 1;
                self.timing.mark("guest", name, ns);
            }
            Item::Bye => {
                self.bye = true;
                self.timing.mark("host", "bye", sys::monotonic_ns());
                // What it was to keep it has written; its own way to power off would only take time.
                self.set_until(Duration::ZERO);
            }
            // As many as apps: each shim comes once.
            Item::Open { channel, kind: Kind::Attach, app: "" }
                if channel % 2 == 1 && !self.attaches.contains_key(&channel) && self.expects() =>
            {
                self.attaches.insert(channel, Attach::default());
            }
            Item::Data { channel, bytes } => match self.attaches.get_mut(&channel) {
                Some(attach) => attach.data(bytes, &mut self.waiting)?,
                None => self.lane(channel)?.data(bytes)?,
            },
            Item::Credit { channel, count } => match self.attaches.get_mut(&channel) {
                Some(attach) => attach.flow.credited(count)?,
                None => self.lane(channel)?.flow.credited(count)?,
            },
            Item::Close { channel } => match self.attaches.get_mut(&channel) {
                Some(attach) => attach.flow.closed()?,
                None => self.lane(channel)?.flow.closed()?,
            },
            _ => return Err(Violation("a frame out of place on the link")),
        }
        // SIGTERM may have come before the guest was there.
        if self.stopping && !self.told {
            self.told = true;
            encode(&Item::Shutdown, link.out.tail());
        }
        Ok(())
    }

    /// Whether another shim may come.
    fn expects(&self) -> bool {
        let unnamed = self.attaches.values().filter(|attach| attach.app.is_none()).count();
        unnamed < self.waiting.len()
    }

    fn lane(&mut self, channel: u16) -> Result<&mut Lane, Violation> {
        self.lanes.get_mut(&channel).ok_or(Violation("unknown channel"))
    }

    /// A client has come to the control socket of an app.
    fn accept_client(&mut self, channel: u16) {
        let app = self.attaches.get(&channel).and_then(|attach| attach.app.as_ref());
        let (app, link) = match (app, &mut self.link) {
            (Some(app), End::Open(link)) => (app, link),
            _ => return,
        };
        // One that has gone again is none.
        let accepted = app.control.accept();
        if let Ok(Ok(lane)) = accepted.map(|(socket, _)| Lane::new(socket)) {
            let channel = next_channel(&mut self.last, |channel| self.lanes.contains_key(&channel));
            encode(&Item::Open { channel, kind: Kind::Control, app: app.name() }, link.out.tail());
            self.lanes.insert(channel, lane);
        }
    }
}
