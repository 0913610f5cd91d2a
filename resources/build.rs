//! Compiles the programs that run inside guests, with the toolchain that compiles everything else: the bare test
//! guest, and the agent that is init of a Linux guest.

mod arch;

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A program of a workspace of its own, one directory below.
struct Program {
    directory: &'static str,
    binary: &'static str,
    /// Flags in place of those that the environment sets for the host.
    flags: &'static [&'static str],
    /// Through which the crate gets the path.
    variable: &'static str,
}

const GUEST: Program = Program {
    directory: "guest",
    binary: "zapscope-guest",
    flags: arch::GUEST_FLAGS,
    variable: "ZAPSCOPE_GUEST",
};

const AGENT: Program = Program {
    directory: "agent",
    binary: "zapscope-agent",
    flags: arch::AGENT_FLAGS,
    variable: "ZAPSCOPE_AGENT",
};

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name} for build scripts"))
}

fn main() {
    let target = variable("HOST");
    for watched in ["guest", "agent", "abi/src", "arch", "build.rs"] {
        println!("cargo:rerun-if-changed={watched}");
    }
    compile(&GUEST, &target);
    if target.ends_with("-gnu") {
        find_static_libc();
    }
    compile(&AGENT, &target);
}

fn compile(program: &Program, target: &str) {
    let Program { directory, binary, flags, variable: name } = program;
    let manifest = PathBuf::from(variable("CARGO_MANIFEST_DIR")).join(directory).join("Cargo.toml");
    let out = PathBuf::from(variable("OUT_DIR")).join(directory);
    let status = Command::new(variable("CARGO"))
        .args(["build", "--release", "--locked", "--target", target, "--manifest-path"])
        .arg(manifest)
        .arg("--target-dir")
        .arg(&out)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .status()
        .unwrap_or_else(|error| panic!("cannot start cargo for {binary}: {error}"));
    assert!(status.success(), "{binary} did not compile: {status}");
    println!("cargo:rustc-env={name}={}", out.join(target).join("release").join(binary).display());
}

/// The linker's own message would name a missing `-lc` and not the package. It prints the path of a library that it
/// finds, and the bare name of one that it does not.
fn find_static_libc() {
    let Ok(found) = Command::new("cc").arg("-print-file-name=libc.a").output() else {
        // Another linker was configured, which will speak for itself.
        return;
    };
    let path = String::from_utf8_lossy(&found.stdout).trim().to_owned();
    assert!(
        Path::new(&path).is_absolute(),
        "the agent for Linux guests is a static program and needs the static C library, libc.a: install libc6-dev \
         (Debian, Ubuntu), glibc-static (Fedora) or the like"
    );
}
