//! The framed protocol of docs/agent-protocol.md: pure encoding and decoding, no I/O.

/// Version that HELLO carries; a peer of another version is refused.
pub const VERSION: u16 = 3;
/// Bytes of a frame's header: type (u8) and payload length (u32, little endian).
pub const HEADER: usize = 5;
/// Largest payload; the bound on what one peer can make the other hold.
pub const MAX_PAYLOAD: usize = 65_536;
/// Bytes of STDIN that may be under way without a CREDIT.
pub const WINDOW: usize = 65_536;
/// Largest text of ERROR, EXIT and ENFORCED; longer ones are cut by the sender.
pub const MAX_TEXT: usize = 4096;
/// Largest text of STATE: five results of health checks with what they wrote, every character escaped.
pub const MAX_STATE: usize = 8192;

/// What the peer did that the protocol does not allow; the connection ends.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub struct Violation(pub &'static str);

/// Bits of ATTACH and EXEC flags.
pub mod flag {
    /// Send standard output.
    pub const STDOUT: u8 = 1;
    /// Send standard error.
    pub const STDERR: u8 = 2;
    /// The peer will send STDIN frames.
    pub const STDIN: u8 = 4;
    /// Run the command on a terminal (EXEC only).
    pub const TTY: u8 = 8;
    /// Leave the command alone once it has started: STARTED is all that is told (EXEC only).
    pub const ALONE: u8 = 16;
    /// Every bit that has a meaning.
    pub const ALL: u8 = 31;
}

/// Rows and columns of a terminal; zero means unknown.
#[derive(Debug, PartialEq, Eq, Clone, Copy, Default)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub cols: u16,
}

