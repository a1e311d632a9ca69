//! stub
/// Stub.
pub fn main(_: Vec<std::ffi::OsString>) -> u8 { 1 }
