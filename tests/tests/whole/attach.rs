//! Watching a VM that another process runs: QEMU's, one of ours, and processes that have none.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use guest_mem::{Address, Backing, HvaRange, PageCounts, PageScanner};
use serde_json::Value;
use test_memory::ZramSwap;
use tests::machine::{Bare, config};
use tests::nobody::{self, Lent};
use tests::{program, scenario};
use vmm::attach::{Holder, guest_memory};

crate::tests! {
    a_qemu_loses_memory_and_every_range_has_a_name: [Kvm, Qemu, Zram, Tap],
    a_vm_of_ours_is_watched_from_another_process: [Kvm, Zram, Tap],
    faults_are_counted_of_the_watched_vm_alone: [Kvm, Tap],
    folios_of_any_size_are_what_had_to_go: [Kvm, Zram, Tap, Has(Backing::mthp(64 << 10).unwrap())],
    without_swap_nothing_can_leave_and_that_is_said: [Kvm, Tap, NoSwap],
    addresses_where_nothing_is_and_parts_of_pages_are_refused: [Kvm, Tap],
    an_untouched_host_is_not_undone: [Kvm, Bpf],
    a_process_that_ends_meanwhile_is_told: [Kvm, Tap],
    a_process_without_a_vm_is_refused: [],
    the_vm_of_another_user_is_refused: [Kvm, AnotherUser],
}

const PUSH: &str = "process_madvise(PAGEOUT)";

fn attach(place: &Path, pid: u32, more: &[&str]) -> (Option<i32>, Value, String) {
    let pid = pid.to_string();
    let arguments = [&["attach", "--pid", &pid, "--json", "--out", "record"], more].concat();
    let output = program::output(place, &arguments);
    let said = program::stderr(&output);
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or_default(), said)
}

/// Bytes of a range of another process that are in swap.
fn swapped(pid: u32, range: HvaRange) -> u64 {
    let mut runs = Vec::new();
    PageScanner::of_process(pid).unwrap().scan(range, &mut runs).unwrap();
    PageCounts::of(&runs).swapped * guest_mem::PAGE_SIZE
}

/// Pushes 16 MiB out of the middle of a VM's memory, where no guest of these tests is at work (a BIOS is, at both ends), and
/// holds what is told to what is so.
fn push(pid: u32, whose: &str) {
    let place = tempfile::tempdir().unwrap();
    let holder = Holder::open(pid).unwrap();
    let memory = guest_memory(&holder.maps().unwrap());
    let largest = memory.iter().map(|memory| memory.range).max_by_key(|range| range.len()).unwrap();
    let start = largest.len() / 2 - (8 << 20);
    let end = start + (16 << 20);
    let pushed = HvaRange::with_len(largest.start().checked_add(start).unwrap(), end - start).unwrap();
    assert_eq!(swapped(pid, pushed), 0);
    let (code, record, said) = attach(
        place.path(),
        pid,
        &["--pageout", &format!("{start}..{end}"), "--for", "300ms", "--every", "100ms"],
    );
    assert_eq!(code, Some(0), "{said}");
    let gone = swapped(pid, pushed);
    assert!(gone > 0, "the kernel took nothing: {said}");
    let total = &record["total"];
    let causes = total["by_cause"].as_array().unwrap();
    let of_push = causes.iter().filter(|one| one["cause"].as_str().unwrap().ends_with(PUSH));
    let bytes: u64 = of_push.map(|one| one["bytes"].as_u64().unwrap()).sum();
    assert_eq!(bytes, gone, "what left was announced, and for this reason: {record:#}");
    let told = &record["pageout"];
    let left = told["mapped_before"].as_u64().unwrap() - told["mapped_after"].as_u64().unwrap();
    assert_eq!(left, gone, "{told}");
    assert!(said.contains("--pageout: ") && said.contains(" left of 16 MiB"), "{said}");
    assert_eq!((&total["lost_events"], &total["amplification"]), (&0.into(), &1.0.into()), "{record:#}");
    let unnamed: Vec<_> = causes.iter().filter(|one| one["cause"] == "unattributed").collect();
    assert!(unnamed.is_empty(), "{unnamed:?}");
    assert_eq!((&record["comm"], &record["vms"]), (&holder.comm().into(), &1.into()), "{whose}");
    assert!(total["counters"]["pages_4k"].is_u64(), "SPTEs from KVM's statistics: {record:#}");
    let spans = record["spans"].as_array().unwrap();
    assert!((1..=4).contains(&spans.len()), "300 ms in spans of at least 100: {}", spans.len());
    let sum: u64 = spans.iter().map(|span| span["ranges"].as_u64().unwrap()).sum();
    assert_eq!(total["ranges"], sum, "{record:#}");
}

