//! Feeds each input of standard input (u32 little endian length, then the bytes) to every parser and checks what must
//! hold for any bytes. A broken promise is a panic, which aborts the process.

use std::io::Read;

use secrun_agent::console::{Console, KEPT};
use secrun_agent::elf::{inspect, Program};
use secrun_agent::frame::{decode, encode, Reader, MAX_PAYLOAD, WINDOW};
use secrun_agent::log::{Lines, Stream, MAX_LINE};
use secrun_agent::mux::{self, Flow, Item};
use secrun_agent::{netplan, readback, table};

fn main() {
    let mut bytes = Vec::new();
    std::io::stdin().lock().read_to_end(&mut bytes).expect("standard input is readable");
    let (mut rest, mut count) = (&bytes[..], 0);
    while let Some((head, tail)) = (rest.len() >= 4).then(|| rest.split_at(4)) {
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let (input, next) = tail.split_at(length.min(tail.len()));
        frames(input);
        program(input);
        lines(input);
        console(input);
        tables(&String::from_utf8_lossy(input));
        reports(&String::from_utf8_lossy(input));
        (rest, count) = (next, count + 1);
    }
    println!("{count}");
}

/// However a stream is cut, the same frames come out; what decodes encodes to the same bytes.
fn frames(input: &[u8]) {
    let read = |size: usize| {
        let (mut reader, mut found) = (Reader::default(), Vec::new());
        for piece in input.chunks(size) {
            reader.feed(piece);
            loop {
                match reader.next_frame() {
                    Ok(Some(frame)) => found.push(frame),
                    Ok(None) => break,
                    Err(_) => return found,
                }
            }
        }
        found
    };
    let whole = read(input.len().max(1));
    assert_eq!(whole, read(3));
    link(&whole);
    for (kind, payload) in whole {
        assert!(payload.len() <= MAX_PAYLOAD);
        if let Ok(message) = decode(kind, &payload) {
            let mut again = Vec::new();
            encode(&message, &mut again);
            assert_eq!(again[0], kind);
            assert_eq!(&again[5..], &payload[..]);
        }
    }
}

/// The same for frames of the link; a channel never owes or is owed more than its window.
fn link(frames: &[(u8, Vec<u8>)]) {
    let mut flow = Flow::default();
    for (kind, payload) in frames {
        let item = match mux::decode(*kind, payload) {
            Ok(item) => item,
            Err(_) => continue,
        };
        let mut again = Vec::new();
        mux::encode(&item, &mut again);
        assert_eq!((again[0], &again[5..]), (*kind, &payload[..]));
        let kept = match item {
            Item::Data { bytes, .. } => flow.data(bytes.len()).map(|_| flow.taken(bytes.len())),
            Item::Credit { count, .. } => flow.credited(count),
            Item::Close { .. } => flow.closed(),
            _ => Ok(()),
        };
        if kept.is_err() {
            return;
        }
        assert!(flow.credit <= WINDOW && flow.due().unwrap_or(0) as usize <= WINDOW);
    }
}

/// However it is cut, a console shows the same, bounded and without control characters.
fn console(input: &[u8]) {
    let show = |size: usize| {
        let (mut console, mut shown) = (Console::new(Vec::new()), Vec::new());
        let mut sink = |bytes: &[u8]| shown.extend_from_slice(bytes);
        input.chunks(size).for_each(|piece| console.push(piece, &mut sink));
        console.finish(&mut sink);
        (shown, console.cause())
    };
    let (shown, cause) = show(input.len().max(1));
    assert!(shown.len() < 2 * KEPT + 100);
    let plain = |byte: &u8| matches!(byte, b'\n' | b'\t' | b' '..=b'~');
    assert!(shown.iter().all(plain) && cause.iter().all(|text| text.bytes().all(|byte| plain(&byte))));
    assert_eq!((shown, cause), show(5));
}

/// Interpreters are non-empty and bounded, and no offset in the file makes it read far.
fn program(input: &[u8]) {
    let read = |offset: u64, buffer: &mut [u8]| {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(input.len());
        let count = buffer.len().min(input.len() - start);
        buffer[..count].copy_from_slice(&input[start..start + count]);
        count
    };
    match inspect(&read) {
        Program::Elf { interpreter: Some(path), .. } => assert!(!path.is_empty() && path.len() < 4096),
        Program::Script(path) => assert!(!path.is_empty() && path.len() <= 254),
        _ => (),
    }
}

/// Entries are single lines of bounded length, and their texts together are the input.
fn lines(input: &[u8]) {
    let (mut lines, mut text) = (Lines::default(), Vec::new());
    let mut sink = |entry: &[u8]| {
        assert_eq!(entry.iter().filter(|byte| **byte == b'\n').count(), 1);
        let entry = entry.strip_prefix(b"T stdout ").expect("an entry begins with stamp and stream");
        let body = &entry[2..entry.len() - 1];
        assert!(body.len() <= MAX_LINE);
        text.extend_from_slice(body);
        text.extend((entry[0] == b'F').then_some(b'\n'));
    };
    for piece in input.chunks(7777) {
        lines.push(Stream::Out, piece, "T", &mut sink);
    }
    lines.finish("T", &mut sink);
    assert_eq!(text, input);
}

/// No name that a guest's stage0 makes a path of leaves its folder.
fn tables(text: &str) {
    let plain = |name: &str| !name.is_empty() && !name.starts_with('.') && !name.contains('/');
    if let Ok(salt) = table::salt(text) {
        assert!(!salt.is_empty() && salt.len() <= 512);
    }
    if let Ok(verity) = table::pod(text, "00") {
        assert!(verity.blocks.checked_mul(4096).is_some());
        assert_eq!(verity.parameters("D").split(' ').count(), 12);
    }
    for module in table::modules(text).unwrap_or_default() {
        assert!(module.path.strip_prefix("/secrun/modules.d/").map_or(false, plain));
    }
    for link in netplan::parse(text).unwrap_or_default() {
        assert!(link.name.len() < 16 && !link.name.contains('/') && !["", ".", "..", "lo"].contains(&&*link.name));
        let most = |address: std::net::IpAddr| if address.is_ipv4() { 32 } else { 128 };
        assert!(link.addresses.iter().all(|own| own.bits <= most(own.address)));
        let one_family = |route: &netplan::Route| {
            route.gateway.map_or(true, |gateway| gateway.is_ipv4() == route.to.address.is_ipv4())
        };
        assert!(link.routes.iter().all(one_family));
    }
    if let Ok(guest) = table::guest(text) {
        assert!(guest.images.iter().all(|image| plain(&image.app) && image.serial.len() <= 20));
        let file = |name: &Option<String>| name.as_deref().map_or(true, plain);
        assert!(guest.volumes.iter().all(|volume| plain(&volume.app) && file(&volume.file)));
    }
}

/// What a guest tells of a process is a few short values, each known and once.
fn reports(text: &str) {
    if let Ok((pid, values)) = readback::reported(text) {
        assert!(pid > 0 && values.len() <= 14 && values.iter().all(|(_, value)| value.len() <= 512));
        let mut keys: Vec<_> = values.iter().map(|(key, _)| key).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), values.len());
    }
}
