//! The pure parts: codec, log lines, time stamps, ELF files.

mod common;

use std::time::{Duration, UNIX_EPOCH};

use common::frames;
use secrun_agent::elf::{inspect, Program};
use secrun_agent::frame::{
    decode, encode, flag, Message, Reader, Size, Violation, MAX_PAYLOAD, MAX_STATE, MAX_TEXT,
};
use secrun_agent::log::{stamp, Lines, Log, Stream, MAX_LINE};

const SIZE: Size = Size { rows: 24, cols: 513 };

fn messages() -> Vec<Message<'static>> {
    vec![
        Message::Hello { version: 3, app: "web" },
        Message::Started { ns: u64::MAX - 1 },
        Message::Stdout(b"out"),
        Message::Stderr(b""),
        Message::Credit(65_536),
        Message::Exit { code: 127, signal: 0, error: "program x not found" },
        Message::Error("no"),
        Message::Stats("pids.current 3\n"),
        Message::Lost(1 << 40),
        Message::Enforced("pid 7\nCapEff 0\n"),
        Message::State("{}"),
        Message::Again(7),
        Message::Attach { flags: flag::STDOUT | flag::STDIN, size: SIZE },
        Message::Stdin(b"in"),
        Message::Signal(15),
        Message::Resize(SIZE),
        Message::Exec {
            flags: flag::TTY,
            size: SIZE,
            program: b"sh",
            path: b"/bin:/usr/bin",
            process: b"{}",
        },
        Message::StatsRequest,
        Message::Stop,
        Message::Go,
        Message::Restart,
    ]
}

#[test]
fn every_message_survives_the_wire_byte_by_byte() {
    let mut bytes = Vec::new();
    messages().iter().for_each(|message| encode(message, &mut bytes));
    let found = frames(&bytes);
    let decoded: Result<Vec<_>, _> = found.iter().map(|(kind, payload)| decode(*kind, payload)).collect();
    assert_eq!(decoded, Ok(messages()));
}

#[test]
fn the_wire_form_is_the_documented_one() {
    let mut bytes = Vec::new();
    encode(&Message::Attach { flags: 3, size: SIZE }, &mut bytes);
    assert_eq!(bytes, [0x81, 5, 0, 0, 0, 3, 24, 0, 1, 2]);
}

#[test]
fn payloads_are_bounded() {
    let mut reader = Reader::default();
    reader.feed(&[3, 1, 0, 1, 0]);
    assert_eq!(reader.next_frame(), Err(Violation("a frame is too long")));
    let mut reader = Reader::default();
    reader.feed(&[3, 0, 0, 1, 0]);
    reader.feed(&[7; MAX_PAYLOAD]);
    assert_eq!(reader.next_frame(), Ok(Some((3, vec![7; MAX_PAYLOAD]))));
}

#[test]
fn wrong_payloads_are_violations() {
    let wrong: [(u8, &[u8]); 11] = [
        (0x00, b""),
        (0x0d, b""),
        (0x8a, b""),
        (0x0c, b"\x01\0\0"),
        (0x88, b"x"),
        (0x01, b"\x01"),
        (0x01, b"\x01\x00\xff"),
        (0x84, b"\x01\x00\x01\x00\x00"),
        (0x81, b"\x20\0\0\0\0"),
        (0x85, b"\x00\0\0\0\0\x05\x00sh"),
        (0x86, b"x"),
    ];
    for (kind, payload) in wrong {
        assert!(decode(kind, payload).is_err(), "{kind:#x} {payload:?}");
    }
    assert!(decode(0x07, &[b'x'; MAX_TEXT + 1]).is_err());
    assert!(decode(0x0b, &[b'x'; MAX_STATE + 1]).is_err());
}

#[test]
fn long_texts_are_cut_at_a_character() {
    let mut bytes = Vec::new();
    let text = format!("x{}", "é".repeat(MAX_TEXT));
    encode(&Message::Error(&text), &mut bytes);
    match decode(bytes[0], &bytes[5..]) {
        Ok(Message::Error(cut)) => assert_eq!(cut.len(), MAX_TEXT - 1),
        other => panic!("{other:?}"),
    }
}

#[test]
fn stamps_are_utc_with_nanoseconds() {
    for (seconds, nanos, wanted) in [
        (0, 0, "1970-01-01T00:00:00.000000000Z"),
        (951_782_400, 1, "2000-02-29T00:00:00.000000001Z"),
        (1_709_251_199, 999_999_999, "2024-02-29T23:59:59.999999999Z"),
        (1_735_689_599, 0, "2024-12-31T23:59:59.000000000Z"),
        (4_107_542_400, 0, "2100-03-01T00:00:00.000000000Z"),
    ] {
        assert_eq!(stamp(UNIX_EPOCH + Duration::new(seconds, nanos)), wanted);
    }
}

fn entries(pieces: &[(Stream, &[u8])]) -> Vec<String> {
    let (mut lines, mut found) = (Lines::default(), Vec::new());
    let mut sink = |entry: &[u8]| found.push(String::from_utf8(entry.to_vec()).unwrap());
    for (stream, bytes) in pieces {
        lines.push(*stream, bytes, "T", &mut sink);
    }
    lines.finish("T", &mut sink);
    found
}

