//! Tells the program which source it was built from, where that is known: the commit, and whether it was changed.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
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