/// A child that is killed with the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// QEMU with all its guest's memory there, whatever the guest is at.
fn a_qemu_loses_memory_and_every_range_has_a_name() {
    let place = tempfile::tempdir().unwrap();
    let image = place.path().join("guest.elf");
    std::fs::write(&image, resources::GUEST).unwrap();
    let qemu = Command::new("qemu-system-x86_64")
        .args(["-accel", "kvm", "-m", "64", "-nographic", "-no-reboot", "-no-shutdown", "-monitor", "none"])
        .args(["-net", "none", "-serial", "null", "-machine", "pc,memory-backend=ram"])
        .args(["-object", "memory-backend-ram,id=ram,size=64M,prealloc=on", "-kernel"])
        .arg(&image)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let qemu = Killed(qemu.unwrap());
    let pid = qemu.0.id();
    wait_for(|| Holder::open(pid).is_ok_and(|holder| holder.vcpus() == 1 && resident(&holder) >= 64 << 20));
    let zram = ZramSwap::create(128 << 20, None).unwrap();
    push(pid, "QEMU's");
    drop(qemu);
    drop(zram);
}

/// Bytes of a process's guest memory that are there.
fn resident(holder: &Holder) -> u64 {
    let Ok(maps) = holder.maps() else { return 0 };
    let Ok(mut scanner) = PageScanner::of_process(holder.pid()) else { return 0 };
    let mut runs = Vec::new();
    let of = |range: HvaRange| match scanner.scan(range, &mut runs) {
        Ok(()) => PageCounts::of(&runs).resident() * guest_mem::PAGE_SIZE,
        Err(_) => 0,
    };
    guest_memory(&maps).iter().map(|memory| memory.range).map(of).sum()
}

