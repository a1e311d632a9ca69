//! The link between guest and host: codec, credit, console.

mod common;

use common::frames;
use secrun_agent::console::{Console, KEPT};
use secrun_agent::frame::{Violation, WINDOW};
use secrun_agent::mux::{decode, encode, next_channel, Flow, Item, Kind};
use secrun_agent::netplan::Part;

fn items() -> Vec<Item<'static>> {
    vec![
        Item::Hello { version: 3 },
        Item::Mark { ns: u64::MAX - 1, name: "stage0" },
        Item::Bye,
        Item::Clock { ns: 1 << 60 },
        Item::Reseed(&[7; 32]),
        Item::Shutdown,
        Item::Finish,
        Item::Network { part: Part::ResolvConf, bytes: b"nameserver 192.0.2.1\n" },
        Item::Network { part: Part::Table, bytes: b"" },
        Item::Secret { number: 258, bytes: b"\0\xff" },
        Item::Connect,
        Item::Open { channel: 513, kind: Kind::Attach, app: "" },
        Item::Open { channel: 2, kind: Kind::Control, app: "web.1" },
        Item::Data { channel: 1, bytes: b"bytes" },
        Item::Data { channel: 1, bytes: b"" },
        Item::Credit { channel: 65_535, count: 16_384 },
        Item::Close { channel: 1 },
    ]
}

#[test]
fn every_item_survives_the_wire_byte_by_byte() {
    let mut bytes = Vec::new();
    items().iter().for_each(|item| encode(item, &mut bytes));
    let found = frames(&bytes);
    let decoded: Result<Vec<_>, _> = found.iter().map(|(kind, payload)| decode(*kind, payload)).collect();
    assert_eq!(decoded, Ok(items()));
}

#[test]
fn the_wire_form_is_the_documented_one() {
    let mut bytes = Vec::new();
    encode(&Item::Open { channel: 258, kind: Kind::Control, app: "a" }, &mut bytes);
    assert_eq!(bytes, [0x61, 4, 0, 0, 0, 2, 1, 2, b'a']);
}

#[test]
fn wrong_payloads_are_violations() {
    let wrong: [(u8, &[u8]); 17] = [
        (0x01, b"\x01\x00a"),
        (0x40, b""),
        (0x41, b"\x01"),
        (0x41, b"\x01\x00\x00"),
        (0x42, b"\0\0\0\0\0\0\0\0a/b"),
        (0x42, b"\0\0\0\0\0\0\0\0\xff"),
        (0x43, b"x"),
        (0x52, &[0; 31]),
        (0x52, &[0; 257]),
        (0x55, b""),
        (0x55, b"\x00a"),
        (0x55, b"\x04a"),
        (0x56, b"x"),
        (0x57, b"\x01"),
        (0x61, b"\x01\x00\x03"),
        (0x61, b"\x01\x00\x02../x"),
        (0x63, b"\x01\x00\x01"),
    ];
    for (kind, payload) in wrong {
        assert!(decode(kind, payload).is_err(), "{kind:#x} {payload:?}");
    }
}

#[test]
fn a_sender_keeps_to_its_credit() {
    let mut flow = Flow::default();
    assert_eq!(flow.data(WINDOW), Ok(true));
    assert_eq!(flow.data(1), Err(Violation("more data than was allowed")));
    // Small amounts are not worth a frame; what is owed is told in one.
    flow.taken(100);
    assert_eq!(flow.due(), None);
    flow.taken(WINDOW - 100);
    assert_eq!(flow.due(), Some(WINDOW as u32));
    assert_eq!(flow.due(), None);
    assert_eq!(flow.data(WINDOW), Ok(true));
}

#[test]
fn credit_never_exceeds_the_window() {
    let mut flow = Flow::default();
    assert!(flow.credited(1).is_err());
    flow.credit -= 10;
    assert_eq!(flow.credited(10), Ok(()));
    assert_eq!(flow.credit, WINDOW);
    flow.credit = 0;
    assert!(flow.credited(u32::MAX).is_err());
}

#[test]
fn a_channel_is_over_when_both_have_closed_it() {
    let mut flow = Flow::default();
    flow.told = true;
    // What was on its way is thrown away, within its bounds.
    assert_eq!(flow.data(10), Ok(false));
    assert!(flow.data(WINDOW).is_err());
    assert!(!flow.is_over());
    assert_eq!(flow.closed(), Ok(()));
    assert!(flow.is_over());
    assert!(flow.closed().is_err() && flow.data(1).is_err() && flow.credited(0).is_err());
}

#[test]
fn channel_numbers_keep_to_their_side_and_go_round() {
    let mut last = 0;
    assert_eq!(next_channel(&mut last, |_| false), 2);
    assert_eq!(next_channel(&mut last, |channel| channel < 10), 10);
    last = 65_534;
    assert_eq!(next_channel(&mut last, |channel| channel == 2), 4);
    last = u16::MAX;
    assert_eq!(next_channel(&mut last, |_| false), 1);
}

fn shown(pieces: &[&[u8]]) -> (Vec<u8>, Console) {
    let (mut out, mut console) = (Vec::new(), Console::new(vec![("app-0".into(), "web".into())]));
    pieces.iter().for_each(|piece| console.push(piece, &mut |bytes| out.extend_from_slice(bytes)));
    console.finish(&mut |bytes| out.extend_from_slice(bytes));
    (out, console)
}

#[test]
fn a_small_console_is_whole_and_plain() {
    assert_eq!(shown(&[b"a\r\nb\x1b[1m", "\u{e9}\tc".as_bytes()]).0, b"a\nb?[1m??\tc\n");
    assert_eq!(shown(&[]).0, b"");
}

#[test]
fn of_a_large_console_beginning_and_end_are_kept() {
    let (first, rest) = (vec![b'a'; KEPT], vec![b'b'; 3 * KEPT]);
    let (out, _) = shown(&[&first, &rest, b"last\n"]);
    let note = format!("\n[{} bytes of the console left out]\n", 2 * KEPT + 5);
    assert_eq!(out.len(), 2 * KEPT + note.len());
    assert!(out.starts_with(&first) && out.ends_with(b"blast\n"));
    assert_eq!(&out[KEPT..KEPT + note.len()], note.as_bytes());
}

#[test]
fn the_first_cause_counts_however_lines_are_cut() {
    let said = b"x\nsecrun-stage0: 254:0 is disk app-0\n[1] device-mapper: verity: 254:0: data block 1 is corrupted\n\
                 [2] Kernel panic - not syncing: dm-verity device corrupted\n";
    let pieces: Vec<&[u8]> = said.chunks(1).collect();
    let (_, console) = shown(&pieces);
    assert_eq!(console.cause().as_deref(), Some("the guest refused a corrupted block of image web"));
    assert!(console.is_lost());
}

#[test]
fn ordinary_lines_are_no_cause() {
    let (_, console) = shown(&[
        b"secrun-stage0: 254:0 is disk pod\nMemory cgroup out of memory: Killed process 7\n",
        b"device-mapper: verity: sha256 using implementation \"sha256-generic\"\nKernel panic - not syncing: cut",
    ]);
    assert_eq!(console.cause(), None);
}
