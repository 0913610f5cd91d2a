//! Compiler flags of the programs that run inside guests, on x86-64.

/// The bare guest's. An image that uses the host's own CPU features, or that can be relocated, does not start.
pub const GUEST_FLAGS: &[&str] = &[
    "-Crelocation-model=static",
    "-Ctarget-cpu=x86-64",
    "-Cforce-unwind-tables=no",
    "-Ctarget-feature=+crt-static",
];

/// The agent's. There is no dynamic linker in the initramfs, and no library.
pub const AGENT_FLAGS: &[&str] =
    &["-Crelocation-model=static", "-Ctarget-cpu=x86-64", "-Ctarget-feature=+crt-static"];
