//! What a run changes on the host is undone by whoever is left: the run, its guardian, another guardian, the next zapscope.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use guest_mem::{Backing, CgroupPlace, HostThp, HugetlbPool, PMD_SIZE};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
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

/// How long the way out may take.
const PATIENCE: Duration = Duration::from_secs(60);

fn scenario(backing: &str, reclaim: &str, baseline: &str) -> String {
    format!(
        "name = \"x\"\nmemory = \"{}MiB\"\n[matrix]\nbacking = [{backing}]\npolicy = [\"kernel\"]\n\
         reclaim = [\"{reclaim}\"]\n[[case]]\nname = \"c\"\n[[case.step]]\ndo = \"fill\"\n[[case.step]]\ndo = \"hot\"\n\
         count = 8\n[[case.step]]\ndo = \"baseline\"\nfor = \"{baseline}\"\n[[case.step]]\ndo = \"reclaim\"\n\
         range = \"0..4MiB\"\nunit = \"range\"\n",
        memory() >> 20
    )
}

/// The guest's, of which no pool of hugetlb pages has as much to give.
fn memory() -> u64 {
    (4 + HostThp::read().hugetlb_2m.map_or(0, |pool| pool.available())) * PMD_SIZE
}

/// A zapscope, and what it writes to standard error. Its notes of changes are its own: no other zapscope of this host
/// undoes for it.
struct Running {
    child: Child,
    stderr: BufReader<std::process::ChildStderr>,
    said: String,
    place: tempfile::TempDir,
}

impl Running {
    /// Starts `zapscope run` in `place`, by way of `front` (`unshare` and its options), and waits for its first row.
    fn start(scenario: &str, arguments: &[&str], front: &[&str]) -> Self {
        let mut running = Self::begin(scenario, arguments, front);
        running.read_until("[1/");
        running
    }

    fn begin(scenario: &str, arguments: &[&str], front: &[&str]) -> Self {
        let place = tempfile::tempdir().unwrap();
        std::fs::write(place.path().join("s.toml"), scenario).unwrap();
        let all = ["run", "s.toml", "--backend", "soft", "--out", "out"];
        let mut child = command(place.path(), front, &[&all, arguments].concat()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Self { child, stderr, said: String::new(), place }
    }

    fn read_until(&mut self, wanted: &str) {
        while !self.said.contains(wanted) {
            let read = self.stderr.read_line(&mut self.said).unwrap();
            assert!(read > 0, "it ended without {wanted:?}: {}", self.said);
        }
    }

    /// The process that is zapscope, behind whatever is in front of it.
    fn zapscope(&self) -> u32 {
        let pid = self.child.id();
        if is_zapscope(pid) {
            pid
        } else {
            children_of(pid).into_iter().find(|pid| is_zapscope(*pid)).unwrap()
        }
    }

    fn zram(&self) -> Disk {
        let (_, rest) = self.said.split_once("made zram").unwrap();
        Disk::of(rest.split(' ').next().unwrap().parse().unwrap())
    }

    /// Waits for its end. Returns its exit code, if it exited, and all it said.
    fn end(&mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        self.stderr.read_to_string(&mut rest).unwrap();
        self.said.push_str(&rest);
        (self.child.wait().unwrap().code(), self.said.clone())
    }

    fn notes(&self) -> PathBuf {
        self.place.path().join("notes")
    }
}

fn command(place: &Path, front: &[&str], arguments: &[&str]) -> Command {
    let zapscope = program::zapscope(place, arguments);
    let mut command = match front.split_first() {
        None => zapscope,
        Some((program, options)) => {
            let mut command = Command::new(program);
            command.args(options).arg(zapscope.get_program()).args(zapscope.get_args()).current_dir(place);
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            command
        }
    };
    command.stdout(Stdio::null()).env("ZAPSCOPE_STATE_DIR", place.join("notes"));
    command
}

fn kill(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
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
    let mut run = Running::start(&scenario("\"4k\"", "cgroup", "60s"), &ZRAM, &[]);
    let pid = run.zapscope();
    eventually("it is in a cgroup of its own", || {
        std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap().contains(&format!("zapscope-{pid}-"))
    });
    let guardian = guardian_of(pid).unwrap();
    let of_guardian = std::fs::read_to_string(format!("/proc/{guardian}/cgroup")).unwrap();
    assert!(!of_guardian.contains(&format!("zapscope-{pid}-")), "{of_guardian}");
    let disk = run.zram();
    kill(pid, Signal::KILL);
    assert_eq!(run.end().0, None);
    eventually("all is undone", || cgroups_of(pid).is_empty() && !disk.is_there() && !is_running(guardian));
    assert!(!run.notes().exists());
}

fn the_end_takes_the_cgroup_away() {
    let text = scenario("\"4k\"", "cgroup", "1ms").replace("unit = \"range\"\n", "");
    let mut run = Running::begin(&text, &ZRAM, &[]);
    // Before that it may not be the program yet.
    run.read_until("made zram");
    let pid = run.zapscope();
    let (code, said) = run.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("made cgroup") && said.contains("undone: remove cgroup"), "{said}");
    assert_eq!(cgroups_of(pid), [] as [PathBuf; 0]);
    let record = record_of(&run);
    let changes = record["host_changes"].as_array().unwrap();
    assert!(changes.iter().any(|change| change["change"] == "cgroup"), "{changes:?}");
    assert!(changes.iter().any(|change| change["change"] == "zram"), "{changes:?}");
}

