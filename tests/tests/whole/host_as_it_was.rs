//! A run's changes to the host are undone by a process that is left: the run, its guardian, another guardian, or the
//! next zapscope.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use guest_mem::{Backing, CgroupPlace, HostThp, HugetlbPool, PMD_SIZE};
use harness::until;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tests::place::{Ended, Place};
use tests::record::rows;
use tests::running::Running;
use tests::scenario::{self, Scenario};
use tests::{bzimage, code, program};

crate::tests! {
    sigkill_takes_the_cgroup_away: [Zram, Cgroup],
    the_end_takes_the_cgroup_away: [Zram, Cgroup],
    a_killed_guardian_is_replaced: [Zram],
    the_first_process_of_a_pid_namespace_leaves_a_note: [Zram, Unshare],
    the_first_process_of_a_pid_namespace_undoes_when_told_to_end: [Zram, Unshare],
    without_a_note_nothing_is_changed_in_a_pid_namespace: [Zram, Unshare],
    root_of_a_user_namespace_makes_no_device: [Zram, Unshare],
    a_device_that_the_kernel_has_no_room_for_is_taken_away: [Zram],
    tune_sets_what_rows_need_and_puts_it_back: [Switches],
    tune_is_undone_when_told_to_end: [Switches],
    tune_is_undone_after_sigkill: [Switches],
    without_tune_rows_name_the_switch_and_the_flag: [Switches],
    tune_of_a_single_guest_sets_what_it_needs_and_puts_it_back: [Switches, Kvm],
}

/// A scenario that lasts as long as its baseline, and takes 4 MiB by `reclaim` at once.
fn scenario(backings: &[&str], reclaim: &str, baseline: &str) -> Scenario {
    let memory = format!("{}MiB", memory() >> 20);
    let scenario = scenario::of(&memory).backings(backings).reclaims(&[reclaim]);
    let unit = if reclaim == "cgroup" && baseline == "1ms" { "page" } else { "range" };
    scenario.fill().hot(8).baseline(baseline).range("0..4MiB", unit)
}

/// The guest's, of which no pool of hugetlb pages has as much to give.
fn memory() -> u64 {
    (4 + HostThp::read().hugetlb_2m.map_or(0, |pool| pool.available())) * PMD_SIZE
}

/// A run whose notes of changes are its own: no other zapscope of this host undoes for it.
struct Run {
    running: Running,
    place: Place,
}

impl Run {
    /// Starts `zapscope run`, by way of `front` (`unshare` and its options), and waits for its first row.
    fn start(scenario: &Scenario, arguments: &[&str], front: &[&str]) -> Self {
        let mut run = Self::begin(scenario, arguments, front);
        run.running.read_until("[1/");
        run
    }

    fn begin(scenario: &Scenario, arguments: &[&str], front: &[&str]) -> Self {
        let place = Place::of(scenario);
        let all = [&["run", "s.toml", "--backend", "soft", "--out", "out"], arguments].concat();
        Self { running: Running::start(command(&place, front, &all)), place }
    }

    /// The process that is zapscope, behind whatever is in front of it.
    fn zapscope(&self) -> u32 {
        let pid = self.running.id();
        if is_zapscope(pid) {
            pid
        } else {
            children_of(pid).into_iter().find(|pid| is_zapscope(*pid)).unwrap()
        }
    }

    fn zram(&self) -> Disk {
        let (_, rest) = self.running.said.split_once("made zram").unwrap();
        Disk::of(rest.split(' ').next().unwrap().parse().unwrap())
    }

    fn end(self) -> (Ended, Place) {
        (self.running.end(), self.place)
    }
}

/// Whether there are notes of changes that are not undone.
fn has_notes(place: &Place) -> bool {
    place.file("notes").exists()
}

fn command(place: &Place, front: &[&str], arguments: &[&str]) -> Command {
    let zapscope = place.zapscope(arguments);
    let mut command = match front.split_first() {
        None => zapscope,
        Some((program, options)) => {
            let mut command = Command::new(program);
            command.args(options).arg(zapscope.get_program()).args(zapscope.get_args());
            command.current_dir(place.path()).stdin(Stdio::null()).stderr(Stdio::piped());
            command
        }
    };
    command.stdout(Stdio::null()).env("ZAPSCOPE_STATE_DIR", place.file("notes"));
    command
}

