//! The guest's end of the link: lets shims and the host find each other as they do under nspawn, and applies what the host
//! knows better: the time, randomness, and when to end.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::io::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::args::Words;
use crate::conn::{Conn, CHUNK};
use crate::frame::Violation;
use crate::lane::Lane;
use crate::netlink;
use crate::netplan::{self, Part, MAX_PART};
use crate::secret;
use crate::table::{self, Guest, MAX_SECRET_BYTES};
use crate::mux::{decode, encode, next_channel, Item, Kind, MAX_NAME, PORT, VERSION};
use crate::sys::{self, guest, Poller};

const ATTACH_SOCKET: &str = "/host/attach.sock";
/// What the pod consists of, as it was measured.
const GUEST: &str = "/pod/guest";
const MARKS: &str = "/run/secrun/marks";
/// The host connects before the guest starts; its driver may tell later.
const HOST_TIME: Duration = Duration::from_secs(10);
/// Connections at one time; the host opens fewer.
const MAX_LANES: usize = 1024;

#[derive(Clone, Copy)]
enum Token {
    Signal,
    Link,
    Listener,
    Lane(u16),
}

struct Relay {
    link: Conn,
    /// A machine of its own: its clock and its random numbers are ours to set.
    machine: bool,
    clocked: bool,
    seeded: bool,
    /// What came of each part of the network, and whether the interfaces are up.
    parts: [Vec<u8>; 3],
    /// What came of each secret, by its number.
    secrets: BTreeMap<u16, Vec<u8>>,
    connected: bool,
    listener: Option<UnixListener>,
    signals: OwnedFd,
    /// By channel: odd ones lead from shims to the host, even ones from the host to shims.
    lanes: BTreeMap<u16, Lane>,
    last: u16,
    stopping: bool,
    scratch: Box<[u8; CHUNK]>,
}

/// Run the mode; returns the exit status.
pub fn main(words: Vec<OsString>) -> u8 {
    match parse(Words::new(words)) {
        Ok(link) => match Relay::new(link).and_then(Relay::run) {
            Ok(()) => 0,
            Err(error) => {
                eprintln!("secrun-agent relay: {error}");
                1
            }
        },
        Err(text) => {
            eprintln!("secrun-agent relay: {text}");
            2
        }
    }
}

/// A socket in place of the port.
fn parse(mut words: Words) -> Result<Option<String>, String> {
    let mut link = None;
    while let Some(option) = words.option()? {
        match option.as_str() {
            "--link" => link = Some(words.value()?),
            _ => return words.unknown(),
        }
    }
    Ok(link)
}

fn fault(Violation(text): Violation) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("protocol: {text}"))
}

