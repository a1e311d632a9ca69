//! The app's log in the line format of the Kubernetes CRI, bounded in size.

use std::fs::{rename, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Longest piece of a line that one entry holds; what is longer is split into partial entries.
pub const MAX_LINE: usize = 16_384;
/// Smallest useful limit: a file must hold at least one entry of full length.
pub const MIN_LIMIT: u64 = 32_768;
// Entries are gathered up to here before they are written.
const GATHER: usize = 8192;

/// Which stream an entry came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stream {
    /// Standard output, or a terminal's only stream.
    Out = 0,
    /// Standard error.
    Err = 1,
}

/// RFC 3339 time in UTC with nanoseconds.
pub fn stamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (days, second) = ((since.as_secs() / 86_400) as i64, since.as_secs() % 86_400);
    // Days to civil date with years that begin in March, so that the leap day comes last.
    let day = days + 719_468;
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    format!(
        "{:04}-{month:02}-{:02}T{:02}:{:02}:{:02}.{:09}Z",
        year_of_era + era * 400 + i64::from(month <= 2),
        of_year - (153 * shifted + 2) / 5 + 1,
        second / 3600,
        second / 60 % 60,
        second % 60,
        since.subsec_nanos()
    )
}

/// Cuts streams into entries: pure, fed with bytes, gives lines to a sink.
#[derive(Default)]
pub struct Lines {
    pending: [Vec<u8>; 2],
}

impl Lines {
    /// Add bytes of a stream; whole lines and pieces of MAX_LINE go to `sink`.
    pub fn push(&mut self, stream: Stream, mut bytes: &[u8], stamp: &str, sink: &mut dyn FnMut(&[u8])) {
        let pending = &mut self.pending[stream as usize];
        while !bytes.is_empty() {
            let room = MAX_LINE - pending.len();
            let end = bytes.iter().take(room + 1).position(|byte| *byte == b'\n');
            let taken = end.unwrap_or_else(|| bytes.len().min(room));
            pending.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken + usize::from(end.is_some())..];
            if end.is_some() {
                emit(pending, stream, b"F", stamp, sink);
            } else if pending.len() == MAX_LINE && !bytes.is_empty() {
                emit(pending, stream, b"P", stamp, sink);
            }
        }
    }

    /// The streams have ended: what has no newline goes out as partial.
    pub fn finish(&mut self, stamp: &str, sink: &mut dyn FnMut(&[u8])) {
        for stream in [Stream::Out, Stream::Err] {
            let pending = &mut self.pending[stream as usize];
            if !pending.is_empty() {
                emit(pending, stream, b"P", stamp, sink);
            }
        }
    }
}

fn emit(pending: &mut Vec<u8>, stream: Stream, tag: &[u8], stamp: &str, sink: &mut dyn FnMut(&[u8])) {
    let name: &[u8] = if stream == Stream::Out { b"stdout" } else { b"stderr" };
    sink(&[stamp.as_bytes(), b" ", name, b" ", tag, b" ", pending, b"\n"].concat());
    pending.clear();
}

/// The log file and its one predecessor `NAME.1`, each at most `limit` bytes.
pub struct Log {
    lines: Lines,
    files: Files,
}

struct Files {
    path: PathBuf,
    file: File,
    size: u64,
    limit: u64,
    gathered: Vec<u8>,
    lost: u64,
    /// How much of `lost` the log itself tells.
    told: u64,
    /// Says how much is lost, in place: it has its room before the disk is full.
    tally: Option<File>,
}

impl Log {
    /// Open the log for appending.
    pub fn open(path: &Path, limit: u64) -> io::Result<Self> {
        let file = open(path)?;
        let size = file.metadata()?.len();
        let (path, gathered, tally) = (PathBuf::from(path), Vec::new(), reserved(path).ok());
        let files = Files { path, file, size, limit, gathered, lost: 0, told: 0, tally };
        Ok(Log { lines: Lines::default(), files })
    }

    /// Log bytes of a stream. A full disk costs whole entries, never the app's progress: see `lost`.
    pub fn push(&mut self, stream: Stream, bytes: &[u8]) {
        let files = &mut self.files;
        self.lines.push(stream, bytes, &stamp(SystemTime::now()), &mut |line| files.add(line));
        files.write();
    }

    /// Log what has no newline, after the last byte.
    pub fn finish(&mut self) {
        let files = &mut self.files;
        self.lines.finish(&stamp(SystemTime::now()), &mut |line| files.add(line));
        files.write();
    }

    /// Bytes of entries that could not be written.
    pub fn lost(&self) -> u64 {
        self.files.lost
    }
}

/// Make the file `NAME.lost` with a number in it, so that another of the same length needs no room.
fn reserved(path: &Path) -> io::Result<File> {
    let mut name = path.as_os_str().to_os_string();
    name.push(".lost");
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o640).open(name)?;
    file.write_all_at(tally(0).as_bytes(), 0)?;
    Ok(file)
}

fn tally(lost: u64) -> String {
    format!("{lost:020}\n")
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

impl Files {
    fn add(&mut self, line: &[u8]) {
        let (waiting, more) = (self.gathered.len() as u64, line.len() as u64);
        if self.size + waiting + more > self.limit {
            self.write();
            self.rotate();
        } else if waiting + more > GATHER as u64 {
            self.write();
        }
        self.gathered.extend_from_slice(line);
    }

    fn rotate(&mut self) {
        let mut old = self.path.clone().into_os_string();
        old.push(".1");
        match rename(&self.path, old).and_then(|()| open(&self.path)) {
            Ok(file) => {
                self.file = file;
                self.size = 0;
            }
            // Without a new file the old one is emptied: the bound holds whatever happens.
            Err(_) => self.size = self.file.set_len(0).map_or(self.limit, |()| 0),
        }
    }

    fn write(&mut self) {
        if self.gathered.is_empty() {
            return;
        }
        let entries = self.gathered.len() as u64;
        let confession = if self.lost > self.told { self.confession() } else { Vec::new() };
        // Where it does not fit it waits for the next file.
        let confesses = self.size + entries + confession.len() as u64 <= self.limit;
        if confesses {
            self.gathered.splice(..0, confession);
        }
        if self.size < self.limit && self.file.write_all(&self.gathered).is_ok() {
            self.size += self.gathered.len() as u64;
            self.told = if confesses { self.lost } else { self.told };
        } else {
            self.lose(entries);
        }
        self.gathered.clear();
    }

    /// An entry of our own in the place of what is missing.
    fn confession(&self) -> Vec<u8> {
        let (now, missing) = (stamp(SystemTime::now()), self.lost - self.told);
        format!("{now} stderr F secrun: {missing} bytes of the log are lost: it could not be written\n").into()
    }

    fn lose(&mut self, count: u64) {
        self.lost += count;
        // Half an entry would swallow the next one.
        let cut = self.file.set_len(self.size);
        self.size = cut.and_then(|()| self.file.metadata()).map_or(self.limit, |data| data.len());
        if let Some(Err(_)) = self.tally.as_ref().map(|file| file.write_all_at(tally(self.lost).as_bytes(), 0)) {
            self.tally = None;
        }
    }
}
