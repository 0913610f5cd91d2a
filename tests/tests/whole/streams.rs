//! Standard output and standard error that fail, or that have no reader: the measurements, the changes to the host
//! and the commands that run on do not depend on them.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::termios::{LocalModes, tcgetattr};
use tests::place::Place;
use tests::pty::Terminal;
use tests::record::rows;
use tests::scenario::{self, Scenario};
use tests::swaps::Swaps;
use tests::{bzimage, code, program};

crate::tests! {
    a_reader_that_has_gone_costs_nothing: [],
    a_full_device_is_told_and_costs_no_record: [],
    attach_goes_on_without_a_reader: [Kvm, Tap],
    a_vanished_reader_of_messages_keeps_no_signal_from_a_run: [Zram],
    a_reader_that_is_slow_gets_the_whole_result: [],
    a_stalled_console_stops_nobody_and_every_signal_ends_it: [Kvm],
    a_stalled_console_is_left_by_ctrl_a_x: [Kvm],
}

/// How long an end may take that was asked for.
const SOON: Duration = Duration::from_secs(30);
/// The exit codes that matter here.
const FAULT: i32 = 5;
const INTERRUPTED: i32 = 130;

fn scenario() -> Scenario {
    scenario::of("8MiB").policies(&["kernel", "pmd"]).fill()
}

/// A place with a scenario, and a run of it.
fn place() -> Place {
    let place = Place::of(&scenario().sparse(64));
    place.run(&["run", "s.toml", "--backend", "soft", "--out", "run"]).with(0);
    place
}

/// Every command that prints a result and needs nothing of the host.
const COMMANDS: [&[&str]; 9] = [
    &["run", "s.toml", "--backend", "soft", "--out", "out"],
    &["run", "s.toml", "--backend", "soft", "--out", "out", "--json"],
    &["run", "s.toml", "--backend", "soft", "--out", "out", "--format", "ktap"],
    &["doctor"],
    &["doctor", "--json"],
    &["replay", "run", "--policy", "folio"],
    &["timeline", "run"],
    &["timeline", "run", "--json"],
    &["--help"],
];

/// The writing end of a pipe without a reader.
fn nobody() -> Stdio {
    let (_, write) = std::io::pipe().unwrap();
    Stdio::from(OwnedFd::from(write))
}

fn full() -> Stdio {
    Stdio::from(File::options().write(true).open("/dev/full").unwrap())
}

/// Runs a command with these streams. A run leaves its whole directory. Returns the exit code and standard error.
fn end_of(place: &Place, arguments: &[&str], out: Stdio, err: Stdio) -> (Option<i32>, String) {
    let mut command = program::grouped(place.path(), arguments);
    let output = program::end_of_group(command.stdout(out).stderr(err).spawn().unwrap());
    let said = program::stderr(&output);
    assert!(!said.contains("panicked"), "{arguments:?}: {said}");
    if arguments[0] == "run" {
        assert_eq!(rows(&place.json("out/run.json")).len(), 2, "{arguments:?}");
        assert!(fs::metadata(place.file("out/events.log")).unwrap().len() > 0, "{arguments:?}");
        fs::remove_dir_all(place.file("out")).unwrap();
    }
    (output.status.code(), said)
}

fn a_reader_that_has_gone_costs_nothing() {
    let place = place();
    for arguments in COMMANDS {
        let (code, said) = end_of(&place, arguments, nobody(), Stdio::piped());
        assert_eq!(code, Some(0), "{arguments:?} | true: {said}");
        assert!(!said.contains("standard output"), "{arguments:?}: it is nobody's fault: {said}");
        assert_eq!(end_of(&place, arguments, nobody(), nobody()).0, Some(0), "{arguments:?} 2>&1 | true");
        assert_eq!(end_of(&place, arguments, Stdio::null(), nobody()).0, Some(0), "{arguments:?} 2> closed");
    }
}

fn a_full_device_is_told_and_costs_no_record() {
    let place = place();
    for arguments in COMMANDS {
        let (code, said) = end_of(&place, arguments, full(), Stdio::piped());
        assert_eq!(code, Some(FAULT), "{arguments:?} > /dev/full: {said}");
        assert!(said.contains("standard output") && said.contains("No space left"), "{arguments:?}: {said}");
        assert_eq!(end_of(&place, arguments, Stdio::null(), full()).0, Some(0), "{arguments:?} 2> /dev/full");
    }
}

/// `boot` of a kernel of some instructions.
fn boot(place: &Place, code: &[u8]) -> Command {
    place.put("kernel", bzimage::kernel(code));
    program::grouped(place.path(), &["boot", "--kernel", "kernel", "--vcpus", "2"])
}

fn attach_goes_on_without_a_reader() {
    let place = Place::new();
    let mut command = boot(&place, &[code::say("up\n"), code::halt()].concat());
    let mut guest = command.spawn().unwrap();
    let mut line = [0; 3];
    std::io::Read::read_exact(guest.stdout.as_mut().unwrap(), &mut line).unwrap();
    let pid = guest.id().to_string();
    for json in [&[][..], &["--json"]] {
        for (out, err) in [(nobody(), Stdio::piped()), (nobody(), nobody())] {
            let attach = ["attach", "--pid", &pid, "--for", "300ms", "--every", "50ms", "--out", "record"];
            let (code, said) = end_of(&place, &[&attach[..], json].concat(), out, err);
            assert_eq!(code, Some(0), "{said}");
            let record = place.json("record/attach.json");
            assert!(record["spans"].as_array().unwrap().len() > 1, "{record:#}");
            fs::remove_dir_all(place.file("record")).unwrap();
        }
    }
    kill_process(Pid::from_child(&guest), Signal::TERM).unwrap();
    assert_eq!(program::end_of_group(guest).status.code(), Some(INTERRUPTED));
}