fn wait_for(met: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !met() {
        assert!(Instant::now() < deadline, "waited for two minutes");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The VM is this test's own; the program that watches it is another process.
fn a_vm_of_ours_is_watched_from_another_process() {
    let zram = ZramSwap::create(128 << 20, None).unwrap();
    let bare = Bare::start(config(1, 32, Backing::Base4k));
    bare.fill(1);
    push(std::process::id(), "ours");
    assert_eq!(bare.verify(1).wrong_pages, 0, "what was pushed out comes back as it was");
    drop(bare);
    drop(zram);
}

/// A watcher that has begun to watch: it has printed the heads of its columns.
struct Watching {
    child: Child,
    said: std::io::BufReader<std::process::ChildStderr>,
}

impl Watching {
    fn begin(place: &Path, more: &[&str]) -> Self {
        let ours = std::process::id().to_string();
        let arguments = [&["attach", "--pid", &ours, "--json", "--out", "record"], more].concat();
        let mut child = program::zapscope(place, &arguments).spawn().unwrap();
        let mut said = std::io::BufReader::new(child.stderr.take().unwrap());
        let mut seen = String::new();
        while !seen.contains("causes") {
            let read = std::io::BufRead::read_line(&mut said, &mut seen).unwrap();
            assert!(read > 0, "it ended before it had watched: {seen}");
        }
        Self { child, said }
    }

    /// Its record, and what else it said.
    fn end(mut self) -> (Value, String) {
        let mut said = String::new();
        let _ = std::io::Read::read_to_string(&mut self.said, &mut said);
        let output = self.child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{said}");
        (serde_json::from_slice(&output.stdout).unwrap(), said)
    }
}

/// By KVM's counter, or where it does not open by the tracepoint that stands for it; beside a VM of somebody else that
/// faults all the time.
fn faults_are_counted_of_the_watched_vm_alone() {
    let place = tempfile::tempdir().unwrap();
    let bare = Bare::start(config(1, 32, Backing::Base4k));
    bare.fill(1);
    let slowly = ["victims = \"sparse\"", "count = 4000", "pace = \"2ms\""];
    let hot = ["pages = \"all\"", "count = 8192"];
    let scenario = scenario::of("32MiB").fill().step("hot", &hot).step("reclaim", &slowly);
    std::fs::write(place.path().join("busy.toml"), scenario.text()).unwrap();
    let busy =
        program::zapscope(place.path(), &["run", "busy.toml", "--tap", "off"]).stdout(Stdio::null()).spawn();
    let busy = Killed(busy.unwrap());
    let pid = busy.0.id();
    // Most of it: by then pages may be going already.
    wait_for(|| Holder::open(pid).is_ok_and(|holder| resident(&holder) >= 16 << 20));
    let watching = Watching::begin(place.path(), &["--for", "3s", "--every", "500ms"]);
    let before = bare.machine.fault_counts().unwrap().fixed;
    let arena = bare.machine.core().arena();
    guest_mem::perform(arena, guest_mem::Operation::DontNeed, bare.pages(512, 2048)).unwrap();
    bare.touch_all(guest_abi::order::Access::Read, u64::MAX);
    let fixed = bare.machine.fault_counts().unwrap().fixed - before;
    assert!(fixed >= 2048, "{fixed}");
    let (record, said) = watching.end();
    drop(busy);
    let total = &record["total"];
    let counted = match total["counters"]["pf_fixed"].as_u64() {
        Some(now) => now - record["counters"]["pf_fixed"].as_u64().unwrap(),
        None => total["deeds"]["sptes-requested"].as_u64().unwrap(),
    };
    assert!(
        counted.abs_diff(fixed) * 50 <= fixed,
        "{counted} told, {fixed} by KVM's own statistics: {total:#}"
    );
    let all = said.lines().last().filter(|line| !line.contains("record")).map(str::to_owned);
    let all = all.unwrap_or_else(|| said.lines().rev().nth(1).unwrap().to_owned());
    let shown = ::program::units::count(counted);
    assert!(all.split_whitespace().any(|cell| cell == shown), "{shown} in {all}");
}

/// Folios of 64 KiB, one range each. Where they leave page by page, the split is as wide as the folio, and a page needs a page.
fn folios_of_any_size_are_what_had_to_go() {
    let changes = host::HostChanges::new(|_| ());
    let backing = Backing::mthp(64 << 10).unwrap();
    tests::host::allow(&changes, backing);
    for swap in [64 << 20, 4 << 20] {
        let zram = ZramSwap::create(swap, None).unwrap();
        let bare = Bare::start(config(1, 32, backing));
        bare.fill(1);
        let place = tempfile::tempdir().unwrap();
        let pid = std::process::id();
        let (code, record, said) =
            attach(place.path(), pid, &["--pageout", "8MiB..10MiB", "--for", "300ms", "--every", "100ms"]);
        assert_eq!(code, Some(0), "{said}");
        let total = &record["total"];
        assert_eq!(
            (&total["folios_unknown"], &total["amplification"]),
            (&0.into(), &1.0.into()),
            "{total:#}"
        );
        assert!(total["ranges"].as_u64().unwrap() >= 32, "{total:#}");
        drop(bare);
        drop(zram);
    }
    assert!(changes.undo_all().is_empty());
}

fn without_swap_nothing_can_leave_and_that_is_said() {
    let place = tempfile::tempdir().unwrap();
    let bare = Bare::start(config(1, 32, Backing::Base4k));
    bare.fill(1);
    let (code, _, said) = attach(place.path(), std::process::id(), &["--pageout", "0..8MiB", "--for", "1s"]);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("nothing can leave: this host has no swap") && said.contains("swapon"), "{said}");
}

fn addresses_where_nothing_is_and_parts_of_pages_are_refused() {
    let place = tempfile::tempdir().unwrap();
    let bare = Bare::start(config(1, 32, Backing::Base4k));
    let arena = bare.machine.core().arena().range();
    let refused = |more: &[&str], why: &str| {
        let (code, _, said) = attach(place.path(), std::process::id(), &[more, &["--for", "1s"]].concat());
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(why), "{said}");
    };
    refused(&["--memory", "1000-2000"], "nothing is mapped at 1000-2000; the nearest mapping is ");
    // The arena is mapped, what is asked for with it is not.
    let (start, end) = (arena.start().get(), arena.end().get());
    let beyond = format!("{start:x}-{:x}", end + (1 << 40));
    refused(&["--memory", &beyond], "nothing is mapped at ");
    refused(&["--memory", &format!("{:x}-{end:x}", start + 1)], "whole pages");
    refused(&["--pageout", "1..8192"], "0..8192");
    refused(&["--pageout", "0..4097"], "0..8192");
    refused(&["--pageout", "0..1TiB"], "reaches beyond");
}

