//! What a run finds is on the disk when a row is finished, and where it will be is known before the run begins.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output};
use std::time::{Duration, Instant};

use guest_mem::Backing;
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use serde_json::Value;
use tests::machine::{Bare, config};
use tests::{elf, program, record, stand_in};

crate::tests! {
    what_is_in_the_way_is_found_before_anything_is_done: [],
    two_runs_do_not_share_a_directory: [],
    a_full_disk_loses_nothing_while_the_run_lives: [],
    what_did_not_fit_is_written_when_there_is_room: [],
    a_row_that_ends_the_run_keeps_those_before_it: [Kvm, SlotZap],
    a_trace_that_does_not_fit_leaves_nothing: [],
    a_snapshot_that_does_not_fit_leaves_nothing: [Kvm],
    an_account_that_does_not_fit_is_told: [Kvm, Tap],
    an_account_that_is_killed_is_there_as_far_as_it_came: [Kvm, Tap],
    a_snapshot_that_is_ended_leaves_nothing: [Kvm],
}

/// Exit codes.
const MISTAKE: i32 = 2;
const HOST: i32 = 3;
const FAULT: i32 = 5;

/// A scenario of some rows whose events take some tens of kilobytes each.
fn scenario(policies: &[&str], baseline: &str) -> String {
    format!(
        "name = \"x\"\nmemory = \"16MiB\"\n[matrix]\nbacking = [\"4k\"]\npolicy = {policies:?}\n\
         reclaim = [\"dontneed\"]\n[[case]]\nname = \"c\"\n[[case.step]]\ndo = \"fill\"\n[[case.step]]\ndo = \"hot\"\n\
         count = 8\n[[case.step]]\ndo = \"baseline\"\nfor = \"{baseline}\"\n[[case.step]]\ndo = \"reclaim\"\n\
         victims = \"sparse\"\ncount = 1500\n"
    )
}

/// A directory with a scenario `s.toml` of three rows in it.
fn place(baseline: &str) -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("s.toml"), scenario(&["kernel", "folio", "pmd"], baseline)).unwrap();
    place
}

const RUN: [&str; 7] = ["run", "s.toml", "--backend", "soft", "--json", "--out", "out"];

/// Has the files that `command` writes end at so many bytes: `ulimit -f`.
fn limited(mut command: Command, bytes: u64) -> Command {
    stand_in::limited(&mut command, Resource::Fsize, bytes);
    command
}

fn said_of(output: &Output, code: i32) -> String {
    let said = program::stderr(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    said
}

/// The names in a directory.
fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(directory).unwrap().map(|one| one.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn what_is_in_the_way_is_found_before_anything_is_done() {
    let place = place("1ms");
    let at = place.path();
    fs::write(at.join("file"), "").unwrap();
    for (directory, holds) in [("held", "run.json"), ("half", "events.log"), ("watched", "attach.json")] {
        fs::create_dir(at.join(directory)).unwrap();
        fs::write(at.join(directory).join(holds), "").unwrap();
    }
    let refused = |arguments: &[&str], words: &[&str]| {
        let said = said_of(&program::output(at, arguments), MISTAKE);
        for word in words {
            assert!(said.contains(word), "{arguments:?} does not say {word:?}: {said}");
        }
        assert!(!said.contains("[1/") && !said.contains("host change"), "{arguments:?}: {said}");
    };
    // A directory of /proc or /sys cannot be made by anybody.
    for (out, word) in [
        ("held", "held/run.json is there already"),
        ("half", "half/events.log is there already"),
        ("file", "file is no directory"),
        ("file/below", "file/below is no directory"),
        ("/proc/zapscope", "cannot write /proc/zapscope"),
    ] {
        refused(&["run", "s.toml", "--zram", "64MiB", "--out", out], &[word, "--out"]);
    }
    for (out, word) in [("watched", "attach.json is there already"), ("file", "file is no directory")] {
        refused(&["attach", "--pid", "1", "--out", out], &[word, "--out"]);
    }
    record::printed(at, &RUN);
    for (trace, word) in [("file", "file is there already"), ("nowhere/t", "nowhere/t")] {
        refused(&["timeline", "out", "--trace", trace], &[word]);
    }
    refused(&["snapshot", "--memory", "2MiB", "--out", "out"], &["out is no regular file"]);
    refused(&["snapshot", "--memory", "2MiB", "--out", "nowhere/s"], &["nowhere/s"]);
    assert_eq!(names(at), ["file", "half", "held", "out", "s.toml", "watched"]);
}

/// A run whose standard error is read as it comes.
struct Running {
    child: Child,
    stderr: BufReader<ChildStderr>,
    said: String,
}

impl Running {
    fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Self { child, stderr, said: String::new() }
    }

    fn read_until(&mut self, wanted: &str) {
        let _waiting = harness::waiting(format!("a run to say {wanted:?}"));
        while !self.said.contains(wanted) {
            let read = self.stderr.read_line(&mut self.said).unwrap();
            assert!(read > 0, "it ended without {wanted:?}: {}", self.said);
        }
    }

    fn end(mut self) -> (Output, String) {
        let _waiting = harness::waiting("the end of a run");
        let output = std::thread::scope(|scope| {
            let rest = scope.spawn(|| {
                let mut rest = String::new();
                self.stderr.read_to_string(&mut rest).unwrap();
                rest
            });
            let output = self.child.wait_with_output().unwrap();
            self.said += &rest.join().unwrap();
            output
        });
        (output, self.said)
    }
}

fn two_runs_do_not_share_a_directory() {
    let place = place("60s");
    let mut first = Running::start(program::zapscope(place.path(), &RUN));
    first.read_until("[1/3]");
    let said = said_of(&program::output(place.path(), &RUN), MISTAKE);
    assert!(said.contains("another zapscope is writing into out") && said.contains("--out"), "{said}");
    kill_process(Pid::from_child(&first.child), Signal::INT).unwrap();
    let (output, said) = first.end();
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("nothing to keep"), "{said}");
    assert_eq!(names(place.path()), ["s.toml"], "a run without a row leaves nothing");
}

