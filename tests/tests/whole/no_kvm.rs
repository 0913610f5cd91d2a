//! A file that opens in the place of /dev/kvm, and a KVM that makes no VM: `auto` goes on without a guest and says why;
//! who needs a guest is told the same, with exit code 3.

use std::path::Path;
use std::process::{Command, Output};

use rustix::io::Errno;
use tests::stand_in::{self, Refusal};
use tests::{bzimage, code, program, scenario};

crate::tests! {
    auto_runs_without_a_guest_where_kvm_is_another_device: [OtherKvm],
    auto_runs_without_a_guest_where_another_hypervisor_has_the_processor: [Kvm],
    who_needs_a_guest_is_told_why_there_is_none: [OtherKvm],
}

fn write_scenario(directory: &Path) {
    let scenario = scenario::of("4MiB").policies(&["folio"]).granule("64KiB").fill().sparse(3);
    std::fs::write(directory.join("s.toml"), scenario.text()).unwrap();
}

/// Runs zapscope with a change to its world.
fn output(directory: &Path, arguments: &[&str], change: impl FnOnce(&mut Command)) -> Output {
    let mut command = program::grouped(directory, arguments);
    change(&mut command);
    program::end_of_group(command.spawn().unwrap())
}

fn runs_without_a_guest(words: &str, change: impl FnOnce(&mut Command)) {
    let place = tempfile::tempdir().unwrap();
    write_scenario(place.path());
    let output = output(place.path(), &["run", "s.toml", "--json"], change);
    let said = program::stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("no guest runs (/dev/kvm ") && said.contains(words), "{words}: {said}");
    let record: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(record["host"]["mmu_kind"], "software MMU");
    assert_eq!(record["rows"][0]["evicted_bytes"], 3 * 4096);
}

fn auto_runs_without_a_guest_where_kvm_is_another_device() {
    for device in ["/dev/null", "/dev/zero"] {
        runs_without_a_guest("is not KVM's device", |command| {
            stand_in::bound(command, device, "/dev/kvm");
        });
    }
}

fn auto_runs_without_a_guest_where_another_hypervisor_has_the_processor() {
    const KVM_CREATE_VM: u32 = 0xae01;
    for (errno, words) in [(Errno::BUSY, "another hypervisor"), (Errno::NODEV, "was switched off")] {
        runs_without_a_guest(words, |command| {
            let refusal = Refusal { call: libc::SYS_ioctl, request: Some(KVM_CREATE_VM), errno };
            stand_in::refused(command, refusal);
        });
    }
}

fn who_needs_a_guest_is_told_why_there_is_none() {
    let place = tempfile::tempdir().unwrap();
    let at = place.path();
    write_scenario(at);
    std::fs::write(at.join("kernel"), bzimage::kernel(&code::power_off())).unwrap();
    let null = |arguments: &[&str]| {
        output(at, arguments, |command| {
            stand_in::bound(command, "/dev/null", "/dev/kvm");
        })
    };
    for arguments in [
        &["run", "s.toml", "--backend", "kvm"][..],
        &["boot", "--kernel", "kernel"],
        &["snapshot", "--out", "snapshot", "--memory", "2MiB"],
    ] {
        let output = null(arguments);
        let said = program::stderr(&output);
        assert_eq!(output.status.code(), Some(3), "{arguments:?}: {said}");
        assert!(said.contains("/dev/kvm is not KVM's device") && said.contains("mknod"), "{said}");
        assert!(said.lines().count() <= 3 && output.stdout.is_empty(), "{said}");
    }
    assert!(!at.join("snapshot").exists());
    let doctor = null(&["doctor"]);
    let found = String::from_utf8(doctor.stdout).unwrap();
    assert_eq!(doctor.status.code(), Some(0), "{found}");
    assert!(found.contains("opens, but is not KVM's device") && found.contains("mknod"), "{found}");
}
