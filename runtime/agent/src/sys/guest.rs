//! System calls that only a guest's stage0 and relay make.

use std::fs::File;
use std::io;
use std::os::unix::io::AsRawFd;
use std::time::Duration;

use libc::{c_int, c_ulong};

use super::{c_string, check, owned};

/// Take a mount away; whoever uses it keeps it (umount2(2), MNT_DETACH).
pub fn detach(target: &str) -> io::Result<()> {
    let target = c_string(target.as_bytes())?;
    // SAFETY: the pointer is to a NUL-terminated string that outlives the call.
    check(unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) }).map(drop)
}

/// Load a kernel module from its file.
pub fn load_module(file: &File) -> io::Result<()> {
    // SAFETY: finit_module takes a descriptor, a NUL-terminated string and flags.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), b"\0".as_ptr(), 0) };
    check(result as c_int).map(drop)
}

/// One request to /dev/mapper/control: struct dm_ioctl and what follows it; the answer replaces it.
pub fn device_mapper(control: &File, number: u8, request: &mut [u8]) -> io::Result<()> {
    // data_size: the kernel reads and writes that many bytes.
    let size = (request.len() as u32).to_le_bytes();
    request[12..16].copy_from_slice(&size);
    assert!(request.len() >= 312);
    // _IOWR(0xfd, number, struct dm_ioctl)
    let code = 0xc138_fd00 | c_ulong::from(number);
    // SAFETY: the buffer holds a struct dm_ioctl, and data_size, the bound of the kernel's accesses, is its length.
    check(unsafe { libc::ioctl(control.as_raw_fd(), code, request.as_mut_ptr()) }).map(drop)
}

/// Set the host name.
pub fn set_hostname(name: &str) -> io::Result<()> {
    // SAFETY: the pointer and the length describe the text.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// Bring the loopback interface up.
pub fn loopback_up() -> io::Result<()> {
    // struct ifreq: the name in 16 bytes, then here flags as a short.
    let mut request = [0u8; 40];
    request[..2].copy_from_slice(b"lo");
    request[16..18].copy_from_slice(&(libc::IFF_UP as u16).to_ne_bytes());
    // SAFETY: SIOCSIFFLAGS reads one ifreq of 40 bytes.
    unsafe {
        let socket = owned(libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0))?;
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as c_ulong, request.as_ptr())).map(drop)
    }
}

/// A line to the kernel's network; what is written is a request, what is read its answer (netlink(7)).
pub fn netlink() -> io::Result<File> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: socket takes and returns ints.
    owned(unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) }).map(File::from)
}

/// Time since the kernel started.
pub fn since_boot() -> Duration {
    // SAFETY: clock_gettime fills one timespec.
    let now = unsafe {
        let mut now: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut now);
        now
    };
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// Whether QEMU translates this processor's code, by the name that it gives itself (QEMU, target/i386/cpu.c, tcg-cpuid).
#[cfg(target_arch = "x86_64")]
pub fn is_emulated() -> bool {
    use std::arch::x86_64::{__cpuid, CpuidResult};
    // SAFETY: every processor of this architecture has the instruction, which answers for a leaf that it lacks with another.
    let (features, named) = unsafe { (__cpuid(1), __cpuid(0x4000_0000)) };
    let CpuidResult { ebx, ecx, edx, .. } = named;
    features.ecx >> 31 == 1
        && [ebx, ecx, edx]
            == [u32::from_le_bytes(*b"TCGT"), u32::from_le_bytes(*b"CGTC"), u32::from_le_bytes(*b"GTCG")]
}

/// Whether QEMU translates this processor's code: others do not tell.
#[cfg(not(target_arch = "x86_64"))]
pub fn is_emulated() -> bool {
    false
}

/// Write what file systems hold back to their disks.
pub fn sync() {
    // SAFETY: takes nothing, returns nothing.
    unsafe { libc::sync() }
}

/// Restart the machine at once, after the console has taken what was written to it.
pub fn restart(console: &impl AsRawFd) {
    // SAFETY: both take ints.
    unsafe {
        libc::tcdrain(console.as_raw_fd());
        libc::reboot(libc::LINUX_REBOOT_CMD_RESTART);
    }
}

/// Set the wall clock to this time since 1970.
pub fn set_clock(now: Duration) -> io::Result<()> {
    let now = libc::timespec { tv_sec: now.as_secs() as i64, tv_nsec: i64::from(now.subsec_nanos()) };
    // SAFETY: clock_settime reads one timespec.
    check(unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &now) }).map(drop)
}

/// Give the kernel random bytes that count in full, and let it use them at once (random(4)).
pub fn add_randomness(random: &File, bytes: &[u8]) -> io::Result<()> {
    const RNDADDENTROPY: c_ulong = 0x4008_5203;
    const RNDRESEEDCRNG: c_ulong = 0x5207;
    // struct rand_pool_info: bits of entropy, size, bytes.
    let head = [bytes.len() as i32 * 8, bytes.len() as i32].map(i32::to_ne_bytes).concat();
    let pool = [&head[..], bytes].concat();
    // SAFETY: the kernel reads two ints and as many bytes as the second says, which follow; the other call has no argument.
    unsafe {
        check(libc::ioctl(random.as_raw_fd(), RNDADDENTROPY, pool.as_ptr()))?;
        check(libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG)).map(drop)
    }
}

/// Send a signal to process 1.
pub fn signal_init(signal: c_int) -> io::Result<()> {
    // SAFETY: takes and returns ints.
    check(unsafe { libc::kill(1, signal) }).map(drop)
}