/// Open the port by its name, once the host is there; without udev it has no path of that name.
fn open_port() -> io::Result<File> {
    for port in fs::read_dir("/sys/class/virtio-ports")? {
        let port = port?;
        if fs::read_to_string(port.path().join("name")).map_or(true, |name| name.trim_end() != PORT) {
            continue;
        }
        let file = File::options().read(true).write(true).open(Path::new("/dev").join(port.file_name()))?;
        sys::set_nonblocking(&file)?;
        let until = Instant::now() + HOST_TIME;
        // A hang-up does not wait: the kernel says it as long as the host has not connected.
        while Instant::now() < until {
            let mut poller = Poller::new();
            poller.add(&file, libc::POLLOUT, ());
            if poller.wait(Some(until))?.iter().any(|(_, events)| events & libc::POLLHUP == 0) {
                return Ok(file);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        return Err(io::Error::new(ErrorKind::TimedOut, format!("the host has not connected to {PORT}")));
    }
    Err(io::Error::new(ErrorKind::NotFound, format!("this machine has no port {PORT}")))
}

/// Tell the service manager that apps may start (sd_notify(3)).
fn notify_ready() -> io::Result<()> {
    match std::env::var_os("NOTIFY_SOCKET") {
        Some(path) => UnixDatagram::unbound()?.send_to(b"READY=1", path).map(drop),
        None => Ok(()),
    }
}

/// What the pod consists of.
fn table() -> Result<Guest, String> {
    let file = fs::read_to_string(GUEST).map_err(|error| format!("{GUEST}: {error}"))?;
    table::guest(&file)
}

fn other(text: String) -> io::Error {
    io::Error::new(ErrorKind::Other, text)
}

/// Make the interfaces and the files of /etc what the host says they are.
fn connect(guest: &Guest, parts: &[Vec<u8>; 3]) -> Result<(), String> {
    let text = |part: Part| String::from_utf8_lossy(&parts[part as usize - 1]);
    let expected = usize::from(guest.networks);
    let links = if expected > 0 { netplan::parse(&text(Part::Table))? } else { Vec::new() };
    if links.len() != expected {
        return Err(format!("the host tells of {} interfaces, the pod has {expected}", links.len()));
    }
    netlink::apply(&links)?;
    for (part, name) in [(Part::Hosts, "hosts"), (Part::ResolvConf, "resolv.conf")] {
        if expected > 0 {
            let told = |error: io::Error| format!("/etc/{name}: {error}");
            let path = format!("/run/secrun/{name}");
            fs::write(&path, &parts[part as usize - 1]).map_err(told)?;
            let target = format!("/pod/etc/{name}");
            sys::mount(&path, &target, "", libc::MS_BIND, "").map_err(told)?;
            let flags = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY;
            let closed = flags | libc::MS_NODEV | libc::MS_NOSUID | libc::MS_NOEXEC;
            sys::mount("", &target, "", closed, "").map_err(told)?;
        }
    }
    Ok(())
}

impl Relay {
    fn new(link: Option<String>) -> io::Result<Self> {
        let signals = sys::signals(&[libc::SIGTERM])?;
        let machine = link.is_none();
        let link = match link {
            Some(path) => Conn::new(UnixStream::connect(path)?)?,
            None => Conn::new(open_port()?)?,
        };
        Ok(Relay {
            link,
            machine,
            clocked: false,
            seeded: false,
            parts: Default::default(),
            secrets: BTreeMap::new(),
            connected: false,
            listener: None,
            signals,
            lanes: BTreeMap::new(),
            last: u16::MAX,
            stopping: false,
            scratch: Box::new([0; CHUNK]),
        })
    }

    fn run(mut self) -> io::Result<()> {
        self.send(&Item::Hello { version: VERSION });
        let marks = fs::read_to_string(MARKS).unwrap_or_default();
        for (name, ns) in marks.lines().filter_map(|line| line.split_once(' ')) {
            if let (Ok(ns), true) = (ns.parse(), name.len() <= MAX_NAME) {
                self.send(&Item::Mark { ns, name });
            }
        }
        self.send(&Item::Mark { ns: guest::since_boot().as_nanos() as u64, name: "relay" });
        while !self.stopping || self.lanes.keys().any(|channel| channel % 2 == 1) {
            self.step()?;
        }
        guest::sync();
        self.send(&Item::Bye);
        while !self.link.out.is_empty() {
            self.step()?;
        }
        Ok(())
    }

    fn send(&mut self, item: &Item) {
        encode(item, self.link.out.tail());
    }

    fn step(&mut self) -> io::Result<()> {
        let mut poller = Poller::new();
        let room = !self.link.out.is_full();
        poller.add(&self.signals, libc::POLLIN, Token::Signal);
        poller.add(&self.link, self.link.events(true), Token::Link);
        if let (Some(listener), true) = (&self.listener, room && self.lanes.len() < MAX_LANES) {
            poller.add(listener, libc::POLLIN, Token::Listener);
        }
        for (channel, lane) in &self.lanes {
            poller.add(lane, lane.events(room), Token::Lane(*channel));
        }
        for (token, events) in poller.wait(None)? {
            match token {
                Token::Signal => {
                    while sys::next_signal(&self.signals).is_some() {
                        self.stopping = true;
                    }
                }
                Token::Link if events & !libc::POLLOUT != 0 => self.receive()?,
                Token::Link => (),
                Token::Listener => self.accept()?,
                Token::Lane(channel) => {
                    if let (Some(lane), true) = (self.lanes.get_mut(&channel), events & !libc::POLLOUT != 0)
                    {
                        lane.read(channel, &mut self.scratch[..], &mut self.link.out);
                    }
                }
            }
        }
        let link = &mut self.link.out;
        self.lanes.retain(|channel, lane| !lane.settle(*channel, link));
        self.link.flush()
    }

    /// A shim has come.
    fn accept(&mut self) -> io::Result<()> {
        let (socket, _) = match self.listener.as_ref().map(UnixListener::accept) {
            Some(Ok(accepted)) => accepted,
            // It has gone again, or descriptors are short: the next round tries again.
            _ => return Ok(()),
        };
        let channel = next_channel(&mut self.last, |channel| self.lanes.contains_key(&channel));
        self.lanes.insert(channel, Lane::new(socket)?);
        self.send(&Item::Open { channel, kind: Kind::Attach, app: "" });
        Ok(())
    }

    fn receive(&mut self) -> io::Result<()> {
        if !self.link.fill(&mut self.scratch[..])? {
            return Err(io::Error::new(ErrorKind::UnexpectedEof, "the host has gone"));
        }
        while let Some((kind, payload)) = self.link.next_frame().map_err(fault)? {
            self.handle(decode(kind, &payload).map_err(fault)?)?;
        }
        Ok(())
    }

    fn handle(&mut self, item: Item) -> io::Result<()> {
        match item {
            Item::Clock { ns } if !self.clocked => {
                self.clocked = true;
                if self.machine {
                    guest::set_clock(Duration::from_nanos(ns))?;
                }
                self.open_for_shims()
            }
            Item::Reseed(bytes) if !self.seeded => {
                self.seeded = true;
                if self.machine {
                    guest::add_randomness(&File::open("/dev/random")?, bytes)?;
                }
                self.open_for_shims()
            }
            Item::Network { part, bytes } if !self.connected => {
                let whole = &mut self.parts[part as usize - 1];
                if whole.len() + bytes.len() > MAX_PART {
                    return Err(fault(Violation("a part of the network without end")));
                }
                whole.extend_from_slice(bytes);
                Ok(())
            }
            Item::Secret { number, bytes } if !self.connected => {
                let known: usize = self.secrets.values().map(Vec::len).sum();
                if known + bytes.len() > MAX_SECRET_BYTES {
                    return Err(fault(Violation("secrets without end")));
                }
                self.secrets.entry(number).or_default().extend_from_slice(bytes);
                Ok(())
            }
            Item::Connect if !self.connected => {
                self.connected = true;
                let parts = std::mem::take(&mut self.parts);
                let secrets = std::mem::take(&mut self.secrets);
                if self.machine {
                    let guest = table().map_err(other)?;
                    secret::keep(Path::new(secret::FOLDER), &guest.secrets, secrets).map_err(other)?;
                    connect(&guest, &parts).map_err(other)?;
                    self.send(&Item::Mark { ns: guest::since_boot().as_nanos() as u64, name: "network" });
                }
                self.open_for_shims()
            }
            // As nspawn does it: systemd ends everything at once, each shim in order.
            Item::Shutdown => guest::signal_init(libc::SIGRTMIN() + 14),
            // Every app has ended: the way of systemd to power off would only take time.
            Item::Finish => {
                self.stopping = true;
                Ok(())
            }
            Item::Open { channel, kind: Kind::Control, app } => self.connect(channel, app),
            Item::Data { channel, bytes } => self.lane(channel)?.data(bytes).map_err(fault),
            Item::Credit { channel, count } => self.lane(channel)?.flow.credited(count).map_err(fault),
            Item::Close { channel } => self.lane(channel)?.flow.closed().map_err(fault),
            _ => Err(fault(Violation("a frame out of place on the link"))),
        }
    }

    fn lane(&mut self, channel: u16) -> io::Result<&mut Lane> {
        self.lanes.get_mut(&channel).ok_or_else(|| fault(Violation("unknown channel")))
    }

    /// No app starts before the guest has the host's time and randomness, and its networks.
    fn open_for_shims(&mut self) -> io::Result<()> {
        if !(self.clocked && self.seeded && self.connected) {
            return Ok(());
        }
        let listener = UnixListener::bind(ATTACH_SOCKET)?;
        fs::set_permissions(ATTACH_SOCKET, fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        self.listener = Some(listener);
        notify_ready()
    }

    /// Join the control socket of an app. If nobody listens, the channel ends as if somebody had hung up.
    fn connect(&mut self, channel: u16, app: &str) -> io::Result<()> {
        let taken = self.lanes.contains_key(&channel) || self.lanes.len() >= MAX_LANES;
        if channel % 2 != 0 || taken || app.is_empty() {
            return Err(fault(Violation("a channel that cannot be opened")));
        }
        let socket = UnixStream::connect(format!("/rw/apps/{app}/ctl.sock"));
        let socket = socket.or_else(|_| UnixStream::pair().map(|(ours, _)| ours))?;
        self.lanes.insert(channel, Lane::new(socket)?);
        Ok(())
    }
}
