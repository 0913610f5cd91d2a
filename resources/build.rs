//! Compiles the test guest with the toolchain that compiles everything else.

use std::env;
use std::path::PathBuf;
use std::process::Command;

/// The guest's flags replace whatever the environment sets for the host: an image that uses the host's own
/// CPU features, or that can be relocated, does not start.
const FLAGS: [&str; 4] = [
    "-Crelocation-model=static",
    "-Ctarget-cpu=x86-64",
    "-Cforce-unwind-tables=no",
    "-Ctarget-feature=+crt-static",
];

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name} for build scripts"))
}

fn main() {
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(variable("OUT_DIR"));
    let target = variable("HOST");
    for watched in ["guest", "abi/src", "build.rs"] {
        println!("cargo:rerun-if-changed={watched}");
    }
    assert!(target.starts_with("x86_64-"), "the test guest is x86-64, and is built by an x86-64 toolchain");

    let status = Command::new(variable("CARGO"))
        .args(["build", "--release", "--locked", "--target", &target, "--manifest-path"])
        .arg(root.join("guest/Cargo.toml"))
        .arg("--target-dir")
        .arg(out.join("guest"))
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"))
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .status()
        .unwrap_or_else(|error| panic!("cannot start cargo for the test guest: {error}"));
    assert!(status.success(), "the test guest did not compile: {status}");

    let image = out.join("guest").join(target).join("release/zapscope-guest");
    println!("cargo:rustc-env=ZAPSCOPE_GUEST={}", image.display());
}
