//! Every way out leaves the host as it was: the end, Ctrl-C, SIGKILL; and two runs at once (see also `interrupted`).

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use tests::program;

crate::tests! {
    the_end_of_a_run_takes_its_swap_away: [Zram],
    ctrl_c_takes_the_swap_away: [Zram],
    ctrl_c_stops_a_guest_in_a_storm_of_zaps: [Kvm, SlotZap, Zram],
    an_end_that_nobody_hears_of_takes_the_swap_away: [Zram],
    sigkill_takes_the_swap_away: [Zram],
    a_second_run_has_its_own_device_and_both_are_warned: [Zram],
}

/// How long the way out may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A scenario that runs for much longer than the tests need, and one that is soon over.
fn scenario(baseline: &str) -> String {
    format!(
        "name = \"x\"\nmemory = \"8MiB\"\n[matrix]\nbacking = [\"4k\"]\npolicy = [\"kernel\"]\n[[case]]\n\
         name = \"c\"\n[[case.step]]\ndo = \"fill\"\n[[case.step]]\ndo = \"hot\"\ncount = 8\n[[case.step]]\n\
         do = \"baseline\"\nfor = \"{baseline}\"\n[[case.step]]\ndo = \"reclaim\"\nvictims = \"sparse\"\ncount = 64\n"
    )
}

/// Swap devices and zram devices of this host.
pub fn host() -> (String, Vec<String>) {
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap();
    let names: Vec<&str> = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    let entries = std::fs::read_dir("/sys/block").unwrap();
    let mut devices: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("zram"))
        .collect();
    devices.sort();
    (names.join(" "), devices)
}

/// A run with a zram device, and what it writes to standard error up to the row it has begun.
struct Running {
    child: Child,
    stderr: BufReader<std::process::ChildStderr>,
    said: String,
    directory: tempfile::TempDir,
}

impl Running {
    fn start(baseline: &str) -> Self {
        Self::run(&scenario(baseline), "soft")
    }

    fn run(scenario: &str, backend: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("scenario.toml"), scenario).unwrap();
        let arguments = ["run", "scenario.toml", "--zram", "64MiB", "--backend", backend, "--json"];
        let mut child =
            program::zapscope(directory.path(), &arguments).stdout(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let mut running = Self { child, stderr, said: String::new(), directory };
        running.read_until("[1/1]");
        running
    }

    fn read_until(&mut self, wanted: &str) {
        while !self.said.contains(wanted) {
            let read = self.stderr.read_line(&mut self.said).unwrap();
            assert!(read > 0, "it ended without {wanted:?}: {}", self.said);
        }
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for its end. Returns its exit code, if it exited, and all it said.
    fn end(mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        self.stderr.read_to_string(&mut rest).unwrap();
        let status = self.child.wait().unwrap();
        drop(self.directory);
        (status.code(), self.said + &rest)
    }
}

/// Waits until the host is as it was.
fn restored(before: &(String, Vec<String>)) {
    let deadline = Instant::now() + PATIENCE;
    while host() != *before {
        assert!(Instant::now() < deadline, "the host was {before:?} and is {:?}", host());
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn the_end_of_a_run_takes_its_swap_away() {
    let before = host();
    let running = Running::start("1ms");
    let (code, said) = running.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("zram"), "the change is announced: {said}");
    assert_eq!(host(), before);
}

fn ctrl_c_takes_the_swap_away() {
    let before = host();
    let running = Running::start("60s");
    assert_ne!(host(), before);
    running.signal(rustix::process::Signal::INT);
    let (code, said) = running.end();
    assert_eq!(code, Some(130), "{said}");
    assert_eq!(host(), before);
}

/// The vCPU is stopped and let go thousands of times a second when the run is told to end: it must hear of it
/// wherever it is just then.
fn ctrl_c_stops_a_guest_in_a_storm_of_zaps() {
    let before = host();
    let storm = scenario("1ms").replace("[\"kernel\"]", "[\"slot\"]").replace(
        "victims = \"sparse\"\ncount = 64\n",
        "range = \"0..4MiB\"\nunit = \"page\"\npace = \"2ms\"\n",
    );
    // The storm lasts two seconds at least; on an emulated host it begins only after some hundred milliseconds.
    for moment in [20, 50, 90, 130, 1000] {
        let running = Running::run(&storm, "kvm");
        std::thread::sleep(Duration::from_millis(moment));
        running.signal(rustix::process::Signal::INT);
        let (code, said) = running.end();
        assert_eq!(code, Some(130), "{said}");
        assert_eq!(host(), before);
    }
}

/// Standard error that nobody reads any more changes nothing.
fn an_end_that_nobody_hears_of_takes_the_swap_away() {
    let before = host();
    let Running { mut child, stderr, directory, .. } = Running::start("300ms");
    drop(stderr);
    let status = child.wait().unwrap();
    assert!(status.success(), "{status:?}");
    assert_eq!(host(), before);
    drop(directory);
}

fn sigkill_takes_the_swap_away() {
    let before = host();
    let running = Running::start("60s");
    running.signal(rustix::process::Signal::KILL);
    let (code, _) = running.end();
    assert_eq!(code, None);
    restored(&before);
}

fn a_second_run_has_its_own_device_and_both_are_warned() {
    let before = host();
    // Long enough for another to start and end meanwhile.
    let first = Running::start(if tests::host::emulated() { "15s" } else { "1500ms" });
    let second = Running::start("1ms");
    assert_eq!(host().1.len(), before.1.len() + 2, "a device each");
    let outcomes = [second.end(), first.end()];
    for (code, said) in outcomes {
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("another zapscope"), "a warning that the other disturbs: {said}");
    }
    assert_eq!(host(), before);
}
