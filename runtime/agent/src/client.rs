//! A command in a running app, or a look at the app itself, from the host: `secrun enter` and `secrun attach`.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::io::RawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::args::Words;
use crate::conn::CHUNK;
use crate::frame::{decode, encode, flag, Message, Size, HEADER, MAX_PAYLOAD};
use crate::keys::Keys;
use crate::sys::{self, Poller};
use crate::tty::{End, Remote, Station};

/// A shim that was told of the detachment answers in this time, or is not waited for.
const LEAVE_TIME: Duration = Duration::from_secs(5);

#[derive(Clone, Copy)]
enum Token {
    Signal,
    Remote,
    Output(usize),
    Input,
}

/// Run the mode; returns the command's exit status.
pub fn main(words: Vec<OsString>) -> u8 {
    match run(Words::new(words)) {
        Ok(End { code, error }) => {
            if !error.is_empty() {
                eprintln!("secrun: {error}");
            }
            code
        }
        Err(text) => {
            eprintln!("secrun: {text}");
            125
        }
    }
}

#[derive(Default)]
struct Options {
    conn: Option<RawFd>,
    request: Option<RawFd>,
    tty: bool,
    stdin: bool,
    /// Signals that would end this process do, and are not the app's.
    keep_signals: bool,
    detach_keys: Option<Keys>,
}

fn parse(mut words: Words) -> Result<Options, String> {
    let mut options = Options::default();
    while let Some(option) = words.option()? {
        match option.as_str() {
            "--conn-fd" => options.conn = Some(words.fd()?),
            "--request-fd" => options.request = Some(words.fd()?),
            "--tty" => options.tty = true,
            "--stdin" => options.stdin = true,
            "--keep-signals" => options.keep_signals = true,
            "--detach-keys" => options.detach_keys = Some(Keys::parse(&words.value()?)?),
            _ => return words.unknown(),
        }
    }
    Ok(options)
}

fn run(words: Words) -> Result<End, String> {
    let options = parse(words)?;
    let inherited = |fd: Option<RawFd>| {
        sys::inherited(fd.ok_or("--conn-fd and --request-fd are needed")?).map_err(|error| error.to_string())
    };
    let mut bytes = Vec::new();
    let limit = (MAX_PAYLOAD + 2) as u64;
    File::from(inherited(options.request)?)
        .take(limit)
        .read_to_end(&mut bytes)
        .map_err(|error| error.to_string())?;
    let stream = UnixStream::from(inherited(options.conn)?);
    let mut session = Session::new(stream, &bytes, options)?;
    let end = session.run();
    session.station.restore();
    if session.left {
        eprintln!("\nsecrun: detached");
    }
    end
}

/// The end as if a signal had caused it.
fn ended_by(number: i32) -> End {
    End { code: 128 + number as u8, error: String::new() }
}

/// What is asked of the shim.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Task {
    /// The app's streams.
    Attach,
    /// A command.
    Exec,
    /// A command that is left alone once it has started.
    Alone,
}

struct Session {
    remote: Remote,
    station: Station,
    signals: std::os::unix::io::OwnedFd,
    request: Vec<u8>,
    task: Task,
    stdin: bool,
    keep_signals: bool,
    /// The keys were typed, and everything but the shim's goodbye is over.
    left: bool,
    leave_by: Option<Instant>,
    scratch: Box<[u8; CHUNK]>,
}

