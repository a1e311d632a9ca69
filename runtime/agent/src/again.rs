//! When an app that has ended begins again, and what waits for that: pure decisions.

use std::time::Duration;

/// The pause before the first new start; each further one is twice as long.
pub const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// No pause is longer: an app that never runs costs one start a minute, and its log grows by one run a minute.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// An app that ran for so long has not ended for the reason that it ended for before: its pauses begin anew.
pub const STEADY: Duration = Duration::from_secs(10);

/// What brings an app back.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Policy {
    No,
    /// An end with another code than 0; so many times at most, 0: any number.
    OnFailure(u32),
    Always,
}

/// The policy of one app, and how far it has got.
#[derive(Debug)]
pub struct Again {
    policy: Policy,
    count: u32,
    pause: Duration,
}

impl Default for Again {
    fn default() -> Self {
        Again { policy: Policy::No, count: 0, pause: FIRST_PAUSE }
    }
}

impl Again {
    /// Read `no`, `always`, `on-failure` or `on-failure:COUNT`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let policy = match text.split_once(':') {
            None if text == "no" => Policy::No,
            None if text == "always" => Policy::Always,
            None if text == "on-failure" => Policy::OnFailure(0),
            Some(("on-failure", count)) => match count.parse() {
                Ok(count @ 1..) => Policy::OnFailure(count),
                _ => return Err(format!("--restart: {count:?} is not a count")),
            },
            _ => return Err(format!("--restart: {text:?} is not a policy")),
        };
        Ok(Again { policy, ..Again::default() })
    }

    /// Whether the app may ever begin again by itself.
    pub fn is_set(&self) -> bool {
        self.policy != Policy::No
    }

    /// After an end with `code` of a run that lasted `ran`: the pause before the next run, or None if there is none.
    pub fn next(&mut self, code: u8, ran: Duration) -> Option<Duration> {
        let wanted = match self.policy {
            Policy::No => false,
            Policy::OnFailure(most) => code != 0 && (most == 0 || self.count < most),
            Policy::Always => true,
        };
        if !wanted {
            return None;
        }
        if ran >= STEADY {
            self.pause = FIRST_PAUSE;
        }
        self.count = self.count.saturating_add(1);
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        Some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(5);

    #[test]
    fn policies_are_read_and_nothing_else() {
        for text in ["no", "always", "on-failure", "on-failure:3"] {
            assert_eq!(Again::parse(text).unwrap().is_set(), text != "no", "{text}");
        }
        for text in ["", "unless-stopped", "always:3", "on-failure:", "on-failure:0", "on-failure:-1", "no:1"] {
            assert!(Again::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn failures_only_or_every_end_bring_an_app_back() {
        assert_eq!(Again::default().next(1, SHORT), None);
        assert_eq!(Again::parse("on-failure").unwrap().next(0, SHORT), None);
        assert_eq!(Again::parse("on-failure").unwrap().next(137, SHORT), Some(FIRST_PAUSE));
        assert_eq!(Again::parse("always").unwrap().next(0, SHORT), Some(FIRST_PAUSE));
    }

    #[test]
    fn a_count_is_an_end_of_it() {
        let mut again = Again::parse("on-failure:2").unwrap();
        assert!(again.next(1, SHORT).is_some() && again.next(1, STEADY).is_some());
        assert_eq!(again.next(1, STEADY), None);
    }

    #[test]
    fn pauses_double_to_a_bound_and_begin_anew_after_a_steady_run() {
        let mut again = Again::parse("always").unwrap();
        let pauses: Vec<u64> = (0..12).map(|_| again.next(1, SHORT).unwrap().as_millis() as u64).collect();
        assert_eq!(pauses[..4], [100, 200, 400, 800]);
        assert_eq!(pauses[10..], [60_000, 60_000]);
        assert_eq!(again.next(1, STEADY), Some(FIRST_PAUSE));
    }
}
