//! Telling the host what a guest's kernel enforces for an app, whose processes the host does not see.

use std::time::{Duration, Instant};

use crate::readback::describe;

const FIRST_PAUSE: Duration = Duration::from_micros(500);
/// Each look costs an app of the guest's only processor some time.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// crun's last steps come after its end; what has not changed for so long is what holds. The host has its own patience.
const LOOKS: u32 = 14;
/// As often a held app is looked at: it takes no time from anybody, and its guest may be slow.
const LOOKS_HELD: u32 = 200;

/// Reads an app's first process until nothing changes any more.
#[derive(Default)]
pub(crate) struct Reporter {
    next: Option<Instant>,
    pause: Duration,
    looks: u32,
    told: String,
}

impl Reporter {
    /// The process is there.
    pub fn begin(&mut self, held: bool) {
        self.next = Some(Instant::now());
        self.pause = FIRST_PAUSE;
        self.told.clear();
        self.looks = if held { LOOKS_HELD } else { LOOKS };
    }

    /// When to look again.
    pub fn deadline(&self) -> Option<Instant> {
        self.next
    }

    /// Nothing more is to be told.
    pub fn stop(&mut self) {
        self.next = None;
    }

    /// Look if it is time, and return what is to be told: what was not told before.
    pub fn look(&mut self, pid: i32) -> Option<&str> {
        let now = Instant::now();
        if self.next.map_or(true, |next| next > now) {
            return None;
        }
        self.looks = self.looks.saturating_sub(1);
        self.next = if self.looks > 0 { Some(now + self.pause) } else { None };
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        match describe(pid) {
            Ok(text) if text != self.told => {
                self.told = text;
                Some(&self.told)
            }
            Ok(_) => None,
            // It has ended, and what was told last is what there is.
            Err(_) => {
                self.next = None;
                None
            }
        }
    }
}
