//! A channel of the link whose bytes go to and come from one socket, unread.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::io::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use libc::c_short;

use crate::conn::Queue;
use crate::frame::Violation;
use crate::mux::{encode, Flow, Item};

/// One socket and the channel that it is joined with.
pub struct Lane {
    /// What the channel may carry.
    pub flow: Flow,
    socket: UnixStream,
    /// Bytes for the socket; bounded by the window.
    out: Queue,
    /// Nothing more comes from the socket.
    ended: bool,
    /// Nothing more goes to the socket; what it has said may still wait to be read.
    deaf: bool,
}

impl AsRawFd for Lane {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Lane {
    /// Join a connected socket with a channel.
    pub fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Lane { flow: Flow::default(), socket, out: Queue::default(), ended: false, deaf: false })
    }

    /// What to poll for; `room` if the link takes more.
    pub fn events(&self, room: bool) -> c_short {
        let read = room && !self.ended && !self.flow.told && self.flow.credit > 0;
        let write = !self.out.is_empty();
        (if read { libc::POLLIN } else { 0 }) | (if write { libc::POLLOUT } else { 0 })
    }

    /// The socket is readable: send on what the channel takes. Whatever ends the socket ends the lane in `settle`.
    pub fn read(&mut self, channel: u16, scratch: &mut [u8], link: &mut Queue) {
        let room = scratch.len().min(self.flow.credit);
        if room == 0 {
            return;
        }
        match self.socket.read(&mut scratch[..room]) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => (),
            Ok(0) | Err(_) => self.ended = true,
            Ok(count) => {
                self.flow.credit -= count;
                encode(&Item::Data { channel, bytes: &scratch[..count] }, link.tail());
            }
        }
    }

    /// DATA has come for the socket.
    pub fn data(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        if self.flow.data(bytes.len())? && !self.deaf {
            self.out.tail().extend_from_slice(bytes);
        }
        Ok(())
    }

    /// Write what the socket takes, and tell the link what has to be told; true when the lane is over.
    pub fn settle(&mut self, channel: u16, link: &mut Queue) -> bool {
        let socket = &mut self.socket;
        match self.out.flush(|bytes| socket.write(bytes)) {
            Ok(count) => self.flow.taken(count),
            Err(_) => {
                self.out.clear();
                self.deaf = true;
            }
        }
        // A peer that does not read its credit gets none, and may not send.
        if let Some(count) = if link.is_full() { None } else { self.flow.due() } {
            encode(&Item::Credit { channel, count }, link.tail());
        }
        let delivered = self.flow.heard && self.out.is_empty();
        if (self.ended || delivered) && !self.flow.told {
            self.flow.told = true;
            encode(&Item::Close { channel }, link.tail());
        }
        self.flow.is_over() && self.out.is_empty()
    }
}
