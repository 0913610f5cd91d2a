//! A file that opens in the place of /dev/kvm, and a KVM that makes no VM: `auto` goes on without a guest and says why;
//! who needs a guest is told the same, with exit code 3.

use std::process::Command;

use rustix::io::Errno;
use tests::place::{Ended, Place};
use tests::stand_in::{self, Refusal};
use tests::{bzimage, code, program, scenario};

crate::tests! {
    auto_runs_without_a_guest_where_kvm_is_another_device: [OtherKvm],
    auto_runs_without_a_guest_where_another_hypervisor_has_the_processor: [Kvm],
    who_needs_a_guest_is_told_why_there_is_none: [OtherKvm],
}

fn place() -> Place {
    let scenario = scenario::of("4MiB").policies(&["folio"]).axis("granule", &["64KiB"]);
    Place::of(&scenario.fill().sparse(3))
}

/// Runs zapscope with a change to its world.
fn run(place: &Place, arguments: &[&str], change: impl FnOnce(&mut Command)) -> Ended {
    let mut command = program::grouped(place.path(), arguments);
    change(&mut command);
    program::end_of_group(command.spawn().unwrap()).into()
}

fn runs_without_a_guest(words: &str, change: impl FnOnce(&mut Command)) {
    let ended = run(&place(), &["run", "s.toml", "--json"], change).with(0);
    let record = ended.says(&["no guest runs (/dev/kvm ", words]).json();
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
    let place = place();
    place.put("kernel", bzimage::kernel(&code::power_off()));
    let without_kvm = |arguments: &[&str]| {
        run(&place, arguments, |command| {
            stand_in::bound(command, "/dev/null", "/dev/kvm");
        })
    };
    for arguments in [
        &["run", "s.toml", "--backend", "kvm"][..],
        &["boot", "--kernel", "kernel"],
        &["snapshot", "--out", "snapshot", "--memory", "2MiB"],
    ] {
        let ended = without_kvm(arguments).with(3).says(&["/dev/kvm is not KVM's device", "mknod"]);
        assert!(ended.said.lines().count() <= 3 && ended.out.is_empty(), "{}", ended.said);
    }
    assert!(!place.file("snapshot").exists());
    let found = without_kvm(&["doctor"]).with(0).text();
    assert!(found.contains("opens, but is not KVM's device") && found.contains("mknod"), "{found}");
}
