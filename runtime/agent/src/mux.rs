//! Many streams over the one between a guest and its host (docs/agent-protocol.md): codec and credit, pure.

use crate::frame::{Fields, Violation, HEADER, WINDOW};
use crate::netplan::Part;

/// Version of the link that a guest's HELLO carries.
pub const VERSION: u16 = 3;
/// Name of the virtio-serial port.
pub const PORT: &str = "dev.secrun.link";
/// Longest name of a mark or an app.
pub const MAX_NAME: usize = 64;
/// Bytes of randomness that RESEED carries.
pub const SEED: std::ops::RangeInclusive<usize> = 32..=256;
/// A receiver tells the sender after this many bytes that it may send as many again.
const CREDIT_STEP: usize = WINDOW / 4;

/// What a channel leads to.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum Kind {
    /// A shim that came to /host/attach.sock; opened by the guest.
    Attach = 1,
    /// The control socket of an app; opened by the host.
    Control = 2,
}

/// One frame with its meaning; from the guest below 0x50, from the host below 0x60, from both above.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
#[allow(missing_docs)]
pub enum Item<'a> {
    Hello { version: u16 },
    Mark { ns: u64, name: &'a str },
    Bye,
    Clock { ns: u64 },
    Reseed(&'a [u8]),
    Shutdown,
    Finish,
    Network { part: Part, bytes: &'a [u8] },
    Secret { number: u16, bytes: &'a [u8] },
    Connect,
    Open { channel: u16, kind: Kind, app: &'a str },
    Data { channel: u16, bytes: &'a [u8] },
    Credit { channel: u16, count: u32 },
    Close { channel: u16 },
}

fn name<'a>(fields: &mut Fields<'a>) -> Result<&'a str, Violation> {
    let text = fields.text(MAX_NAME)?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if text.starts_with('.') || !text.bytes().all(plain) {
        return Err(Violation("not a name"));
    }
    Ok(text)
}

/// Read one frame's payload as the type says; all of it must be used.
pub fn decode(kind: u8, payload: &[u8]) -> Result<Item<'_>, Violation> {
    let mut fields = Fields(payload);
    let item = match kind {
        0x41 => Item::Hello { version: fields.number(2)? as u16 },
        0x42 => Item::Mark { ns: fields.number(8)?, name: name(&mut fields)? },
        0x43 => Item::Bye,
        0x51 => Item::Clock { ns: fields.number(8)? },
        0x52 if SEED.contains(&payload.len()) => Item::Reseed(fields.rest()),
        0x53 => Item::Shutdown,
        0x54 => Item::Finish,
        0x55 => {
            let part = Part::of(fields.number(1)?).ok_or(Violation("unknown part of the network"))?;
            Item::Network { part, bytes: fields.rest() }
        }
        0x56 => Item::Connect,
        0x57 => Item::Secret { number: fields.number(2)? as u16, bytes: fields.rest() },
        0x61 => Item::Open {
            channel: fields.number(2)? as u16,
            kind: match fields.number(1)? {
                1 => Kind::Attach,
                2 => Kind::Control,
                _ => return Err(Violation("unknown kind of channel")),
            },
            app: name(&mut fields)?,
        },
        0x62 => Item::Data { channel: fields.number(2)? as u16, bytes: fields.rest() },
        0x63 => Item::Credit { channel: fields.number(2)? as u16, count: fields.number(4)? as u32 },
        0x64 => Item::Close { channel: fields.number(2)? as u16 },
        _ => return Err(Violation("unknown frame type on the link")),
    };
    fields.end().map(|()| item)
}

/// Append one frame; DATA, NETWORK or SECRET of more than MAX_PAYLOAD - 2 bytes is a bug of the caller.
pub fn encode(item: &Item, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER]);
    let mut put = |kind: u8, number: Option<u16>, rest: &[&[u8]]| {
        number.into_iter().for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
        rest.iter().for_each(|part| out.extend_from_slice(part));
        kind
    };
    let kind = match *item {
        Item::Hello { version } => put(0x41, None, &[&version.to_le_bytes()]),
        Item::Mark { ns, name } => put(0x42, None, &[&ns.to_le_bytes(), name.as_bytes()]),
        Item::Bye => put(0x43, None, &[]),
        Item::Clock { ns } => put(0x51, None, &[&ns.to_le_bytes()]),
        Item::Reseed(bytes) => put(0x52, None, &[bytes]),
        Item::Shutdown => put(0x53, None, &[]),
        Item::Finish => put(0x54, None, &[]),
        Item::Network { part, bytes } => put(0x55, None, &[&[part as u8], bytes]),
        Item::Connect => put(0x56, None, &[]),
        Item::Secret { number, bytes } => put(0x57, Some(number), &[bytes]),
        Item::Open { channel, kind, app } => put(0x61, Some(channel), &[&[kind as u8], app.as_bytes()]),
        Item::Data { channel, bytes } => put(0x62, Some(channel), &[bytes]),
        Item::Credit { channel, count } => put(0x63, Some(channel), &[&count.to_le_bytes()]),
        Item::Close { channel } => put(0x64, Some(channel), &[]),
    };
    let length = (out.len() - start - HEADER) as u32;
    out[start] = kind;
    out[start + 1..start + HEADER].copy_from_slice(&length.to_le_bytes());
}