fn kill(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

fn arguments_of(pid: u32) -> String {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn is_zapscope(pid: u32) -> bool {
    arguments_of(pid).contains(program::BE_ZAPSCOPE) && !arguments_of(pid).starts_with("unshare")
}

/// State and parent of a process.
fn stat_of(pid: u32) -> Option<(String, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut after_name = stat.rsplit(')').next()?.split_whitespace();
    Some((after_name.next()?.to_owned(), after_name.next()?.parse().ok()?))
}

fn is_running(pid: u32) -> bool {
    stat_of(pid).is_some_and(|(state, _)| state != "Z")
}

fn children_of(pid: u32) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|child| is_running(*child) && stat_of(*child).is_some_and(|(_, parent)| parent == pid))
        .collect()
}

fn guardian_of(pid: u32) -> Option<u32> {
    children_of(pid).into_iter().find(|child| arguments_of(*child).contains("__guardian"))
}

/// One zram device and no other: numbers are given again.
#[derive(Debug)]
struct Disk {
    number: u32,
    serial: String,
}

impl Disk {
    fn of(number: u32) -> Self {
        Self { number, serial: Self::serial(number).unwrap() }
    }

    fn serial(number: u32) -> Option<String> {
        std::fs::read_to_string(format!("/sys/block/zram{number}/diskseq")).ok()
    }

    fn is_there(&self) -> bool {
        Self::serial(self.number).as_ref() == Some(&self.serial)
    }

    fn is_swapped_to(&self) -> bool {
        let swaps = std::fs::read_to_string("/proc/swaps").unwrap();
        swaps.lines().any(|line| line.split_whitespace().next() == Some(&format!("/dev/zram{}", self.number)))
    }
}

const ZRAM: [&str; 2] = ["--zram", "64MiB"];
const PID_NAMESPACE: [&str; 2] = ["unshare", "-pf"];

/// The cgroups of one zapscope.
fn cgroups_of(pid: u32) -> Vec<PathBuf> {
    let place = CgroupPlace::find("x").unwrap();
    let siblings = std::fs::read_dir(place.path().parent().unwrap()).unwrap().flatten();
    let name = format!("zapscope-{pid}-");
    let of_it =
        siblings.filter(|entry| entry.file_name().to_str().is_some_and(|other| other.starts_with(&name)));
    of_it.map(|entry| entry.path()).collect()
}

fn sigkill_takes_the_cgroup_away() {
    let run = Run::start(&scenario(&["4k"], "cgroup", "60s"), &ZRAM, &[]);
    let pid = run.zapscope();
    let is_in_its_group = |process: u32| {
        let groups = std::fs::read_to_string(format!("/proc/{process}/cgroup")).unwrap();
        groups.contains(&format!("zapscope-{pid}-"))
    };
    until("it is in a cgroup of its own", || is_in_its_group(pid));
    let (guardian, disk) = (guardian_of(pid).unwrap(), run.zram());
    assert!(!is_in_its_group(guardian));
    kill(pid, Signal::KILL);
    let (ended, place) = run.end();
    assert_eq!(ended.status.code(), None);
    until("all is undone", || cgroups_of(pid).is_empty() && !disk.is_there() && !is_running(guardian));
    assert!(!has_notes(&place));
}

fn the_end_takes_the_cgroup_away() {
    let mut run = Run::begin(&scenario(&["4k"], "cgroup", "1ms"), &ZRAM, &[]);
    // Before that it may not be the program yet.
    run.running.read_until("made zram");
    let pid = run.zapscope();
    let (ended, place) = run.end();
    ended.with(0).says(&["made cgroup", "undone: remove cgroup"]);
    assert_eq!(cgroups_of(pid), [] as [PathBuf; 0]);
    let record = place.json("out/run.json");
    let changes = record["host_changes"].as_array().unwrap();
    for kind in ["cgroup", "zram"] {
        assert!(changes.iter().any(|change| change["change"] == kind), "{changes:?}");
    }
}

