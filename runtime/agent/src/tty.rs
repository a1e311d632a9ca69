//! The host's end of apps and commands: the caller's terminal and streams, and what a shim sends for them.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::io::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use crate::conn::{Conn, Queue};
use crate::frame::{decode, flag, Message, Size, Violation, VERSION, WINDOW};
use crate::keys::Keys;
use crate::readback::{self, Values};
use crate::sys;

/// One of the caller's output streams. Writing never waits, and never changes the caller's open file.
struct Output {
    file: File,
    queue: Queue,
    /// Most that one write may take after poll has reported room; more might wait.
    piece: usize,
    broken: bool,
}

impl Output {
    fn new(number: RawFd) -> io::Result<Self> {
        let mut file = File::from(sys::standard(number).try_clone_to_owned()?);
        let kind = file.metadata()?.file_type();
        let mut piece = if kind.is_file() { usize::MAX } else { libc::PIPE_BUF };
        if kind.is_fifo() || kind.is_char_device() {
            // Opened once more, only this opening is non-blocking. What may not be reopened is written piecemeal.
            let mut open = OpenOptions::new();
            open.write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
            if let Ok(own) = open.open(format!("/proc/self/fd/{number}")) {
                (file, piece) = (own, usize::MAX);
            }
        }
        Ok(Output { file, queue: Queue::default(), piece, broken: false })
    }

    /// After poll has reported room.
    fn flush(&mut self) {
        let (file, piece) = (&mut self.file, self.piece);
        let mut room = true;
        let done = self.queue.flush(|bytes| match std::mem::replace(&mut room, piece == usize::MAX) {
            true => file.write(&bytes[..bytes.len().min(piece)]),
            false => Err(io::ErrorKind::WouldBlock.into()),
        });
        if done.is_err() {
            // The reader has gone: the pod runs on, its output has nowhere to go.
            self.close();
        }
    }

    fn close(&mut self) {
        self.broken = true;
        self.queue.clear();
    }
}

/// The caller's standard streams, and the terminal among them.
pub struct Station {
    input: File,
    outputs: [Output; 2],
    saved: Option<libc::termios>,
    was_terminal: bool,
    /// Standard input has not ended.
    pub input_open: bool,
    /// The keys that detach, if any do.
    pub keys: Option<Keys>,
    /// They were typed.
    pub detaching: bool,
    /// That the terminal hangs up is no end of the app's input.
    pub outlived: bool,
}

impl Station {
    /// Take the streams; `raw` makes the terminal pass every byte through until `restore`.
    pub fn new(raw: bool, input: bool) -> io::Result<Self> {
        let stdin = File::from(sys::standard(0).try_clone_to_owned()?);
        let settings = sys::get_terminal(&stdin).ok();
        let mut station = Station {
            input: stdin,
            outputs: [Output::new(1)?, Output::new(2)?],
            saved: None,
            was_terminal: settings.is_some(),
            input_open: input,
            keys: None,
            detaching: false,
            outlived: false,
        };
        if let (true, Some(settings)) = (raw, settings) {
            sys::set_terminal(&station.input, &sys::raw_terminal(&settings))?;
            station.saved = Some(settings);
        }
        Ok(station)
    }

    /// Give the terminal back as it was.
    pub fn restore(&mut self) {
        if let Some(settings) = self.saved.take() {
            // A terminal that has gone needs no settings.
            let _ = sys::set_terminal(&self.input, &settings);
        }
    }

    /// Stopped and let go on, perhaps by a shell that has set the terminal as it likes it.
    pub fn resume(&self) {
        if let Some(settings) = &self.saved {
            // A terminal that has gone is noticed when it is read.
            let _ = sys::set_terminal(&self.input, &sys::raw_terminal(settings));
        }
    }

    /// Whether the terminal passes every byte through.
    pub fn is_raw(&self) -> bool {
        self.saved.is_some()
    }

    /// Whether there was a terminal and it has hung up.
    pub fn lost_terminal(&self) -> bool {
        self.was_terminal && sys::get_terminal(&self.input).is_err()
    }

    /// The terminal's size, or zeros.
    pub fn size(&self) -> Size {
        sys::get_size(&self.input).unwrap_or_default()
    }

    /// Whether the reader of standard output has gone.
    pub fn is_broken(&self) -> bool {
        self.outputs[0].broken
    }

    /// Whether an output cannot take more now.
    pub fn is_full(&self) -> bool {
        self.outputs.iter().any(|output| output.queue.is_full())
    }

    /// Whether everything was written.
    pub fn is_empty(&self) -> bool {
        self.outputs.iter().all(|output| output.queue.is_empty())
    }

    /// Forget what was not written, now and later.
    pub fn discard(&mut self) {
        self.outputs.iter_mut().for_each(Output::close);
    }

    /// The outputs that wait for room, with their numbers.
    pub fn waiting(&self) -> impl Iterator<Item = (usize, RawFd)> + '_ {
        let waiting = self.outputs.iter().enumerate().filter(|(_, output)| !output.queue.is_empty());
        waiting.map(|(index, output)| (index, output.file.as_raw_fd()))
    }

    /// Write to an output that has room.
    pub fn flush(&mut self, index: usize) {
        self.outputs[index].flush();
    }

    fn put(&mut self, index: usize, bytes: &[u8]) {
        let output = &mut self.outputs[index];
        if !output.broken {
            output.queue.tail().extend_from_slice(bytes);
        }
    }
}

/// How an app or a command ended.
pub struct End {
    /// Exit status, 128 + signal if killed.
    pub code: u8,
    /// Why it did not run, if so.
    pub error: String,
}