/// What `run.json` says of the whole.
fn warnings(record: &Value) -> String {
    let all = record["warnings"].as_array().unwrap().iter();
    all.map(|one| one["text"].as_str().unwrap().to_owned() + "\n").collect()
}

/// Bytes that hold the record of three rows and the events of the first, and not those of the second: by a run without a
/// limit, since how large they are depends on the host.
fn room_for_one_row() -> u64 {
    let place = place("1ms");
    record::printed(place.path(), &RUN);
    let file = |name| fs::read(place.path().join("out").join(name)).unwrap();
    let (log, record) = (file("events.log"), file("run.json"));
    let number = |at: usize| u32::from_le_bytes(log[at..at + 4].try_into().unwrap()) as usize;
    let end_of = |begin: usize| begin + 12 + number(begin) + number(begin + 4);
    let first = end_of(16);
    let room = (first + end_of(first)) / 2;
    // What was not kept is said in the record, which takes some more.
    assert!(record.len() + 1024 < room, "{} bytes of record, {room} of room", record.len());
    room as u64
}

fn a_full_disk_loses_nothing_while_the_run_lives() {
    // Room for the record of three rows, and for the events of one: of none at all.
    for (room, events, has_record) in [(room_for_one_row(), 1, true), (1 << 10, 0, false)] {
        let place = place("1ms");
        let output = limited(program::zapscope(place.path(), &RUN), room).output().unwrap();
        let said = said_of(&output, FAULT);
        assert_eq!(said.matches("rows do not reach the disk").count(), 1, "{said}");
        assert!(said.contains("File too large") && said.contains("does not hold the whole run"), "{said}");
        let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(record::rows(&printed).len(), 3, "nothing that was measured is lost");
        let kept = fs::read(place.path().join("out/run.json"));
        assert_eq!(kept.is_ok(), has_record);
        let Ok(kept) = kept else {
            let said = said_of(&program::output(place.path(), &["replay", "out"]), MISTAKE);
            assert!(said.contains("before it had finished a row"), "{said}");
            continue;
        };
        let kept: Value = serde_json::from_slice(&kept).unwrap();
        assert_eq!(kept["rows"], printed["rows"]);
        assert_eq!(kept["ended"], "complete");
        assert!(warnings(&kept).contains("lacks the events of row 1, 2"), "{}", warnings(&kept));
        let (times, _) = record::printed(place.path(), &["timeline", "out", "--json"]);
        assert_eq!(times.as_array().unwrap().len(), events);
        record::printed(place.path(), &["replay", "out", "--json"]);
        assert_eq!(names(&place.path().join("out")), ["events.log", "run.json"]);
    }
}

