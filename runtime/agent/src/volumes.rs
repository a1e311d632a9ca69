//! Volumes that are the pod's own, and what an image has for one that is empty: both made inside the pod, with no
//! right but the pod's.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::io::AsRawFd;
use std::path::{Component, Path, PathBuf};

use crate::sys;

/// Where the pod's own volumes lie.
pub const FOLDER: &str = "/rw/volumes";
const UNTOUCHED: u32 = 0o755;

/// A folder that lives as long as the pod; every app that names it has the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Empty {
    /// Its name, a file name.
    pub name: String,
    /// Permissions of the folder.
    pub mode: u32,
    /// Its owner and group.
    pub owner: (u32, u32),
}

/// A volume that gets what the image has at its target, if it is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fill {
    /// The volume as this pod sees it.
    pub folder: PathBuf,
    /// Where the app will see it, resolved as if the image were the root.
    pub target: Vec<u8>,
}

/// Something of the pod's that the app will see at a place of its own root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// What will be there, as this pod sees it: a folder, or anything else.
    pub source: PathBuf,
    /// Where, by the names that the caller gave.
    pub target: PathBuf,
}

/// More links in one path than this are a loop, as for the kernel (path_resolution(7)).
const MAX_LINKS: u32 = 40;
/// What is mounted there is the kernel's word: nothing else may stand for it.
const KERNEL: [&str; 2] = ["proc", "sys"];

fn context<T>(result: io::Result<T>, what: &str) -> io::Result<T> {
    result.map_err(|error| io::Error::new(error.kind(), format!("{what}: {error}")))
}

/// Make what is missing of `empties`, fill what is empty of `fills` from the image that is mounted at `lower`.
pub fn prepare(empties: &[Empty], fills: &[Fill], lower: &Path) -> io::Result<()> {
    for empty in empties {
        context(make(Path::new(FOLDER), empty), &format!("volume {}", empty.name))?;
    }
    if fills.is_empty() {
        return Ok(());
    }
    let image = File::open(lower)?;
    for fill in fills {
        let what = format!("copying the image's {}", String::from_utf8_lossy(&fill.target));
        context(fill_empty(&image, fill), &what)?;
    }
    Ok(())
}

/// The apps of a pod start at once: whoever comes first makes the folder, the others find it whole.
fn make(folder: &Path, empty: &Empty) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let lock = File::open(folder)?;
    sys::lock(&lock)?;
    let path = folder.join(&empty.name);
    match fs::DirBuilder::new().mode(0o700).create(&path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(()),
        other => other?,
    }
    sys::change_owner(&path, empty.owner)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(empty.mode))
}

fn fill_empty(image: &File, fill: &Fill) -> io::Result<()> {
    let source = match sys::open_in_root(image, &fill.target) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let known = source.metadata()?;
    if !known.is_dir() {
        return Err(io::Error::new(ErrorKind::Other, "it is not a folder there; the option nocopy leaves it"));
    }
    let target = open_folder(&fill.folder)?;
    // Two pods may start with one volume.
    sys::lock(&target)?;
    if fs::read_dir(inside(&target, ""))?.next().is_some() {
        return Ok(());
    }
    let own = target.metadata()?;
    copy_entries(&source, &target)?;
    if (own.uid(), own.gid(), own.mode() & 0o7777) == (0, 0, UNTOUCHED) {
        sys::change_owner(&fill.folder, (known.uid(), known.gid()))?;
        target.set_permissions(fs::Permissions::from_mode(known.mode() & 0o7777))?;
        sys::change_times(&fill.folder, (known.mtime(), known.mtime_nsec()))?;
    }
    Ok(())
}

/// Make what is missing of the places in `root`, the app's own before it runs; nothing else is at work in it.
pub fn place(root: &Path, places: &[Place]) -> io::Result<()> {
    for place in places {
        context(place_one(root, place), &format!("target {}", place.target.display()))?;
    }
    Ok(())
}

fn place_one(root: &Path, place: &Place) -> io::Result<()> {
    let found = resolve(root, &place.target)?;
    let first = found.iter().next();
    if first.map_or(true, |name| KERNEL.iter().any(|own| name == *own)) || found == Path::new("dev") {
        let text = format!("a link of the image leads to /{}, which the app needs as it is", found.display());
        return Err(io::Error::new(ErrorKind::Other, text));
    }
    let path = root.join(&found);
    if fs::symlink_metadata(&path).is_ok() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    }
    match fs::metadata(&place.source)?.is_dir() {
        true => fs::DirBuilder::new().mode(0o755).create(&path),
        false => OpenOptions::new().write(true).create_new(true).mode(0o644).open(&path).map(drop),
    }
}

/// Follow links as if `root` were the root, also those that lead to what is not there; relative to `root`.
pub fn resolve(root: &Path, path: &Path) -> io::Result<PathBuf> {
    let mut left: Vec<OsString> = parts(path);
    let (mut found, mut links) = (PathBuf::new(), 0);
    while let Some(name) = left.pop() {
        if name == ".." {
            found.pop();
            continue;
        }
        let next = found.join(&name);
        match fs::symlink_metadata(root.join(&next)) {
            Ok(known) if known.file_type().is_symlink() => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(io::Error::from_raw_os_error(libc::ELOOP));
                }
                let link = fs::read_link(root.join(&next))?;
                if link.is_absolute() {
                    found = PathBuf::new();
                }
                left.extend(parts(&link));
            }
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => found = next,
        }
    }
    Ok(found)
}

/// The names of a path, the last one first.
fn parts(path: &Path) -> Vec<OsString> {
    let wanted = |part: &Component| matches!(part, Component::Normal(_) | Component::ParentDir);
    path.components().filter(wanted).map(|part| part.as_os_str().to_owned()).rev().collect()
}

/// A name in an open folder, as a path whose beginning nobody can exchange.
fn inside(folder: &File, name: impl AsRef<Path>) -> PathBuf {
    Path::new(&format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name)
}

fn open_folder(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(path)
}

fn copy_entries(source: &File, target: &File) -> io::Result<()> {
    for entry in fs::read_dir(inside(source, ""))? {
        let name = entry?.file_name();
        context(copy(&inside(source, &name), &inside(target, &name)), &name.to_string_lossy())?;
    }
    Ok(())
}

/// Copy one entry that must not exist yet: no link is followed on either side, and none that another pod puts there.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let known = fs::symlink_metadata(from)?;
    let owner = (known.uid(), known.gid());
    let kind = known.file_type();
    if kind.is_symlink() {
        std::os::unix::fs::symlink(fs::read_link(from)?, to)?;
        sys::change_owner(to, owner)?;
    } else if kind.is_dir() {
        fs::DirBuilder::new().mode(0o700).create(to)?;
        let target = open_folder(to)?;
        copy_entries(&open_folder(from)?, &target)?;
        finish(&target, to, owner, known.mode())?;
    } else if kind.is_file() {
        let mut source = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(from)?;
        let mut target = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
        io::copy(&mut source, &mut target)?;
        finish(&target, to, owner, known.mode())?;
    } else {
        return Err(io::Error::new(ErrorKind::Other, "no file, folder or link; the option nocopy leaves it"));
    }
    sys::change_times(to, (known.mtime(), known.mtime_nsec()))
}

/// The owner before the mode: a change of owner takes set-user-ID away.
fn finish(target: &File, path: &Path, owner: (u32, u32), mode: u32) -> io::Result<()> {
    sys::change_owner(path, owner)?;
    target.set_permissions(fs::Permissions::from_mode(mode & 0o7777))
}
