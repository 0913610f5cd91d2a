//! The deadline of a test, and the end of one that misses it.

use std::collections::HashMap;
use std::io::Write;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::threads::{self, own_id};
use crate::waits;

/// How long a test may take that declares nothing else, several times over on a busy host.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// How often libtest's threads are looked at.
const PERIOD: Duration = Duration::from_secs(1);

/// The deadline of a test that declares this one. The long tests take twenty times as long, and on an emulated host all
/// take longer; `ZAPSCOPE_PATIENCE=SECONDS` is the deadline of every test.
fn scaled(declared: Duration) -> Duration {
    let asked_for = |variable| std::env::var_os(variable).is_some_and(|value| value == "1");
    if let Some(seconds) = std::env::var("ZAPSCOPE_PATIENCE").ok().and_then(|text| text.parse().ok()) {
        Duration::from_secs(seconds)
    } else if asked_for("ZAPSCOPE_LONG") {
        declared * 20
    } else if asked_for("ZAPSCOPE_SHORT") {
        declared * 3
    } else {
        declared
    }
}

/// Runs `test`. If it has not ended within `patience`, reports who waits for what, and ends the process.
pub fn watched<R>(test: &str, patience: Duration, run: impl FnOnce() -> R) -> R {
    let patience = scaled(patience);
    let (running, watched) = channel::<()>();
    let name = test.to_owned();
    let watch = move || {
        if watched.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
            give_up(&name, patience);
        }
    };
    thread::Builder::new().name("watchdog".to_owned()).spawn(watch).expect("a thread can be had");
    let result = run();
    // Also dropped where the test panics: then there is nothing to watch any more.
    drop(running);
    result
}

/// Starts the watchdog of a libtest target: see [`crate::watch_libtest`].
pub extern "C" fn arm_for_libtest() {
    let patience = scaled(PATIENCE);
    let watchdog = thread::Builder::new().name("watchdog".to_owned());
    watchdog.spawn(move || watch_threads(patience)).expect("a thread can be had");
}

/// libtest runs each test in a thread that it names after it, so a thread that lives for too long is a test that hangs.
/// With `--test-threads 1` tests run on the main thread, which may live ten times as long.
fn watch_threads(patience: Duration) {
    let main = std::process::id().cast_signed();
    let begun = Instant::now();
    let mut since: HashMap<i32, Instant> = HashMap::new();
    loop {
        thread::sleep(PERIOD);
        let living = threads::ids();
        since.retain(|id, _| living.contains(id));
        for id in living.into_iter().filter(|&id| id != own_id() && id != main) {
            if since.entry(id).or_insert_with(Instant::now).elapsed() > patience {
                give_up(&threads::name(id), patience);
            }
        }
        if begun.elapsed() > patience * 10 {
            give_up("one of those that the main thread runs", patience * 10);
        }
    }
}

/// Reports, ends the children by SIGTERM, which lets them put the host back, and ends this process as a failure.
#[expect(clippy::disallowed_methods, reason = "a test binary speaks for itself")]
fn give_up(test: &str, patience: Duration) -> ! {
    let children = threads::children();
    let report = format!(
        "\nGAVE UP: the test {test} did not end within {} s\nwaits that it named:\n{}threads of this process:\n{}{}\n",
        patience.as_secs(),
        waits::all(),
        threads::of(std::process::id().cast_signed()),
        children
            .iter()
            .map(|&child| format!(
                "child {child} ({}), ended now:\n{}",
                threads::command_of(child),
                threads::of(child)
            ))
            .collect::<String>(),
    );
    // Not by a print macro: libtest keeps what those write until a test has ended.
    let _ = std::io::stderr().write_all(report.as_bytes());
    for child in children {
        // SAFETY: sends a signal to a process that we have not waited for, so that the number is still its own.
        unsafe { libc::kill(child, libc::SIGTERM) };
    }
    // SAFETY: ends the process at once. Whatever `exit` runs first could wait for what the test waits for.
    unsafe { libc::_exit(101) }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    crate::watch_libtest!();

    /// What is said where the test of this name hangs, in a process of its own whose deadline is a second.
    fn report_of(test: &str) -> String {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", &format!("watchdog::tests::{test}"), "--test-threads", "2"]);
        let output = command.env("ZAPSCOPE_PATIENCE", "1").output().unwrap();
        assert_eq!(output.status.code(), Some(101));
        String::from_utf8(output.stderr).unwrap()
    }

    /// Whether this process is one that [`report_of`] has made.
    fn shall_hang() -> bool {
        std::env::var_os("ZAPSCOPE_PATIENCE").is_some_and(|value| value == "1")
    }

    fn hang() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let _waiting = crate::waiting("a wake that was lost");
        let (_send, receive) = channel::<()>();
        let _ = receive.recv();
        child.wait().unwrap();
    }

    fn assert_says_who_waits_for_what(report: &str, name: &str) {
        for part in [
            "GAVE UP: the test ",
            name,
            " did not end within 1 s",
            "waits for a wake that was lost, for ",
            "in futex, at ",
            "(sleep 60), ended now:",
            "nanosleep",
        ] {
            assert!(report.contains(part), "no {part:?} in:\n{report}");
        }
    }

    #[test]
    fn a_watched_test_that_hangs_is_reported() {
        if shall_hang() {
            return watched("hanging", PATIENCE, hang);
        }
        assert_says_who_waits_for_what(&report_of("a_watched_test_that_hangs_is_reported"), "hanging");
    }

    #[test]
    fn a_libtest_test_that_hangs_is_reported() {
        if shall_hang() {
            return hang();
        }
        assert_says_who_waits_for_what(
            &report_of("a_libtest_test_that_hangs_is_reported"),
            "watchdog::tests",
        );
    }

    #[test]
    fn a_test_that_ends_is_left_alone() {
        assert_eq!(watched("short", Duration::from_secs(60), || 7), 7);
    }
}