/// If run and guardian are killed at once, the next zapscope undoes it. If one after the other, the new guardian does.
fn a_killed_guardian_is_replaced() {
    let mut run = Run::start(&scenario(&["4k"], "pageout", "60s"), &ZRAM, &[]);
    let (pid, disk) = (run.zapscope(), run.zram());
    let first = guardian_of(pid).unwrap();
    kill(first, Signal::KILL);
    run.running.read_until("another one took its place");
    let second = guardian_of(pid).unwrap();
    assert_ne!(first, second);
    kill(pid, Signal::KILL);
    let (_, place) = run.end();
    until("all is undone", || !disk.is_there() && !is_running(second));
    assert!(!has_notes(&place));
}

fn the_first_process_of_a_pid_namespace_leaves_a_note() {
    let run = Run::start(&scenario(&["4k"], "pageout", "60s"), &ZRAM, &PID_NAMESPACE);
    assert!(run.running.said.contains("in this PID namespace SIGKILL"), "{}", run.running.said);
    let (disk, zapscope) = (run.zram(), run.zapscope());
    let guardian = guardian_of(zapscope).unwrap();
    kill(zapscope, Signal::KILL);
    let (_, place) = run.end();
    until("the namespace is gone", || !is_running(zapscope) && !is_running(guardian));
    assert!(disk.is_swapped_to(), "nobody is left to undo it");
    // Any command that changes or examines the host, with the same directory for notes.
    let doctor = command(&place, &[], &["doctor"]).stdout(Stdio::piped()).output().unwrap();
    let said = Ended::from(doctor).text();
    assert!(said.contains("left by a zapscope that was killed (pid 1): undone now: remove zram"), "{said}");
    assert!(!disk.is_there() && !disk.is_swapped_to());
    assert!(!has_notes(&place));
}

fn the_first_process_of_a_pid_namespace_undoes_when_told_to_end() {
    let run = Run::start(&scenario(&["4k"], "pageout", "60s"), &ZRAM, &PID_NAMESPACE);
    let disk = run.zram();
    kill(run.zapscope(), Signal::TERM);
    let (ended, place) = run.end();
    ended.with(130);
    assert!(!disk.is_there() && !has_notes(&place));
}

fn without_a_note_nothing_is_changed_in_a_pid_namespace() {
    let place = Place::of(&scenario(&["4k"], "pageout", "1ms"));
    let arguments = ["run", "s.toml", "--backend", "soft", "--zram", "64MiB"];
    let mut command = command(&place, &PID_NAMESPACE, &arguments);
    let ended = Ended::from(command.env("ZAPSCOPE_STATE_DIR", "/proc/none").output().unwrap());
    ended.with(3).says(&["nothing is changed", "ZAPSCOPE_STATE_DIR"]).never_says(&["made zram"]);
}

fn root_of_a_user_namespace_makes_no_device() {
    let front = ["unshare", "-Urpf", "--mount-proc"];
    let (ended, _place) = Run::begin(&scenario(&["4k"], "pageout", "1ms"), &ZRAM, &front).end();
    // 0 where the host has swap of its own.
    assert!(matches!(ended.status.code(), Some(0 | 3)), "{}", ended.said);
    ended.says(&["CAP_SYS_ADMIN counts in the initial user namespace only"]).never_says(&["made zram"]);
}

fn a_device_that_the_kernel_has_no_room_for_is_taken_away() {
    let run = Run::begin(&scenario(&["4k"], "pageout", "1ms"), &["--zram", "16TiB"], &[]);
    let (ended, place) = run.end();
    let words = ["ask for less", "made zram", "undone: remove zram"];
    ended.with(3).says(&words).never_says(&["root"]);
    assert!(!has_notes(&place));
}

/// The switches of backings, without what changes by itself.
fn switches() -> HostThp {
    let host = HostThp::read();
    let pool = host.hugetlb_2m.map(|pool| HugetlbPool { total: pool.total, ..HugetlbPool::default() });
    HostThp { hugetlb_2m: pool, ..host }
}

const TUNED: [&str; 3] = ["mthp:64k", "memfd:thp", "hugetlb:2m"];