/// The number for a new channel after `last`, which it becomes: odd ones are the guest's, even ones the host's. One that
/// was just closed is not used again at once: the other side may be delivering what it carried.
pub fn next_channel(last: &mut u16, taken: impl Fn(u16) -> bool) -> u16 {
    loop {
        *last = last.wrapping_add(2);
        if *last != 0 && !taken(*last) {
            return *last;
        }
    }
}

/// What each side of a channel may send, and who has closed it. CLOSE ends both directions: what its sender has sent
/// before is delivered, what it is sent after is thrown away. A channel is over when both have sent CLOSE.
#[derive(Debug)]
pub struct Flow {
    /// Bytes that may be sent.
    pub credit: usize,
    /// Bytes that the peer may send.
    window: usize,
    /// Bytes of the peer that were taken and not credited yet.
    owed: usize,
    /// CLOSE was sent.
    pub told: bool,
    /// CLOSE came.
    pub heard: bool,
}

impl Default for Flow {
    fn default() -> Self {
        Flow { credit: WINDOW, window: WINDOW, owed: 0, told: false, heard: false }
    }
}

impl Flow {
    /// DATA has come; returns whether it is to be delivered.
    pub fn data(&mut self, count: usize) -> Result<bool, Violation> {
        if self.heard || count > self.window {
            return Err(Violation("more data than was allowed"));
        }
        self.window -= count;
        Ok(!self.told)
    }

    /// CREDIT has come.
    pub fn credited(&mut self, count: u32) -> Result<(), Violation> {
        let credit = self.credit + count as usize;
        if self.heard || credit > WINDOW {
            return Err(Violation("more credit than was used"));
        }
        self.credit = credit;
        Ok(())
    }

    /// CLOSE has come.
    pub fn closed(&mut self) -> Result<(), Violation> {
        if std::mem::replace(&mut self.heard, true) {
            return Err(Violation("a channel closed twice"));
        }
        Ok(())
    }

    /// Bytes of the peer have been taken.
    pub fn taken(&mut self, count: usize) {
        self.owed += count;
    }

    /// The CREDIT to send now, if it is time for one.
    pub fn due(&mut self) -> Option<u32> {
        if self.owed < CREDIT_STEP || self.told || self.heard {
            return None;
        }
        self.window += self.owed;
        Some(std::mem::take(&mut self.owed) as u32)
    }

    /// Whether both sides have closed it.
    pub fn is_over(&self) -> bool {
        self.told && self.heard
    }
}
