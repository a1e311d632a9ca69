//! The shim's peers: who is connected, and what each may ask.

use std::fs;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};

use crate::conn::Conn;
use crate::crun::{Failure, Launch, Target};
use crate::frame::{decode, flag, Message, Size, Violation, VERSION, WINDOW};
use crate::report::{now_ns, stats};
use crate::session::Session;
use crate::shim::{Shim, APP};

/// Commands whose clients may have gone count too.
const MAX_SESSIONS: usize = 32;

pub(crate) struct Peer {
    pub conn: Conn,
    pub session: Option<usize>,
    pub flags: u8,
    /// Its queue holds up the process instead of losing output.
    pub pressure: bool,
    pub foreground: bool,
    pub lost: u64,
    pub closing: bool,
    /// It has asked for a new start of the app, and waits for that.
    pub awaits: bool,
    /// It closes the connection, not the shim.
    pub closes: bool,
}

impl Peer {
    /// Whether all was said to it and it has not closed yet.
    pub fn lingers(&self) -> bool {
        self.closing && self.closes
    }

    pub fn report_loss(&mut self) {
        if self.lost > 0 {
            self.conn.send(&Message::Lost(self.lost));
            self.lost = 0;
        }
    }
}

/// Put into the first free place.
pub(crate) fn place<T>(slots: &mut Vec<Option<T>>, item: T) -> usize {
    match slots.iter().position(Option::is_none) {
        Some(index) => {
            slots[index] = Some(item);
            index
        }
        None => {
            slots.push(Some(item));
            slots.len() - 1
        }
    }
}

impl Shim {
    pub fn greet(&mut self, stream: UnixStream, foreground: bool) -> io::Result<()> {
        let mut conn = Conn::new(stream)?;
        if foreground && self.options.sockets > 0 {
            conn.take_passed();
        }
        conn.send(&Message::Hello { version: VERSION, app: &self.options.app });
        let peer = Peer {
            conn,
            session: None,
            flags: 0,
            pressure: foreground,
            foreground,
            lost: 0,
            closing: false,
            awaits: false,
            closes: foreground && self.options.linger,
        };
        place(&mut self.peers, peer);
        Ok(())
    }

    pub fn accept(&mut self) -> io::Result<()> {
        match self.listener.as_ref().map(UnixListener::accept) {
            Some(Ok((stream, _))) => self.greet(stream, false),
            // The peer has gone again, or descriptors are short: the next round tries again.
            _ => Ok(()),
        }
    }

    pub fn serve(&mut self, index: usize, events: i16) {
        let peer = match self.peers[index].as_mut() {
            Some(peer) => peer,
            None => return,
        };
        if peer.closing && !peer.closes || events & !libc::POLLOUT == 0 {
            return;
        }
        let open = matches!(peer.conn.fill(&mut self.scratch[..]), Ok(true));
        loop {
            let frame = match self.peers[index].as_mut() {
                Some(peer) if !peer.closing => peer.conn.next_frame(),
                Some(peer) if peer.closes => {
                    // What it says after the end is not listened to, only whether it closes.
                    peer.conn.forget();
                    break;
                }
                _ => return,
            };
            let handled = match frame {
                Ok(None) => break,
                Ok(Some((kind, payload))) => {
                    decode(kind, &payload).and_then(|message| self.handle(index, &message))
                }
                Err(violation) => Err(violation),
            };
            if let Err(Violation(text)) = handled {
                self.refuse(index, &format!("protocol: {text}"));
            }
        }
        if !open {
            self.drop_peer(index);
        }
    }

    pub fn refuse(&mut self, index: usize, text: &str) {
        if let Some(peer) = self.peers[index].as_mut() {
            peer.conn.send(&Message::Error(text));
            peer.closing = true;
        }
    }

    pub fn drop_peer(&mut self, index: usize) {
        self.peers[index] = None;
        for (id, session) in self.sessions.iter_mut().enumerate() {
            if let Some(session) = session.as_mut().filter(|session| session.owner == Some(index)) {
                session.disown();
                if id != APP && session.status.is_none() {
                    // As when a terminal line drops; a command that ignores it runs on.
                    session.deliver(libc::SIGHUP, false);
                }
            }
        }
    }

    fn handle(&mut self, index: usize, message: &Message) -> Result<(), Violation> {
        let session = self.peers[index].as_ref().and_then(|peer| peer.session);
        match (*message, session) {
            (Message::Attach { flags, size }, None) => self.attach(index, flags, size),
            (Message::Attach { flags, .. }, Some(session)) => self.reattach(index, session, flags)?,
            (Message::Exec { flags, size, program, path, process }, None) => {
                let target = Target { program: program.to_vec(), path: path.to_vec() };
                if let Err(text) = self.exec(index, flags, size, target, process) {
                    self.refuse(index, &text);
                }
            }
            (Message::Stdin(bytes), Some(session)) => self.input(index, session, bytes)?,
            (Message::Signal(number @ 1..=64), session) => {
                self.signal_session(session.unwrap_or(APP), i32::from(number));
            }
            (Message::Resize(size), session) => {
                if let Some(session) = self.sessions[session.unwrap_or(APP)].as_mut() {
                    session.resize(size);
                }
            }
            (Message::Stop, _) => self.stop(false),
            (Message::Restart, _) => self.restart_for(index),
            (Message::Go, Some(APP)) => self.go(index)?,
            (Message::StatsRequest, _) => {
                let text = stats();
                if let Some(peer) = self.peers[index].as_mut() {
                    peer.conn.send(&Message::Stats(&text));
                }
            }
            _ => return Err(Violation("a frame out of place")),
        }
        Ok(())
    }

