//! System calls that the kernel refuses in the middle of a row: each answer ends in its own remedy, and in no other.

use rustix::io::Errno;
use rustix::process::Resource;
use serde_json::Value;
use tests::host::emulated;
use tests::place::{Ended, Place};
use tests::scenario::{self, Scenario};
use tests::stand_in::{self, Refusal};
use tests::{program, record};

crate::tests! {
    a_refusal_names_its_own_remedy: [UserModeUserfault],
    a_memslot_that_is_refused_names_its_own_remedy: [Kvm],
    a_row_that_the_host_refuses_a_page_costs_that_row: [UserModeUserfault],
    a_row_that_the_host_refuses_a_page_costs_that_row_of_a_guest: [Kvm, Userfault],
    a_vcpu_that_is_not_entered_costs_its_row: [Kvm],
    a_disk_that_does_not_confirm_loses_no_row: [],
    too_little_address_space_aborts_nothing: [Kvm, Userfault],
    a_limit_of_the_process_is_named_and_no_other_remedy: [Kvm, Userfault],
}

const UFFDIO_REGISTER: u32 = 0xc020_aa00;
const UFFDIO_COPY: u32 = 0xc028_aa03;
const KVM_SET_USER_MEMORY_REGION: u32 = 0x4020_ae46;
const KVM_RUN: u32 = 0xae80;

fn scenario(backing: &str, reclaim: &str) -> Scenario {
    scenario::of("4MiB").backings(&[backing]).policies(&["folio"]).reclaims(&[reclaim]).fill().sparse(3)
}

/// Runs zapscope, to which the kernel refuses a call.
fn run(place: &Place, arguments: &[&str], refusal: Refusal) -> Ended {
    let mut command = program::grouped(place.path(), arguments);
    stand_in::refused(&mut command, refusal);
    program::end_of_group(command.spawn().unwrap()).into()
}

/// A run in which the call is refused has no row, and says these words and none of those.
fn says(backend: &str, scenario: &Scenario, refusal: Refusal, words: &str, never: &[&str]) {
    let ended = run(&Place::of(scenario), &["run", "s.toml", "--json", "--backend", backend], refusal);
    let (said, code) = (ended.said.clone() + &ended.text(), ended.status.code().unwrap());
    assert!([1, 3].contains(&code), "{refusal:?}: {code}, {said}");
    assert!(said.contains(words), "{refusal:?} does not say {words:?}: {said}");
    for word in never {
        assert!(!said.contains(word), "{refusal:?} says {word:?}: {said}");
    }
}

fn a_refusal_names_its_own_remedy() {
    let register = |errno| Refusal { call: libc::SYS_ioctl, request: Some(UFFDIO_REGISTER), errno };
    let copy = |errno| Refusal { call: libc::SYS_process_vm_readv, request: None, errno };
    let memfd = |errno| Refusal { call: libc::SYS_memfd_create, request: None, errno };
    let (swap, memory) = (scenario("4k", "uffd"), scenario("memfd", "punch"));
    for (text, refusal, words, never) in [
        (&swap, register(Errno::NOMEM), "sysctl vm.max_map_count", &["sandbox"][..]),
        (&swap, copy(Errno::NOSYS), "CONFIG_CROSS_MEMORY_ATTACH", &["max_map_count"]),
        (&swap, copy(Errno::PERM), "a sandbox", &["CONFIG_CROSS_MEMORY_ATTACH", "max_map_count"]),
        (&memory, memfd(Errno::MFILE), "ulimit -n", &["may lack the feature"]),
        (&memory, memfd(Errno::NOSYS), "may lack the feature", &["ulimit -n"]),
    ] {
        says("soft", text, refusal, words, never);
    }
}

fn a_memslot_that_is_refused_names_its_own_remedy() {
    let slot = |errno| Refusal { call: libc::SYS_ioctl, request: Some(KVM_SET_USER_MEMORY_REGION), errno };
    let text = scenario("4k", "dontneed");
    says("kvm", &text, slot(Errno::NOMEM), "free memory on the host", &["max_map_count"]);
    says("kvm", &text, slot(Errno::INVAL), "see the kernel's log", &["free memory"]);
}

/// Rows whose pages leave, and come back by the kernel and by a handler in turn.
fn rows_of_two_kinds() -> Scenario {
    let scenario = scenario("4k", "dontneed").policies(&["folio", "pmd"]).reclaims(&["dontneed", "uffd"]);
    scenario.refault().sweep()
}