/// One frame with its meaning; from the shim below 0x80, to the shim from 0x80 on.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
#[allow(missing_docs)]
pub enum Message<'a> {
    Hello { version: u16, app: &'a str },
    Started { ns: u64 },
    Stdout(&'a [u8]),
    Stderr(&'a [u8]),
    Credit(u32),
    Exit { code: u8, signal: u8, error: &'a str },
    Error(&'a str),
    Stats(&'a str),
    Lost(u64),
    Enforced(&'a str),
    State(&'a str),
    Again(u32),
    Attach { flags: u8, size: Size },
    Stdin(&'a [u8]),
    Signal(u8),
    Resize(Size),
    Exec { flags: u8, size: Size, program: &'a [u8], path: &'a [u8], process: &'a [u8] },
    StatsRequest,
    Stop,
    Go,
    Restart,
}

/// Take fixed-size fields and rests off a payload.
pub(crate) struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, count: usize) -> Result<&'a [u8], Violation> {
        if count > self.0.len() {
            return Err(Violation("a payload is too short"));
        }
        let (head, rest) = self.0.split_at(count);
        self.0 = rest;
        Ok(head)
    }

    pub fn number(&mut self, size: usize) -> Result<u64, Violation> {
        Ok(self.bytes(size)?.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    }

    fn size(&mut self) -> Result<Size, Violation> {
        Ok(Size { rows: self.number(2)? as u16, cols: self.number(2)? as u16 })
    }

    fn flags(&mut self) -> Result<u8, Violation> {
        let flags = self.number(1)? as u8;
        if flags & !flag::ALL != 0 {
            return Err(Violation("unknown flags"));
        }
        Ok(flags)
    }

    fn sized(&mut self) -> Result<&'a [u8], Violation> {
        let count = self.number(2)? as usize;
        self.bytes(count)
    }

    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    pub fn text(&mut self, limit: usize) -> Result<&'a str, Violation> {
        let bytes = self.rest();
        if bytes.len() > limit {
            return Err(Violation("a text is too long"));
        }
        std::str::from_utf8(bytes).map_err(|_| Violation("a text is not UTF-8"))
    }

    /// Everything must have been used.
    pub fn end(&self) -> Result<(), Violation> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Violation("a payload is too long"))
        }
    }
}

/// Read one frame's payload as the type says; all of it must be used.
pub fn decode(kind: u8, payload: &[u8]) -> Result<Message<'_>, Violation> {
    let mut fields = Fields(payload);
    let message = match kind {
        0x01 => Message::Hello { version: fields.number(2)? as u16, app: fields.text(255)? },
        0x02 => Message::Started { ns: fields.number(8)? },
        0x03 => Message::Stdout(fields.rest()),
        0x04 => Message::Stderr(fields.rest()),
        0x05 => Message::Credit(fields.number(4)? as u32),
        0x06 => Message::Exit {
            code: fields.number(1)? as u8,
            signal: fields.number(1)? as u8,
            error: fields.text(MAX_TEXT)?,
        },
        0x07 => Message::Error(fields.text(MAX_TEXT)?),
        0x08 => Message::Stats(fields.text(MAX_PAYLOAD)?),
        0x09 => Message::Lost(fields.number(8)?),
        0x0a => Message::Enforced(fields.text(MAX_TEXT)?),
        0x0b => Message::State(fields.text(MAX_STATE)?),
        0x0c => Message::Again(fields.number(4)? as u32),
        0x81 => Message::Attach { flags: fields.flags()?, size: fields.size()? },
        0x82 => Message::Stdin(fields.rest()),
        0x83 => Message::Signal(fields.number(1)? as u8),
        0x84 => Message::Resize(fields.size()?),
        0x85 => Message::Exec {
            flags: fields.flags()?,
            size: fields.size()?,
            program: fields.sized()?,
            path: fields.sized()?,
            process: fields.rest(),
        },
        0x86 => Message::StatsRequest,
        0x87 => Message::Stop,
        0x88 => Message::Go,
        0x89 => Message::Restart,
        _ => return Err(Violation("unknown frame type")),
    };
    fields.end().map(|()| message)
}

/// Append one frame; what exceeds MAX_PAYLOAD is a bug of the caller, texts are cut at MAX_TEXT.
pub fn encode(message: &Message, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER]);
    let kind = match *message {
        Message::Hello { version, app } => put(out, 0x01, &[&version.to_le_bytes(), app.as_bytes()]),
        Message::Started { ns } => put(out, 0x02, &[&ns.to_le_bytes()]),
        Message::Stdout(data) => put(out, 0x03, &[data]),
        Message::Stderr(data) => put(out, 0x04, &[data]),
        Message::Credit(count) => put(out, 0x05, &[&count.to_le_bytes()]),
        Message::Exit { code, signal, error } => put(out, 0x06, &[&[code, signal], cut(error).as_bytes()]),
        Message::Error(text) => put(out, 0x07, &[cut(text).as_bytes()]),
        Message::Stats(text) => put(out, 0x08, &[text.as_bytes()]),
        Message::Lost(count) => put(out, 0x09, &[&count.to_le_bytes()]),
        Message::Enforced(text) => put(out, 0x0a, &[cut(text).as_bytes()]),
        Message::State(text) => put(out, 0x0b, &[text.as_bytes()]),
        Message::Again(count) => put(out, 0x0c, &[&count.to_le_bytes()]),
        Message::Attach { flags, size } => put(out, 0x81, &[&[flags], &packed(size)]),
        Message::Stdin(data) => put(out, 0x82, &[data]),
        Message::Signal(number) => put(out, 0x83, &[&[number]]),
        Message::Resize(size) => put(out, 0x84, &[&packed(size)]),
        Message::Exec { flags, size, program, path, process } => {
            let program_size = (program.len() as u16).to_le_bytes();
            let path_size = (path.len() as u16).to_le_bytes();
            put(out, 0x85, &[&[flags], &packed(size), &program_size, program, &path_size, path, process])
        }
        Message::StatsRequest => put(out, 0x86, &[]),
        Message::Stop => put(out, 0x87, &[]),
        Message::Go => put(out, 0x88, &[]),
        Message::Restart => put(out, 0x89, &[]),
    };
    let length = out.len() - start - HEADER;
    debug_assert!(length <= MAX_PAYLOAD);
    out[start] = kind;
    out[start + 1..start + HEADER].copy_from_slice(&(length as u32).to_le_bytes());
}

fn put(out: &mut Vec<u8>, kind: u8, parts: &[&[u8]]) -> u8 {
    parts.iter().for_each(|part| out.extend_from_slice(part));
    kind
}

fn packed(size: Size) -> [u8; 4] {
    let (rows, cols) = (size.rows.to_le_bytes(), size.cols.to_le_bytes());
    [rows[0], rows[1], cols[0], cols[1]]
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Bytes of a stream on their way to whole frames.
#[derive(Default)]
pub struct Reader {
    buffer: Vec<u8>,
    start: usize,
}

impl Reader {
    /// Add what was read; the caller takes every whole frame before it reads again.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// Return the next whole frame's type and payload, or None until more bytes come.
    pub fn next_frame(&mut self) -> Result<Option<(u8, Vec<u8>)>, Violation> {
        let bytes = &self.buffer[self.start..];
        if bytes.len() < HEADER {
            return Ok(None);
        }
        let length = u32::from_le_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]) as usize;
        if length > MAX_PAYLOAD {
            return Err(Violation("a frame is too long"));
        }
        let frame = match bytes.get(HEADER..HEADER + length) {
            Some(payload) => (bytes[0], payload.to_vec()),
            None => return Ok(None),
        };
        self.start += HEADER + length;
        if self.start == self.buffer.len() {
            // An idle connection holds no memory.
            *self = Reader::default();
        }
        Ok(Some(frame))
    }
}