fn record_of(run: &Running) -> Value {
    let text = std::fs::read_to_string(run.place.path().join("out/run.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Whoever kills both at once leaves it to the next zapscope; whoever kills one after the other does not.
fn a_killed_guardian_is_replaced() {
    let mut run = Running::start(&scenario("\"4k\"", "pageout", "60s"), &ZRAM, &[]);
    let (pid, disk) = (run.zapscope(), run.zram());
    let first = guardian_of(pid).unwrap();
    kill(first, Signal::KILL);
    run.read_until("another one took its place");
    let second = guardian_of(pid).unwrap();
    assert_ne!(first, second);
    kill(pid, Signal::KILL);
    run.end();
    eventually("all is undone", || !disk.is_there() && !is_running(second));
    assert!(!run.notes().exists());
}

fn the_first_process_of_a_pid_namespace_leaves_a_note() {
    let mut run = Running::start(&scenario("\"4k\"", "pageout", "60s"), &ZRAM, &PID_NAMESPACE);
    assert!(run.said.contains("in this PID namespace SIGKILL"), "{}", run.said);
    let disk = run.zram();
    let zapscope = run.zapscope();
    let guardian = guardian_of(zapscope).unwrap();
    kill(zapscope, Signal::KILL);
    run.end();
    eventually("the namespace is gone", || !is_running(zapscope) && !is_running(guardian));
    assert!(disk.is_swapped_to(), "nobody is left to undo it");
    // Any command that changes or examines the host, with the same directory for notes.
    let doctor = command(run.place.path(), &[], &["doctor"]).stdout(Stdio::piped()).output().unwrap();
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(said.contains("left by a zapscope that was killed (pid 1): undone now: remove zram"), "{said}");
    assert!(!disk.is_there() && !disk.is_swapped_to());
    assert!(!run.notes().exists());
}

fn the_first_process_of_a_pid_namespace_undoes_when_told_to_end() {
    let mut run = Running::start(&scenario("\"4k\"", "pageout", "60s"), &ZRAM, &PID_NAMESPACE);
    let disk = run.zram();
    kill(run.zapscope(), Signal::TERM);
    let (code, said) = run.end();
    assert_eq!(code, Some(130), "{said}");
    assert!(!disk.is_there() && !run.notes().exists());
}

fn without_a_note_nothing_is_changed_in_a_pid_namespace() {
    let place = tempfile::tempdir().unwrap();
    std::fs::write(place.path().join("s.toml"), scenario("\"4k\"", "pageout", "1ms")).unwrap();
    let arguments = ["run", "s.toml", "--backend", "soft", "--zram", "64MiB"];
    let output =
        command(place.path(), &PID_NAMESPACE, &arguments).env("ZAPSCOPE_STATE_DIR", "/proc/none").output();
    let (output, said) = (output.as_ref().unwrap(), program::stderr(output.as_ref().unwrap()));
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("nothing is changed") && said.contains("ZAPSCOPE_STATE_DIR"), "{said}");
    assert!(!said.contains("made zram"), "{said}");
}

fn root_of_a_user_namespace_makes_no_device() {
    let front = ["unshare", "-Urpf", "--mount-proc"];
    let mut run = Running::begin(&scenario("\"4k\"", "pageout", "1ms"), &ZRAM, &front);
    let (code, said) = run.end();
    // 0 where the host has swap of its own.
    assert!(matches!(code, Some(0 | 3)), "{said}");
    assert!(said.contains("CAP_SYS_ADMIN counts in the initial user namespace only"), "{said}");
    assert!(!said.contains("made zram"), "{said}");
}

fn a_device_that_the_kernel_has_no_room_for_is_taken_away() {
    let mut run = Running::begin(&scenario("\"4k\"", "pageout", "1ms"), &["--zram", "16TiB"], &[]);
    let (code, said) = run.end();
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("ask for less") && !said.contains("root"), "{said}");
    assert!(said.contains("made zram") && said.contains("undone: remove zram"), "{said}");
    assert!(!run.notes().exists());
}

/// The switches of backings, without what changes by itself.
fn switches() -> HostThp {
    let host = HostThp::read();
    let pool = host.hugetlb_2m.map(|pool| HugetlbPool { total: pool.total, ..HugetlbPool::default() });
    HostThp { hugetlb_2m: pool, ..host }
}

const TUNED: [&str; 3] = ["mthp:64k", "memfd:thp", "hugetlb:2m"];

fn tune_sets_what_rows_need_and_puts_it_back() {
    let before = switches();
    let backings = "\"mthp:64k\", \"mthp:256k\", \"memfd:thp\", \"hugetlb:2m\", \"thp\"";
    let mut run = Running::begin(&scenario(backings, "dontneed", "1ms"), &["--tune"], &[]);
    let (code, said) = run.end();
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(switches(), before);
    let record = record_of(&run);
    for row in record["rows"].as_array().unwrap() {
        let backing = row["backing"].as_str().unwrap();
        assert!(row["could_not_run"].is_null(), "{backing}: {row:#}");
        let set = row["switches"].as_array().map_or(0, Vec::len);
        assert!(set > 0 || has(backing), "{backing}: {row:#}");
    }
    let changes = record["host_changes"].as_array().unwrap();
    assert!(
        changes.iter().any(|change| change["path"].as_str().unwrap().ends_with("nr_hugepages")),
        "{changes:?}"
    );
    assert!(!run.notes().exists());
}

/// Whether the host gives a guest this backing as it is.
fn has(backing: &str) -> bool {
    backing.parse::<Backing>().unwrap().unavailable(memory(), &HostThp::read()).is_none()
}

fn tune_is_undone_when_told_to_end() {
    undone_after(Signal::TERM);
}

fn tune_is_undone_after_sigkill() {
    undone_after(Signal::KILL);
}

fn undone_after(signal: Signal) {
    let before = switches();
    for backing in TUNED {
        // What is there already is not set. Of the pool there is never enough.
        if has(backing) {
            continue;
        }
        let text = scenario(&format!("\"{backing}\""), "dontneed", "60s");
        let mut run = Running::begin(&text, &["--tune"], &[]);
        run.read_until("host change: /sys/kernel/mm/");
        eventually("it is set", || switches() != before);
        kill(run.zapscope(), signal);
        let (_, said) = run.end();
        eventually("the switches say what they said", || switches() == before);
        eventually("the notes are gone", || !run.notes().exists());
        assert!(said.contains("undone"), "{backing}: {said}");
    }
}

fn without_tune_rows_name_the_switch_and_the_flag() {
    let before = switches();
    let backings = TUNED.map(|backing| format!("\"{backing}\"")).join(", ");
    let mut run = Running::begin(&scenario(&backings, "dontneed", "1ms"), &[], &[]);
    let (_, said) = run.end();
    assert!(!said.contains("host change"), "{said}");
    assert_eq!(switches(), before);
    for row in record_of(&run)["rows"].as_array().unwrap() {
        if has(row["backing"].as_str().unwrap()) {
            continue;
        }
        let why = row["could_not_run"].as_str().unwrap();
        assert!(why.contains("`echo ") && why.ends_with("or run with `--tune`"), "{why}");
    }
}

/// `snapshot`, `boot` of a kernel, and `boot` of the snapshot: refused without the flag where the switch is off, and with it
/// the guest has what was asked for.
fn tune_of_a_single_guest_sets_what_it_needs_and_puts_it_back() {
    let before = switches();
    let place = tempfile::tempdir().unwrap();
    let kernel = place.path().join("kernel");
    std::fs::write(&kernel, bzimage::kernel(&code::power_off())).unwrap();
    for backing in TUNED {
        let file = backing.replace(':', "-");
        let snapshot = ["snapshot", "--out", &file, "--memory", "64MiB", "--backing", backing];
        let boot = ["boot", "--kernel", "kernel", "--memory", "64MiB", "--backing", backing];
        let restore = ["boot", "--restore", &file, "--eager", "--json"];
        let is_there = backing.parse::<Backing>().unwrap().unavailable(64 << 20, &HostThp::read()).is_none();
        for command in [&snapshot[..], &boot].into_iter().filter(|_| !is_there) {
            let said = program::output(place.path(), command);
            let said = (said.status.code(), program::stderr(&said));
            assert!(said.0 == Some(3) && said.1.contains(", or run with `--tune`"), "{backing}: {said:?}");
        }
        for command in [&snapshot[..], &boot, &restore] {
            let output = program::output(place.path(), &[command, &["--tune"]].concat());
            let said = program::stderr(&output);
            assert_eq!(output.status.code(), Some(0), "{command:?}: {said}");
            assert_eq!(said.contains("host change: /sys/kernel/mm/"), !is_there, "{command:?}: {said}");
            assert_eq!(switches(), before, "{command:?}: {said}");
            let told = String::from_utf8_lossy(&output.stdout).into_owned();
            match command[0] {
                "snapshot" => assert!(told.contains(&format!("of {backing}; ")), "{told}"),
                _ if command == restore => {
                    let record: Value = serde_json::from_slice(&output.stdout).unwrap();
                    assert_eq!(record["earned"], 1.0, "{record:#}");
                }
                _ => {}
            }
        }
    }
}
