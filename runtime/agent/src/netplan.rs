//! What a guest's interfaces have, as the host tells it once its networks are joined (docs/agent-protocol.md). Pure and
//! strict: a line that is not understood is an error.

use std::net::IpAddr;

/// The parts of what the host tells: the table below, /etc/hosts, /etc/resolv.conf.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
#[allow(missing_docs)]
pub enum Part {
    Table = 1,
    Hosts = 2,
    ResolvConf = 3,
}

impl Part {
    /// In the order of their numbers.
    pub const ALL: [Part; 3] = [Part::Table, Part::Hosts, Part::ResolvConf];

    /// The part with this number.
    pub fn of(number: u64) -> Option<Self> {
        Part::ALL.into_iter().find(|part| *part as u64 == number)
    }
}

/// Bytes of one part: a host's /etc/hosts may have a MiB, and the pod's own lines come before it.
pub const MAX_PART: usize = 2 << 20;
/// Interfaces of one pod.
const MAX_LINKS: usize = 16;
/// The kernel's own bound, without the byte that ends it (linux/if.h, IFNAMSIZ).
const MAX_NAME: usize = 15;
/// What IPv4 needs, and the largest that Linux takes (RFC 791; linux/if_ether.h).
const MTU: std::ops::RangeInclusive<u32> = 68..=65_535;

/// An address and how many of its bits name a network.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
#[allow(missing_docs)]
pub struct Prefix {
    pub address: IpAddr,
    pub bits: u8,
}

/// A route; without a gateway the destination is on the link.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
#[allow(missing_docs)]
pub struct Route {
    pub to: Prefix,
    pub gateway: Option<IpAddr>,
}

/// One interface.
#[derive(Debug, PartialEq, Eq, Clone)]
#[allow(missing_docs)]
pub struct Link {
    pub name: String,
    pub mac: [u8; 6],
    pub mtu: u32,
    pub addresses: Vec<Prefix>,
    pub routes: Vec<Route>,
}

fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|value: &u32| value.to_string() == text)
}

fn name(text: &str) -> Option<String> {
    let fits = (1..=MAX_NAME).contains(&text.len()) && !matches!(text, "." | ".." | "lo");
    let plain = |byte: u8| byte.is_ascii_graphic() && !b"/:%".contains(&byte);
    (fits && text.bytes().all(plain)).then(|| text.into())
}

/// Six bytes in hexadecimal, of one station.
fn mac(text: &str) -> Option<[u8; 6]> {
    let mut found = [0; 6];
    let mut words = text.split(':');
    for byte in &mut found {
        let word = words.next().filter(|word| word.len() == 2 && !word.starts_with('+'))?;
        *byte = u8::from_str_radix(word, 16).ok()?;
    }
    (words.next().is_none() && found[0] & 1 == 0 && found != [0; 6]).then(|| found)
}

fn prefix(text: &str) -> Option<Prefix> {
    let (address, bits) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let bits = number(bits).filter(|bits| *bits <= most)? as u8;
    Some(Prefix { address, bits })
}

fn route(to: &str, gateway: &str) -> Option<Route> {
    let to = prefix(to)?;
    let gateway = match gateway {
        "-" => None,
        text => Some(text.parse().ok().filter(|found: &IpAddr| found.is_ipv4() == to.address.is_ipv4())?),
    };
    Some(Route { to, gateway })
}

/// The table: `secrun-network 1`, then for each interface `link NAME MAC MTU`, and below it `address ADDRESS/BITS` and
/// `route DESTINATION/BITS GATEWAY|-`.
pub fn parse(text: &str) -> Result<Vec<Link>, String> {
    let body = text.strip_suffix('\n').ok_or("the table of networks does not end with a line")?;
    let mut lines = body.split('\n');
    if lines.next() != Some("secrun-network 1") {
        return Err("the table of networks does not begin with secrun-network 1".into());
    }
    let mut links = Vec::new();
    for line in lines {
        let words: Vec<&str> = line.split(' ').collect();
        take(&mut links, &words).ok_or_else(|| format!("the table of networks: cannot use {line:?}"))?;
    }
    Ok(links)
}

/// Take one line in; None if it cannot be used.
fn take(links: &mut Vec<Link>, words: &[&str]) -> Option<()> {
    match *words {
        ["link", label, station, mtu] if links.len() < MAX_LINKS => {
            let name = name(label).filter(|name| links.iter().all(|link| link.name != *name))?;
            let mtu = number(mtu).filter(|mtu| MTU.contains(mtu))?;
            let (addresses, routes) = (Vec::new(), Vec::new());
            links.push(Link { name, mac: mac(station)?, mtu, addresses, routes });
        }
        ["address", text] => links.last_mut()?.addresses.push(prefix(text)?),
        ["route", to, gateway] => links.last_mut()?.routes.push(route(to, gateway)?),
        _ => return None,
    }
    Some(())
}
