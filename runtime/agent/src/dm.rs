//! Device-mapper by its ioctls (linux/dm-ioctl.h), for read-only dm-verity devices.

use std::fs::File;
use std::io;

use crate::sys::guest::device_mapper;
use crate::table::Verity;

const CREATE: u8 = 3;
const SUSPEND: u8 = 6;
const LOAD: u8 = 9;
const READ_ONLY: u32 = 1;
/// struct dm_ioctl, and struct dm_target_spec after it.
const HEADER: usize = 312;
const TARGET: usize = 40;
const NAME: usize = 48;
const SECTORS_PER_BLOCK: u64 = 8;

/// A request about the device `name` (at most 127 bytes); `device_mapper` fills in its own size.
fn request(name: &str) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    // Interface version 4.0.0: every kernel of version 4 takes it.
    put(&mut bytes, 0, &4u32.to_le_bytes());
    put(&mut bytes, 16, &(HEADER as u32).to_le_bytes());
    put(&mut bytes, 28, &READ_ONLY.to_le_bytes());
    put(&mut bytes, NAME, name.as_bytes());
    bytes
}

/// The request for a table of one verity target over the whole device.
fn table(name: &str, verity: &Verity, device: &str) -> Vec<u8> {
    let mut bytes = request(name);
    put(&mut bytes, 20, &1u32.to_le_bytes());
    bytes.resize(HEADER + TARGET, 0);
    put(&mut bytes, HEADER + 8, &(verity.blocks * SECTORS_PER_BLOCK).to_le_bytes());
    put(&mut bytes, HEADER + 24, b"verity");
    bytes.extend_from_slice(verity.parameters(device).as_bytes());
    bytes.resize(bytes.len() / 8 * 8 + 8, 0);
    bytes
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// Activate a verity device over `device`; returns its path.
pub fn open(control: &File, name: &str, verity: &Verity, device: &str) -> io::Result<String> {
    let mut created = request(name);
    device_mapper(control, CREATE, &mut created)?;
    device_mapper(control, LOAD, &mut table(name, verity, device))?;
    // Without the flag for suspending this resumes: the table goes live.
    device_mapper(control, SUSPEND, &mut request(name))?;
    let dev = created[40..48].iter().rev().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
    // huge_encode_dev(): the minor number is split around the major one.
    Ok(format!("/dev/dm-{}", dev & 0xff | dev >> 12 & 0xfff00))
}
