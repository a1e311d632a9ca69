//! Descriptors that cross a unix socket (unix(7), SCM_RIGHTS).

use std::io;
use std::os::unix::io::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use libc::c_int;

use super::check;

/// More than any app is given; the kernel itself allows 253 in a message (net/scm.h).
pub const MAX_RIGHTS: usize = 32;
/// Room for them behind one header, in words, which align it as cmsg(3) wants.
const SPACE: usize = 2 + MAX_RIGHTS / 2 + 1;

/// Write bytes, with descriptors at the first of them; returns how many bytes went. All descriptors went, or none did.
pub fn send(socket: &impl AsRawFd, bytes: &[u8], fds: &[RawFd]) -> io::Result<usize> {
    if fds.len() > MAX_RIGHTS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut space = [0u64; SPACE];
    let length = std::mem::size_of_val(fds) as u32;
    // SAFETY: msghdr points to the caller's bytes, which sendmsg only reads, and to a local buffer that is aligned for
    // cmsghdr and has room for the header and MAX_RIGHTS descriptors.
    unsafe {
        let mut part = libc::iovec { iov_base: bytes.as_ptr() as *mut _, iov_len: bytes.len() };
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &mut part;
        message.msg_iovlen = 1;
        message.msg_control = space.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(length) as _;
        let header = libc::CMSG_FIRSTHDR(&message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(length) as _;
        let place = libc::CMSG_DATA(header).cast::<c_int>();
        fds.iter().enumerate().for_each(|(index, fd)| place.add(index).write_unaligned(*fd));
        let sent = libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_NOSIGNAL);
        check(sent as c_int).map(|count| count as usize)
    }
}

/// Read bytes and the descriptors that came with them, MAX_RIGHTS at most; the kernel closes those beyond.
pub fn receive(socket: &impl AsRawFd, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [0u64; SPACE];
    // SAFETY: msghdr points to the caller's and a local buffer with their sizes; the kernel has just put each descriptor
    // that is read from a whole SCM_RIGHTS message into this process's table, for us alone.
    unsafe {
        let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &mut part;
        message.msg_iovlen = 1;
        message.msg_control = space.as_mut_ptr().cast();
        message.msg_controllen = std::mem::size_of_val(&space);
        let read = check(libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_CMSG_CLOEXEC) as c_int)?;
        let header = libc::CMSG_FIRSTHDR(&message);
        let mut found = Vec::new();
        if !header.is_null() && (*header).cmsg_type == libc::SCM_RIGHTS {
            let length = (*header).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
            let place = libc::CMSG_DATA(header).cast::<c_int>();
            for index in 0..length / std::mem::size_of::<c_int>() {
                found.push(OwnedFd::from_raw_fd(place.add(index).read_unaligned()));
            }
        }
        Ok((read as usize, found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn descriptors_come_with_the_first_byte_and_in_their_order() {
        let (here, there) = UnixStream::pair().expect("a pair");
        let mut pipes: Vec<_> = (0..MAX_RIGHTS).map(|_| super::super::pipe().expect("a pipe")).collect();
        let ends: Vec<RawFd> = pipes.iter().map(|(read, _)| read.as_raw_fd()).collect();
        assert_eq!(send(&here, b"word", &ends).expect("sent"), 4);
        let mut bytes = [0; 8];
        let (count, found) = receive(&there, &mut bytes).expect("received");
        assert_eq!((&bytes[..count], found.len()), (&b"word"[..], MAX_RIGHTS));
        for (index, fd) in found.into_iter().enumerate().rev() {
            let (_, write) = pipes.pop().expect("as many");
            File::from(write).write_all(&[index as u8]).expect("written");
            let mut said = Vec::new();
            File::from(fd).read_to_end(&mut said).expect("read");
            assert_eq!(said, [index as u8]);
        }
        assert!(send(&here, b"word", &[0; MAX_RIGHTS + 1]).is_err());
    }
}
