//! System calls that change files.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::io::AsRawFd;
use std::path::Path;

use super::{c_string, check};

/// Give a file to a user and a group; a link is not followed.
pub fn change_owner(path: &Path, (uid, gid): (u32, u32)) -> io::Result<()> {
    let path = c_string(path.as_os_str().as_bytes())?;
    // SAFETY: the pointer is to a NUL-terminated string that outlives the call.
    check(unsafe { libc::lchown(path.as_ptr(), uid, gid) }).map(drop)
}

/// Set when a file was read and changed, in seconds and nanoseconds; a link is not followed.
pub fn change_times(path: &Path, (seconds, nanoseconds): (i64, i64)) -> io::Result<()> {
    let path = c_string(path.as_os_str().as_bytes())?;
    let times = [libc::timespec { tv_sec: seconds, tv_nsec: nanoseconds }; 2];
    let (here, flags) = (libc::AT_FDCWD, libc::AT_SYMLINK_NOFOLLOW);
    // SAFETY: the pointers are to a NUL-terminated string and to two times, which outlive the call.
    check(unsafe { libc::utimensat(here, path.as_ptr(), times.as_ptr(), flags) }).map(drop)
}

/// Wait until nobody else has the file locked (flock(2)); it is let go when the file is closed.
pub fn lock(file: &File) -> io::Result<()> {
    // SAFETY: flock takes ints.
    check(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) }).map(drop)
}
