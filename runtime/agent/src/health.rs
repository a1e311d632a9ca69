//! Whether an app is healthy: when its command is due, and what its results come to. Pure, fed with times and results.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Results that are kept, as podman keeps them.
pub const KEPT: usize = 5;

/// What is done with an app that has become unhealthy.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum OnFailure {
    /// It is told, no more.
    Nothing,
    /// It is killed; its restart policy says what comes then.
    Kill,
    /// It is ended in order and begins again, whatever its policy.
    Restart,
    /// It is ended in order, as by STOP.
    Stop,
}

/// What was asked for.
#[derive(Debug, Clone)]
pub struct Rules {
    /// From the start, and from the end of each check, to the next.
    pub interval: Duration,
    /// A check that takes longer has failed.
    pub timeout: Duration,
    /// So many failures in a row make an app unhealthy.
    pub retries: u32,
    /// Failures in this time after the start do not count, until a check has succeeded.
    pub start_period: Duration,
    /// What follows.
    pub on_failure: OnFailure,
}

/// How it stands.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum State {
    /// Nothing is known yet.
    Starting,
    /// The last check succeeded, or too few have failed.
    Healthy,
    /// Too many have failed.
    Unhealthy,
}

/// One result; times in nanoseconds since 1970.
#[derive(Debug, Clone)]
pub struct Check {
    /// When it began.
    pub started_ns: u64,
    /// When it ended.
    pub ended_ns: u64,
    /// Its exit status; 128 + signal if it was killed.
    pub code: u8,
    /// It was ended because it took too long.
    pub late: bool,
    /// The beginning of what it wrote.
    pub output: String,
}

/// The health of one app.
#[derive(Debug)]
pub struct Health {
    rules: Rules,
    /// How it stands.
    pub state: State,
    /// Failures in a row that count.
    pub failures: u32,
    /// The last results, the oldest first.
    pub checks: VecDeque<Check>,
    began: Option<Instant>,
    next: Option<Instant>,
}

impl Health {
    /// Nothing is known of an app that does not run.
    pub fn new(rules: Rules) -> Self {
        let checks = VecDeque::with_capacity(KEPT);
        Health { rules, state: State::Starting, failures: 0, checks, began: None, next: None }
    }

    /// How long a check may take.
    pub fn timeout(&self) -> Duration {
        self.rules.timeout
    }

    /// What is done when it becomes unhealthy.
    pub fn on_failure(&self) -> OnFailure {
        self.rules.on_failure
    }

    /// The app runs: what was known of an earlier run does not count.
    pub fn begin(&mut self, now: Instant) {
        self.began = Some(now);
        self.next = Some(now + self.rules.interval);
        self.state = State::Starting;
        self.failures = 0;
    }

    /// The app does not run.
    pub fn rest(&mut self) {
        self.began = None;
        self.next = None;
    }

    /// Whether the app is being looked at.
    pub fn is_awake(&self) -> bool {
        self.began.is_some()
    }

    /// When the next check is due; None while one runs.
    pub fn deadline(&self) -> Option<Instant> {
        self.next
    }

    /// Whether a check is due; it is begun with that.
    pub fn take_due(&mut self, now: Instant) -> bool {
        let due = self.next.map_or(false, |next| next <= now);
        if due {
            self.next = None;
        }
        due
    }

    /// A check has ended; true if the app has become unhealthy by it.
    pub fn take(&mut self, check: Check, now: Instant) -> bool {
        let good = check.code == 0 && !check.late;
        if self.checks.len() == KEPT {
            self.checks.pop_front();
        }
        self.checks.push_back(check);
        self.next = Some(now + self.rules.interval);
        if good {
            self.state = State::Healthy;
            self.failures = 0;
            return false;
        }
        let young = self.began.map_or(false, |began| now < began + self.rules.start_period);
        if self.state == State::Starting && young {
            return false;
        }
        self.failures = self.failures.saturating_add(1);
        let became = self.failures >= self.rules.retries && self.state != State::Unhealthy;
        if became {
            self.state = State::Unhealthy;
        }
        became
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn health(retries: u32, start_period: u64) -> (Health, Instant) {
        let rules = Rules {
            interval: 10 * SECOND,
            timeout: SECOND,
            retries,
            start_period: SECOND * start_period as u32,
            on_failure: OnFailure::Kill,
        };
        let (mut health, now) = (Health::new(rules), Instant::now());
        health.begin(now);
        (health, now)
    }

    fn check(code: u8) -> Check {
        Check { started_ns: 1, ended_ns: 2, code, late: false, output: String::new() }
    }

    #[test]
    fn the_first_check_comes_after_one_interval_and_none_while_one_runs() {
        let (mut health, start) = health(1, 0);
        assert!(!health.take_due(start + 9 * SECOND));
        assert!(health.take_due(start + 10 * SECOND));
        assert!(!health.take_due(start + 100 * SECOND) && health.deadline().is_none());
        health.take(check(0), start + 50 * SECOND);
        assert_eq!(health.deadline(), Some(start + 60 * SECOND));
        health.rest();
        assert!(!health.take_due(start + 100 * SECOND) && !health.is_awake());
    }

    #[test]
    fn failures_in_a_row_make_unhealthy_once_and_a_success_heals() {
        let (mut health, now) = health(2, 0);
        assert!(!health.take(check(1), now) && health.state == State::Starting);
        assert!(health.take(check(1), now) && health.state == State::Unhealthy);
        assert!(!health.take(check(1), now), "it is not told again");
        assert!(!health.take(check(0), now) && health.state == State::Healthy && health.failures == 0);
        assert!(!health.take(check(3), now) && health.state == State::Healthy);
        let late = Check { late: true, ..check(0) };
        assert!(health.take(late, now), "what took too long has failed");
    }

    #[test]
    fn failures_of_the_start_period_count_only_after_a_success() {
        let (mut health, now) = health(1, 60);
        assert!(!health.take(check(1), now + SECOND) && health.failures == 0);
        health.take(check(0), now + SECOND);
        assert!(health.take(check(1), now + 2 * SECOND), "it has been healthy");
        health.begin(now);
        assert_eq!((health.state, health.failures), (State::Starting, 0));
        assert!(!health.take(check(1), now + 59 * SECOND));
        assert!(health.take(check(1), now + 60 * SECOND));
    }

    #[test]
    fn only_the_last_results_are_kept() {
        let (mut health, now) = health(1, 0);
        (0..20).for_each(|code| drop(health.take(check(code), now)));
        assert_eq!(health.checks.iter().map(|check| check.code).collect::<Vec<_>>(), [15, 16, 17, 18, 19]);
    }
}
