//! What the shim reports beside frames: the exit record, and the numbers of its cgroup.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::crun::Failure;
use crate::group;
use crate::sys::Status;

/// Nanoseconds since 1970.
pub fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// How long an exit record may be that a full disk has room for.
const RESERVED: usize = 1024;

/// Take the room of the exit record before apps can fill the disk.
pub fn reserve_record(keep: &Path) -> io::Result<()> {
    fs::write(keep.join("exit.new"), [b' '; RESERVED])
}

/// Write the exit record, whole or not at all.
pub fn write_record(
    keep: &Path,
    status: Status,
    failure: Option<&Failure>,
    started_ns: u64,
) -> io::Result<()> {
    let (code, text) = failure.map_or(("", ""), |failure| (failure.code, failure.text.as_str()));
    let line = format!(
        "{{\"code\":{},\"error\":{},\"error_code\":\"{code}\",\"finished_ns\":{},\"signal\":{},\"started_ns\":{started_ns}}}",
        status.code,
        quoted(text),
        now_ns(),
        status.signal
    );
    // Not truncated first: its room is what a full disk has left.
    let file = OpenOptions::new().write(true).create(true).open(keep.join("exit.new"))?;
    file.write_all_at(line.as_bytes(), 0)?;
    file.set_len(line.len() as u64)?;
    fs::rename(keep.join("exit.new"), keep.join("exit"))
}

/// Replace the app's state record, whole or not at all.
pub fn write_state(keep: &Path, text: &str) -> io::Result<()> {
    fs::write(keep.join("state.new"), text)?;
    fs::rename(keep.join("state.new"), keep.join("state"))
}

/// A JSON string in the one spelling of RFC 8785.
pub(crate) fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for char in text.chars() {
        match char {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            char if char < ' ' => out.push_str(&format!("\\u{:04x}", char as u32)),
            char => out.push(char),
        }
    }
    out + "\""
}

/// What the unit's own cgroup says, one `name value` a line; a controller that is missing has no line.
pub fn stats() -> String {
    let own = group::own().unwrap_or_default();
    // A shim with a group beside the app's counts for both by the one above.
    let unit = if own.ends_with(group::SUPERVISOR) { own.parent().unwrap_or(&own) } else { &own };
    let read = |file: &str| fs::read_to_string(unit.join(file)).unwrap_or_default();
    let mut text = String::new();
    for file in ["memory.current", "memory.peak", "pids.current"] {
        if let Some(value) = read(file).lines().next() {
            text += &format!("{file} {value}\n");
        }
    }
    for line in read("cpu.stat").lines() {
        text += &format!("cpu.{line}\n");
    }
    text
}
