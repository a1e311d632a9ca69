//! The parts of secrun-agent: the shim of one app inside stage1, and the host's waiter and client.

#![deny(unsafe_op_in_unsafe_fn)]
#![warn(missing_docs)]

pub mod args;
pub mod client;
pub mod conn;
pub mod crun;
pub mod elf;
pub mod frame;
pub mod hold;
pub mod log;
mod peers;
pub mod readback;
pub mod report;
mod session;
pub mod shim;
pub mod sys;
pub mod tty;
pub mod wait;
