//! Threads and children as /proc shows them.

use std::fmt::Write;
use std::fs;

/// Frames of a kernel stack that a line shows.
const FRAMES: usize = 4;

/// System calls that wait, by number.
const CALLS: [(&str, &str); 14] = [
    ("0", "read"),
    ("1", "write"),
    ("7", "poll"),
    ("16", "ioctl"),
    ("24", "sched_yield"),
    ("35", "nanosleep"),
    ("61", "wait4"),
    ("73", "flock"),
    ("202", "futex"),
    ("230", "clock_nanosleep"),
    ("232", "epoll_wait"),
    ("247", "waitid"),
    ("271", "ppoll"),
    ("281", "epoll_pwait"),
];

/// The number of the calling thread.
pub(crate) fn own_id() -> i32 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::gettid() }
}

/// All threads of this process.
pub(crate) fn ids() -> Vec<i32> {
    numbers("/proc/self/task")
}

/// A thread's name, as far as the kernel keeps it.
pub(crate) fn name(thread: i32) -> String {
    text(&format!("/proc/self/task/{thread}/comm"))
}

/// The children of this process that are not waited for yet.
pub(crate) fn children() -> Vec<i32> {
    let own = std::process::id().to_string();
    // `pid (name) state parent …`, where a name may have spaces and parentheses.
    let parent = |pid: &i32| {
        let stat = text(&format!("/proc/{pid}/stat"));
        stat.rsplit_once(')')?.1.split_whitespace().nth(1).map(str::to_owned)
    };
    numbers("/proc").into_iter().filter(|pid| parent(pid).as_ref() == Some(&own)).collect()
}

/// A process's command line.
pub(crate) fn command_of(pid: i32) -> String {
    text(&format!("/proc/{pid}/cmdline")).replace('\0', " ").trim_end().escape_debug().to_string()
}

/// A line for each thread of a process: its name, its state, the system call it is in, and where it sleeps in there.
pub(crate) fn of(pid: i32) -> String {
    let mut lines = String::new();
    // Who asks knows what it does.
    for thread in numbers(&format!("/proc/{pid}/task")).into_iter().filter(|&thread| thread != own_id()) {
        let file = |name: &str| text(&format!("/proc/{pid}/task/{thread}/{name}"));
        let status = file("status");
        let state = status.lines().find_map(|line| line.strip_prefix("State:")).unwrap_or("gone").trim();
        let syscall = file("syscall");
        let number = syscall.split(' ').next().unwrap_or_default();
        let call = CALLS.iter().find(|(known, _)| *known == number).map_or(number, |(_, name)| name);
        let stack = file("stack");
        let frames: Vec<&str> =
            stack.lines().take(FRAMES).filter_map(|line| line.split(' ').nth(1)).collect();
        let _ = writeln!(
            lines,
            "  {thread} {}: {state}, in {call}, at {}; {}",
            file("comm"),
            file("wchan"),
            frames.join(" < ")
        );
    }
    lines
}

fn numbers(directory: &str) -> Vec<i32> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// A file's content without the space around it; nothing where it cannot be read.
fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}