fn what_did_not_fit_is_written_when_there_is_room() {
    let place = place("200ms");
    let mut run = Running::start(limited(program::zapscope(place.path(), &RUN), 1 << 10));
    run.read_until("rows do not reach the disk");
    let unlimited = Rlimit { current: None, maximum: None };
    prlimit(Some(Pid::from_child(&run.child)), Resource::Fsize, unlimited).unwrap();
    let (output, said) = run.end();
    assert_eq!(output.status.code(), Some(0), "{said}");
    let kept: Value = serde_json::from_slice(&fs::read(place.path().join("out/run.json")).unwrap()).unwrap();
    assert_eq!(kept, serde_json::from_slice::<Value>(&output.stdout).unwrap());
    assert!(!warnings(&kept).contains("lacks"), "{}", warnings(&kept));
    let (times, _) = record::printed(place.path(), &["timeline", "out", "--json"]);
    assert_eq!(times.as_array().unwrap().len(), 3);
}

/// The first row cannot run on any host, and is a row; the guest of the second crashes.
fn a_row_that_ends_the_run_keeps_those_before_it() {
    let place = tempfile::tempdir().unwrap();
    let at = place.path();
    // ud2
    fs::write(at.join("crash.elf"), elf::image(&[0x0f, 0x0b])).unwrap();
    let backings = scenario(&["kernel"], "1ms").replace("[\"4k\"]", "[\"hugetlb:2m\", \"4k\"]");
    let backings = backings.replace("count = 1500", "count = 15\nunit = \"folio\"");
    let huge = backings.replace("\"16MiB\"", "\"62GiB\"").replacen("name", "kernel = \"crash.elf\"\nname", 1);
    fs::write(at.join("s.toml"), huge).unwrap();
    let output = program::output(at, &["run", "s.toml", "--backend", "kvm", "--json", "--out", "out"]);
    let said = program::stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let kept: Value = serde_json::from_slice(&fs::read(at.join("out/run.json")).unwrap()).unwrap();
    assert_eq!(kept, serde_json::from_slice::<Value>(&output.stdout).unwrap());
    let rows = record::rows(&kept);
    assert_eq!((rows.len(), &rows[0]["backing"]), (1, &"hugetlb:2m".into()), "{kept:#}");
    let ended = kept["ended"].as_str().unwrap();
    assert!(ended.starts_with("failed: the guest failed in case c, 4k"), "{ended}");
    assert!(
        said.contains("the guest failed") && said.contains("the run record is in out/run.json"),
        "{said}"
    );
}

fn a_trace_that_does_not_fit_leaves_nothing() {
    let place = place("1ms");
    record::printed(place.path(), &RUN);
    let trace = program::zapscope(place.path(), &["timeline", "out", "--trace", "t"]);
    let output = limited(trace, 4 << 10).output().unwrap();
    let said = said_of(&output, HOST);
    assert!(said.contains("cannot write the trace t") && said.contains("File too large"), "{said}");
    assert_eq!(names(place.path()), ["out", "s.toml"]);
}

fn a_snapshot_that_does_not_fit_leaves_nothing() {
    let place = tempfile::tempdir().unwrap();
    let snapshot = program::zapscope(place.path(), &["snapshot", "--out", "s", "--memory", "4MiB"]);
    let output = limited(snapshot, 1 << 20).output().unwrap();
    let said = said_of(&output, HOST);
    assert!(said.contains("writing s") && said.contains("File too large"), "{said}");
    assert_eq!(names(place.path()), [""; 0]);
}

/// No room for a record at all, and room for the first few spans of one.
fn an_account_that_does_not_fit_is_told() {
    let bare = Bare::start(config(1, 64, Backing::Base4k));
    let pid = std::process::id().to_string();
    let arguments = ["attach", "--pid", &pid, "--for", "1s", "--every", "10ms", "--json", "--out", "out"];
    for (room, left) in [(64, &[][..]), (4 << 10, &["out"])] {
        let place = tempfile::tempdir().unwrap();
        let output = limited(program::zapscope(place.path(), &arguments), room).output().unwrap();
        let said = said_of(&output, FAULT);
        assert!(said.contains("cannot write out/attach.json") && said.contains("File too large"), "{said}");
        assert_eq!(
            said.matches("does not reach the disk").count(),
            1,
            "said when it is so, and once: {said}"
        );
        let printed: Value = serde_json::from_slice(&output.stdout).expect("it is printed all the same");
        assert_eq!(printed["ended"], "complete");
        assert_eq!(names(place.path()), left);
        if !left.is_empty() {
            let kept = account(place.path()).expect("what had fitted is still there");
            let spans = |record: &Value| record["spans"].as_array().unwrap().len();
            assert!(kept["ended"].is_null() && spans(&kept) < spans(&printed), "{kept:#}");
            assert_eq!(names(&place.path().join("out")), ["attach.json"]);
        }
    }
    drop(bare);
}

