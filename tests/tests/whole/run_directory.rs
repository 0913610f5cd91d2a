//! What a run finds is on the disk when a row is finished, and where it will be is known before the run begins.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use guest_mem::Backing;
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use serde_json::Value;
use tests::machine::{Bare, config};
use tests::place::{Ended, Place};
use tests::running::Running;
use tests::scenario::{self, Scenario};
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

/// Rows whose events take some tens of kilobytes each.
fn scenario(baseline: &str) -> Scenario {
    let scenario = scenario::of("16MiB").policies(&["kernel", "folio", "pmd"]);
    scenario.fill().hot(8).baseline(baseline).sparse(500)
}

const RUN: [&str; 7] = ["run", "s.toml", "--backend", "soft", "--json", "--out", "out"];

/// The same without a hot loop: its stalls, and with them the bytes of its events, would differ from run to run.
fn of_one_size() -> Scenario {
    scenario::of("16MiB").policies(&["kernel", "folio", "pmd"]).fill().sparse(500)
}

/// Runs a command whose files end at this many bytes: `ulimit -f`.
fn limited(mut command: Command, bytes: u64) -> Ended {
    stand_in::limited(&mut command, Resource::Fsize, bytes);
    command.output().unwrap().into()
}

fn what_is_in_the_way_is_found_before_anything_is_done() {
    let place = Place::of(&scenario("1ms"));
    place.put("file", "");
    for (directory, holds) in [("held", "run.json"), ("half", "events.log"), ("watched", "attach.json")] {
        fs::create_dir(place.file(directory)).unwrap();
        place.put(format!("{directory}/{holds}"), "");
    }
    let refused = |arguments: &[&str], words: &[&str]| {
        place.run(arguments).with(MISTAKE).says(words).never_says(&["[1/", "host change"]);
    };
    // No user can make a directory in /proc.
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
    place.run(&RUN).with(0);
    for (trace, word) in [("file", "file is there already"), ("nowhere/t", "nowhere/t")] {
        refused(&["timeline", "out", "--trace", trace], &[word]);
    }
    refused(&["snapshot", "--memory", "2MiB", "--out", "out"], &["out is no regular file"]);
    refused(&["snapshot", "--memory", "2MiB", "--out", "nowhere/s"], &["nowhere/s"]);
    assert_eq!(place.names(""), ["file", "half", "held", "out", "s.toml", "watched"]);
}

fn two_runs_do_not_share_a_directory() {
    let place = Place::of(&scenario("60s"));
    let mut first = Running::start(place.zapscope(&RUN));
    first.read_until("[1/3]");
    place.run(&RUN).with(MISTAKE).says(&["another zapscope is writing into out", "--out"]);
    first.signal(Signal::INT);
    first.end().with(130).says(&["nothing to keep"]);
    assert_eq!(place.names(""), ["s.toml"], "a run without a row leaves nothing");
}

/// What `run.json` says of the whole.
fn warnings(record: &Value) -> String {
    let all = record["warnings"].as_array().unwrap().iter();
    all.map(|one| one["text"].as_str().unwrap().to_owned() + "\n").collect()
}

/// Bytes that hold the record of three rows and the events of the first, and not those of the second: by a run without a
/// limit, since how large they are depends on the host.
fn room_for_one_row() -> u64 {
    let place = Place::of(&of_one_size());
    place.run(&RUN).with(0);
    let file = |name| fs::read(place.file("out").join(name)).unwrap();
    let (log, record) = (file("events.log"), file("run.json"));
    let number = |at: usize| u32::from_le_bytes(log[at..at + 4].try_into().unwrap()) as usize;
    let end_of = |begin: usize| begin + 12 + number(begin) + number(begin + 4);
    let first = end_of(16);
    let room = (first + end_of(first)) / 2;
    // What was not kept is said in the record, which takes some more.
    assert!(record.len() + 1024 < room, "{} bytes of record, {room} of room", record.len());
    room as u64
}

/// How many rows of the run in `out` have events.
fn rows_with_events(place: &Place) -> usize {
    place.run(&["timeline", "out", "--json"]).with(0).json().as_array().unwrap().len()
}

fn a_full_disk_loses_nothing_while_the_run_lives() {
    // Room for the record of three rows, and for the events of one: of none at all.
    for (room, events, has_record) in [(room_for_one_row(), 1, true), (1 << 10, 0, false)] {
        let place = Place::of(&of_one_size());
        let ended = limited(place.zapscope(&RUN), room).with(FAULT);
        assert_eq!(ended.said.matches("rows do not reach the disk").count(), 1, "{}", ended.said);
        let printed = ended.says(&["File too large", "does not hold the whole run"]).json();
        assert_eq!(record::rows(&printed).len(), 3, "nothing that was measured is lost");
        assert_eq!(place.file("out/run.json").exists(), has_record);
        if !has_record {
            place.run(&["replay", "out"]).with(MISTAKE).says(&["before it had finished a row"]);
            continue;
        }
        let kept = place.json("out/run.json");
        assert_eq!(kept["rows"], printed["rows"]);
        assert_eq!(kept["ended"], "complete");
        assert!(warnings(&kept).contains("lacks the events of row 1, 2"), "{}", warnings(&kept));
        assert_eq!(rows_with_events(&place), events);
        place.run(&["replay", "out", "--json"]).with(0);
        assert_eq!(place.names("out"), ["events.log", "run.json"]);
    }
}

