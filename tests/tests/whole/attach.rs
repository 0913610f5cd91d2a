//! Watching a VM that another process runs: QEMU's, one of ours, and processes that have none.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};

use guest_mem::{Address, Backing, HvaRange, PageCounts, PageScanner};
use harness::until;
use rustix::process::Signal;
use test_memory::ZramSwap;
use tests::host::mthp_64k;
use tests::machine::{Bare, config};
use tests::nobody::{self, Lent};
use tests::place::{Ended, Place};
use tests::running::Running;
use tests::scenario;
use vmm::attach::{Holder, guest_memory};

crate::tests! {
    a_qemu_loses_memory_and_every_range_has_a_name: [Kvm, Qemu, Zram, Tap],
    a_vm_of_ours_is_watched_from_another_process: [Kvm, Zram, Tap],
    faults_are_counted_of_the_watched_vm_alone: [Kvm, Tap],
    folios_of_any_size_are_what_had_to_go: [Kvm, Zram, Tap, Has(mthp_64k())],
    without_swap_nothing_can_leave_and_that_is_said: [Kvm, Tap, NoSwap],
    addresses_where_nothing_is_and_parts_of_pages_are_refused: [Kvm, Tap],
    an_untouched_host_is_not_undone: [Kvm, Bpf],
    a_process_that_ends_meanwhile_is_told: [Kvm, Tap],
    a_process_without_a_vm_is_refused: [],
    the_vm_of_another_user_is_refused: [Kvm, AnotherUser],
}

const PUSH: &str = "process_madvise(PAGEOUT)";

