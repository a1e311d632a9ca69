//! What the tests of both codecs share.

use secrun_agent::frame::Reader;

/// The frames in `bytes`, as a reader finds them that is fed one byte at a time.
pub fn frames(bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut reader = Reader::default();
    let mut found = Vec::new();
    for byte in bytes {
        reader.feed(&[*byte]);
        if let Some((kind, payload)) = reader.next_frame().unwrap() {
            found.push((kind, payload.to_vec()));
        }
    }
    found
}