#[test]
fn lines_come_whole_and_streams_do_not_mix() {
    let pieces: [(Stream, &[u8]); 4] =
        [(Stream::Out, b"he"), (Stream::Err, b"oops\n\n"), (Stream::Out, b"llo\nre"), (Stream::Out, b"st")];
    assert_eq!(
        entries(&pieces),
        ["T stderr F oops\n", "T stderr F \n", "T stdout F hello\n", "T stdout P rest\n"]
    );
}

#[test]
fn a_line_of_exactly_the_limit_is_one_entry() {
    let line = [vec![b'x'; MAX_LINE], b"\n".to_vec()].concat();
    assert_eq!(entries(&[(Stream::Out, &line)]).len(), 1);
    assert_eq!(entries(&[(Stream::Out, &line[..MAX_LINE]), (Stream::Out, b"\n")]).len(), 1);
    let longer = [b"y".to_vec(), line].concat();
    let found = entries(&[(Stream::Out, &longer)]);
    assert!(found[0].starts_with("T stdout P y") && found[1] == "T stdout F x\n", "{}", found.len());
}

#[test]
fn the_log_rotates_once_and_stays_bounded() {
    let folder = std::env::temp_dir().join(format!("agent-log-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let mut log = Log::open(&folder.join("log"), 40_000).unwrap();
    for number in 0..5000 {
        log.push(Stream::Out, format!("line {number}\n").as_bytes());
    }
    log.finish();
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let text = read("log.1") + &read("log");
    assert!(read("log").len() <= 40_000 && read("log.1").len() <= 40_000);
    let numbers: Vec<u32> =
        text.lines().map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1) && numbers.last() == Some(&4999));
    assert_eq!(log.lost(), 0);
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_full_disk_costs_entries_and_is_known() {
    // Far from its limit the log never rotates, so the link to the device stays where it is.
    let folder = std::env::temp_dir().join(format!("agent-full-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::os::unix::fs::symlink("/dev/full", folder.join("log")).unwrap();
    let mut log = Log::open(&folder.join("log"), 1 << 40).unwrap();
    let tally = || std::fs::read_to_string(folder.join("log.lost")).unwrap();
    assert_eq!(tally(), "00000000000000000000\n");
    log.push(Stream::Err, b"gone\n");
    let lost = "1970-01-01T00:00:00.000000000Z stderr F gone\n".len() as u64;
    assert_eq!((log.lost(), tally()), (lost, format!("{lost:020}\n")));
    std::fs::remove_dir_all(folder).unwrap();
}

fn inspected(bytes: &[u8]) -> Program {
    inspect(&|offset, buffer: &mut [u8]| {
        let start = (offset as usize).min(bytes.len());
        let count = buffer.len().min(bytes.len() - start);
        buffer[..count].copy_from_slice(&bytes[start..start + count]);
        count
    })
}

/// A 64-bit little-endian file with one program header of this kind, whose contents begin at 120.
fn elf_file(kind: u8, offset: u64, size: u64, contents: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 120];
    bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
    bytes[18] = 62;
    bytes[32] = 64;
    bytes[54] = 56;
    bytes[56] = 1;
    bytes[64] = kind;
    bytes[72..80].copy_from_slice(&offset.to_le_bytes());
    bytes[96..104].copy_from_slice(&size.to_le_bytes());
    bytes.extend_from_slice(contents);
    bytes
}

#[test]
fn the_loader_of_an_elf_file() {
    let found =
        |interpreter: Option<&[u8]>| Program::Elf { machine: 62, interpreter: interpreter.map(Vec::from) };
    assert_eq!(inspected(&elf_file(3, 120, 8, b"/lib/ld\0")), found(Some(b"/lib/ld")));
    assert_eq!(inspected(&elf_file(1, 120, 8, b"/lib/ld\0")), found(None));
}

#[test]
fn damaged_elf_files_are_nothing() {
    for bytes in [
        elf_file(3, 120, 9, b"/lib/ld\0"),
        elf_file(3, u64::MAX, 8, b"/lib/ld\0"),
        elf_file(3, 120, u64::MAX, b"/lib/ld\0"),
        elf_file(3, 120, 7, b"/lib/ld\0"),
        elf_file(3, 120, 0, b""),
        b"\x7fELF\x02\x01".to_vec(),
        b"\x7fELF\x09\x01".to_vec(),
        Vec::new(),
    ] {
        assert_eq!(inspected(&bytes), Program::Other);
    }
}

#[test]
fn this_machine_s_programs() {
    let shell = std::fs::read("/bin/dash").unwrap();
    match inspected(&shell) {
        Program::Elf { interpreter: Some(path), .. } => assert!(path.starts_with(b"/lib")),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_interpreter_of_a_script() {
    let script = |word: &[u8]| Program::Script(word.to_vec());
    assert_eq!(inspected(b"#!/bin/sh\n"), script(b"/bin/sh"));
    assert_eq!(inspected(b"#! \t/usr/bin/env python3\n"), script(b"/usr/bin/env"));
    assert_eq!(inspected(b"#!/bin/sh"), script(b"/bin/sh"));
    assert_eq!(inspected(b"#!\n"), Program::Other);
}