fn attach(pid: u32, more: &[&str]) -> Ended {
    let pid = pid.to_string();
    Place::new().run(&[&["attach", "--pid", &pid, "--json", "--out", "record"], more].concat())
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
    let holder = Holder::open(pid).unwrap();
    let memory = guest_memory(&holder.maps().unwrap());
    let largest = memory.iter().map(|memory| memory.range).max_by_key(|range| range.len()).unwrap();
    let start = largest.len() / 2 - (8 << 20);
    let end = start + (16 << 20);
    let pushed = HvaRange::with_len(largest.start().checked_add(start).unwrap(), end - start).unwrap();
    assert_eq!(swapped(pid, pushed), 0);
    let range = format!("{start}..{end}");
    let ended = attach(pid, &["--pageout", &range, "--for", "300ms", "--every", "100ms"]).with(0);
    let record = ended.json();
    let gone = swapped(pid, pushed);
    assert!(gone > 0, "the kernel took nothing: {}", ended.said);
    let total = &record["total"];
    let causes = total["by_cause"].as_array().unwrap();
    let of_push = causes.iter().filter(|one| one["cause"].as_str().unwrap().ends_with(PUSH));
    let bytes: u64 = of_push.map(|one| one["bytes"].as_u64().unwrap()).sum();
    assert_eq!(bytes, gone, "what left was announced, and for this reason: {record:#}");
    let told = &record["pageout"];
    let left = told["mapped_before"].as_u64().unwrap() - told["mapped_after"].as_u64().unwrap();
    assert_eq!(left, gone, "{told}");
    ended.says(&["--pageout: ", " left of 16 MiB"]);
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
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// QEMU with all its guest's memory there, whatever the guest is at.
pub fn qemu(place: &Place) -> Killed {
    place.put("guest.elf", resources::GUEST);
    let qemu = Command::new("qemu-system-x86_64")
        .args(["-accel", "kvm", "-m", "64", "-nographic", "-no-reboot", "-no-shutdown", "-monitor", "none"])
        .args(["-net", "none", "-serial", "null", "-machine", "pc,memory-backend=ram"])
        .args(["-object", "memory-backend-ram,id=ram,size=64M,prealloc=on", "-kernel"])
        .arg(place.file("guest.elf"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let qemu = Killed(qemu.unwrap());
    let is_up = |holder: Holder| holder.vcpus() == 1 && resident(&holder) >= 64 << 20;
    until("QEMU's memory is there", || Holder::open(qemu.0.id()).is_ok_and(&is_up));
    qemu
}

fn a_qemu_loses_memory_and_every_range_has_a_name() {
    let place = Place::new();
    let qemu = qemu(&place);
    let zram = ZramSwap::create(128 << 20, None).unwrap();
    push(qemu.0.id(), "QEMU's");
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

/// Watches a process until the watcher has printed the heads of its columns.
fn watch(place: &Place, pid: u32, more: &[&str]) -> Running {
    let pid = pid.to_string();
    let arguments = [&["attach", "--pid", &pid, "--json", "--out", "record"], more].concat();
    let mut watching = Running::start(place.zapscope(&arguments));
    watching.read_until("causes");
    watching
}

/// By KVM's counter, or where it does not open by the tracepoint that stands for it; beside a VM of another process
/// that faults all the time.
fn faults_are_counted_of_the_watched_vm_alone() {
    let bare = Bare::start(config(1, 32, Backing::Base4k));
    bare.fill(1);
    let slowly = ["victims = \"sparse\"", "count = 4000", "pace = \"2ms\""];
    let hot = ["pages = \"all\"", "count = 8192"];
    let scenario = scenario::of("32MiB").fill().step("hot", &hot).step("reclaim", &slowly);
    let place = Place::of(&scenario);
    let busy = Running::start(place.zapscope(&["run", "s.toml", "--tap", "off"]));
    let pid = busy.id();
    // Most of it: by then pages may be going already.
    until("the guest's memory is there", || {
        Holder::open(pid).is_ok_and(|holder| resident(&holder) >= 16 << 20)
    });
    let watching = watch(&place, std::process::id(), &["--for", "3s", "--every", "500ms"]);
    let before = bare.machine.fault_counts().unwrap().fixed;
    let arena = bare.machine.core().arena();
    guest_mem::perform(arena, guest_mem::Operation::DontNeed, bare.pages(512, 2048)).unwrap();
    bare.touch_all(guest_abi::order::Access::Read, u64::MAX);
    let fixed = bare.machine.fault_counts().unwrap().fixed - before;
    assert!(fixed >= 2048, "{fixed}");
    let ended = watching.end().with(0);
    drop(busy);
    let record = ended.json();
    let total = &record["total"];
    let counted = match total["counters"]["pf_fixed"].as_u64() {
        Some(now) => now - record["counters"]["pf_fixed"].as_u64().unwrap(),
        None => total["deeds"]["sptes-requested"].as_u64().unwrap(),
    };
    assert!(
        counted.abs_diff(fixed) * 50 <= fixed,
        "{counted} told, {fixed} by KVM's own statistics: {total:#}"
    );
    let all = ended.said.lines().rev().find(|line| !line.contains("record")).unwrap();
    let shown = ::program::units::count(counted);
    assert!(all.split_whitespace().any(|cell| cell == shown), "{shown} in {all}");
}

/// Folios of 64 KiB, one range each. Where they leave page by page, the split is as wide as the folio, and a page needs a page.
fn folios_of_any_size_are_what_had_to_go() {
    let changes = host::HostChanges::new(|_| ());
    let backing = mthp_64k();
    tests::host::allow(&changes, backing);
    for swap in [64 << 20, 4 << 20] {
        let zram = ZramSwap::create(swap, None).unwrap();
        let bare = Bare::start(config(1, 32, backing));
        bare.fill(1);
        let push = ["--pageout", "8MiB..10MiB", "--for", "300ms", "--every", "100ms"];
        let record = attach(std::process::id(), &push).with(0).json();
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
    let bare = Bare::start(config(1, 32, Backing::Base4k));
    bare.fill(1);
    let ended = attach(std::process::id(), &["--pageout", "0..8MiB", "--for", "1s"]).with(3);
    ended.says(&["nothing can leave: this host has no swap", "swapon"]);
}

fn addresses_where_nothing_is_and_parts_of_pages_are_refused() {
    let bare = Bare::start(config(1, 32, Backing::Base4k));
    let arena = bare.machine.core().arena().range();
    let refused = |more: &[&str], why: &str| {
        attach(std::process::id(), &[more, &["--for", "1s"]].concat()).with(2).says(&[why]);
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
    let _bare = Bare::start(config(1, 32, Backing::Base4k));
    let place = Place::new();
    let mut watching = watch(&place, std::process::id(), &["--every", "50ms"]);
    watching.signal(Signal::INT);
    watching.end().with(0).says(&["Ctrl-C: stopping"]).never_says(&["undo", "undone"]);
}

/// A VM in a child, which is killed while it is watched: what was seen until then is told, and that it ended.
fn a_process_that_ends_meanwhile_is_told() {
    let place = Place::of(&scenario::of("32MiB").fill().hot(16).baseline("60s"));
    let mut run = Running::start(place.zapscope(&["run", "s.toml", "--tap", "off"]));
    let pid = run.id();
    until("the guest's memory is there", || {
        Holder::open(pid).is_ok_and(|holder| resident(&holder) >= 32 << 20)
    });
    let watching = watch(&place, pid, &["--every", "50ms"]);
    run.signal(Signal::KILL);
    // What was seen is written down.
    watching.end().with(1).says(&[&format!("process {pid}"), "has ended", "attach.json"]);
}

/// And one that is not there: each with its own words.
fn a_process_without_a_vm_is_refused() {
    attach(i32::MAX as u32, &[]).with(2).says(&["there is no process"]);
    let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut to, mut from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let child = Killed(child);
    // It has its name only some time after it was started, and for sure once it answers.
    to.write_all(b"x").unwrap();
    from.read_exact(&mut [0]).unwrap();
    attach(child.0.id(), &[]).with(2).says(&["(cat) holds no KVM virtual machine"]);
}

/// Root's VM, looked at by the user `nobody`.
fn the_vm_of_another_user_is_refused() {
    let place = Place::new();
    let _bare = Bare::start(config(1, 4, Backing::Base4k));
    let ours = std::process::id().to_string();
    let mut command = nobody::zapscope(place.path(), &["attach", "--pid", &ours], Lent::Nothing).unwrap();
    let ended = Ended::from(command.stdin(Stdio::null()).output().unwrap());
    ended.with(3).says(&["belongs to user 0", "run as root"]);
}
