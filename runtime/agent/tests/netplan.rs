//! What a guest's interfaces have, as the host tells it.

use secrun_agent::netplan::{parse, Link, Prefix, Route};

fn prefix(address: &str, bits: u8) -> Prefix {
    Prefix { address: address.parse().unwrap(), bits }
}

#[test]
fn interfaces_with_their_addresses_and_routes() {
    let text = "secrun-network 1\nlink eth0 02:00:00:00:00:aF 1500\naddress 192.0.2.2/24\naddress fd00::2/64\n\
                route 0.0.0.0/0 192.0.2.1\nroute fd01::/64 -\nlink front 02:00:00:00:00:02 65535\n";
    let routes = vec![
        Route { to: prefix("0.0.0.0", 0), gateway: Some("192.0.2.1".parse().unwrap()) },
        Route { to: prefix("fd01::", 64), gateway: None },
    ];
    let addresses = vec![prefix("192.0.2.2", 24), prefix("fd00::2", 64)];
    let bare = |name: &str, last: u8, mtu: u32| Link {
        name: name.into(),
        mac: [2, 0, 0, 0, 0, last],
        mtu,
        addresses: Vec::new(),
        routes: Vec::new(),
    };
    let first = Link { addresses, routes, ..bare("eth0", 0xaf, 1500) };
    assert_eq!(parse(text), Ok(vec![first, bare("front", 2, 65535)]));
    assert_eq!(parse("secrun-network 1\n"), Ok(Vec::new()));
}

#[test]
fn what_is_not_understood_is_an_error() {
    let link = "link eth0 02:00:00:00:00:01 1500";
    for wrong in [
        "link eth0 02:00:00:00:00:01",
        "link eth0 02:00:00:00:00:01 67",
        "link eth0 02:00:00:00:00:01 65536",
        "link eth0 02:00:00:00:00:01 +1500",
        "link eth0 02:00:00:00:00 1500",
        "link eth0 02:00:00:00:00:01:02 1500",
        "link eth0 02:00:00:00:00:+1 1500",
        "link eth0 01:00:00:00:00:01 1500",
        "link eth0 00:00:00:00:00:00 1500",
        "link lo 02:00:00:00:00:01 1500",
        "link .. 02:00:00:00:00:01 1500",
        "link a/b 02:00:00:00:00:01 1500",
        "link a%d 02:00:00:00:00:01 1500",
        "link  02:00:00:00:00:01 1500",
        "link sixteen-letters! 02:00:00:00:00:01 1500",
        "address 192.0.2.2/24",
        "route 0.0.0.0/0 -",
        "",
        &format!("{link}\n{link}"),
        &format!("{link}\naddress 192.0.2.2"),
        &format!("{link}\naddress 192.0.2.2/33"),
        &format!("{link}\naddress 192.0.2.2/024"),
        &format!("{link}\naddress fd00::/129"),
        &format!("{link}\nroute 0.0.0.0/0"),
        &format!("{link}\nroute 0.0.0.0/0 fd00::1"),
        &format!("{link}\nroute ::/0 192.0.2.1"),
        &format!("{link}\nroute ::/0 fd00::1 x"),
    ] {
        assert!(parse(&format!("secrun-network 1\n{wrong}\n")).is_err(), "{wrong:?}");
    }
    let many: String = (0..17).map(|n| format!("link e{n} 02:00:00:00:00:01 1500\n")).collect();
    for whole in ["", "secrun-network 2\n", "secrun-network 1", &format!("secrun-network 1\n{many}")] {
        assert!(parse(whole).is_err(), "{whole:?}");
    }
}
