//! Every way out, with real processes: a child of this test binary makes changes and is ended in some way; another child is
//! its guardian. The tests compare the file's content afterwards.

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::*;
use crate::guardian_message::Answer;
use crate::root::Root;
use objects::Disk;

mod objects;

const MODE: &str = "ZAPSCOPE_TEST_CHILD";
const TARGET: &str = "ZAPSCOPE_TEST_TARGET";
const CHILD: &str = "changes::tests::not_a_test_but_a_child";

fn this_binary() -> PathBuf {
    std::env::current_exe().unwrap()
}

/// A guardian made of this test binary.
fn guardian_program() -> Command {
    let mut command = Command::new(this_binary());
    command.args(["--exact", CHILD, "--nocapture"]).env(MODE, format!("guardian {}", std::process::id()));
    command
}

fn changes() -> (HostChanges, Arc<Mutex<Vec<String>>>) {
    let said = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&said);
    let announce = move |text: &str| sink.lock().unwrap().push(text.to_owned());
    (HostChanges::logged_in(state_directories(std::process::id()), guardian_program, announce), said)
}

/// A directory of one process of these tests, in which no zapscope of this host looks for logs.
fn state_directories(pid: u32) -> Vec<PathBuf> {
    vec![std::env::temp_dir().join(format!("zapscope-test-{pid}"))]
}

struct SwitchFile {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

impl SwitchFile {
    fn with(text: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("switch");
        fs::write(&path, text).unwrap();
        Self { _dir: dir, path }
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.path).unwrap()
    }
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn is_running(pid: u32) -> bool {
    // A zombie has ended.
    Root::default()
        .text(&format!("/proc/{pid}/stat"))
        .is_some_and(|stat| stat.rsplit(')').next().is_some_and(|rest| !rest.trim().starts_with('Z')))
}

fn guardian_of(changes: &HostChanges) -> u32 {
    changes.lock().guardian.as_ref().unwrap().pid()
}

/// Kills a child, and waits until its guardian has done its part.
fn kill_run(mut child: Child, guardian: u32) {
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("the guardian ends", || !is_running(guardian));
}

/// Starts a child in `mode`, and waits until its changes are made; returns its guardian's PID and a detail.
fn run_child(mode: &str, target: &Path) -> (Child, u32, String) {
    let mut child = Command::new(this_binary())
        .args(["--exact", CHILD, "--nocapture"])
        .env(MODE, mode)
        .env(TARGET, target)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut said = String::new();
    let stdout = child.stdout.as_mut().unwrap();
    while !said.contains(" made\n") {
        let mut byte = [0; 1];
        assert_eq!(stdout.read(&mut byte).unwrap(), 1, "the child ended early: {said}");
        said.push(char::from(byte[0]));
    }
    let line = said.lines().last().unwrap();
    let mut words = line.rsplit(' ').skip(1);
    let detail = words.next().unwrap().to_owned();
    (child, words.next().unwrap().parse().unwrap(), detail)
}

/// Not a test: the process that the tests below start. It does nothing in an ordinary run.
#[test]
#[expect(clippy::disallowed_methods, reason = "a way out that runs no destructor")]
fn not_a_test_but_a_child() {
    let Ok(mode) = std::env::var(MODE) else { return };
    if let Some(owner) = mode.strip_prefix("guardian ") {
        crate::guardian_main::guard(owner.parse().unwrap());
        return;
    }
    let target = PathBuf::from(std::env::var_os(TARGET).unwrap());
    let changes =
        HostChanges::logged_in(state_directories(std::process::id()), guardian_program, |_: &str| {});
    let mut detail = "-".to_owned();
    match mode.as_str() {
        "zram" => detail = Disk::of(changes.add_zram("a test").unwrap().number).to_string(),
        "zram-unread" => {
            // Killed between the device's creation and the answer, which stays unread.
            let mut state = changes.lock();
            let id = state.next_id().0;
            let guardian = state.guard(&changes.0).unwrap();
            guardian.tell(&Request::AddZram { id }).unwrap();
            let answer = guardian.peek();
            let Answer::Zram { number, .. } = answer else { panic!("{answer:?}") };
            detail = Disk::of(number).to_string();
        }
        "planned" => {
            let action = UndoAction::WriteFile {
                path: target.clone(),
                value: "madvise".to_owned(),
                set: "never".to_owned(),
            };
            changes.lock().plan(&changes.0, action).unwrap();
        }
        _ => {
            changes.change_sysfs(&target, "always", "a test").unwrap();
            changes.change_sysfs(&target, "never", "another test").unwrap();
        }
    }
    program::output::result(format_args!("\nchanges {} {detail} made\n", guardian_of(&changes)));
    program::output::finish();
    match mode.as_str() {
        "abort" => std::process::abort(),
        "exit" => std::process::exit(0),
        "panic" => panic!("on purpose"),
        "interrupt-guardian" => {
            let guardian = guardian_of(&changes) as i32;
            for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
                // SAFETY: a signal to our own child, which has not been waited for.
                unsafe { libc::kill(guardian, signal) };
            }
            std::thread::sleep(Duration::from_millis(50));
            std::process::abort();
        }
        _ => std::thread::sleep(Duration::from_secs(60)),
    }
}

