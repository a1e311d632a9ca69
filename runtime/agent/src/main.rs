//! secrun-agent: one static program with several modes.

use std::process::exit;

use secrun_agent::{client, front, hold, relay, shim, vm, wait};

const USAGE: &str = "usage: secrun-agent shim|wait|front|client|vm|relay OPTION...\n       secrun-agent hold COMMAND\n       secrun-agent --version";

fn main() {
    let mut words = std::env::args_os().skip(1);
    let mode = words.next().unwrap_or_default();
    let words = words.collect();
    let status = match mode.to_str() {
        Some("shim") => shim::main(words),
        Some("wait") => wait::main(words),
        Some("front") => front::main(words),
        Some("client") => client::main(words),
        Some("vm") => vm::main(words),
        Some("relay") => relay::main(words),
        Some("hold") => hold::main(words),
        Some("--version") => {
            println!("secrun-agent {} protocol {}", env!("CARGO_PKG_VERSION"), secrun_agent::frame::VERSION);
            0
        }
        _ => {
            eprintln!("{USAGE}");
            2
        }
    };
    exit(i32::from(status));
}