/// `out/attach.json`, if it is there.
fn account(place: &Path) -> Option<Value> {
    let text = fs::read(place.join("out/attach.json")).ok()?;
    Some(serde_json::from_slice(&text).expect("at any moment it is whole"))
}

fn an_account_that_is_killed_is_there_as_far_as_it_came() {
    const PATIENCE: Duration = Duration::from_secs(60);
    let bare = Bare::start(config(1, 64, Backing::Base4k));
    bare.fill(1);
    let place = tempfile::tempdir().unwrap();
    let pid = std::process::id().to_string();
    let arguments = ["attach", "--pid", &pid, "--every", "20ms", "--out", "out"];
    let mut watching = program::zapscope(place.path(), &arguments).spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut await_ranges = |at_least: u64| loop {
        let seen = account(place.path());
        if seen.as_ref().is_some_and(|record| record["total"]["ranges"].as_u64() >= Some(at_least)) {
            return seen.unwrap();
        }
        assert!(Instant::now() < deadline, "{at_least} ranges are not on the disk: {seen:?}");
        assert!(watching.try_wait().unwrap().is_none(), "it ended");
        std::thread::sleep(Duration::from_millis(5));
    };
    // It watches when there is a record without a range.
    await_ranges(0);
    let arena = bare.machine.core().arena();
    guest_mem::perform(arena, guest_mem::Operation::DontNeed, bare.pages(0, 512)).unwrap();
    let seen = await_ranges(1);
    watching.kill().unwrap();
    let output = watching.wait_with_output().unwrap();
    assert_eq!(output.status.signal(), Some(Signal::KILL.as_raw()));
    let left = account(place.path()).unwrap();
    assert!(left["ended"].is_null(), "it did not end: {left:#}");
    assert!(left["total"]["ranges"].as_u64() >= seen["total"]["ranges"].as_u64(), "{left:#}");
    assert_eq!(names(&place.path().join("out")), ["attach.json"]);
    drop(bare);
}

/// Ended in the middle of the writing: the file without a name that grows is seen in /proc.
fn a_snapshot_that_is_ended_leaves_nothing() {
    const PATIENCE: Duration = Duration::from_secs(60);
    for signal in [Signal::INT, Signal::QUIT, Signal::KILL] {
        let begun = Instant::now();
        while !ended_while_writing(signal) {
            assert!(begun.elapsed() < PATIENCE, "each snapshot was over before {signal:?} came");
        }
    }
}

/// Ends a snapshot by this signal, and sees that nothing is left of it. `false` if it was over before: on a busy host it may
/// be.
fn ended_while_writing(signal: Signal) -> bool {
    let place = tempfile::tempdir().unwrap();
    let command = program::grouped(place.path(), &["snapshot", "--out", "s", "--memory", "512MiB"]);
    let mut child = program::without_core(command).spawn().unwrap();
    let _waiting = harness::waiting("a snapshot to be written");
    while !writes_in(child.id(), place.path()) {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{status}");
            return false;
        }
        std::thread::yield_now();
    }
    kill_process(Pid::from_child(&child), signal).unwrap();
    let output = child.wait_with_output().unwrap();
    if output.status.success() {
        return false;
    }
    match signal {
        Signal::INT => assert_eq!(output.status.code(), Some(130), "{}", program::stderr(&output)),
        _ => assert_eq!(output.status.signal(), Some(signal.as_raw()), "{}", program::stderr(&output)),
    }
    assert_eq!(names(place.path()), [""; 0], "{signal:?}");
    true
}

/// Whether a process has a file of this directory open that holds something.
fn writes_in(pid: u32, directory: &Path) -> bool {
    let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    open.flatten().any(|file| {
        let there = fs::read_link(file.path()).is_ok_and(|name| name.starts_with(directory));
        there && fs::metadata(file.path()).is_ok_and(|file| file.is_file() && file.len() > 0)
    })
}
