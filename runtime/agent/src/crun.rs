//! Starting processes through crun, and saying why one did not start.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::io::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::elf::{inspect, Program};
use crate::sys::{self, Status};

const CRUN: &str = "/usr/bin/crun";
/// What crun's own log may hold; the rest is not read.
const MAX_LOG: u64 = 4096;
/// Scripts that name scripts: the kernel follows so many (fs/exec.c).
const MAX_SCRIPTS: usize = 5;
/// How crun 1.8 begins its message when execve fails, for an app and for a command.
const EXEC_FAILED: [&str; 2] = ["exec container process", "exec: "];

/// What the diagnosis looks for: the first word of the command, and PATH.
#[derive(Default, Clone)]
pub struct Target {
    /// argv[0].
    pub program: Vec<u8>,
    /// Folders, separated by colons.
    pub path: Vec<u8>,
}

/// Why a process did not run, as the exit record says it.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// 125, 126 or 127.
    pub status: u8,
    /// The stable code of the error.
    pub code: &'static str,
    /// What happened, in words.
    pub text: String,
}

impl Failure {
    /// secrun itself failed.
    pub fn own(text: String) -> Self {
        Failure { status: 125, code: "external", text }
    }
}

/// The app's or command's end of the standard streams.
pub struct Streams {
    /// Standard input.
    pub input: Stdio,
    /// Standard output and standard error.
    pub outputs: [Stdio; 2],
}

/// Ours of the same.
#[derive(Default)]
pub struct Ends {
    /// Writes to the process.
    pub input: Option<File>,
    /// Read from the process; a terminal has only the first.
    pub outputs: [Option<File>; 2],
}

/// Make the pipes of a process without a terminal.
pub fn pipes(with_input: bool) -> io::Result<(Streams, Ends)> {
    let mut ends = Ends::default();
    let mut output = |index: usize| -> io::Result<Stdio> {
        let (read, write) = sys::pipe()?;
        sys::set_nonblocking(&read)?;
        ends.outputs[index] = Some(File::from(read));
        Ok(write.into())
    };
    let outputs = [output(0)?, output(1)?];
    let mut input = Stdio::null();
    if with_input {
        let (read, write) = sys::pipe()?;
        sys::set_nonblocking(&write)?;
        ends.input = Some(File::from(write));
        input = read.into();
    }
    Ok((Streams { input, outputs }, ends))
}

/// One run of crun: its files, and the socket over which a terminal comes.
pub struct Launch {
    prefix: PathBuf,
    console: Option<UnixListener>,
    /// While this is open, a command on a terminal, or an app that is held, has not begun.
    gate: Option<OwnedFd>,
    /// The process waits for more than its terminal's size.
    pub held: bool,
    /// What the process finds as its descriptors from 3 on; nothing for one that begins with `hold`.
    pub passed: Vec<OwnedFd>,
    target: Target,
}

impl Launch {
    /// Prepare a run whose files begin with `prefix`.
    pub fn new(prefix: PathBuf, terminal: bool, target: Target) -> io::Result<Self> {
        let mut launch = Launch { prefix, console: None, gate: None, held: false, passed: Vec::new(), target };
        if terminal {
            launch.console = Some(UnixListener::bind(launch.file("console"))?);
        }
        Ok(launch)
    }

    /// Whether the process gets a terminal.
    pub fn has_terminal(&self) -> bool {
        self.console.is_some()
    }

    /// The path of one of its files.
    pub fn file(&self, kind: &str) -> PathBuf {
        self.prefix.with_extension(kind)
    }

