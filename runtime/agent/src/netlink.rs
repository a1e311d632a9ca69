//! Making a guest's interfaces what the host says they are: rtnetlink(7), over one socket.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr};

use crate::netplan::{Link, Prefix, Route};
use crate::sys::guest;

const INTERFACES: &str = "/sys/class/net";

// linux/netlink.h
const HEADER: usize = 16;
const REQUEST_ACK: u16 = 0x1 | 0x4;
const CREATE_ONLY: u16 = 0x400 | 0x200;
const ERROR: u16 = 2;
// linux/rtnetlink.h
const NEWLINK: u16 = 16;
const NEWADDR: u16 = 20;
const NEWROUTE: u16 = 24;
// linux/if_link.h
const LINK_NAME: u16 = 3;
const LINK_MTU: u16 = 4;
// linux/if_addr.h
const ADDRESS: u16 = 1;
const LOCAL: u16 = 2;
const BROADCAST: u16 = 4;
const FLAGS: u16 = 8;
/// The host's plugins have looked for a second owner already.
const NO_DUPLICATE_DETECTION: u32 = 0x2;
// linux/rtnetlink.h, struct rtmsg
const DESTINATION: u16 = 1;
const INTERFACE: u16 = 4;
const GATEWAY: u16 = 5;
const MAIN: u8 = 254;
const BY_BOOT: u8 = 3;
const UNIVERSE: u8 = 0;
const ON_LINK: u8 = 253;
const UNICAST: u8 = 1;
/// The gateway is on this link, whatever the addresses say.
const GATEWAY_ON_LINK: u32 = 4;

/// Append one attribute, padded.
fn put(body: &mut Vec<u8>, kind: u16, data: &[u8]) {
    body.extend_from_slice(&(4 + data.len() as u16).to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(data);
    body.resize((body.len() + 3) & !3, 0);
}

fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn family(address: IpAddr) -> u8 {
    (if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

/// The bits that name the network; the others are 0.
fn network(to: Prefix) -> Vec<u8> {
    let mut found = bytes(to.address);
    for (index, byte) in found.iter_mut().enumerate() {
        let kept = usize::from(to.bits).saturating_sub(8 * index).min(8);
        *byte &= !(0xff_u16 >> kept) as u8;
    }
    found
}

fn link(index: u32, up: bool, name: Option<&str>, mtu: Option<u32>) -> Vec<u8> {
    let mut body = vec![libc::AF_UNSPEC as u8, 0, 0, 0];
    let flags = if up { libc::IFF_UP as u32 } else { 0 };
    for field in [index, flags, flags] {
        body.extend_from_slice(&field.to_ne_bytes());
    }
    if let Some(name) = name {
        put(&mut body, LINK_NAME, &[name.as_bytes(), b"\0"].concat());
    }
    if let Some(mtu) = mtu {
        put(&mut body, LINK_MTU, &mtu.to_ne_bytes());
    }
    body
}

fn address(index: u32, own: Prefix) -> Vec<u8> {
    let mut body = vec![family(own.address), own.bits, 0, UNIVERSE];
    body.extend_from_slice(&index.to_ne_bytes());
    let raw = bytes(own.address);
    put(&mut body, LOCAL, &raw);
    put(&mut body, ADDRESS, &raw);
    if let (IpAddr::V4(address), true) = (own.address, own.bits < 31) {
        let all = Ipv4Addr::from(u32::from(address) | u32::MAX.checked_shr(own.bits.into()).unwrap_or(0));
        put(&mut body, BROADCAST, &all.octets());
    }
    put(&mut body, FLAGS, &NO_DUPLICATE_DETECTION.to_ne_bytes());
    body
}

fn route(index: u32, Route { to, gateway }: Route) -> Vec<u8> {
    let (scope, flags) = match gateway {
        Some(_) => (UNIVERSE, GATEWAY_ON_LINK),
        None => (ON_LINK, 0),
    };
    let mut body = vec![family(to.address), to.bits, 0, 0, MAIN, BY_BOOT, scope, UNICAST];
    body.extend_from_slice(&flags.to_ne_bytes());
    if to.bits > 0 {
        put(&mut body, DESTINATION, &network(to));
    }
    if let Some(gateway) = gateway {
        put(&mut body, GATEWAY, &bytes(gateway));
    }
    put(&mut body, INTERFACE, &index.to_ne_bytes());
    body
}

/// Ask the kernel for something, and wait until it is done.
fn ask(socket: &mut File, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend_from_slice(&((HEADER + body.len()) as u32).to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&(REQUEST_ACK | flags).to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(body);
    socket.write_all(&message)?;
    let mut answer = [0; 8192];
    let count = socket.read(&mut answer)?;
    if count < HEADER + 4 || u16::from_ne_bytes([answer[4], answer[5]]) != ERROR {
        return Err(io::Error::new(ErrorKind::InvalidData, "not an answer"));
    }
    match i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]) {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(-code)),
    }
}

/// An interface as the kernel has it.
struct Found {
    index: u32,
    name: String,
    mac: String,
}

/// In the order in which the kernel found them, which is that of the bus.
fn interfaces() -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(INTERFACES)? {
        let (entry, read) = (entry?, |path: std::path::PathBuf| fs::read_to_string(path));
        let number = read(entry.path().join("ifindex"))?;
        let index = number.trim_end().parse().map_err(|_| io::Error::from(ErrorKind::InvalidData))?;
        let mac = read(entry.path().join("address"))?.trim_end().into();
        found.push(Found { index, name: entry.file_name().to_string_lossy().into_owned(), mac });
    }
    found.sort_by_key(|each| each.index);
    Ok(found)
}