/// A shim at the other end; everything it says is checked.
pub struct Remote {
    /// The connection.
    pub conn: Conn,
    /// The process that connected: the shim, as the host numbers it.
    pub pid: i32,
    /// Its app, once it has said HELLO.
    pub app: Option<String>,
    /// It has been answered.
    pub greeted: bool,
    /// The app runs.
    pub started: bool,
    /// The app or command is over.
    pub end: Option<End>,
    /// It may tell what its kernel enforces, so many times yet.
    pub reports: usize,
    /// What it has told last, to be taken.
    pub reported: Option<(i32, Values)>,
    /// Its app has begun again, to be taken.
    pub again: bool,
    most_reports: usize,
    /// What it may send and be sent: bits of ATTACH.
    pub flags: u8,
    /// Written before each line of its output.
    pub prefix: Vec<u8>,
    line_starts: [bool; 2],
    credit: usize,
}

impl Remote {
    /// Serve a new connection.
    pub fn new(stream: UnixStream, reports: usize) -> io::Result<Self> {
        Ok(Remote {
            pid: sys::peer_pid(&stream)?,
            conn: Conn::new(stream)?,
            app: None,
            greeted: false,
            started: false,
            end: None,
            reports,
            reported: None,
            again: false,
            most_reports: reports,
            flags: 0,
            prefix: Vec::new(),
            line_starts: [true; 2],
            credit: WINDOW,
        })
    }

    /// Whether it takes input now, beside what the station holds back.
    pub fn wants_input(&self, station: &Station) -> bool {
        let room = self.credit > station.keys.as_ref().map_or(0, Keys::held);
        self.greeted && self.flags & flag::STDIN != 0 && room && self.end.is_none()
    }

    /// Read once and act on every whole frame; false means that the shim has closed.
    pub fn receive(&mut self, scratch: &mut [u8], station: &mut Station) -> Result<bool, String> {
        let open = self.conn.fill(scratch).map_err(|error| error.to_string())?;
        let broken = |Violation(text)| format!("protocol: {text}");
        while let Some((kind, payload)) = self.conn.next_frame().map_err(broken)? {
            decode(kind, &payload).and_then(|message| self.handle(&message, station)).map_err(broken)?;
        }
        Ok(open)
    }

    fn handle(&mut self, message: &Message, station: &mut Station) -> Result<(), Violation> {
        match *message {
            Message::Hello { version: VERSION, app } if self.app.is_none() => self.app = Some(app.into()),
            Message::Hello { .. } if self.app.is_none() => return Err(Violation("another version")),
            Message::Enforced(text) if self.app.is_some() && self.end.is_none() && self.reports > 0 => {
                self.reports -= 1;
                self.reported = Some(readback::reported(text)?);
            }
            _ if !self.greeted || self.end.is_some() => return Err(Violation("a frame out of place")),
            Message::Started { .. } if !self.started => self.started = true,
            Message::Again(_) => {
                self.again = true;
                self.reports = self.most_reports;
                // What was told of the last run says nothing of this one.
                self.reported = None;
            }
            Message::Stdout(bytes) if self.flags & flag::STDOUT != 0 => self.show(0, bytes, station),
            Message::Stderr(bytes) if self.flags & flag::STDERR != 0 => self.show(1, bytes, station),
            Message::Credit(count) if self.credit + count as usize <= WINDOW => {
                self.credit += count as usize
            }
            Message::Exit { code, error, .. } => self.end = Some(End { code, error: plain(error) }),
            Message::Error(text) => self.end = Some(End { code: 125, error: plain(text) }),
            Message::Lost(count) => station.put(1, format!("secrun: {count} bytes lost\n").as_bytes()),
            _ => return Err(Violation("a frame out of place")),
        }
        Ok(())
    }

    fn show(&mut self, index: usize, bytes: &[u8], station: &mut Station) {
        if self.prefix.is_empty() {
            return station.put(index, bytes);
        }
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.line_starts[index] {
                station.put(index, &self.prefix);
            }
            station.put(index, line);
            self.line_starts[index] = line.ends_with(b"\n");
        }
    }

    /// Standard input is readable: pass on what the shim allows, up to the keys that detach.
    pub fn pass_input(&mut self, scratch: &mut [u8], station: &mut Station) {
        use io::ErrorKind::{Interrupted, WouldBlock};
        let room = scratch.len().min(self.credit - station.keys.as_ref().map_or(0, Keys::held));
        match station.input.read(&mut scratch[..room]) {
            Err(error) if matches!(error.kind(), WouldBlock | Interrupted) => (),
            Ok(0) | Err(_) => {
                station.input_open = false;
                // A raw terminal knows no end of input but its own.
                if station.outlived && station.is_raw() {
                    return;
                }
                let held = station.keys.as_mut().map_or(Vec::new(), Keys::finish);
                self.put_input(&held);
                self.conn.send(&Message::Stdin(&[]));
            }
            Ok(count) => match &mut station.keys {
                Some(keys) => {
                    let mut typed = Vec::with_capacity(count + keys.held());
                    station.detaching = keys.take(&scratch[..count], &mut typed);
                    self.put_input(&typed);
                }
                None => self.put_input(&scratch[..count]),
            },
        }
    }

    fn put_input(&mut self, bytes: &[u8]) {
        // An empty frame would be the end of input.
        if !bytes.is_empty() {
            self.credit -= bytes.len();
            self.conn.send(&Message::Stdin(bytes));
        }
    }

    /// Give up the app's input and output, and hear only of its end.
    pub fn let_go(&mut self) {
        // What is on its way is still in place.
        self.flags &= !flag::STDIN;
        self.conn.send(&Message::Attach { flags: 0, size: Size::default() });
    }
}

/// A text of the pod for a terminal: no control characters.
fn plain(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { '?' } else { char }).collect()
}