/// The first row waits for a minute: it ends because of the signal.
fn a_vanished_reader_of_messages_keeps_no_signal_from_a_run() {
    let scenario = scenario().hot(8).baseline("60s").sparse(64);
    for signal in [Signal::HUP, Signal::INT, Signal::TERM] {
        let before = Swaps::now();
        let place = Place::of(&scenario);
        let mut command =
            program::grouped(place.path(), &["run", "s.toml", "--backend", "soft", "--zram", "64MiB"]);
        let mut child = command.stdout(nobody()).spawn().unwrap();
        read_until(child.stderr.as_mut().unwrap(), "[1/2]");
        drop(child.stderr.take());
        kill_process(Pid::from_child(&child), signal).unwrap();
        let output = program::end_of_group_within(child, SOON);
        assert_eq!(output.status.code(), Some(INTERRUPTED), "{signal:?}");
        assert_eq!(Swaps::now(), before, "{signal:?}");
    }
}

fn read_until(from: &mut impl std::io::Read, wanted: &str) {
    let (mut said, mut byte) = (Vec::new(), [0]);
    while !said.ends_with(wanted.as_bytes()) {
        from.read_exact(&mut byte)
            .unwrap_or_else(|_| panic!("no {wanted:?} in {}", String::from_utf8_lossy(&said)));
        said.extend(byte);
    }
}

/// More than a pipe holds, and a reader who comes late, as a pager does.
fn a_reader_that_is_slow_gets_the_whole_result() {
    let policies = ["kernel", "page", "folio", "pmd", "modern", "vm"];
    let of_case = |scenario: Scenario, case: u32| scenario.case(&format!("c{case}")).fill().sparse(64);
    let place = Place::of(&(0..8).fold(scenario::of("8MiB").policies(&policies), of_case));
    let mut command =
        program::grouped(place.path(), &["run", "s.toml", "--backend", "soft", "--out", "out", "--json"]);
    let mut child = command.spawn().unwrap();
    let out = child.stdout.take().unwrap();
    await_full(&out);
    // Longer than a program that was told to stop would wait.
    std::thread::sleep(Duration::from_secs(3));
    assert!(child.try_wait().unwrap().is_none(), "it did not wait for its reader");
    child.stdout = Some(out);
    let output = program::end_of_group(child);
    assert_eq!(output.status.code(), Some(0), "{}", program::stderr(&output));
    assert_eq!(output.stdout, fs::read(place.file("out/run.json")).unwrap());
}

/// Bytes in a pipe.
fn waiting_in(pipe: &ChildStdout) -> u64 {
    rustix::io::ioctl_fionread(pipe).unwrap()
}

/// Clock ticks that the process's vCPUs have run.
fn vcpu_time(pid: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let vcpus = tasks.filter_map(|task| {
        let task = task.ok()?.path();
        let name = fs::read_to_string(task.join("comm")).ok()?;
        let stat = fs::read_to_string(task.join("stat")).ok().filter(|_| name.starts_with("vcpu"))?;
        let fields = stat.rsplit_once(')')?.1.split_whitespace();
        Some(fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum::<u64>())
    });
    vcpus.sum()
}

/// Waits until a pipe holds much and takes no more: what fits depends on how it was cut into writes.
fn await_full(pipe: &ChildStdout) {
    const MUCH: u64 = 40 << 10;
    let _waiting = harness::waiting("the pipe of standard output to be full");
    let deadline = Instant::now() + 4 * SOON;
    let mut before = 0;
    loop {
        let now = waiting_in(pipe);
        if now >= MUCH && now == before {
            return;
        }
        before = now;
        assert!(Instant::now() < deadline, "{now} bytes came");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Waits until the console's pipe is full, and the guest prints on all the same.
fn await_stall(child: &Child, out: &ChildStdout) {
    await_full(out);
    let _waiting = harness::waiting("a guest that prints on in front of a full pipe");
    let deadline = Instant::now() + 4 * SOON;
    let before = vcpu_time(child.id());
    // Half a second of a vCPU's time is thousands of bytes.
    while vcpu_time(child.id()) < before + 50 {
        assert!(Instant::now() < deadline, "the guest stands still");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn a_stalled_console_stops_nobody_and_every_signal_ends_it() {
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let place = Place::new();
        let mut child = boot(&place, &code::chatter()).spawn().unwrap();
        let out = child.stdout.take().unwrap();
        await_stall(&child, &out);
        kill_process(Pid::from_child(&child), signal).unwrap();
        let output = program::end_of_group_within(child, SOON);
        assert_eq!(output.status.code(), Some(INTERRUPTED), "{signal:?}: {}", program::stderr(&output));
    }
}

fn a_stalled_console_is_left_by_ctrl_a_x() {
    let place = Place::new();
    let (mut keyboard, terminal) = Terminal::pair().unwrap();
    let before = tcgetattr(&terminal).unwrap();
    let mut child = boot(&place, &code::chatter()).stdin(terminal.try_clone().unwrap()).spawn().unwrap();
    let out = child.stdout.take().unwrap();
    await_stall(&child, &out);
    assert!(!tcgetattr(&terminal).unwrap().local_modes.contains(LocalModes::ICANON), "raw while it runs");
    keyboard.write_all(b"\x01x").unwrap();
    let output = program::end_of_group_within(child, SOON);
    assert_eq!(output.status.code(), Some(INTERRUPTED), "{}", program::stderr(&output));
    assert_eq!(tcgetattr(&terminal).unwrap().local_modes, before.local_modes, "as it was");
}
