//! What the kernel enforces for an app: read from the host's /proc, compared with what was compiled, written down. The host
//! does not see the processes of a guest: there the shim reads, and the guest's word is what there is.
//!
//! An app may confine itself further, so that less is right and only more is a difference.

use std::fs::File;
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use crate::frame::Violation;
use crate::group::{APP, SUPERVISOR};
use crate::report::now_ns;

const GROUPS: &str = "/sys/fs/cgroup";
/// A status file has some 1,500 bytes.
const MAX_FILE: u64 = 16 << 10;
/// crun may still be on its way to the app's program; if it stays less confined for so long, that is what holds.
const PATIENCE: Duration = Duration::from_secs(2);
/// The same for an app that is held: nothing of it runs meanwhile, and the host may be busy.
const STRICT_PATIENCE: Duration = Duration::from_secs(20);
const FIRST_PAUSE: Duration = Duration::from_micros(500);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);
/// The fields of /proc/PID/status that confine (proc(5)).
const FIELDS: [&str; 10] = [
    "CapInh",
    "CapPrm",
    "CapEff",
    "CapBnd",
    "CapAmb",
    "NoNewPrivs",
    "Seccomp",
    "Seccomp_filters",
    "Uid",
    "Gid",
];

/// What else is read of a process.
const OTHERS: [&str; 4] = ["uid_map", "gid_map", "cgroup", "label"];
/// Reports of one app that are taken from a guest: values change a few times, until crun is done.
pub const MAX_REPORTS: usize = 64;
/// A value of a process; a control group's path is the longest.
const MAX_VALUE: usize = 512;

/// One thing that must hold for an app.
#[derive(Debug, PartialEq, Eq)]
pub struct Test {
    key: String,
    bound: Bound,
}

#[derive(Debug, PartialEq, Eq)]
enum Bound {
    /// No bit beyond these.
    Within(u64),
    AtLeast(u64),
    Equal(String),
    /// Begins with this.
    Under(String),
}

/// What was compiled for a pod.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// No app may begin before it has been read, and one that is less confined ends the pod.
    pub strict: bool,
    /// The shims of a guest tell what its kernel enforces.
    pub reported: bool,
    apps: Vec<(String, Vec<Test>)>,
}

/// What was read of a process, by key.
pub type Values = Vec<(String, String)>;

/// Read what was compiled: `strict`, `reported`, `app NAME`, and below that `within|at-least|equal|under KEY VALUE`.
pub fn parse(text: &str) -> Result<Expected, String> {
    let mut expected = Expected::default();
    for line in text.lines() {
        let mut words = line.splitn(3, ' ');
        let (word, key, value) = (words.next().unwrap_or(""), words.next(), words.next());
        let broken = || format!("{line:?} is not understood");
        match (word, key, value, expected.apps.last_mut()) {
            ("strict", None, None, _) => expected.strict = true,
            ("reported", None, None, _) => expected.reported = true,
            ("app", Some(name), None, _) => expected.apps.push((name.into(), Vec::new())),
            (_, Some(key), Some(value), Some((_, tests))) => {
                let bound = match word {
                    "within" => Bound::Within(u64::from_str_radix(value, 16).map_err(|_| broken())?),
                    "at-least" => Bound::AtLeast(value.parse().map_err(|_| broken())?),
                    "equal" => Bound::Equal(value.into()),
                    "under" => Bound::Under(value.into()),
                    _ => return Err(broken()),
                };
                tests.push(Test { key: key.into(), bound });
            }
            _ => return Err(broken()),
        }
    }
    Ok(expected)
}

impl Test {
    fn holds(&self, value: &str) -> bool {
        match &self.bound {
            Bound::Within(mask) => u64::from_str_radix(value, 16).map_or(false, |bits| bits & !mask == 0),
            Bound::AtLeast(least) => value.parse::<u64>().map_or(false, |number| number >= *least),
            Bound::Equal(text) => value == text,
            Bound::Under(text) => value.starts_with(text.as_str()),
        }
    }
}

/// The keys of the tests that do not hold; a value that is missing holds nothing.
pub fn differences<'a>(tests: &'a [Test], values: &Values) -> Vec<&'a str> {
    let value = |key: &str| values.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str());
    let broken = |test: &&Test| !value(&test.key).map_or(false, |value| test.holds(value));
    tests.iter().filter(broken).map(|test| test.key.as_str()).collect()
}