#[test]
fn a_switch_is_set_announced_and_restored() {
    let file = SwitchFile::with("always [madvise] never\n");
    let (changes, announced) = changes();
    let now = changes.change_sysfs(&file.path, "always", "to see huge pages").unwrap().now;
    assert_eq!((now.as_str(), file.text().as_str()), ("always", "always"));
    assert_eq!(changes.outstanding().len(), 1);
    drop(changes);
    assert_eq!(file.text(), "madvise");
    let said = announced.lock().unwrap();
    assert!(said[0].contains("madvise -> always (to see huge pages)"), "{said:?}");
    assert!(said[1].contains("undone: write 'madvise' back"), "{said:?}");
}

#[test]
fn changes_to_one_switch_are_undone_backwards() {
    let file = SwitchFile::with("1");
    let (changes, _) = changes();
    for value in ["2", "3", "4"] {
        changes.change_sysfs(&file.path, value, "a test").unwrap();
    }
    assert!(changes.undo_all().is_empty());
    assert_eq!(file.text(), "1");
}

#[test]
fn a_switch_with_the_value_is_no_change() {
    let file = SwitchFile::with("always [madvise] never\n");
    let (changes, announced) = changes();
    let expected = Switched { change: None, now: "madvise".to_owned() };
    assert_eq!(changes.change_sysfs(&file.path, "madvise", "a test").unwrap(), expected);
    assert!(changes.lock().guardian.is_none(), "no guardian without a change");
    assert!(announced.lock().unwrap().is_empty());
}

#[test]
fn a_change_that_fails_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let (changes, _) = changes();
    let absent = changes.change_sysfs(dir.path().join("absent"), "1", "a test");
    assert!(matches!(absent, Err(ChangeError::Read { .. })), "{absent:?}");
    let refused = changes.change_sysfs("/proc/version", "1", "a test");
    assert!(matches!(refused, Err(ChangeError::Write { .. })), "{refused:?}");
    let taken = changes.make_cgroup(dir.path(), "/", "a test");
    assert!(matches!(taken, Err(ChangeError::Cgroup { .. })), "{taken:?}");
    assert_eq!(changes.outstanding(), []);
}

#[test]
fn without_a_guardian_nothing_is_changed() {
    let file = SwitchFile::with("0");
    let programs: [GuardianProgram; 2] = [|| Command::new("/nonexistent"), || Command::new("/bin/true")];
    for program in programs {
        let changes = HostChanges::logged_in(directories(), program, |_: &str| {});
        let refused = changes.change_sysfs(&file.path, "1", "a test");
        assert!(matches!(refused, Err(ChangeError::Guardian(GuardianError::Start(_)))), "{refused:?}");
        assert_eq!(file.text(), "0");
    }
}

