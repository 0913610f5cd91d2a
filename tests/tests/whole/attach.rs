//! Watching a VM that another process runs: QEMU's, one of ours, and processes that have none.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use guest_mem::{Address, Backing, HvaRange, PageCounts, PageScanner, ZramSwap};
use serde_json::Value;
use tests::machine::{Bare, config};
use tests::nobody::{self, Lent};
use tests::program;
use vmm::attach::{Holder, guest_memory};

crate::tests! {
    a_qemu_loses_memory_and_every_range_has_a_name: [Kvm, Qemu, Zram, Tap],
    a_vm_of_ours_is_watched_from_another_process: [Kvm, Zram, Tap],
    a_process_that_ends_meanwhile_is_told: [Kvm, Tap],
    a_process_without_a_vm_or_of_another_is_refused: [Kvm],
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
    zram.remove().unwrap();
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
    zram.remove().unwrap();
}

const IDLE: &str = r#"
name = "idle"
memory = "32MiB"
[matrix]
backing = ["4k"]
policy = ["kernel"]
reclaim = ["dontneed"]
[[case]]
name = "hot"
[[case.step]]
do = "fill"
[[case.step]]
do = "hot"
count = 16
[[case.step]]
do = "baseline"
for = "60s"
"#;

/// A VM in a child, which is killed while it is watched: what was seen until then is told, and that it ended.
fn a_process_that_ends_meanwhile_is_told() {
    let place = tempfile::tempdir().unwrap();
    std::fs::write(place.path().join("idle.toml"), IDLE).unwrap();
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

/// Each with its own words and exit code.
fn a_process_without_a_vm_or_of_another_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let (code, _, said) = attach(place.path(), i32::MAX as u32, &[]);
    assert_eq!((code, said.contains("there is no process")), (Some(2), true), "{said}");
    let child = Killed(Command::new("cat").stdin(Stdio::piped()).spawn().unwrap());
    let (code, _, said) = attach(place.path(), child.0.id(), &[]);
    assert_eq!((code, said.contains("(cat) holds no KVM virtual machine")), (Some(2), true), "{said}");
    if !rustix::process::geteuid().is_root() {
        println!(
            "of a_process_without_a_vm_or_of_another_is_refused, the part that root must run was not run"
        );
        return;
    }
    // Root's VM, looked at by nobody.
    let _bare = Bare::start(config(1, 4, Backing::Base4k));
    let ours = std::process::id().to_string();
    let mut command = nobody::zapscope(place.path(), &["attach", "--pid", &ours], Lent::Nothing).unwrap();
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = program::stderr(&output);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("belongs to user 0") && said.contains("run as root"), "{said}");
}