/// Whether the host gives a guest of `memory` bytes this backing as it is.
fn has(backing: &str, memory: u64) -> bool {
    backing.parse::<Backing>().unwrap().unavailable(memory, &HostThp::read()).is_none()
}

fn tune_sets_what_rows_need_and_puts_it_back() {
    let before = switches();
    let backings = ["mthp:64k", "mthp:256k", "memfd:thp", "hugetlb:2m", "thp"];
    let (ended, place) = Run::begin(&scenario(&backings, "dontneed", "1ms"), &["--tune"], &[]).end();
    ended.with(0);
    assert_eq!(switches(), before);
    let record = place.json("out/run.json");
    for row in rows(&record) {
        let backing = row["backing"].as_str().unwrap();
        assert!(row["could_not_run"].is_null(), "{backing}: {row:#}");
        let set = row["switches"].as_array().map_or(0, Vec::len);
        assert!(set > 0 || has(backing, memory()), "{backing}: {row:#}");
    }
    let changes = record["host_changes"].as_array().unwrap();
    let is_pool = |change: &Value| change["path"].as_str().unwrap().ends_with("nr_hugepages");
    assert!(changes.iter().any(is_pool), "{changes:?}");
    assert!(!has_notes(&place));
}

fn tune_is_undone_when_told_to_end() {
    undone_after(Signal::TERM);
}

fn tune_is_undone_after_sigkill() {
    undone_after(Signal::KILL);
}

fn undone_after(signal: Signal) {
    let before = switches();
    // What is there already is not set. Of the pool there is never enough.
    for backing in TUNED.into_iter().filter(|backing| !has(backing, memory())) {
        let mut run = Run::begin(&scenario(&[backing], "dontneed", "60s"), &["--tune"], &[]);
        run.running.read_until("host change: /sys/kernel/mm/");
        until("it is set", || switches() != before);
        kill(run.zapscope(), signal);
        let (ended, place) = run.end();
        until("the switches say what they said", || switches() == before);
        until("the notes are gone", || !has_notes(&place));
        ended.says(&["undone"]);
    }
}

fn without_tune_rows_name_the_switch_and_the_flag() {
    let before = switches();
    let (ended, place) = Run::begin(&scenario(&TUNED, "dontneed", "1ms"), &[], &[]).end();
    ended.never_says(&["host change"]);
    assert_eq!(switches(), before);
    let record = place.json("out/run.json");
    for row in rows(&record).iter().filter(|row| !has(row["backing"].as_str().unwrap(), memory())) {
        let why = row["could_not_run"].as_str().unwrap();
        assert!(why.contains("`echo ") && why.ends_with("or run with `--tune`"), "{why}");
    }
}

/// `snapshot`, `boot` of a kernel, and `boot` of the snapshot: refused without the flag where the switch is off, and with it
/// the guest has what was asked for.
fn tune_of_a_single_guest_sets_what_it_needs_and_puts_it_back() {
    let before = switches();
    let place = Place::new();
    place.put("kernel", bzimage::kernel(&code::power_off()));
    for backing in TUNED {
        let file = backing.replace(':', "-");
        let snapshot = ["snapshot", "--out", &file, "--memory", "64MiB", "--backing", backing];
        let boot = ["boot", "--kernel", "kernel", "--memory", "64MiB", "--backing", backing];
        let restore = ["boot", "--restore", &file, "--eager", "--json"];
        let is_there = has(backing, 64 << 20);
        for command in [&snapshot[..], &boot].into_iter().filter(|_| !is_there) {
            place.run(command).with(3).says(&[", or run with `--tune`"]);
        }
        for command in [&snapshot[..], &boot, &restore] {
            let ended = place.run(&[command, &["--tune"]].concat()).with(0);
            let said = &ended.said;
            assert_eq!(said.contains("host change: /sys/kernel/mm/"), !is_there, "{command:?}: {said}");
            assert_eq!(switches(), before, "{command:?}: {said}");
            match command[0] {
                "snapshot" => assert!(ended.text().contains(&format!("of {backing}; ")), "{}", ended.text()),
                _ if command == restore => assert_eq!(ended.json()["earned"], 1.0, "{}", ended.text()),
                _ => {}
            }
        }
    }
}
