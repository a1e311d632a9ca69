//! One connection: frames in, frames out, neither ever waiting.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::io::{AsRawFd, OwnedFd, RawFd};

use libc::c_short;

use crate::frame::{encode, Message, Reader, Violation};
use crate::sys::{self, rights};

/// Bytes that one read takes at most.
pub const CHUNK: usize = 16_384;
/// Bytes that may wait for a peer before its source is no longer read.
pub const QUEUE_LIMIT: usize = 131_072;

/// Bytes that wait for their reader.
#[derive(Default)]
pub struct Queue {
    bytes: Vec<u8>,
    start: usize,
}

impl Queue {
    /// How many bytes wait.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the source should pause.
    pub fn is_full(&self) -> bool {
        self.len() >= QUEUE_LIMIT
    }

    /// Room at the end.
    pub fn tail(&mut self) -> &mut Vec<u8> {
        if self.start > QUEUE_LIMIT {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        &mut self.bytes
    }

    /// Forget everything.
    pub fn clear(&mut self) {
        self.start = 0;
        self.bytes.clear();
        self.bytes.shrink_to(2 * CHUNK);
    }

    /// Hand bytes to `write` until none is left or it would wait; returns how many went.
    pub fn flush(&mut self, mut write: impl FnMut(&[u8]) -> io::Result<usize>) -> io::Result<usize> {
        let mut gone = 0;
        while !self.is_empty() {
            match write(&self.bytes[self.start..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.start += count;
                    gone += count;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(gone),
                Err(error) if error.kind() == ErrorKind::Interrupted => (),
                Err(error) => return Err(error),
            }
        }
        self.clear();
        Ok(gone)
    }
}

/// A connected peer.
pub struct Conn {
    stream: File,
    reader: Reader,
    /// Descriptors that go with the next bytes.
    passing: Vec<RawFd>,
    /// Descriptors that came, where some are taken.
    received: Option<Vec<OwnedFd>>,
    /// Frames that wait for the peer to read.
    pub out: Queue,
}

impl AsRawFd for Conn {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

impl Conn {
    /// Take over a connected socket, or another descriptor of two directions.
    pub fn new(stream: impl Into<OwnedFd>) -> io::Result<Self> {
        let stream = File::from(stream.into());
        sys::set_nonblocking(&stream)?;
        Ok(Conn { stream, reader: Reader::default(), passing: Vec::new(), received: None, out: Queue::default() })
    }

    /// Queue one frame.
    pub fn send(&mut self, message: &Message) {
        encode(message, self.out.tail());
    }

    /// Send descriptors with the next frame; nothing may be waiting. They stay open here.
    pub fn pass(&mut self, fds: &[RawFd]) {
        self.passing = fds.to_vec();
    }

    /// Take descriptors from the peer; without this whatever it sends is closed.
    pub fn take_passed(&mut self) {
        self.received = Some(Vec::new());
    }

    /// The descriptors that have come; none come any more.
    pub fn passed(&mut self) -> Vec<OwnedFd> {
        self.received.take().unwrap_or_default()
    }

    /// Write what the peer takes now.
    pub fn flush(&mut self) -> io::Result<()> {
        let (stream, passing) = (&mut self.stream, &mut self.passing);
        let write = |bytes: &[u8]| {
            if passing.is_empty() {
                return stream.write(bytes);
            }
            let sent = rights::send(stream, bytes, passing)?;
            passing.clear();
            Ok(sent)
        };
        self.out.flush(write).map(drop)
    }

    fn read(&mut self, scratch: &mut [u8]) -> io::Result<usize> {
        match &mut self.received {
            None => self.stream.read(scratch),
            Some(received) => {
                let (count, fds) = rights::receive(&self.stream, scratch)?;
                if received.is_empty() {
                    *received = fds;
                }
                Ok(count)
            }
        }
    }

    /// Read once; false means that the peer has ended its side.
    pub fn fill(&mut self, scratch: &mut [u8]) -> io::Result<bool> {
        match self.read(scratch) {
            Ok(0) => Ok(false),
            Ok(count) => {
                self.reader.feed(&scratch[..count]);
                Ok(true)
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// The next whole frame that was read.
    pub fn next_frame(&mut self) -> Result<Option<(u8, Vec<u8>)>, Violation> {
        self.reader.next_frame()
    }

    /// Forget what was read.
    pub fn forget(&mut self) {
        self.reader = Reader::default();
    }

    /// What to poll for.
    pub fn events(&self, read: bool) -> c_short {
        let write = if self.out.is_empty() { 0 } else { libc::POLLOUT };
        write | if read { libc::POLLIN } else { 0 }
    }
}
