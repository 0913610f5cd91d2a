//! Tells the program which source it was built from, where that is known: the commit, and whether it was changed. Has the
//! linker pack the program's relative relocations.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if loads_packed_relocations() {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
    // Whatever changes the commit or makes the tree differ from it.
    for watched in
        ["../.git/HEAD", "../.git/index", ".", "../guest-mem", "../notifier-bridge", "../resources"]
    {
        if Path::new(watched).exists() {
            println!("cargo:rerun-if-changed={watched}");
        }
    }
    let described =
        Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]).output();
    let Ok(output) = described else { return };
    let revision = String::from_utf8_lossy(&output.stdout);
    if output.status.success() && !revision.trim().is_empty() {
        println!("cargo:rustc-env=ZAPSCOPE_REVISION={}", revision.trim());
    }
}

/// Whether the dynamic loader reads DT_RELR: glibc from 2.36 does. All of `.rela.dyn` is resident from the start, 100 KiB
/// in place of 3.
fn loads_packed_relocations() -> bool {
    let Ok(output) = Command::new("getconf").arg("GNU_LIBC_VERSION").output() else { return false };
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.trim().strip_prefix("glibc ").and_then(|version| version.split_once('.'));
    version.is_some_and(|(major, minor)| {
        let minor = minor.split('.').next().and_then(|minor| minor.parse::<u32>().ok());
        major.parse::<u32>().ok().zip(minor) >= Some((2, 36))
    })
}
