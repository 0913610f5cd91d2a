//! A guest from a snapshot: it goes on where it stood, with the memory it had, whichever way that comes.

use std::path::Path;
use std::time::Duration;

use ::host::HostChanges;
use guest_abi::layout::{PAGE_SIZE, low_memory};
use guest_mem::Backing;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tests::place::{Ended, Place};
use tests::record::number;
use tests::{host, program};

crate::tests! {
    a_restored_guest_is_as_it_was(backing in ["4k", "thp", "memfd"]): [Kvm, Userfault, Has(backing.parse().unwrap())],
    two_guests_go_on_from_one_snapshot: [Kvm, Userfault],
    memory_that_was_never_written_is_not_in_the_file: [Kvm, Userfault],
    ctrl_c_ends_a_guest_whose_pages_still_come: [Kvm, Userfault],
    what_is_there_stays_until_a_snapshot_is_whole: [Kvm],
    a_label_that_the_host_cannot_give_is_refused(backing in labels()): [Kvm, Has(backing)],
    what_restored_memory_is_made_of_is_told(backing in labels()): [Kvm, Userfault, Has(backing)],
}

/// MiB of a guest here, of which the guest fills three quarters.
fn mib() -> u64 {
    if host::emulated() { 8 } else { 16 }
}

/// Makes the snapshot `name`, and says what it prints.
pub fn snapshot(place: &Place, name: &str, more: &[&str]) -> String {
    place.run(&[&["snapshot", "--out", name], more].concat()).with(0).text()
}

/// Restores it, and gives the record.
fn restore(place: &Place, name: &str, more: &[&str]) -> Value {
    place.run(&[&["boot", "--restore", name, "--json"], more].concat()).with(0).json()
}

/// What holds for every restore of `mib()` MiB, three quarters of them filled.
fn check(record: &Value, vcpus: u32, what: &str) {
    let (arena, low) = (mib() << 20, low_memory(vcpus));
    let expected = [
        ("wrong_pages", 0),
        ("lost_writes", 0),
        ("memory_bytes", arena),
        ("filled_bytes", arena / 4 * 3),
        ("low_bytes", low),
        ("vcpus", vcpus.into()),
    ];
    for (key, value) in expected {
        assert_eq!(number(record, key), value, "{key}, {what}: {record:#}");
    }
    assert_eq!(record["not_restored"], Value::Array(Vec::new()), "{what}: {record:#}");
    let order = ["first_kvm_run_ns", "first_page_verified_ns", "all_verified_ns", "rewritten_verified_ns"];
    assert!(order.map(|key| number(record, key)).is_sorted(), "{what}: {record:#}");
    // All of the arena that is stored was read, and nothing twice.
    let read = number(record, "bytes_read");
    let stored = number(record, "stored_pages") * PAGE_SIZE;
    assert!((arena / 4 * 3..=stored).contains(&read), "{what}: {record:#}");
    if record["mode"] == "eager" {
        assert_eq!((read, number(record, "faults")), (stored, 0), "{what}: {record:#}");
        return;
    }
    let (brought, left) = (number(record, "pages_brought"), number(record, "pages_left"));
    assert_eq!(brought + left, (arena + low) / PAGE_SIZE, "{what}: {record:#}");
    assert!(left <= low / PAGE_SIZE, "a page of the arena was never asked for, {what}: {record:#}");
    // The guest's own code came by faults, too.
    assert!(number(record, "low_faults") > 0, "{what}: {record:#}");
    assert_eq!((brought - number(record, "zero_pages_brought")) * PAGE_SIZE, read, "{what}: {record:#}");
}

fn a_restored_guest_is_as_it_was(backing: &str) {
    let (memory, fill) = (format!("{}MiB", mib()), format!("{}MiB", mib() / 4 * 3));
    for vcpus in [1, 2] {
        let (place, text) = (Place::new(), vcpus.to_string());
        let made = ["--memory", &memory, "--fill", &fill, "--vcpus", &text, "--backing", backing];
        snapshot(&place, "s", &made);
        for how in [
            &["--fault-around", "4KiB"][..],
            &["--fault-around", "adaptive"],
            &["--handlers", "3"],
            &["--eager"],
        ] {
            let record = restore(&place, "s", how);
            let what = format!("{backing}, {vcpus} vCPUs, {how:?}");
            check(&record, vcpus, &what);
            if how.contains(&"4KiB") && backing != "thp" {
                assert_eq!(record["faults"], record["pages_brought"], "one a fault, {what}: {record:#}");
            }
            // Each handler knows the sequences that it has seen; one knows them all.
            if how.contains(&"adaptive") && vcpus == 1 {
                assert!(
                    number(&record, "faults") < number(&record, "pages_brought") / 4,
                    "{what}: {record:#}"
                );
            }
        }
    }
}

/// What one guest writes the other does not see, nor the next from the same file.
fn two_guests_go_on_from_one_snapshot() {
    let place = Place::new();
    snapshot(&place, "s", &["--memory", "8MiB", "--backing", "memfd"]);
    let before = std::fs::read(place.file("s")).unwrap();
    let start = || place.zapscope(&["boot", "--restore", "s"]).spawn().unwrap();
    for child in [start(), start()] {
        Ended::from(child.wait_with_output().unwrap()).with(0);
    }
    assert!(std::fs::read(place.file("s")).unwrap() == before, "the snapshot is only read");
    assert_eq!(number(&restore(&place, "s", &[]), "wrong_pages"), 0);
}

