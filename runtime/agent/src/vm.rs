//! The host's end of a guest, its beginning: everything that needs root, and the virtual machine. It runs unprivileged once
//! the machine runs (bridge.rs).

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::args::Words;
use crate::attach::App;
use crate::bridge::{Bridge, Means, Timing};
use crate::log::MIN_LIMIT;
use crate::netplan::{Part, MAX_PART};
use crate::starter;
use crate::table::MAX_SECRET_BYTES;
use crate::sys::{self, host};

/// The command line.
#[derive(Default)]
struct Options {
    apps: Vec<String>,
    rw: PathBuf,
    attach: PathBuf,
    link: PathBuf,
    console: PathBuf,
    /// User and group of QEMU; this process becomes the next ones.
    owner: (u32, u32),
    ready_timeout: Duration,
    log_max: u64,
    timing: Option<PathBuf>,
    kill: Option<PathBuf>,
    images: Vec<(String, String)>,
    /// Files with what the guest's interfaces have.
    network: Vec<(Part, PathBuf)>,
    /// Files in memory with what the guest's apps keep secret, in the order of its table.
    secrets: Vec<PathBuf>,
    /// The SELinux context of this process once the guest can talk to it.
    label: Option<String>,
    starter: Vec<OsString>,
}

fn parse(mut words: Words) -> Result<Options, String> {
    let mut options = Options { log_max: 16 << 20, ..Options::default() };
    while let Some(option) = words.option()? {
        match option.as_str() {
            "--app" => options.apps.push(words.value()?),
            "--rw" => options.rw = words.os_value()?.into(),
            "--attach" => options.attach = words.os_value()?.into(),
            "--link" => options.link = words.os_value()?.into(),
            "--console" => options.console = words.os_value()?.into(),
            "--uid" => options.owner.0 = words.number()?,
            "--gid" => options.owner.1 = words.number()?,
            "--ready-timeout" => options.ready_timeout = Duration::from_millis(words.number()?),
            "--log-max" => options.log_max = words.number()?,
            "--timing" => options.timing = Some(words.os_value()?.into()),
            "--label" => options.label = Some(words.value()?),
            "--cgroup-kill" => options.kill = Some(words.os_value()?.into()),
            "--image" => {
                let word = words.value()?;
                let pair = word.split_once('=').ok_or("--image: SERIAL=APP is needed")?;
                options.images.push((pair.0.into(), pair.1.into()));
            }
            "--network" => options.network.push((Part::Table, words.os_value()?.into())),
            "--hosts" => options.network.push((Part::Hosts, words.os_value()?.into())),
            "--resolv-conf" => options.network.push((Part::ResolvConf, words.os_value()?.into())),
            "--secret" => options.secrets.push(words.os_value()?.into()),
            "--" => options.starter = words.rest(),
            _ => return words.unknown(),
        }
    }
    let given = |path: &Path| !path.as_os_str().is_empty();
    let places = [&options.rw, &options.attach, &options.link, &options.console];
    let (uid, gid) = options.owner;
    if options.apps.is_empty() || options.starter.is_empty() || !places.iter().all(|path| given(path)) {
        return Err("--app, --rw, --attach, --link, --console and -- STARTER are needed".into());
    }
    if uid == 0 || gid == 0 || uid >= u32::MAX - 1 || gid >= u32::MAX - 1 {
        return Err(format!("--uid {uid} --gid {gid}: neither may be root's, and each needs a next one"));
    }
    if options.ready_timeout.is_zero() || options.log_max < MIN_LIMIT {
        return Err(format!("--ready-timeout is needed, and --log-max of at least {MIN_LIMIT}"));
    }
    Ok(options)
}

/// Run the mode; returns the exit status.
pub fn main(words: Vec<OsString>) -> u8 {
    let options = match parse(Words::new(words)) {
        Ok(options) => options,
        Err(text) => {
            eprintln!("secrun-agent vm: {text}");
            return 2;
        }
    };
    let result = start(&options).and_then(Bridge::run);
    match result {
        Ok(()) => 0,
        Err(text) => {
            eprintln!("secrun: {text}");
            125
        }
    }
}

fn told<T>(result: io::Result<T>, what: &Path) -> Result<T, String> {
    result.map_err(|error| format!("{}: {error}", what.display()))
}

/// A socket that only the user of QEMU can connect to.
fn listen(path: &Path, owner: (u32, u32)) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    sys::change_owner(path, owner)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn bounded(path: &Path, limit: usize) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let file = File::open(path).and_then(|file| file.take(limit as u64 + 1).read_to_end(&mut bytes));
    if told(file, path)? > limit {
        return Err(format!("{}: more than {limit} bytes", path.display()));
    }
    Ok(bytes)
}

/// Read one part of what the guest's interfaces have.
fn part((part, path): &(Part, PathBuf)) -> Result<(Part, Vec<u8>), String> {
    Ok((*part, bounded(path, MAX_PART)?))
}

/// Take a secret out of its file: from here on it is nowhere but in this process.
fn secret(path: &PathBuf) -> Result<Vec<u8>, String> {
    let bytes = bounded(path, MAX_SECRET_BYTES)?;
    told(fs::remove_file(path), path)?;
    Ok(bytes)
}

/// Make everything that needs root, start the machine, and give root up.
fn start(options: &Options) -> Result<Bridge, String> {
    let text = |error: io::Error| error.to_string();
    sys::keep_only(&[]).map_err(text)?;
    let signals = sys::signals(&[libc::SIGTERM, libc::SIGCHLD]).map_err(text)?;
    sys::become_subreaper().map_err(text)?;
    let (uid, gid) = options.owner;
    let own = (uid + 1, gid + 1);
    let mut seed = [0; 64];
    let random = Path::new("/dev/urandom");
    told(File::open(random).and_then(|mut file| file.read_exact(&mut seed)), random)?;
    let open = |path: &PathBuf| told(File::options().write(true).open(path), path);
    let append = |path: &PathBuf| told(File::options().append(true).create(true).open(path), path);
    let app = |name: &String| {
        let made = App::new(name, &options.rw, &options.attach, options.log_max, own);
        made.map_err(|error| format!("app {name}: {error}"))
    };
    let means = Means {
        parent: host::parent().map_err(text)?,
        kill: options.kill.as_ref().map(open).transpose()?,
        timing: Timing(options.timing.as_ref().map(append).transpose()?),
        link: told(listen(&options.link, options.owner), &options.link)?,
        console: told(listen(&options.console, options.owner), &options.console)?,
        apps: options.apps.iter().map(app).collect::<Result<_, _>>()?,
        images: options.images.clone(),
        network: options.network.iter().map(part).collect::<Result<_, _>>()?,
        secrets: options.secrets.iter().map(secret).collect::<Result<_, _>>()?,
        signals,
        seed,
    };
    let mut bridge = Bridge::new(means);
    bridge.timing.mark("host", "starter", sys::monotonic_ns());
    let started = starter::run(&options.starter, options.ready_timeout, &bridge.signals)?;
    bridge.timing.mark("host", "machine", sys::monotonic_ns());
    // Opened as root, whose file it is; written without any right left: the label's rules name none.
    let attribute = Path::new("/proc/thread-self/attr/current");
    let own_label = match &options.label {
        Some(label) => Some((label, told(File::options().write(true).open(attribute), attribute)?)),
        None => None,
    };
    host::drop_privileges(own).map_err(|error| format!("cannot give up root: {error}"))?;
    if let Some((label, mut file)) = own_label {
        told(file.write_all(label.as_bytes()), attribute)?;
    }
    bridge.expect(started, options.ready_timeout);
    Ok(bridge)
}