/// The kernel's interface of each link, by its hardware address.
fn matched<'a>(links: &'a [Link], mut found: Vec<Found>) -> Result<Vec<(&'a Link, Found)>, String> {
    let one = |link: &'a Link| {
        let mac = link.mac.map(|byte| format!("{byte:02x}")).join(":");
        match found.iter().position(|each| each.mac == mac) {
            Some(place) => Ok((link, found.remove(place))),
            None => Err(format!("the machine has no interface {mac} for {}", link.name)),
        }
    };
    links.iter().map(one).collect()
}

/// Have no addresses but those that the host knows of: it lets no others pass.
fn still(name: &str) -> Result<(), String> {
    match fs::write(format!("/proc/sys/net/ipv6/conf/{name}/accept_ra"), "0") {
        // A kernel without IPv6 makes none.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result.map_err(|error| format!("{name}: accept_ra: {error}")),
    }
}

/// Give the machine's interfaces their names, addresses and routes, and bring them up.
pub fn apply(links: &[Link]) -> Result<(), String> {
    if links.is_empty() {
        return Ok(());
    }
    let open = guest::netlink().map_err(|error| format!("netlink: {error}"));
    let (mut socket, found) = (open?, interfaces().map_err(|error| format!("{INTERFACES}: {error}"))?);
    let matched = matched(links, found)?;
    let mut told = |what: &str, kind: u16, flags: u16, body: Vec<u8>| {
        match ask(&mut socket, kind, flags, &body) {
            // Of two routes to one place the first counts, as with the plugins.
            Err(error) if kind == NEWROUTE && error.kind() == ErrorKind::AlreadyExists => Ok(()),
            result => result.map_err(|error| format!("{what}: {error}")),
        }
    };
    // Out of the way first: one may have the name that is for another.
    let renamed: Vec<_> = matched.iter().filter(|(link, found)| link.name != found.name).collect();
    for (link, Found { index, .. }) in &renamed {
        told(&link.name, NEWLINK, 0, self::link(*index, false, Some(&format!("secrun{index}")), None))?;
    }
    for (link, Found { index, .. }) in &renamed {
        told(&link.name, NEWLINK, 0, self::link(*index, false, Some(&link.name), None))?;
    }
    for (Link { name, mtu, addresses, routes, .. }, Found { index, .. }) in &matched {
        still(name)?;
        told(name, NEWLINK, 0, link(*index, true, None, Some(*mtu)))?;
        for own in addresses {
            let what = format!("{name}: address {}/{}", own.address, own.bits);
            told(&what, NEWADDR, CREATE_ONLY, address(*index, *own))?;
        }
        for each in routes {
            let what = format!("{name}: route to {}/{}", each.to.address, each.to.bits);
            told(&what, NEWROUTE, CREATE_ONLY, route(*index, *each))?;
        }
    }
    Ok(())
}