#[test]
fn one_change_can_be_undone_early_and_once() {
    let file = SwitchFile::with("0");
    let (changes, _) = changes();
    let change = changes.change_sysfs(&file.path, "1", "a test").unwrap().change.unwrap();
    changes.undo(change).unwrap();
    assert_eq!(file.text(), "0");
    fs::write(&file.path, "another value").unwrap();
    changes.undo(change).unwrap();
    drop(changes);
    assert_eq!(file.text(), "another value");
}

#[test]
fn a_guardian_exits_when_all_is_undone() {
    let file = SwitchFile::with("0");
    let (changes, _) = changes();
    changes.change_sysfs(&file.path, "1", "a test").unwrap();
    let guardian = guardian_of(&changes);
    assert!(is_running(guardian));
    drop(changes);
    assert!(!is_running(guardian), "dismissed guardians are gone when drop returns");
}

#[test]
fn a_killed_run_is_cleaned_up_after() {
    let file = SwitchFile::with("always [madvise] never\n");
    let (mut child, guardian, _) = run_child("sleep", &file.path);
    assert_eq!(file.text(), "never");
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    eventually("the guardian ends", || !is_running(guardian));
    assert_eq!(file.text(), "madvise");
}

#[test]
fn a_run_killed_between_plan_and_change_is_harmless() {
    let file = SwitchFile::with("madvise");
    let (child, guardian, _) = run_child("planned", &file.path);
    kill_run(child, guardian);
    assert_eq!(file.text(), "madvise");
}

#[test]
fn abort_exit_and_panic_are_cleaned_up_after() {
    for mode in ["abort", "exit", "panic", "interrupt-guardian"] {
        let file = SwitchFile::with("always [madvise] never\n");
        let (mut child, guardian, _) = run_child(mode, &file.path);
        child.wait().unwrap();
        eventually(mode, || !is_running(guardian));
        assert_eq!(file.text(), "madvise", "{mode}");
    }
}

fn kill(pid: u32, signal: i32) {
    // SAFETY: a signal to a process of these tests, by its number.
    assert_eq!(unsafe { libc::kill(pid as i32, signal) }, 0);
}

/// The processes whose parent is `pid` and that run.
fn children_of(pid: u32) -> Vec<u32> {
    let root = Root::default();
    let parent = |child: u32| {
        let stat = root.text(&format!("/proc/{child}/stat"))?;
        // After the name: state, parent.
        stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse::<u32>().ok()
    };
    let processes = root.names("/proc").into_iter().filter_map(|name| name.parse().ok());
    processes.filter(|child| parent(*child) == Some(pid) && is_running(*child)).collect()
}

#[test]
fn a_guardian_that_was_killed_is_replaced_and_the_next_one_undoes() {
    let file = SwitchFile::with("always [madvise] never\n");
    let (mut child, first, _) = run_child("sleep", &file.path);
    kill(first, libc::SIGKILL);
    let another = || children_of(child.id()).into_iter().find(|pid| *pid != first);
    eventually("another guardian", || another().is_some());
    let second = another().unwrap();
    // From then on it survives the run's end, and reads in the log what it did not receive.
    eventually("the guardian holds the log", || {
        let descriptors = fs::read_dir(format!("/proc/{second}/fd")).into_iter().flatten().flatten();
        let mut files = descriptors.filter_map(|one| fs::read_link(one.path()).ok());
        files.any(|file| file.starts_with(&state_directories(child.id())[0]))
    });
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("the guardian ends", || !is_running(second));
    assert_eq!(file.text(), "madvise");
    assert!(!state_directories(child.id())[0].exists());
}

