//! A run with changes to the host, ended in every way at eleven moments of its life: the finished rows are on the disk and
//! can be read, the host is as it was, and nothing of the run goes on.

use std::fmt;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit, test_kill_process_group};
use serde_json::Value;
use tests::place::Place;
use tests::pty::Terminal;
use tests::scenario::{self, Scenario};
use tests::swaps::Swaps;
use tests::{host, program};

crate::tests! {
    finished_rows_are_kept_and_the_host_is_as_it_was(way in Way::ALL): [Zram, Cgroup] within 600,
    ctrl_backslash_is_no_worse_than_sigkill: [Zram, Cgroup],
}

/// How long the way out may take, and how long a moment may be in coming.
const PATIENCE: Duration = Duration::from_secs(60);

/// The policies of the rows that page out, in their order.
const POLICIES: [&str; 7] = ["kernel", "page", "pmd", "folio", "modern", "slot", "vm"];

/// Every row, in its order, by its policy and its way to reclaim. The first squeezes a cgroup of its own.
fn expected_rows() -> Vec<(&'static str, &'static str)> {
    let squeezed = ("kernel", "cgroup");
    std::iter::once(squeezed).chain(POLICIES.map(|policy| (policy, "pageout"))).collect()
}

/// What ends a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Hup,
    Int,
    Term,
    Kill,
    /// Ctrl-\\, which nothing in the program handles.
    Quit,
    ClosedTerminal,
    BrokenPipe,
    FullDisk,
}

impl Way {
    /// Those of the matrix.
    const ALL: [Self; 7] = [
        Self::Hup,
        Self::Int,
        Self::Term,
        Self::Kill,
        Self::ClosedTerminal,
        Self::BrokenPipe,
        Self::FullDisk,
    ];

    fn signal(self) -> Option<Signal> {
        match self {
            Self::Hup => Some(Signal::HUP),
            Self::Int => Some(Signal::INT),
            Self::Term => Some(Signal::TERM),
            Self::Kill => Some(Signal::KILL),
            Self::Quit => Some(Signal::QUIT),
            Self::ClosedTerminal | Self::BrokenPipe | Self::FullDisk => None,
        }
    }

    /// Whether the process ends without a part in it.
    fn is_sudden(self) -> bool {
        matches!(self, Self::Kill | Self::Quit)
    }