impl Session {
    fn new(stream: UnixStream, request: &[u8], options: Options) -> Result<Self, String> {
        let (kind, payload) = request.split_first().ok_or("the request is empty")?;
        if payload.len() > MAX_PAYLOAD {
            return Err(format!("the request is longer than {MAX_PAYLOAD} bytes"));
        }
        let message = decode(*kind, payload).map_err(|error| format!("the request: {}", error.0))?;
        let text = |error: std::io::Error| error.to_string();
        let mut remote = Remote::new(stream, 0).map_err(text)?;
        let task = match message {
            Message::Attach { .. } => Task::Attach,
            Message::Exec { flags, .. } if flags & flag::ALONE != 0 => Task::Alone,
            Message::Exec { .. } => Task::Exec,
            _ => return Err("the request is neither ATTACH nor EXEC".into()),
        };
        remote.flags = match message {
            Message::Attach { flags, .. } => flags,
            Message::Exec { flags, .. } => flags | flag::STDOUT | flag::STDERR,
            _ => 0,
        };
        let mut bytes = Vec::with_capacity(HEADER + payload.len());
        encode(&message, &mut bytes);
        use libc::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};
        let signals = sys::signals(&[SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH]);
        let mut station = Station::new(options.tty, options.stdin).map_err(text)?;
        station.outlived = task == Task::Attach;
        station.keys = options.detach_keys.filter(|_| station.is_raw());
        Ok(Session {
            remote,
            station,
            signals: signals.map_err(text)?,
            request: bytes,
            task,
            stdin: options.stdin,
            keep_signals: options.keep_signals,
            left: false,
            leave_by: None,
            scratch: Box::new([0; CHUNK]),
        })
    }

    fn run(&mut self) -> Result<End, String> {
        let mut open = true;
        while open || !self.station.is_empty() {
            let mut poller = Poller::new();
            poller.add(&self.signals, libc::POLLIN, Token::Signal);
            if open {
                let events = self.remote.conn.events(!self.station.is_full());
                poller.add(&self.remote.conn, events, Token::Remote);
            }
            for (index, fd) in self.station.waiting() {
                poller.add(&fd, libc::POLLOUT, Token::Output(index));
            }
            let listens = open && !self.left && self.station.input_open;
            if listens && self.remote.wants_input(&self.station) {
                poller.add(&sys::standard(0), libc::POLLIN, Token::Input);
            }
            for (token, _) in poller.wait(self.leave_by).map_err(|error| error.to_string())? {
                match token {
                    Token::Signal => {
                        if let Some(end) = self.take_signals() {
                            return Ok(end);
                        }
                    }
                    Token::Remote => open = self.serve()?,
                    Token::Output(index) => self.station.flush(index),
                    Token::Input => self.remote.pass_input(&mut self.scratch[..], &mut self.station),
                }
            }
            if std::mem::take(&mut self.station.detaching) && self.remote.end.is_none() {
                self.leave();
            }
            if self.left && self.leave_by.map_or(false, |at| at <= Instant::now()) {
                break;
            }
            if !self.left && self.hung_up() {
                return Ok(ended_by(libc::SIGHUP));
            }
            if self.station.is_broken() && !self.left {
                return Ok(ended_by(libc::SIGPIPE));
            }
        }
        let gone = || End { code: 0, error: String::new() };
        let left = self.left || self.task == Task::Alone && self.remote.started;
        let end = self.remote.end.take().or_else(|| left.then(gone));
        end.ok_or_else(|| "the connection to the pod broke".into())
    }

    /// Pass signals on; returns how this process ends if it does by one.
    fn take_signals(&mut self) -> Option<End> {
        while let Some(number) = sys::next_signal(&self.signals) {
            let lost = number == libc::SIGHUP && self.station.lost_terminal();
            match number {
                libc::SIGCONT => {
                    self.station.resume();
                    self.tell(&Message::Resize(self.station.size()));
                }
                libc::SIGWINCH => self.tell(&Message::Resize(self.station.size())),
                // Who only looks, and whose terminal goes, is no reason to end the app.
                _ if self.left || self.task == Task::Attach && (self.keep_signals || lost) => {
                    return Some(ended_by(number));
                }
                _ => self.tell(&Message::Signal(number as u8)),
            }
        }
        None
    }

    /// Whether the terminal has gone that the app outlives.
    fn hung_up(&self) -> bool {
        let station = &self.station;
        self.stdin && !station.input_open && station.outlived && station.is_raw()
    }

    fn tell(&mut self, message: &Message) {
        let sized = self.task != Task::Attach || self.station.is_raw();
        let wanted = sized || !matches!(message, Message::Resize(_));
        if wanted && self.remote.greeted && !self.left && !self.remote.conn.out.is_full() {
            self.remote.conn.send(message);
        }
    }

    /// The keys were typed: leave the app or the command alone.
    fn leave(&mut self) {
        self.left = true;
        self.leave_by = Some(Instant::now() + LEAVE_TIME);
        self.station.restore();
        self.station.discard();
        self.remote.let_go();
    }

    /// A program draws anew what another terminal has shown when its terminal changes.
    fn ask_to_draw(&mut self) {
        let Size { rows, cols } = self.station.size();
        if self.task == Task::Attach && self.station.is_raw() && rows > 0 {
            self.tell(&Message::Resize(Size { rows: rows.saturating_add(1), cols }));
            self.tell(&Message::Resize(Size { rows, cols }));
        }
    }

    fn serve(&mut self) -> Result<bool, String> {
        let open = self.remote.receive(&mut self.scratch[..], &mut self.station)?;
        if self.remote.app.is_some() && !self.remote.greeted {
            self.remote.greeted = true;
            self.remote.conn.out.tail().extend_from_slice(&self.request);
            self.ask_to_draw();
        }
        if self.remote.end.is_some() {
            return Ok(false);
        }
        self.remote.conn.flush().map_err(|error| format!("the connection to the pod broke: {error}"))?;
        if self.left && self.remote.conn.out.is_empty() {
            // Everything was said. The shim closes when it has heard it.
            sys::terminal::end_sending(&self.remote.conn);
        }
        Ok(open)
    }
}