    fn attach(&mut self, index: usize, flags: u8, size: Size) {
        let foreground = self.peers[index].as_ref().map_or(false, |peer| peer.foreground);
        if self.sessions[APP].is_none() && foreground && !self.stopping {
            let sockets = self.peers[index].as_mut().map(|peer| peer.conn.passed()).unwrap_or_default();
            if let Err(error) = self.start_app(size, sockets) {
                self.fail_app(Failure::own(error.to_string()));
            }
        }
        let app = match self.sessions[APP].as_mut() {
            Some(app) => app,
            None => return self.refuse(index, "the app has not started"),
        };
        if flags & flag::STDIN != 0 {
            if !(self.options.stdin || self.options.terminal) {
                return self.refuse(index, "the app was started without standard input");
            }
            if app.input_ended {
                return self
                    .refuse(index, "the app's standard input has ended; what it says can be followed");
            }
            if app.owner.is_some() {
                return self.refuse(index, "somebody else is attached to the app's standard input");
            }
            if app.pending.len() > WINDOW {
                return self
                    .refuse(index, "the app has not read what was sent to its standard input before");
            }
            app.owner = Some(index);
        }
        if size != Size::default() {
            app.resize(size);
        }
        if foreground && app.launch.held {
            app.launch.held = false;
            self.life.let_go = true;
            self.reporter.stop();
            if app.pid.is_some() {
                app.launch.release();
                self.started_ns = now_ns();
            }
        }
        if let Some(peer) = self.peers[index].as_mut() {
            peer.session = Some(APP);
            peer.flags = flags;
            if self.started_ns != 0 {
                peer.conn.send(&Message::Started { ns: self.started_ns });
            }
        }
    }

    /// A peer wants less than before: no output, or to send no more input. It hears of the end all the same.
    fn reattach(&mut self, index: usize, id: usize, flags: u8) -> Result<(), Violation> {
        let peer = match self.peers[index].as_mut() {
            Some(peer) if flags & !peer.flags == 0 => peer,
            _ => return Err(Violation("ATTACH asks for more than before")),
        };
        peer.flags = flags;
        if let Some(session) = self.sessions[id].as_mut() {
            if session.owner == Some(index) && flags & flag::STDIN == 0 {
                session.disown();
            }
        }
        Ok(())
    }

    fn exec(
        &mut self,
        index: usize,
        flags: u8,
        size: Size,
        target: Target,
        process: &[u8],
    ) -> Result<(), String> {
        let runs = |app: &Session| app.pid.is_some() && app.status.is_none();
        if !self.sessions[APP].as_ref().map_or(false, runs) {
            return Err("the app is not running".into());
        }
        if self.sessions.iter().flatten().count() > MAX_SESSIONS {
            return Err(format!("the app already has {MAX_SESSIONS} commands running"));
        }
        let terminal = flags & flag::TTY != 0;
        self.commands += 1;
        let prefix = self.run.join(format!("exec-{}", self.commands));
        let rootfs = self.run.join("rootfs");
        let started = Launch::new(prefix, terminal, target).and_then(|launch| {
            // crun looks for `hold`, which it finds; what it stands for is looked for here.
            if let Some(failure) = launch.hindrance(&rootfs).filter(|_| terminal) {
                return Ok(Session::failed(launch, failure));
            }
            let file = launch.file("json");
            fs::write(&file, process)?;
            let words = ["exec", "--process", &file.display().to_string()];
            self.launch(launch, &words, flags & flag::STDIN != 0, size)
        });
        let mut session = started.map_err(|error| format!("cannot start a command: {error}"))?;
        session.owner = Some(index);
        session.alone = flags & flag::ALONE != 0;
        let id = place(&mut self.sessions, session);
        if let Some(peer) = self.peers[index].as_mut() {
            peer.session = Some(id);
            peer.flags = match flags & flag::ALONE {
                0 => flag::STDOUT | flag::STDERR | flags & flag::STDIN,
                _ => 0,
            };
            peer.pressure = true;
        }
        Ok(())
    }

    fn input(&mut self, index: usize, id: usize, bytes: &[u8]) -> Result<(), Violation> {
        let allowed = self.peers[index].as_ref().map_or(false, |peer| peer.flags & flag::STDIN != 0);
        let session = match self.sessions[id].as_mut() {
            Some(session) if allowed && !session.input_ended => session,
            _ => return Err(Violation("STDIN out of place")),
        };
        if session.pending.len() - session.unpaid + bytes.len() > WINDOW {
            return Err(Violation("more STDIN than was allowed"));
        }
        if !bytes.is_empty() {
            session.pending.tail().extend_from_slice(bytes);
        } else if session.terminal {
            // A terminal has no end of file but its character.
            session.pending.tail().push(4);
            // It was not sent as a byte, and its sender sends no more.
            session.unpaid = session.pending.len();
        } else {
            session.input_ended = true;
        }
        if session.crun.is_none() {
            self.feed(id);
        }
        Ok(())
    }
}