    /// Whether the run goes on to its last row.
    fn is_survived(self) -> bool {
        matches!(self, Self::BrokenPipe | Self::FullDisk)
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A moment of a run, by what can be seen of it.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// The directory is reserved.
    Reserved,
    /// There is a zram device.
    Device,
    /// It is swapped to.
    Swap,
    /// The process is in a cgroup of its own.
    Squeezed,
    /// So many rows are on the disk.
    Rows(usize),
}

const MOMENTS: [Moment; 11] = [
    Moment::Reserved,
    Moment::Device,
    Moment::Swap,
    Moment::Squeezed,
    Moment::Rows(1),
    Moment::Rows(2),
    Moment::Rows(3),
    Moment::Rows(4),
    Moment::Rows(5),
    Moment::Rows(6),
    Moment::Rows(7),
];

fn finished_rows_are_kept_and_the_host_is_as_it_was(way: Way) {
    // All of them take an emulated host half an hour: there, one before the first row, two between rows.
    let every = if host::emulated() { 4 } else { 1 };
    MOMENTS.into_iter().step_by(every).for_each(|moment| end_at(way, moment));
}

fn ctrl_backslash_is_no_worse_than_sigkill() {
    [Moment::Swap, Moment::Squeezed, Moment::Rows(3)]
        .into_iter()
        .for_each(|moment| end_at(Way::Quit, moment));
}

fn end_at(way: Way, moment: Moment) {
    let cell = format!("{way} at {moment:?}");
    let _waiting = harness::waiting(cell.clone());
    let before = Swaps::now();
    let mut run = Run::start(way);
    run.wait_for(moment, &before, &cell);
    let seen = run.rows().map_or(0, |rows| rows.len());
    run.end_by(way);
    let status = run.wait(way, &cell);
    let rows = run.check(way, status, seen, &cell);
    let deadline = Instant::now() + PATIENCE;
    while let Some(left) = left_of(run.pid, &before) {
        assert!(Instant::now() < deadline, "{cell}: {left}");
        std::thread::sleep(Duration::from_millis(5));
    }
    println!("    {cell}: {seen} rows were there, {rows} are");
}

/// Some short rows, each of which evicts to the swap device. The one in a cgroup lasts long enough to be met there; no
/// vCPU uses its memory while it is squeezed, because cgroups of version 1 may end that with the OOM killer.
fn scenario() -> Scenario {
    let matrix = ["matrix.policy = [\"kernel\"]", "matrix.reclaim = [\"cgroup\"]"];
    let scenario = scenario::of("4MiB").policies(&POLICIES).reclaims(&["pageout"]);
    let squeezed = scenario.case("squeezed").of_case(matrix[0]).of_case(matrix[1]).fill().hot(8);
    let squeezed = squeezed.baseline("200ms").stop().sparse(16).refault();
    squeezed.case("c").fill().hot(8).baseline("20ms").sparse(16).stop().refault()
}

/// What holds the run's output.
enum Held {
    /// Files, which need no reader.
    Files,
    /// The reading ends of pipes.
    Pipes,
    Terminal(Terminal),
}

struct Run {
    child: Child,
    pid: Pid,
    held: Held,
    /// Where the run directory is.
    out: PathBuf,
    disk: Option<Disk>,
    place: Place,
}

impl Run {
    fn start(way: Way) -> Self {
        let place = Place::of(&scenario());
        let at = place.path();
        let disk = (way == Way::FullDisk).then(|| Disk::small(&at.join("disk")));
        let out = at.join("disk/out");
        let arguments = ["run", "s.toml", "--zram", "64MiB", "--json", "--out", "disk/out"];
        let mut command = program::without_core(place.zapscope(&arguments));
        let (held, child) = match way {
            Way::ClosedTerminal => {
                let (terminal, child) = Terminal::start(command).unwrap();
                (Held::Terminal(terminal), child)
            }
            Way::BrokenPipe => (Held::Pipes, command.process_group(0).spawn().unwrap()),
            _ => {
                command.stdout(File::create(at.join("stdout")).unwrap());
                command.stderr(File::create(at.join("stderr")).unwrap());
                (Held::Files, command.process_group(0).spawn().unwrap())
            }
        };
        let pid = Pid::from_child(&child);
        Self { child, pid, held, out, disk, place }
    }

    /// The rows on the disk; `None` if there is no record.
    fn rows(&self) -> Option<Vec<Value>> {
        Some(self.record()?["rows"].as_array().unwrap().clone())
    }

    fn record(&self) -> Option<Value> {
        let text = fs::read(self.out.join("run.json")).ok()?;
        Some(serde_json::from_slice(&text).expect("a record is there whole or not at all"))
    }

    /// Whether it is in a cgroup of its own.
    fn is_in_a_cgroup(&self) -> bool {
        let pid = self.pid.as_raw_nonzero();
        fs::read_to_string(format!("/proc/{pid}/cgroup"))
            .is_ok_and(|groups| groups.contains(&of_run(pid.get())))
    }

    /// What it said, as far as that can be known.
    fn said(&self) -> String {
        fs::read_to_string(self.place.file("stderr")).unwrap_or_default()
    }

