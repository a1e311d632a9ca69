//! System calls that only the host's end of a guest makes.

use std::io;
use std::os::unix::io::OwnedFd;

use libc::c_int;

use super::{check, owned};

/// A descriptor that is readable once the parent has ended.
pub fn parent() -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes ints; the parent cannot be replaced by another process of its number, since a child whose
    // parent ends gets another parent.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::getppid(), 0) };
    owned(fd as c_int)
}

/// Become a user and a group, for good: no other groups, no capabilities, none by executing a program.
pub fn drop_privileges((uid, gid): (u32, u32)) -> io::Result<()> {
    // struct __user_cap_header_struct of version 3, and two sets of nothing (capget(2)).
    let (header, none) = ([0x2008_0522u32, 0], [0u32; 6]);
    // SAFETY: the calls take ints, an empty list, and two arrays of the sizes that version 3 has.
    unsafe {
        check(libc::setgroups(0, std::ptr::null()))?;
        check(libc::setresgid(gid, gid, gid))?;
        check(libc::setresuid(uid, uid, uid))?;
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        check(libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) as c_int)?;
    }
    Ok(())
}