    /// Start crun; `words` say what it does. Returns crun's process id, not that of the app.
    ///
    /// A command on a terminal begins with `hold`, and waits in it for `release`. The app needs none for that: crun
    /// itself sets the size that its bundle names.
    pub fn start(&mut self, words: &[&str], last: &str, streams: Option<Streams>) -> io::Result<i32> {
        let mut command = Command::new(CRUN);
        command.args(["--cgroup-manager=disabled", "--root=/run/crun", "--log"]).arg(self.file("log"));
        command.args(&words[..1]).arg("--detach").arg("--pid-file").arg(self.file("pid")).args(&words[1..]);
        if self.console.is_some() {
            command.arg("--console-socket").arg(self.file("console"));
        }
        match streams {
            Some(Streams { input, outputs: [out, err] }) => command.stdin(input).stdout(out).stderr(err),
            None => command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()),
        };
        if !self.held && (self.console.is_none() || words[0] != "exec") {
            let passed = std::mem::take(&mut self.passed);
            if !passed.is_empty() {
                command.args(["--preserve-fds", &passed.len().to_string()]);
            }
            return sys::spawn_passing(command.arg(last), passed);
        }
        let (read, write) = sys::pipe()?;
        self.gate = Some(write);
        command.args(["--preserve-fds", "2"]).arg(last);
        sys::spawn_passing(&mut command, vec![File::open("/proc/self/exe")?.into(), read])
    }

    /// Let the command begin.
    pub fn release(&mut self) {
        self.gate = None;
    }

    /// After crun has succeeded: the process that it left to us.
    pub fn pid(&self) -> io::Result<i32> {
        let text = fs::read_to_string(self.file("pid"))?;
        text.trim()
            .parse()
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "crun wrote no process id"))
    }

    /// After crun has succeeded: the terminal that it opened in the container, if it was asked to.
    pub fn terminal(&mut self) -> io::Result<Option<OwnedFd>> {
        match self.console.take() {
            None => Ok(None),
            Some(console) => {
                // crun has connected and sent before it ended, so this never waits.
                console.set_nonblocking(true)?;
                let master = sys::receive_fd(&console.accept()?.0)?;
                sys::set_nonblocking(&master)?;
                Ok(Some(master))
            }
        }
    }

    /// Remove the run's files.
    pub fn clean(&self) {
        for kind in ["log", "pid", "console", "json"] {
            // Most do not exist, and they vanish with the pod.
            let _ = fs::remove_file(self.file(kind));
        }
    }

    /// Say why there was no process, or why it did not become the program: after success crun can only complain on
    /// the standard error of the process, of which `said` is the beginning.
    pub fn explain(&self, rootfs: &Path, started: bool, status: Status, said: &[u8]) -> Option<Failure> {
        let said = String::from_utf8_lossy(said).trim().to_string();
        if started {
            let failed = status.code == 1 && EXEC_FAILED.iter().any(|words| said.starts_with(words));
            return self.diagnose(rootfs, &said).filter(|_| failed);
        }
        let text = match [self.log(), said].into_iter().find(|text| !text.is_empty()) {
            Some(text) => text,
            None => return Some(Failure::own(format!("crun failed with status {}", status.code))),
        };
        let found = self.diagnose(rootfs, &text).filter(|_| text.contains("executable"));
        found.or_else(|| Some(Failure::own(format!("crun: {text}"))))
    }

    fn log(&self) -> String {
        let mut bytes = Vec::new();
        if let Ok(file) = File::open(self.file("log")) {
            // An unreadable log leaves its text out of a message that is an error anyway.
            let _ = file.take(MAX_LOG).read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).trim().to_string()
    }

    /// What keeps the program from running, if that can be seen beforehand.
    pub fn hindrance(&self, rootfs: &Path) -> Option<Failure> {
        examine(&File::open(rootfs).ok()?, &self.target)
    }

    fn diagnose(&self, rootfs: &Path, text: &str) -> Option<Failure> {
        let found = self.hindrance(rootfs);
        let foreign = || {
            let program = String::from_utf8_lossy(&self.target.program);
            let text =
                format!("program {program} is in no format that this machine runs (exec format error)");
            Failure { status: 126, code: "invoke", text }
        };
        found.or_else(|| text.contains("Exec format error").then(foreign))
    }
}

/// Look for what keeps the program from running; None if nothing is wrong with it.
pub fn examine(root: &File, target: &Target) -> Option<Failure> {
    let name = String::from_utf8_lossy(&target.program).into_owned();
    let missing = |text: String| Failure { status: 127, code: "not-found", text };
    let refused = |why: &str| Failure { status: 126, code: "invoke", text: format!("program {name} {why}") };
    let found = match search(root, target) {
        Found::Program(file) => file,
        Found::NotExecutable(why) => return Some(refused(why)),
        Found::Nothing => return Some(missing(format!("program {name} not found in image"))),
    };
    let (mut file, mut what) = (found, format!("program {name}"));
    for _ in 0..MAX_SCRIPTS {
        let read = |offset, buffer: &mut [u8]| file.read_at(buffer, offset).unwrap_or(0);
        let (role, needed) = match inspect(&read) {
            Program::Elf { interpreter: Some(path), .. } => ("loader", path),
            Program::Script(path) => ("interpreter", path),
            _ => return None,
        };
        let path = String::from_utf8_lossy(&needed).into_owned();
        match open_program(root, &needed) {
            Found::Program(next) => file = next,
            Found::NotExecutable(why) => {
                return Some(refused(&format!("cannot run: its {role} {path} {why}")))
            }
            Found::Nothing => {
                return Some(missing(format!("{what} cannot run: its {role} {path} is missing")))
            }
        }
        if role == "loader" {
            return None;
        }
        what = format!("{what} cannot run: its interpreter {path}");
    }
    Some(refused("cannot run: its interpreters are scripts without end"))
}

enum Found {
    Program(File),
    NotExecutable(&'static str),
    Nothing,
}

fn search(root: &File, target: &Target) -> Found {
    if target.program.contains(&b'/') {
        return open_program(root, &target.program);
    }
    let mut best = Found::Nothing;
    for folder in target.path.split(|byte| *byte == b':') {
        let path = Path::new(std::ffi::OsStr::from_bytes(folder))
            .join(std::ffi::OsStr::from_bytes(&target.program));
        match open_program(root, path.as_os_str().as_bytes()) {
            Found::Nothing => (),
            Found::NotExecutable(why) => best = Found::NotExecutable(why),
            found => return found,
        }
    }
    best
}

fn open_program(root: &File, path: &[u8]) -> Found {
    let file = match sys::open_in_root(root, path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Found::NotExecutable("may not be opened")
        }
        Err(_) => return Found::Nothing,
    };
    match file.metadata() {
        Ok(data) if data.is_dir() => Found::NotExecutable("is a folder"),
        Ok(data) if !data.is_file() => Found::NotExecutable("is not a file"),
        Ok(data) if data.permissions().mode() & 0o111 == 0 => Found::NotExecutable("is not executable"),
        Ok(_) => Found::Program(file),
        Err(_) => Found::Nothing,
    }
}
