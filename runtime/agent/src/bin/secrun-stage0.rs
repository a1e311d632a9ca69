//! secrun-stage0: /init of the KVM stage1's guest.

fn main() {
    std::process::exit(i32::from(secrun_agent::stage0::main()));
}