fn bounded(path: String) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn spaced(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// Whether a status file is that of the first process of a PID namespace, and a child of `parent`.
fn is_first(status: &str, parent: i32) -> bool {
    let ids = field(status, "NSpid").unwrap_or("").split_whitespace();
    field(status, "PPid") == Some(&parent.to_string()) && ids.clone().count() > 1 && ids.last() == Some("1")
}

fn group_of(pid: i32) -> io::Result<String> {
    let text = bounded(format!("/proc/{pid}/cgroup"))?;
    let found = text.lines().find_map(|line| line.strip_prefix("0::"));
    found.map(str::to_string).ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Find the app's first process among those of its shim's group; None if it is not there.
fn find(shim: i32) -> io::Result<Option<(i32, String)>> {
    let own = group_of(shim)?;
    let mut members = bounded(format!("{GROUPS}{own}/cgroup.procs"))?;
    if let Some(unit) = own.strip_suffix(SUPERVISOR) {
        // An app that is a manager has a group of its own beside it, and soon divides it.
        for group in [APP, "app/init.scope"] {
            members += &bounded(format!("{GROUPS}{unit}{group}/cgroup.procs")).unwrap_or_default();
        }
    }
    for pid in members.lines().filter_map(|line| line.parse().ok()) {
        // Others may end meanwhile.
        if let Ok(status) = bounded(format!("/proc/{pid}/status")) {
            if is_first(&status, shim) {
                return Ok(Some((pid, status)));
            }
        }
    }
    Ok(None)
}

fn values(pid: i32, status: &str) -> io::Result<Values> {
    let known = FIELDS.iter().filter_map(|name| field(status, name).map(|value| (*name, spaced(value))));
    let mut found: Values = known.map(|(name, value)| (name.to_string(), value)).collect();
    for name in ["uid_map", "gid_map"] {
        found.push((name.into(), spaced(&bounded(format!("/proc/{pid}/{name}"))?)));
    }
    found.push(("cgroup".into(), group_of(pid)?));
    // Without a security module that labels processes there is nothing to read.
    if let Ok(label) = bounded(format!("/proc/{pid}/attr/current")) {
        found.push(("label".into(), label.trim_end_matches(['\0', '\n']).to_string()));
    }
    Ok(found)
}

/// Read what a process is under, as a shim tells it to the host.
pub fn describe(pid: i32) -> io::Result<String> {
    let found = values(pid, &bounded(format!("/proc/{pid}/status"))?)?;
    Ok(found
        .into_iter()
        .fold(format!("pid {pid}\n"), |text, (key, value)| text + &format!("{key} {value}\n")))
}

/// Read what a guest says of a process: its number there and known keys, each once at most.
pub fn reported(text: &str) -> Result<(i32, Values), Violation> {
    const BROKEN: Violation = Violation("a report that is not understood");
    let mut lines = text.lines();
    let pid = lines.next().and_then(|line| line.strip_prefix("pid ")?.parse().ok());
    let mut found = Values::new();
    for line in lines {
        let (key, value) = line.split_once(' ').ok_or(BROKEN)?;
        let known = FIELDS.contains(&key) || OTHERS.contains(&key);
        if !known || value.len() > MAX_VALUE || found.iter().any(|(seen, _)| seen == key) {
            return Err(BROKEN);
        }
        found.push((key.into(), value.into()));
    }
    Ok((pid.filter(|pid| *pid > 0).ok_or(BROKEN)?, found))
}

struct Pending {
    app: String,
    shim: i32,
    /// None while a held app has not come: only its shim's end ends that.
    until: Option<Instant>,
    last: Option<(i32, Values)>,
}

/// How one app came out.
pub struct Verdict {
    /// Which app.
    pub app: String,
    /// Why not, if it is not at least as confined as compiled.
    pub problem: Option<String>,
}

/// The apps of a pod that are still to be read.
pub struct ReadBack {
    expected: Expected,
    out: File,
    pending: Vec<Pending>,
    /// What has been written of each app last.
    written: Vec<(String, &'static str)>,
    pause: Duration,
    next: Instant,
}

impl ReadBack {
    /// Take what was compiled from one file, and write what is read into another.
    pub fn new(mut expected: File, out: File) -> io::Result<Self> {
        let mut text = String::new();
        expected.read_to_string(&mut text)?;
        let expected = parse(&text)
            .map_err(|text| io::Error::new(io::ErrorKind::InvalidData, format!("read-back: {text}")))?;
        Ok(ReadBack {
            expected,
            out,
            pending: Vec::new(),
            written: Vec::new(),
            pause: FIRST_PAUSE,
            next: Instant::now(),
        })
    }

    /// Whether apps are held until they have been read.
    pub fn is_strict(&self) -> bool {
        self.expected.strict
    }

    /// Whether the shims tell what is to be compared.
    pub fn is_reported(&self) -> bool {
        self.expected.reported
    }

    /// The shim of an app in a guest has told what the guest's kernel enforces.
    pub fn report(&mut self, app: &str, pid: i32, values: Values) {
        if let Some(item) = self.pending.iter_mut().find(|item| item.app == app) {
            item.last = Some((pid, values));
            item.until.get_or_insert_with(|| Instant::now() + STRICT_PATIENCE);
        }
    }

    /// Begin to look for the app of a shim; of one that has begun again, for its new process alone.
    pub fn begin(&mut self, app: &str, shim: i32) {
        self.pending.retain(|item| item.app != app);
        let (app, now) = (app.to_string(), Instant::now());
        let until = if self.expected.strict || self.expected.reported { None } else { Some(now + PATIENCE) };
        self.pending.push(Pending { app, shim, until, last: None });
        self.pause = FIRST_PAUSE;
        self.next = now;
    }

    /// When to look again.
    pub fn deadline(&self) -> Option<Instant> {
        match self.expected.reported {
            true => self.pending.iter().filter_map(|item| item.until).min(),
            false => self.pending.first().map(|_| self.next),
        }
    }

    /// Look at every app that is due; return those that are decided.
    pub fn look(&mut self) -> Vec<Verdict> {
        let now = Instant::now();
        if self.pending.is_empty() || !self.expected.reported && now < self.next {
            return Vec::new();
        }
        self.next = now + self.pause;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        let mut decided = Vec::new();
        for mut item in std::mem::take(&mut self.pending) {
            if self.expected.reported {
                // What the guest has told is there already.
            } else if let Ok(Some((pid, status))) = find(item.shim) {
                item.last = values(pid, &status).ok().map(|values| (pid, values)).or(item.last);
                item.until.get_or_insert(now + STRICT_PATIENCE);
            }
            let fits = item.last.as_ref().map_or(false, |(_, values)| {
                self.tests(&item.app).map_or(false, |tests| differences(tests, values).is_empty())
            });
            if fits || item.until.map_or(false, |until| now >= until) {
                decided.push(self.decide(item));
            } else {
                self.pending.push(item);
            }
        }
        decided
    }

    /// An app is over: what was seen of it last is what there is.
    pub fn over(&mut self, app: &str) -> Option<Verdict> {
        let index = self.pending.iter().position(|item| item.app == app)?;
        let item = self.pending.remove(index);
        Some(self.decide(item))
    }

    fn tests(&self, app: &str) -> Option<&[Test]> {
        self.expected.apps.iter().find(|(name, _)| name == app).map(|(_, tests)| tests.as_slice())
    }

    /// Whether a verdict is to be written: the first of an app, and of later runs only what says more. An app that begins
    /// again and again cannot fill the disk, and one that was weaker once stays known for it.
    fn is_news(&mut self, app: &str, verdict: &'static str) -> bool {
        let known = match self.written.iter_mut().find(|(name, _)| name == app) {
            Some(known) => known,
            None => {
                self.written.push((app.into(), verdict));
                return true;
            }
        };
        let news = matches!((known.1, verdict), ("unread", "held" | "weaker") | ("held", "weaker"));
        if news {
            known.1 = verdict;
        }
        news
    }

    fn decide(&mut self, item: Pending) -> Verdict {
        let tests = self.tests(&item.app).unwrap_or(&[]);
        let (verdict, problem) = match &item.last {
            None => ("unread", Some("it ended before it could be read".to_string())),
            Some((_, values)) => match differences(tests, values) {
                keys if keys.is_empty() && !tests.is_empty() => ("held", None),
                keys => ("weaker", Some(format!("less confined than compiled: {}", keys.join(" ")))),
            },
        };
        let pid = item.last.as_ref().map_or(0, |(pid, _)| *pid);
        let mut text = format!("app {} {verdict} {pid} {}\n", item.app, now_ns());
        for (key, value) in item.last.iter().flat_map(|(_, values)| values) {
            text += &format!("{key} {}\n", value.replace(|char: char| char.is_control(), "?"));
        }
        for key in item.last.iter().flat_map(|(_, values)| differences(tests, values)) {
            text += &format!("differs {key}\n");
        }
        let written = match self.is_news(&item.app, verdict) {
            true => self.out.write_all(text.as_bytes()),
            false => Ok(()),
        };
        let problem =
            problem.or_else(|| written.err().map(|error| format!("the result is not stored: {error}")));
        Verdict { app: item.app, problem }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tx\nPPid:\t7\nNSpid:\t99\t6\t1\nCapEff:\t00000000000404fb\nNoNewPrivs:\t1\n";

    fn tests(text: &str) -> Vec<Test> {
        parse(&format!("app a\n{text}\n")).unwrap().apps.remove(0).1
    }

    fn read(pairs: &[(&str, &str)]) -> Values {
        pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
    }

    #[test]
    fn less_is_right_and_more_is_a_difference() {
        let tests = tests("within CapEff ff\nat-least Seccomp 2\nequal uid_map 0 5 6\nunder cgroup /a/");
        let good = read(&[("CapEff", "0f"), ("Seccomp", "2"), ("uid_map", "0 5 6"), ("cgroup", "/a/b")]);
        assert!(differences(&tests, &good).is_empty());
        let bad = read(&[("CapEff", "100"), ("Seccomp", "1"), ("uid_map", "0 0 6"), ("cgroup", "/ab")]);
        assert_eq!(differences(&tests, &bad), ["CapEff", "Seccomp", "uid_map", "cgroup"]);
        assert_eq!(differences(&tests, &read(&[])).len(), 4, "what is missing does not hold");
        assert_eq!(differences(&tests[..1], &read(&[("CapEff", "x")])), ["CapEff"]);
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for text in ["", "app", "app a b", "within CapEff ff", "strict x"] {
            let whole = parse(text);
            assert_eq!(whole.is_ok(), text.is_empty(), "{text:?}");
        }
        for text in ["within CapEff xyz", "at-least Seccomp -1", "over CapEff 1", "equal uid_map"] {
            assert!(parse(&format!("app a\n{text}")).is_err(), "{text:?}");
        }
        assert!(parse("strict\napp a\n").unwrap().strict);
    }

    #[test]
    fn the_first_process_of_a_shim_is_known_by_its_ids() {
        assert!(is_first(STATUS, 7));
        assert!(!is_first(STATUS, 8), "somebody else's child");
        assert!(!is_first(&STATUS.replace("\t1\n", "\t2\n"), 7), "entered later");
        assert!(!is_first(&STATUS.replace("\t99\t6\t1\n", "\t1\n"), 7), "not in a namespace");
        assert!(!is_first("", 7));
    }

    #[test]
    fn a_report_of_a_guest_is_known_keys_each_once() {
        let good = reported("pid 7\nCapEff 0f\nuid_map 0 0 4294967295\nlabel \n");
        assert_eq!(good, Ok((7, read(&[("CapEff", "0f"), ("uid_map", "0 0 4294967295"), ("label", "")]))));
        let long = format!("pid 7\ncgroup {}", "x".repeat(MAX_VALUE + 1));
        for text in
            ["", "pid 0", "pid x", "7", "pid 7\nCapEff", "pid 7\nName x", "pid 7\nUid 0\nUid 0", &long]
        {
            assert!(reported(text).is_err(), "{text:?}");
        }
        assert!(
            reported(&describe(std::process::id() as i32).unwrap()).is_ok(),
            "what a shim sends is taken"
        );
    }

    #[test]
    fn what_a_guest_reports_is_compared_as_what_is_read() {
        let nothing = File::open("/dev/null").unwrap();
        let mut back =
            ReadBack::new(nothing, File::options().write(true).open("/dev/null").unwrap()).unwrap();
        back.expected =
            parse("strict\nreported\napp a\nwithin CapEff 0f\napp b\nwithin CapEff 0f\n").unwrap();
        back.begin("a", 1);
        assert!(
            back.look().is_empty() && back.deadline().is_none(),
            "nothing is known, and nothing is asked for"
        );
        back.report("b", 3, read(&[("CapEff", "0")]));
        back.report("a", 7, read(&[("CapEff", "ff")]));
        assert!(back.look().is_empty() && back.deadline().is_some(), "crun may still be on its way");
        back.report("a", 7, read(&[("CapEff", "0f")]));
        let found = back.look();
        assert_eq!((found.len(), found[0].app.as_str(), &found[0].problem), (1, "a", &None));
        back.begin("b", 2);
        back.report("b", 3, read(&[("CapEff", "ff")]));
        assert!(back.look().is_empty());
        assert_eq!(back.over("b").unwrap().problem.unwrap(), "less confined than compiled: CapEff");
    }
}