    fn wait_for(&mut self, moment: Moment, before: &Swaps, cell: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Held::Terminal(terminal) = &mut self.held {
                terminal.drain();
            }
            let come = match moment {
                Moment::Reserved => self.out.join("events.log").exists(),
                Moment::Device => Swaps::now().devices.len() > before.devices.len(),
                Moment::Swap => Swaps::now().areas.len() > before.areas.len(),
                Moment::Squeezed => self.is_in_a_cgroup(),
                Moment::Rows(rows) => self.rows().is_some_and(|there| there.len() >= rows),
            };
            if come {
                return;
            }
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("{cell}: it ended before, with {status}: {}", self.said());
            }
            assert!(Instant::now() < deadline, "{cell}: the moment does not come: {}", self.said());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn end_by(&mut self, way: Way) {
        if let Some(signal) = way.signal() {
            kill_process(self.pid, signal).unwrap();
        }
        match &self.disk {
            Some(disk) => disk.fill(self.pid),
            None => {
                // Whatever reads the output goes.
                (self.child.stdout, self.child.stderr) = (None, None);
                self.held = Held::Files;
            }
        }
    }

    /// Waits for the end of the process, and sees that no other is left of its group.
    fn wait(&mut self, way: Way, cell: &str) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let late = Instant::now() >= deadline;
            if let Some(status) = self.child.try_wait().unwrap() {
                let left = test_kill_process_group(self.pid);
                if left == Err(Errno::SRCH) {
                    return status;
                }
                // What it had just started ends by itself once it is gone, a moment later.
                assert!(way.is_sudden() && !late, "{cell}: a process is left: {}", self.said());
            } else if late {
                let _ = kill_process(self.pid, Signal::KILL);
                panic!("{cell}: it goes on: {}", self.said());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// What is on the disk is a beginning of the run that holds at least what was seen, and every reader reads it.
    /// Returns its rows.
    fn check(&self, way: Way, status: ExitStatus, seen: usize, cell: &str) -> usize {
        let said = self.said();
        assert!(!said.contains("panicked"), "{cell}: {said}");
        let Some(record) = self.record() else {
            assert_eq!(seen, 0, "{cell}: rows are gone: {said}");
            self.check_end(way, status, (None, seen), cell);
            return 0;
        };
        let rows = record["rows"].as_array().unwrap();
        assert!(rows.len() >= seen, "{cell}: rows are gone: {said}");
        for (row, (policy, reclaim)) in rows.iter().zip(expected_rows()) {
            let labels = ["policy", "reclaim", "could_not_run"].map(|key| &row[key]);
            assert_eq!(labels, [&policy.into(), &reclaim.into(), &Value::Null], "{cell}: {row:#}");
        }
        self.check_end(way, status, (record["ended"].as_str(), seen), cell);
        if way.is_survived() {
            let text = fs::read(self.place.file("stdout")).unwrap_or_default();
            let printed = serde_json::from_slice::<Value>(&text).map(|record| record["rows"].clone());
            let all = expected_rows().len();
            assert!(
                way == Way::BrokenPipe || printed.is_ok_and(|rows| rows.as_array().unwrap().len() == all)
            );
        }
        for reader in ["replay", "timeline"] {
            let read = self.place.run(&[reader, "disk/out", "--json"]);
            let said = &read.said;
            // With no section that fitted there is nothing to read, and that is said.
            let nothing = way == Way::FullDisk && said.contains("holds no row");
            assert!(read.status.success() || nothing, "{cell}: {reader}: {said}");
            assert_eq!(said.contains("did not end"), record["ended"].is_null(), "{cell}: {reader}: {said}");
            let read: Value = serde_json::from_slice(&read.out).unwrap_or(Value::Array(Vec::new()));
            if reader == "timeline" && way != Way::FullDisk {
                assert_eq!(read.as_array().unwrap().len(), rows.len(), "{cell}: every row has its events");
            }
        }
        rows.len()
    }

    /// It ended as it should, and the record says so. `seen` rows were on the disk when it was to end.
    fn check_end(&self, way: Way, status: ExitStatus, (ended, seen): (Option<&str>, usize), cell: &str) {
        let said = self.said();
        match (way, ended) {
            (_, Some("complete")) => {
                // With the last rows on their way it may be too late; before them, who is told to end does.
                let goes_on = matches!(way, Way::BrokenPipe | Way::FullDisk);
                assert!(goes_on || seen + 2 >= expected_rows().len(), "{cell}: it did not end: {said}");
                assert!([Some(0), Some(5)].contains(&status.code()), "{cell}: {status}");
            }
            (Way::Kill | Way::Quit, _) => {
                let signal = way.signal().map(Signal::as_raw);
                assert_eq!((status.signal(), ended), (signal, None), "{cell}: {said}");
            }
            (Way::FullDisk, None) => {
                assert_eq!(status.code(), Some(5), "{cell}: {said}");
                assert!(said.contains("does not hold the whole run"), "{cell}: {said}");
            }
            (Way::BrokenPipe, _) => panic!("{cell}: it did not go on: {status}"),
            (_, _) => {
                assert_eq!(status.code(), Some(130), "{cell}: {said}");
                assert!(ended == Some("cancelled") || !self.out.exists(), "{cell}: {ended:?}");
            }
        }
    }
}

/// A file system of a megabyte, or a directory where none can be mounted.
struct Disk {
    path: PathBuf,
    is_mounted: bool,
}

impl Disk {
    fn small(path: &Path) -> Self {
        fs::create_dir(path).unwrap();
        let mounted = rustix::mount::mount("none", path, "tmpfs", MountFlags::empty(), Some(c"size=1m"));
        Self { path: path.to_owned(), is_mounted: mounted.is_ok() }
    }

