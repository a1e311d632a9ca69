//! What a guest says on its console: kept within bounds, made safe to show, and searched for why the guest ended. Pure.

use std::collections::VecDeque;

/// The beginning and the end of a console are kept, this many bytes of each.
pub const KEPT: usize = 65_536;
/// What is looked at of a line.
const MAX_LINE: usize = 512;
/// A guest has no more disks.
const MAX_DISKS: usize = 256;
/// How stage0 and the relay begin their lines.
const STAGE0: &str = "secrun-stage0: ";
const RELAY: &str = "secrun-agent relay: ";

/// A guest's console so far.
pub struct Console {
    head: usize,
    tail: VecDeque<u8>,
    left_out: u64,
    line: Vec<u8>,
    /// Apps by the serial numbers of their images.
    images: Vec<(String, String)>,
    /// Serial numbers by the numbers that the guest's kernel gave its disks.
    disks: Vec<(String, String)>,
    cause: Option<String>,
    out_of_memory: bool,
}

impl Console {
    /// An empty console of a guest with these images (serial number and app).
    pub fn new(images: Vec<(String, String)>) -> Self {
        Console {
            head: KEPT,
            tail: VecDeque::new(),
            left_out: 0,
            line: Vec::new(),
            images,
            disks: Vec::new(),
            cause: None,
            out_of_memory: false,
        }
    }

    /// Take bytes in; those of the beginning go to `sink` at once.
    pub fn push(&mut self, bytes: &[u8], sink: &mut dyn FnMut(&[u8])) {
        let shown: Vec<u8> = bytes.iter().filter(|byte| **byte != b'\r').map(|byte| plain(*byte)).collect();
        let (now, later) = shown.split_at(shown.len().min(self.head));
        self.head -= now.len();
        sink(now);
        self.tail.extend(later);
        let surplus = self.tail.len().saturating_sub(KEPT);
        self.tail.drain(..surplus);
        self.left_out += surplus as u64;
        for byte in shown {
            if byte == b'\n' {
                let line = std::mem::take(&mut self.line);
                self.look(&String::from_utf8_lossy(&line));
            } else if self.line.len() < MAX_LINE {
                self.line.push(byte);
            }
        }
    }

    /// The console has ended: what was held back goes to `sink`.
    pub fn finish(&mut self, sink: &mut dyn FnMut(&[u8])) {
        if self.left_out > 0 {
            sink(format!("\n[{} bytes of the console left out]\n", self.left_out).as_bytes());
        }
        sink(self.tail.make_contiguous());
        if !self.line.is_empty() {
            sink(b"\n");
        }
        self.tail.clear();
    }

    /// Why the guest ended, as far as its console tells; a guest may lie.
    pub fn cause(&self) -> Option<String> {
        let memory = self.out_of_memory.then(|| "the guest ran out of memory".into());
        self.cause.clone().or(memory)
    }

    /// Whether it has said that it cannot go on.
    pub fn is_lost(&self) -> bool {
        self.cause.is_some()
    }

    fn look(&mut self, line: &str) {
        let after = |mark: &str| line.split_once(mark).map(|(_, rest)| rest);
        if let Some(text) = after(STAGE0) {
            match text.split_once(" is disk ") {
                Some((number, serial)) if self.disks.len() < MAX_DISKS => {
                    self.disks.push((number.into(), serial.into()));
                }
                Some(_) => (),
                None => self.blame(format!("the guest could not start: {text}")),
            }
        } else if let Some(text) = after(RELAY) {
            self.blame(format!("the guest's relay failed: {text}"));
        } else if let Some((number, _)) =
            after("device-mapper: verity: ").filter(|rest| rest.ends_with("is corrupted")).and_then(number)
        {
            self.blame(format!("the guest refused a corrupted block of {}", self.disk(number)));
        } else if line.contains("System is deadlocked on memory") {
            self.blame("the guest ran out of memory".into());
        } else if let Some(text) = after("Kernel panic - not syncing: ") {
            self.blame(format!("the guest's kernel panicked: {text}"));
        } else if line.contains("Out of memory: Killed process") {
            self.out_of_memory = true;
        }
    }

    /// The first cause counts: others follow from it.
    fn blame(&mut self, cause: String) {
        self.cause.get_or_insert(cause);
    }

    fn disk(&self, number: &str) -> String {
        match self.disks.iter().find(|(known, _)| known == number).map(|(_, serial)| serial.as_str()) {
            Some("pod") => "the pod's own image".into(),
            Some(serial) => match self.images.iter().find(|(known, _)| known == serial) {
                Some((_, app)) => format!("image {app}"),
                None => format!("disk {serial}"),
            },
            None => format!("disk {number}"),
        }
    }
}

/// The number of a disk, `MAJOR:MINOR`, before a colon.
fn number(text: &str) -> Option<(&str, &str)> {
    text.split_once(": ")
}

/// A byte that no terminal takes for a command.
fn plain(byte: u8) -> u8 {
    match byte {
        b'\n' | b'\t' | b' '..=b'~' => byte,
        _ => b'?',
    }
}