fn memory_that_was_never_written_is_not_in_the_file() {
    let place = Place::new();
    snapshot(&place, "s", &["--memory", "32MiB", "--fill", "0"]);
    let file = place.file("s").metadata().unwrap().len();
    assert!(file < 1 << 20, "{file} bytes for a guest that has written next to nothing");
    let record = restore(&place, "s", &["--fault-around", "2MiB"]);
    assert_eq!((number(&record, "wrong_pages"), number(&record, "lost_writes")), (0, 0), "{record:#}");
    assert!(number(&record, "zero_pages_brought") >= (32 << 20) / PAGE_SIZE, "{record:#}");
    assert!(number(&record, "bytes_read") < file, "{record:#}");
}

/// So much memory takes tens of seconds page by page, and no room in the file.
fn ctrl_c_ends_a_guest_whose_pages_still_come() {
    let place = Place::new();
    let memory = if host::emulated() { "128MiB" } else { "2GiB" };
    snapshot(&place, "s", &["--memory", memory, "--fill", "0", "--vcpus", "2"]);
    for moment in [0, 10, 200] {
        let command = ["boot", "--restore", "s", "--fault-around", "4KiB"];
        let child = program::grouped(place.path(), &command).spawn().unwrap();
        // By then it hears of signals.
        while !threads(child.id()).contains(&"vcpu1".to_owned()) {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_millis(moment));
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        let ended = Ended::from(program::end_of_group(child)).with(130);
        assert!(ended.out.is_empty(), "{moment} ms: {}", ended.text());
    }
}

/// The names of a process's threads; none once it has ended.
fn threads(process: u32) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).ok();
    let names: Vec<_> =
        tasks.filter_map(|task| name(task.ok()?)).map(|name| name.trim().to_owned()).collect();
    assert!(!names.is_empty(), "it has ended by itself");
    names
}

fn what_is_there_stays_until_a_snapshot_is_whole() {
    let place = Place::new();
    place.put("s", "before");
    std::fs::create_dir(place.file("directory")).unwrap();
    std::os::unix::fs::symlink("/dev/null", place.file("null")).unwrap();
    for (out, word) in
        [("directory", "no regular file"), ("null", "no regular file"), ("nowhere/s", "No such file")]
    {
        place.run(&["snapshot", "--out", out, "--memory", "2MiB"]).with(2).says(&[word, out]);
    }
    for (arguments, word) in [
        (["--memory", "3MiB"], "multiple of 2 MiB"),
        (["--memory", "0"], "multiple of 2 MiB"),
        (["--memory", "1TiB"], "62 GiB"),
        (["--fill", "65MiB"], "--fill"),
        (["--fill", "5k"], "multiple of 4 KiB"),
    ] {
        place.run(&[&["snapshot", "--out", "s"][..], &arguments].concat()).with(2).says(&[word]);
    }
    assert_eq!(std::fs::read_to_string(place.file("s")).unwrap(), "before");
    assert_eq!(place.names("").len(), 3, "nothing half made is left");
    snapshot(&place, "s", &["--memory", "2MiB"]);
    assert_ne!(std::fs::read(place.file("s")).unwrap(), b"before");
    assert_eq!(place.names("").len(), 3);
}

/// Backings that hosts come without, each with the file that switches it.
fn labels() -> [Backing; 2] {
    [Backing::MemfdThp, host::mthp_64k()]
}

/// Both switches, where a size has its own.
fn switch_off(changes: &mut HostChanges, backing: Backing) {
    let files = match backing {
        Backing::MemfdThp => ["shmem_enabled", "hugepages-2048kB/shmem_enabled"],
        _ => ["hugepages-64kB/enabled", "hugepages-64kB/shmem_enabled"],
    };
    let path = |file| format!("/sys/kernel/mm/transparent_hugepage/{file}");
    for path in files.map(path).into_iter().filter(|path| Path::new(path).exists()) {
        changes.change_sysfs(path, "never", "a test's memory").unwrap();
    }
}

/// As a row of a run is that asks for it: with the reason and the command that changes it, before anything is made.
fn a_label_that_the_host_cannot_give_is_refused(backing: Backing) {
    let mut changes = HostChanges::new(|_| ());
    switch_off(&mut changes, backing);
    let place = Place::new();
    let label = backing.to_string();
    for command in [&["snapshot", "--out", "s"][..], &["boot", "--kernel", "none"]] {
        let words = [label.as_str(), "switched off", "echo ", "/sys/kernel/mm/transparent_hugepage/"];
        let ended = place.run(&[command, &["--backing", &label]].concat()).with(3).says(&words);
        assert!(ended.out.is_empty(), "{}", ended.text());
    }
    assert!(!place.file("s").exists());
    assert!(changes.undo_all().is_empty());
}

/// All of it while the switch is on; and of a guest that comes back on a host whose switch is off, nothing.
fn what_restored_memory_is_made_of_is_told(backing: Backing) {
    let place = Place::new();
    let mut changes = HostChanges::new(|_| ());
    host::allow(&changes, backing);
    let label = backing.to_string();
    let said = snapshot(&place, "s", &["--memory", "8MiB", "--backing", &label]);
    assert!(said.contains(&format!("8 MiB of {label}; ")), "{said}");
    let small = snapshot(&place, "small", &["--memory", "8MiB"]);
    assert!(small.contains("8 MiB of 4k; "), "{small}");
    switch_off(&mut changes, backing);
    for how in [&["--eager"][..], &[]] {
        let record = restore(&place, "s", how);
        assert_eq!(
            (&record["backing"], &record["earned"]),
            (&label.as_str().into(), &0.0.into()),
            "{record:#}"
        );
        let text = place.run(&[&["boot", "--restore", "s"], how].concat()).text();
        assert!(text.contains(&format!("{label} (0 %)")), "{text}");
    }
    assert_eq!(restore(&place, "small", &["--eager"])["earned"], 1.0);
    assert!(changes.undo_all().is_empty());
}
