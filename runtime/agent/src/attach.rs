//! The host's end of an app in a guest: keeps its log and its exit record, and stands between its shim and the waiter.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::io::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::conn::{Conn, Queue, CHUNK};
use crate::crun::Failure;
use crate::frame::{decode, encode, flag, Message, Reader, Violation, VERSION};
use crate::log::{Log, Stream};
use crate::mux::{self, Flow, Item};
use crate::report::{now_ns, reserve_record, write_record, write_state};
use crate::sys::{self, Status};

/// What the host has for an app before its shim comes.
pub struct App {
    name: String,
    /// The folder for its log, record and control socket, whatever this process may search later.
    folder: File,
    log: Log,
    /// That its state could not be written has been told.
    state_lost: bool,
    /// The control socket.
    pub control: UnixListener,
    /// The connection to the waiter, as long as it listens.
    pub waiter: Option<Conn>,
}

impl App {
    /// Make the folder of an app below `rw` for the user `owner`, with its control socket, and connect to the waiter.
    pub fn new(name: &str, rw: &Path, attach: &Path, log_max: u64, owner: (u32, u32)) -> io::Result<Self> {
        let path = rw.join("apps").join(name);
        DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        sys::change_owner(&path, owner)?;
        let mut open = File::options();
        let folder = open.read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(&path)?;
        let inside = held(&folder);
        let socket = inside.join("ctl.sock");
        // Of an earlier start of the pod.
        let _ = fs::remove_file(&socket);
        let control = UnixListener::bind(&socket)?;
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o600))?;
        control.set_nonblocking(true)?;
        let log = Log::open(&inside.join("log"), log_max)?;
        sys::change_owner(&inside.join("log"), owner)?;
        reserve_record(&inside)?;
        // The bridge writes it when it is root no more.
        sys::change_owner(&inside.join("exit.new"), owner)?;
        let waiter = Some(Conn::new(connect(attach)?)?);
        Ok(App { name: name.into(), folder, log, state_lost: false, control, waiter })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn record(&self, code: u8, signal: u8, error: &str, started_ns: u64) {
        let class = match code {
            127 => "not-found",
            126 => "invoke",
            _ => "external",
        };
        let failure = Failure { status: code, code: class, text: error.into() };
        let failure = Some(&failure).filter(|_| !error.is_empty());
        if let Err(error) = write_record(&held(&self.folder), Status { code, signal }, failure, started_ns) {
            eprintln!("secrun: {}: no exit record: {error}", self.name);
        }
    }

    /// How the app stands is for whoever looks at the pod, not for the waiter.
    fn keep_state(&mut self, text: &str) {
        if let Err(error) = write_state(&held(&self.folder), text) {
            if !self.state_lost {
                eprintln!("secrun: {}: its state cannot be written: {error}", self.name);
            }
            self.state_lost = true;
        }
    }

    fn finish_log(&mut self) {
        self.log.finish();
        if self.log.lost() > 0 {
            eprintln!(
                "secrun: {}: the log could not be written; {} bytes are lost",
                self.name,
                self.log.lost()
            );
        }
    }
}

/// A path to an open folder.
fn held(folder: &File) -> PathBuf {
    OsString::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).into()
}

/// Connect to a socket however long its path is: an address has 108 bytes (unix(7)).
fn connect(path: &Path) -> io::Result<UnixStream> {
    let no_name = || io::Error::from(io::ErrorKind::InvalidInput);
    let (folder, name) = path.parent().zip(path.file_name()).ok_or_else(no_name)?;
    UnixStream::connect(held(&File::open(folder)?).join(name))
}

/// A shim at the far end of a channel; everything it says is checked.
#[derive(Default)]
pub struct Attach {
    /// What the channel may carry.
    pub flow: Flow,
    /// The app, once the shim has said HELLO.
    pub app: Option<App>,
    reader: Reader,
    /// Frames of the waiter that wait for credit.
    to_guest: Queue,
    /// The outputs that the waiter wants.
    wanted: u8,
    started_ns: u64,
    /// The shim has told the end.
    pub ended: bool,
}

impl Attach {
    /// DATA has come from the guest; a shim's app is taken from those that wait for one.
    pub fn data(&mut self, bytes: &[u8], waiting: &mut Vec<App>) -> Result<(), Violation> {
        if !self.flow.data(bytes.len())? {
            return Ok(());
        }
        self.flow.taken(bytes.len());
        self.reader.feed(bytes);
        while let Some((kind, payload)) = self.reader.next_frame()? {
            self.handle(&decode(kind, &payload)?, waiting)?;
        }
        Ok(())
    }

