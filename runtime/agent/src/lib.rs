//! The parts of secrun-agent: the shim of one app inside stage1, the host's waiter and client,
//! and what a KVM guest has in addition.

#![deny(unsafe_op_in_unsafe_fn)]
#![warn(missing_docs)]

pub mod again;
pub mod args;
mod attach;
mod bridge;
pub mod client;
pub mod conn;
pub mod console;
pub mod crun;
pub mod dm;
pub mod elf;
pub mod frame;
pub mod front;
mod group;
pub mod health;
pub mod hold;
pub mod keys;
pub mod lane;
mod life;
pub mod log;
pub mod mux;
mod netlink;
pub mod netplan;
mod peers;
pub mod readback;
pub mod relay;
pub mod report;
mod reporter;
pub mod secret;
mod session;
pub mod shim;
pub mod stage0;
mod starter;
pub mod sys;
pub mod table;
pub mod tty;
pub mod vm;
pub mod volumes;
pub mod wait;