#[test]
fn a_change_after_the_guardians_death_is_guarded_by_another() {
    let file = SwitchFile::with("0");
    let (changes, announced) = changes();
    changes.change_sysfs(&file.path, "1", "a test").unwrap();
    let first = guardian_of(&changes);
    kill(first, libc::SIGKILL);
    // It may still be ending when it receives the change; then the next guardian receives it as well.
    changes.change_sysfs(&file.path, "2", "a test").unwrap();
    eventually("another guardian", || guardian_of(&changes) != first);
    assert_eq!(changes.outstanding().len(), 2);
    assert!(
        announced.lock().unwrap().iter().any(|text| text.contains("another one took its place")),
        "{announced:?}"
    );
    drop(changes);
    assert_eq!(file.text(), "0");
}

/// As at the end of a PID namespace: the guardian is killed as well.
#[test]
fn changes_left_by_run_and_guardian_are_undone_by_the_next_run() {
    let file = SwitchFile::with("always [madvise] never\n");
    let (mut child, guardian, _) = run_child("sleep", &file.path);
    let directories = state_directories(child.id());
    let undo = || crate::leftovers::undo_those_in(&directories);
    assert_eq!(undo(), [], "both run");
    kill(guardian, libc::SIGSTOP);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(undo(), [], "the guardian runs");
    kill(guardian, libc::SIGKILL);
    eventually("the guardian's end", || !is_running(guardian));
    assert_eq!(file.text(), "never");
    let mut left = Vec::new();
    // The kernel closes the files of an ended process after a moment.
    eventually("the log is free", || {
        left.extend(undo());
        !left.is_empty()
    });
    assert_eq!((left.len(), left.iter().all(|one| one.is_gone)), (2, true), "{left:?}");
    assert_eq!(file.text(), "madvise");
    assert!(!directories[0].exists());
}

#[test]
fn two_runs_do_not_change_one_switch() {
    let file = SwitchFile::with("0");
    let ((first, _), (second, _)) = (changes(), changes());
    first.change_sysfs(&file.path, "1", "a test").unwrap();
    let refused = second.change_sysfs(&file.path, "2", "a test");
    assert!(matches!(refused, Err(ChangeError::Taken { .. })), "{refused:?}");
    assert_eq!((file.text().as_str(), second.outstanding().len()), ("1", 0));
    drop(first);
    second.change_sysfs(&file.path, "2", "a test").unwrap();
    drop(second);
    assert_eq!(file.text(), "0");
}

#[test]
fn without_log_and_guardian_nothing_is_changed() {
    let file = SwitchFile::with("0");
    let nowhere = vec![PathBuf::from("/proc/nowhere")];
    let changes = HostChanges::logged_in(nowhere, guardian_program, |_: &str| {});
    let outcome = changes.change_sysfs(&file.path, "1", "a test");
    if in_initial_pid_namespace() {
        outcome.expect("the guardian outlives this process");
    } else {
        assert!(matches!(outcome, Err(ChangeError::Guardian(GuardianError::Mortal(_)))), "{outcome:?}");
        assert_eq!(file.text(), "0");
    }
}

#[test]
fn equal_changes_are_recorded_and_announced_once() {
    let file = SwitchFile::with("0");
    let (changes, announced) = changes();
    for _ in 0..3 {
        let switched = changes.change_sysfs(&file.path, "1", "a test").unwrap();
        changes.undo(switched.change.unwrap()).unwrap();
    }
    assert_eq!((changes.made().len(), announced.lock().unwrap().len()), (1, 2));
    assert!(matches!(&changes.made()[0], HostChange::Switch { from, to, .. } if from == "0" && to == "1"));
}

#[test]
fn ctrl_c_at_the_terminal_does_not_reach_the_guardian() {
    let file = SwitchFile::with("madvise");
    let (child, guardian, _) = run_child("sleep", &file.path);
    let session = |pid: u32| {
        let stat = Root::default().text(&format!("/proc/{pid}/stat")).unwrap();
        // After the name: state, parent, process group, session.
        let after_name = stat.rsplit(')').next().unwrap().to_owned();
        after_name.split_whitespace().nth(3).unwrap().parse::<u32>().unwrap()
    };
    assert_eq!(session(guardian), guardian);
    assert_ne!(session(child.id()), guardian);
    kill_run(child, guardian);
}