fn what_did_not_fit_is_written_when_there_is_room() {
    let place = Place::of(&scenario("200ms"));
    let mut command = place.zapscope(&RUN);
    stand_in::limited(&mut command, Resource::Fsize, 1 << 10);
    let mut run = Running::start(command);
    run.read_until("rows do not reach the disk");
    let unlimited = Rlimit { current: None, maximum: None };
    prlimit(Some(Pid::from_child(run.child())), Resource::Fsize, unlimited).unwrap();
    let printed = run.end().with(0).json();
    let kept = place.json("out/run.json");
    assert_eq!(kept, printed);
    assert!(!warnings(&kept).contains("lacks"), "{}", warnings(&kept));
    assert_eq!(rows_with_events(&place), 3);
}

/// The first row cannot run on any host, and is a row; the guest of the second crashes.
fn a_row_that_ends_the_run_keeps_those_before_it() {
    let huge = scenario::of("62GiB").top("kernel = \"crash.elf\"").backings(&["hugetlb:2m", "4k"]);
    let victims = ["victims = \"sparse\"", "count = 15", "unit = \"folio\""];
    let place = Place::of(&huge.fill().hot(8).baseline("1ms").step("reclaim", &victims));
    // ud2
    place.put("crash.elf", elf::image(&[0x0f, 0x0b]));
    let ended = place.run(&["run", "s.toml", "--backend", "kvm", "--json", "--out", "out"]).with(1);
    let kept = place.json("out/run.json");
    assert_eq!(kept, ended.json());
    let rows = record::rows(&kept);
    assert_eq!((rows.len(), &rows[0]["backing"]), (1, &"hugetlb:2m".into()), "{kept:#}");
    let why = kept["ended"].as_str().unwrap();
    assert!(why.starts_with("failed: the guest failed in case c, 4k"), "{why}");
    ended.says(&["the guest failed", "the run record is in out/run.json"]);
}

fn a_trace_that_does_not_fit_leaves_nothing() {
    let place = Place::of(&scenario("1ms"));
    place.run(&RUN).with(0);
    let ended = limited(place.zapscope(&["timeline", "out", "--trace", "t"]), 4 << 10).with(HOST);
    ended.says(&["cannot write the trace t", "File too large"]);
    assert_eq!(place.names(""), ["out", "s.toml"]);
}

fn a_snapshot_that_does_not_fit_leaves_nothing() {
    let place = Place::new();
    let ended = limited(place.zapscope(&["snapshot", "--out", "s", "--memory", "4MiB"]), 1 << 20).with(HOST);
    ended.says(&["writing s", "File too large"]);
    assert_eq!(place.names(""), [""; 0]);
}

/// No room for a record at all, and room for the first few spans of one.
fn an_account_that_does_not_fit_is_told() {
    let bare = Bare::start(config(1, 64, Backing::Base4k));
    let pid = std::process::id().to_string();
    let arguments = ["attach", "--pid", &pid, "--for", "1s", "--every", "10ms", "--json", "--out", "out"];
    for (room, left) in [(64, &[][..]), (4 << 10, &["out"])] {
        let place = Place::new();
        let ended = limited(place.zapscope(&arguments), room).with(FAULT);
        assert_eq!(ended.said.matches("does not reach the disk").count(), 1, "told once: {}", ended.said);
        let printed = ended.says(&["cannot write out/attach.json", "File too large"]).json();
        assert_eq!(printed["ended"], "complete");
        assert_eq!(place.names(""), left);
        if !left.is_empty() {
            let kept = account(&place).expect("what had fitted is still there");
            let spans = |record: &Value| record["spans"].as_array().unwrap().len();
            assert!(kept["ended"].is_null() && spans(&kept) < spans(&printed), "{kept:#}");
            assert_eq!(place.names("out"), ["attach.json"]);
        }
    }
    drop(bare);
}

/// `out/attach.json`, if it is there.
fn account(place: &Place) -> Option<Value> {
    // At any moment it is whole.
    place.file("out/attach.json").exists().then(|| place.json("out/attach.json"))
}

fn an_account_that_is_killed_is_there_as_far_as_it_came() {
    const PATIENCE: Duration = Duration::from_secs(60);
    let bare = Bare::start(config(1, 64, Backing::Base4k));
    bare.fill(1);
    let place = Place::new();
    let pid = std::process::id().to_string();
    let arguments = ["attach", "--pid", &pid, "--every", "20ms", "--out", "out"];
    let mut watching = place.zapscope(&arguments).spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut await_ranges = |at_least: u64| loop {
        let seen = account(&place);
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
    let left = account(&place).unwrap();
    assert!(left["ended"].is_null(), "it did not end: {left:#}");
    assert!(left["total"]["ranges"].as_u64() >= seen["total"]["ranges"].as_u64(), "{left:#}");
    assert_eq!(place.names("out"), ["attach.json"]);
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
    let place = Place::new();
    let memory = if tests::host::emulated() { "96MiB" } else { "512MiB" };
    let command = program::grouped(place.path(), &["snapshot", "--out", "s", "--memory", memory]);
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
    assert_eq!(place.names(""), [""; 0], "{signal:?}");
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