    fn handle(&mut self, message: &Message, waiting: &mut Vec<App>) -> Result<(), Violation> {
        let app = match (&mut self.app, message) {
            (Some(app), _) if !self.ended => app,
            (None, Message::Hello { version: VERSION, app: name }) => {
                let found = waiting.iter().position(|app| app.name == *name);
                let index = found.ok_or(Violation("an app that is not expected"))?;
                self.app = Some(waiting.swap_remove(index));
                return self.forward(message);
            }
            _ => return Err(Violation("a frame of a shim out of place")),
        };
        match *message {
            Message::Started { .. } if self.started_ns == 0 => {
                // By the host's clock, as the log.
                self.started_ns = now_ns();
                return self.forward(&Message::Started { ns: self.started_ns });
            }
            Message::Stdout(bytes) => app.log.push(Stream::Out, bytes),
            Message::Stderr(bytes) => app.log.push(Stream::Err, bytes),
            Message::Exit { code, signal, error } => {
                self.ended = true;
                app.finish_log();
                app.record(code, signal, error, self.started_ns);
            }
            Message::Error(_) => {
                self.ended = true;
                app.finish_log();
            }
            Message::State(text) => return Ok(app.keep_state(text)),
            Message::Again(_) => (),
            Message::Credit(_) | Message::Lost(_) | Message::Stats(_) | Message::Enforced(_) => (),
            _ => return Err(Violation("a frame of a shim out of place")),
        }
        self.forward(message)
    }

    fn forward(&mut self, message: &Message) -> Result<(), Violation> {
        let wanted = match message {
            Message::Stdout(_) => self.wanted & flag::STDOUT != 0,
            Message::Stderr(_) => self.wanted & flag::STDERR != 0,
            _ => true,
        };
        if let (Some(waiter), true) = (self.waiter(), wanted) {
            waiter.send(message);
        }
        Ok(())
    }

    fn waiter(&mut self) -> Option<&mut Conn> {
        self.app.as_mut()?.waiter.as_mut()
    }

    /// Whether the waiter is to be read.
    pub fn wants_waiter(&self) -> bool {
        self.to_guest.is_empty() && !self.flow.told
    }

    /// The waiter's connection is readable.
    pub fn read(&mut self, scratch: &mut [u8]) {
        if !self.take(scratch).unwrap_or(false) {
            // It has no more interest in this app. The pod runs on, as under nspawn.
            self.app.iter_mut().for_each(|app| app.waiter = None);
        }
    }

    fn take(&mut self, scratch: &mut [u8]) -> Result<bool, Violation> {
        let waiter = match self.app.as_mut().and_then(|app| app.waiter.as_mut()) {
            Some(waiter) => waiter,
            None => return Ok(true),
        };
        let open = waiter.fill(scratch).unwrap_or(false);
        while let Some((kind, payload)) = waiter.next_frame()? {
            let mut message = decode(kind, &payload)?;
            if let Message::Attach { flags, .. } = &mut message {
                self.wanted = *flags;
                // The log needs them, whoever looks.
                *flags |= flag::STDOUT | flag::STDERR;
            }
            encode(&message, self.to_guest.tail());
        }
        Ok(open)
    }

    /// Move on what can move; true when the channel is over.
    pub fn settle(&mut self, channel: u16, link: &mut Queue) -> bool {
        let flow = &mut self.flow;
        // It cannot fail: running out of room is no failure of a queue.
        let _ = self.to_guest.flush(|bytes| {
            let count = bytes.len().min(flow.credit).min(CHUNK);
            if count == 0 || link.is_full() {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            flow.credit -= count;
            mux::encode(&Item::Data { channel, bytes: &bytes[..count] }, link.tail());
            Ok(count)
        });
        if let Some(app) = &mut self.app {
            if app.waiter.as_mut().map_or(false, |waiter| waiter.flush().is_err()) {
                app.waiter = None;
            }
        }
        // A waiter that is slow to read holds the app up.
        let full = self.waiter().map_or(false, |waiter| waiter.out.is_full());
        if let Some(count) = if full || link.is_full() { None } else { self.flow.due() } {
            mux::encode(&Item::Credit { channel, count }, link.tail());
        }
        if (self.ended || self.flow.heard) && !self.flow.told {
            self.flow.told = true;
            mux::encode(&Item::Close { channel }, link.tail());
        }
        self.flow.is_over()
    }

    /// The guest is no more: what the app's log holds back is written. Returns the waiter, which may have to read yet.
    pub fn finish(mut self) -> Option<Conn> {
        let mut app = self.app.take()?;
        if !self.ended {
            app.finish_log();
        }
        app.waiter.take()
    }
}