    /// Fills it; or, where it is no disk of its own, keeps `pid` from making any file larger.
    fn fill(&self, pid: Pid) {
        if !self.is_mounted {
            // One that has ended needs no limit.
            let _ = prlimit(Some(pid), Resource::Fsize, Rlimit { current: Some(1), maximum: None });
            return;
        }
        let mut ballast = File::create(self.path.join("ballast")).unwrap();
        while ballast.write_all(&[1; 4096]).is_ok() {}
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.is_mounted {
            let _ = rustix::mount::unmount(&self.path, UnmountFlags::DETACH);
        }
    }
}

/// What is left of the run `pid`, of which nothing was there `before`.
fn left_of(pid: Pid, before: &Swaps) -> Option<String> {
    let (pid, now) = (pid.as_raw_nonzero().get(), Swaps::now());
    let mut left = Vec::new();
    left.extend(now.areas.difference(&before.areas).map(|name| format!("the swap area {name}")));
    left.extend(now.devices.difference(&before.devices).map(|name| format!("the device {name}")));
    cgroups(Path::new("/sys/fs/cgroup"), &of_run(pid), &mut left);
    left.extend(guardian_of(pid));
    (!left.is_empty()).then(|| left.join(", "))
}

/// How everything begins that the run `pid` makes and names.
fn of_run(pid: i32) -> String {
    format!("zapscope-{pid}-")
}

/// Adds the cgroups of this name below `directory`.
fn cgroups(directory: &Path, name: &str, found: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        if entry.file_name().to_str().is_some_and(|known| known.starts_with(name)) {
            found.push(format!("the cgroup {}", entry.path().display()));
        }
        cgroups(&entry.path(), name, found);
    }
}

/// The guardian of the process `pid`.
fn guardian_of(pid: i32) -> Option<String> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let arguments = |process: fs::DirEntry| {
        let mut text = String::new();
        File::open(process.path().join("cmdline")).ok()?.read_to_string(&mut text).ok()?;
        Some(text)
    };
    let ends = format!("{}\0{pid}\0", ::host::guardian::GUARDIAN_ARGUMENT);
    processes
        .filter_map(arguments)
        .find(|text| text.ends_with(&ends))
        .map(|_| format!("the guardian of {pid}"))
}