/// What a run in which the call is refused leaves: why each of its rows is missing, if it is, and what it printed. It ends
/// with 1, and what is missing is told beside the table.
fn rows_of(backend: &str, refusal: Refusal) -> (Vec<Option<String>>, String) {
    let place = Place::of(&rows_of_two_kinds());
    let ended = run(&place, &["run", "s.toml", "--backend", backend, "--out", "out"], refusal).with(1);
    let record = place.json("out/run.json");
    assert_eq!(record["ended"], "complete");
    let why = |row: &Value| row["could_not_run"].as_str().map(str::to_owned);
    (record::rows(&record).iter().map(why).collect(), ended.text())
}

fn refused_page_costs_its_row(backend: &str) {
    let refusal = Refusal { call: libc::SYS_ioctl, request: Some(UFFDIO_COPY), errno: Errno::NOMEM };
    let (rows, printed) = rows_of(backend, refusal);
    assert_eq!(rows.len(), 4);
    for (row, fails) in rows.iter().zip([false, true, false, true]) {
        assert_eq!(row.is_some(), fails, "{rows:?}");
        let why = row.as_deref().unwrap_or("failed: UFFDIO_COPY, free memory on the host");
        for word in ["failed: ", "UFFDIO_COPY", "free memory on the host"] {
            assert!(why.contains(word), "{why}");
        }
    }
    // On one line if the memory of both lay at the same addresses, which the reason names.
    for words in ["could not run: 4k uffd under `folio`", "`pmd`: failed: ", "2 of 4 rows could not run"] {
        assert!(printed.contains(words), "{words:?} is not in: {printed}");
    }
}

fn a_row_that_the_host_refuses_a_page_costs_that_row() {
    refused_page_costs_its_row("soft");
}

fn a_row_that_the_host_refuses_a_page_costs_that_row_of_a_guest() {
    refused_page_costs_its_row("kvm");
}

fn a_vcpu_that_is_not_entered_costs_its_row() {
    let refusal = Refusal { call: libc::SYS_ioctl, request: Some(KVM_RUN), errno: Errno::NOMEM };
    let (rows, printed) = rows_of("kvm", refusal);
    assert_eq!(rows.len(), 4);
    for row in &rows {
        let why = row.as_deref().unwrap_or_default();
        assert!(why.starts_with("failed: the guest was not entered: KVM_RUN failed: free memory"), "{why}");
    }
    assert!(printed.contains("4 of 4 rows could not run"), "{printed}");
}

/// What was written is kept, though the disk does not say that it is there.
fn a_disk_that_does_not_confirm_loses_no_row() {
    let place = Place::of(&scenario("4k", "dontneed"));
    let refusal = Refusal { call: libc::SYS_fdatasync, request: None, errno: Errno::IO };
    let ended = run(&place, &["run", "s.toml", "--backend", "soft", "--out", "out"], refusal).with(5);
    ended.says(&["cannot write out/events.log: Input/output error"]);
    place.run(&["replay", "out"]).with(0);
}

/// Runs rows of two kinds under a limit of the process: it ends as a run may end, and not by a signal. All that it said.
fn under(place: &Place, resource: Resource, most: u64) -> String {
    let out = format!("{resource:?}-{most}");
    let mut command = program::grouped(place.path(), &["run", "s.toml", "--out", &out]);
    stand_in::limited(&mut command, resource, most);
    let ended = Ended::from(program::end_of_group(command.spawn().unwrap()));
    let (said, code) = (ended.said.clone() + &ended.text(), ended.status.code());
    assert!(code.is_some_and(|code| [0, 1, 3, 5].contains(&code)), "{out}: {code:?}, {said}");
    said
}

fn too_little_address_space_aborts_nothing() {
    let place = Place::of(&rows_of_two_kinds());
    for most in (40..200).step_by(20).map(|most| most << 20) {
        let said = under(&place, Resource::As, most);
        assert!(!said.contains("memory allocation of"), "{most}: {said}");
    }
}

/// Wherever in its work a run meets the limit, the limit is what it tells to raise.
fn a_limit_of_the_process_is_named_and_no_other_remedy() {
    let place = Place::of(&rows_of_two_kinds());
    let step = if emulated() { 6 } else { 3 };
    let files = (6..48).step_by(step).map(|most| (Resource::Nofile, most, "os error 24", "ulimit -n"));
    let bytes = [0, 1024, 4096].map(|most| (Resource::Fsize, most, "os error 27", "ulimit -f"));
    let others = ["mount procfs", "choose a place", "free space", "free room", "be root", "remove it"];
    let mut met = Vec::new();
    for (resource, most, answer, remedy) in files.chain(bytes) {
        let said = under(&place, resource, most);
        for line in said.lines().filter(|line| line.contains(answer)) {
            met.push(answer);
            assert!(line.contains(remedy), "at {most}: {line}");
            others.iter().for_each(|other| assert!(!line.contains(other), "at {most}: {line}"));
        }
    }
    for answer in ["os error 24", "os error 27"] {
        assert!(met.contains(&answer), "no run met {answer}");
    }
}