/// A BPF program changes nothing on the host, and what is told of Ctrl-C says so.
fn an_untouched_host_is_not_undone() {
    let place = tempfile::tempdir().unwrap();
    let _bare = Bare::start(config(1, 32, Backing::Base4k));
    let watching = Watching::begin(place.path(), &["--every", "50ms"]);
    let pid = rustix::process::Pid::from_child(&watching.child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let (_, said) = watching.end();
    assert!(said.contains("Ctrl-C: stopping"), "{said}");
    assert!(!said.contains("undo") && !said.contains("undone"), "{said}");
}

/// A VM in a child, which is killed while it is watched: what was seen until then is told, and that it ended.
fn a_process_that_ends_meanwhile_is_told() {
    let place = tempfile::tempdir().unwrap();
    let scenario = scenario::of("32MiB").fill().hot(16).baseline("60s");
    std::fs::write(place.path().join("idle.toml"), scenario.text()).unwrap();
    let run =
        program::zapscope(place.path(), &["run", "idle.toml", "--tap", "off"]).stdout(Stdio::null()).spawn();
    let mut run = Killed(run.unwrap());
    let pid = run.0.id();
    wait_for(|| Holder::open(pid).is_ok_and(|holder| resident(&holder) >= 32 << 20));
    let number = pid.to_string();
    let watching =
        program::zapscope(place.path(), &["attach", "--pid", &number, "--every", "50ms"]).spawn().unwrap();
    let mut seen = String::new();
    let mut watching = watching;
    let mut out = std::io::BufReader::new(watching.stdout.take().unwrap());
    while !seen.contains("causes") {
        let read = std::io::BufRead::read_line(&mut out, &mut seen).unwrap();
        assert!(read > 0, "it ended before it had watched: {seen}");
    }
    run.0.kill().unwrap();
    let _ = std::io::Read::read_to_string(&mut out, &mut seen);
    let output = watching.wait_with_output().unwrap();
    let said = program::stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}\n{seen}");
    assert!(said.contains(&format!("process {pid}")) && said.contains("has ended"), "{said}");
    assert!(said.contains("attach.json"), "what was seen is written down: {said}");
}

/// And one that is not there: each with its own words.
fn a_process_without_a_vm_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let (code, _, said) = attach(place.path(), i32::MAX as u32, &[]);
    assert_eq!((code, said.contains("there is no process")), (Some(2), true), "{said}");
    let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut to, mut from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let child = Killed(child);
    // It has its name only some time after it was started, and for sure once it answers.
    to.write_all(b"x").unwrap();
    from.read_exact(&mut [0]).unwrap();
    let (code, _, said) = attach(place.path(), child.0.id(), &[]);
    assert_eq!((code, said.contains("(cat) holds no KVM virtual machine")), (Some(2), true), "{said}");
}

/// Root's VM, looked at by nobody.
fn the_vm_of_another_user_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let _bare = Bare::start(config(1, 4, Backing::Base4k));
    let ours = std::process::id().to_string();
    let mut command = nobody::zapscope(place.path(), &["attach", "--pid", &ours], Lent::Nothing).unwrap();
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = program::stderr(&output);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("belongs to user 0") && said.contains("run as root"), "{said}");
}
