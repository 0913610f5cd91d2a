//! Remedies can be followed: what stands in backticks is a command for any shell, and nothing else is one.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

use super::finding::Finding;
use super::{
    capabilities, cgroup, exit_cost, huge_pages, kvm_device, madvise, others, strangers, swap, tracing, uffd,
    undoing,
};

/// A module's findings, and its text.
type Module = (fn() -> Vec<Finding>, &'static str);

const MODULES: [Module; 12] = [
    (capabilities::samples, include_str!("capabilities.rs")),
    (cgroup::samples, include_str!("cgroup.rs")),
    (exit_cost::samples, include_str!("exit_cost.rs")),
    (huge_pages::samples, include_str!("huge_pages.rs")),
    (kvm_device::samples, include_str!("kvm_device.rs")),
    (madvise::samples, include_str!("madvise.rs")),
    (others::samples, include_str!("others.rs")),
    (strangers::samples, include_str!("strangers.rs")),
    (swap::samples, include_str!("swap.rs")),
    (tracing::samples, include_str!("tracing.rs")),
    (uffd::samples, include_str!("uffd.rs")),
    (undoing::samples, include_str!("undoing.rs")),
];

/// Words that begin commands, and that prose can do without.
const COMMANDS: [&str; 14] = [
    "chgrp",
    "docker",
    "echo",
    "mknod",
    "modprobe",
    "setcap",
    "setfacl",
    "sudo",
    "swapoff",
    "swapon",
    "sysctl",
    "systemd-run",
    "tee",
    "usermod",
];

fn remedies(samples: fn() -> Vec<Finding>) -> BTreeSet<String> {
    samples().into_iter().filter_map(|finding| finding.remedy).collect()
}

/// Each place that names a remedy has a sample: what follows holds for every remedy that can be printed.
#[test]
fn every_remedy_has_a_sample() {
    for (samples, text) in MODULES {
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        // The same remedy may be named in two places, and one that is made elsewhere has no text here.
        let literal = |rest: &'static str| {
            let rest = rest.trim_start().trim_start_matches("format!(");
            rest.strip_prefix('"').and_then(|rest| rest.split('"').next())
        };
        let named: BTreeSet<&str> = code.split(".remedy(").skip(1).filter_map(literal).collect();
        let named = named.len();
        let sampled = remedies(samples);
        assert!(sampled.len() >= named, "{named} in the code, {sampled:#?}\n{}", &code[..200]);
    }
}

/// Whether a shell can make something of it; it does nothing.
fn parsed(command: &str) -> Result<(), String> {
    let mut shell = Command::new("sh");
    shell.arg("-n").stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut shell = shell.spawn().unwrap();
    shell.stdin.take().unwrap().write_all(command.as_bytes()).unwrap();
    let output = shell.wait_with_output().unwrap();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

#[test]
fn commands_are_for_any_shell_and_prose_has_none() {
    let mut commands = 0;
    for remedy in MODULES.iter().flat_map(|(samples, _)| remedies(*samples)) {
        let parts: Vec<&str> = remedy.split('`').collect();
        assert_eq!(parts.len() % 2, 1, "a backtick without its other: {remedy}");
        for (at, part) in parts.iter().enumerate() {
            if at % 2 == 0 {
                let word = part.split(|letter: char| !letter.is_alphanumeric() && letter != '-');
                let command = word.into_iter().find(|word| COMMANDS.contains(word));
                assert_eq!(command, None, "a command outside of backticks: {remedy}");
                continue;
            }
            commands += 1;
            assert!(!part.contains(['{', '}']), "only some shells expand braces: {remedy}");
            assert_eq!(parsed(part), Ok(()), "{remedy}");
        }
    }
    assert!(commands > 15, "{commands}");
}
