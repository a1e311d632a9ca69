//! A command in a running app, or a look at the app itself, from the host: `secrun enter` and `secrun attach`.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::io::RawFd;
use std::os::unix::net::UnixStream;

use crate::args::Words;
use crate::conn::CHUNK;
use crate::frame::{decode, encode, Message, HEADER, MAX_PAYLOAD};
use crate::sys::{self, Poller};
use crate::tty::{End, Remote, Station};

/// Exit status when the reader of standard output has gone, as if SIGPIPE had ended the client.
const BROKEN_PIPE: u8 = 128 + libc::SIGPIPE as u8;

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

fn run(mut words: Words) -> Result<End, String> {
    let (mut conn, mut request, mut tty, mut stdin) = (None, None, false, false);
    while let Some(option) = words.option()? {
        match option.as_str() {
            "--conn-fd" => conn = Some(words.fd()?),
            "--request-fd" => request = Some(words.fd()?),
            "--tty" => tty = true,
            "--stdin" => stdin = true,
            _ => return words.unknown(),
        }
    }
    let inherited = |fd: Option<RawFd>| {
        sys::inherited(fd.ok_or("--conn-fd and --request-fd are needed")?).map_err(|error| error.to_string())
    };
    let mut bytes = Vec::new();
    let limit = (MAX_PAYLOAD + 2) as u64;
    File::from(inherited(request)?)
        .take(limit)
        .read_to_end(&mut bytes)
        .map_err(|error| error.to_string())?;
    let stream = UnixStream::from(inherited(conn)?);
    let mut session = Session::new(stream, &bytes, tty, stdin)?;
    let end = session.run();
    session.station.restore();
    end
}

struct Session {
    remote: Remote,
    station: Station,
    signals: std::os::unix::io::OwnedFd,
    request: Vec<u8>,
    scratch: Box<[u8; CHUNK]>,
}

impl Session {
    fn new(stream: UnixStream, request: &[u8], tty: bool, stdin: bool) -> Result<Self, String> {
        let (kind, payload) = request.split_first().ok_or("the request is empty")?;
        if payload.len() > MAX_PAYLOAD {
            return Err(format!("the request is longer than {MAX_PAYLOAD} bytes"));
        }
        let message = decode(*kind, payload).map_err(|error| format!("the request: {}", error.0))?;
        let text = |error: std::io::Error| error.to_string();
        let mut remote = Remote::new(stream, 0).map_err(text)?;
        remote.flags = match message {
            Message::Attach { flags, .. } | Message::Exec { flags, .. } => {
                flags | crate::frame::flag::STDOUT | crate::frame::flag::STDERR
            }
            _ => return Err("the request is neither ATTACH nor EXEC".into()),
        };
        let mut bytes = Vec::with_capacity(HEADER + payload.len());
        encode(&message, &mut bytes);
        use libc::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};
        let signals = sys::signals(&[SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH]);
        Ok(Session {
            remote,
            station: Station::new(tty, stdin).map_err(text)?,
            signals: signals.map_err(text)?,
            request: bytes,
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
            if open && self.station.input_open && self.remote.wants_input() {
                poller.add(&sys::standard(0), libc::POLLIN, Token::Input);
            }
            for (token, _) in poller.wait(None).map_err(|error| error.to_string())? {
                match token {
                    Token::Signal => self.take_signals(),
                    Token::Remote => open = self.serve()?,
                    Token::Output(index) => self.station.flush(index),
                    Token::Input => self.remote.pass_input(&mut self.scratch[..], &mut self.station),
                }
            }
            if self.station.is_broken() {
                return Ok(End { code: BROKEN_PIPE, error: String::new() });
            }
        }
        self.remote.end.take().ok_or_else(|| "the connection to the pod broke".into())
    }

    fn take_signals(&mut self) {
        while let Some(number) = sys::next_signal(&self.signals) {
            if self.remote.greeted && !self.remote.conn.out.is_full() {
                self.remote.conn.send(&match number {
                    libc::SIGWINCH => Message::Resize(self.station.size()),
                    _ => Message::Signal(number as u8),
                });
            }
        }
    }

    fn serve(&mut self) -> Result<bool, String> {
        let open = self.remote.receive(&mut self.scratch[..], &mut self.station)?;
        if self.remote.app.is_some() && !self.remote.greeted {
            self.remote.greeted = true;
            self.remote.conn.out.tail().extend_from_slice(&self.request);
        }
        if self.remote.end.is_some() {
            return Ok(false);
        }
        self.remote.conn.flush().map_err(|error| format!("the connection to the pod broke: {error}"))?;
        Ok(open)
    }
}
