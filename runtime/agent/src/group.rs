//! Control groups of an app that has a manager of its own: the shim's beside the app's, so that the app may divide its own
//! and reaches neither the shim nor the limits of the unit above (Control Group v2, delegation: no internal processes).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const MOUNT: &str = "/sys/fs/cgroup";
/// The shim's own.
pub const SUPERVISOR: &str = "supervisor";
/// The app's: the root of its control group namespace.
pub const APP: &str = "app";
/// Where a manager puts itself; its own group may hold no process once it has divided it.
const INIT: &str = "init.scope";
/// Groups that an app may make: a host has hundreds, and each costs the kernel memory.
const MAX_GROUPS: &str = "2000";

/// The group of the unit, divided in two.
#[derive(Clone)]
pub struct Groups {
    unit: PathBuf,
}

/// The path of this process's group in the control group file system (cgroups(7)).
pub fn own() -> io::Result<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup")?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"));
    path.map(|path| PathBuf::from(format!("{MOUNT}{path}"))).ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Move this process.
fn join(group: &Path) -> io::Result<()> {
    fs::write(group.join("cgroup.procs"), "0")
}

/// Remove the groups below one; those of processes that have just gone are empty.
fn remove_below(group: &Path) -> io::Result<()> {
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_below(&entry.path())?;
            fs::remove_dir(entry.path())?;
        }
    }
    Ok(())
}

impl Groups {
    /// Divide the group that the service manager has given to this process, and hand on what it may control.
    pub fn divide() -> io::Result<Self> {
        let unit = own()?;
        fs::write(unit.join("cgroup.max.descendants"), MAX_GROUPS)?;
        for name in [SUPERVISOR, APP] {
            match fs::create_dir(unit.join(name)) {
                // Of an earlier start of the unit.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => (),
                made => made?,
            }
        }
        join(&unit.join(SUPERVISOR))?;
        for controller in fs::read_to_string(unit.join("cgroup.controllers"))?.split_whitespace() {
            fs::write(unit.join("cgroup.subtree_control"), format!("+{controller}"))?;
        }
        Ok(Groups { unit })
    }

    /// Undo what the app has made of its group: it is over, and the next run finds it as the first one did.
    pub fn clear(&self) -> io::Result<()> {
        let app = self.unit.join(APP);
        remove_below(&app)?;
        for controller in fs::read_to_string(app.join("cgroup.subtree_control"))?.split_whitespace() {
            fs::write(app.join("cgroup.subtree_control"), format!("-{controller}"))?;
        }
        Ok(())
    }

    /// Run `start`, whose child begins in the app's group.
    pub fn within<T>(&self, start: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let app = self.unit.join(APP);
        let init = app.join(INIT);
        join(if init.is_dir() { &init } else { &app })?;
        let started = start();
        join(&self.unit.join(SUPERVISOR))?;
        started
    }
}
