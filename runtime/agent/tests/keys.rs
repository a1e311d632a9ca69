//! The keys that detach: what goes on, what is held back, and when the sequence is whole.

use secrun_agent::keys::{Keys, MAX_KEYS};

/// Type pieces; returns what went on, and whether the sequence came.
fn typed(keys: &str, pieces: &[&[u8]]) -> (Vec<u8>, bool) {
    let mut keys = Keys::parse(keys).unwrap();
    let mut out = Vec::new();
    for piece in pieces {
        if keys.take(piece, &mut out) {
            return (out, true);
        }
    }
    out.extend(keys.finish());
    (out, false)
}

#[test]
fn the_sequence_is_found_however_it_is_cut() {
    assert_eq!(typed("16,17", &[b"ab\x10\x11cd"]), (b"ab".to_vec(), true));
    assert_eq!(typed("16,17", &[b"ab\x10", b"\x11"]), (b"ab".to_vec(), true));
    assert_eq!(typed("16,17", &[b"\x10\x10\x11"]), (b"\x10".to_vec(), true));
    // Its own beginning within it.
    assert_eq!(typed("1,1,2", &[b"\x01\x01\x01\x02"]), (b"\x01".to_vec(), true));
    assert_eq!(typed("1,2,1,3", &[b"\x01\x02\x01\x02\x01\x03"]), (b"\x01\x02".to_vec(), true));
    assert_eq!(typed("100", &[b"d"]), (Vec::new(), true));
}

#[test]
fn everything_else_goes_on_unchanged() {
    let text = b"\x10a\x11\x10\x10b\x11\x10";
    for cut in 0..text.len() {
        assert_eq!(typed("16,17", &[&text[..cut], &text[cut..]]), (text.to_vec(), false));
    }
}

#[test]
fn what_is_held_back_is_counted() {
    let mut keys = Keys::parse("16,17").unwrap();
    let mut out = Vec::new();
    assert!(!keys.take(b"x\x10", &mut out));
    assert_eq!((keys.held(), out.as_slice()), (1, &b"x"[..]));
    assert_eq!((keys.finish(), keys.held()), (b"\x10".to_vec(), 0));
}

#[test]
fn what_is_no_sequence_is_refused() {
    let long = vec!["1"; MAX_KEYS + 1].join(",");
    for text in ["", "256", "1,", "a", long.as_str()] {
        assert!(Keys::parse(text).is_err(), "{text}");
    }
    assert!(Keys::parse(&vec!["1"; MAX_KEYS].join(",")).is_ok());
}
