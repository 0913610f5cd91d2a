//! The inside of the rig: this binary as PID 1, and as the process that runs the tests.
//!
//! ```text
//!   init (PID 1)   mounts, loads modules, starts the runner; reaps every orphan; the runner's end is the rig's end
//!     └─ runner    for each name that ttyS1 gives: `whole --exact NAME`, its output to a file, its result to ttyS1
//! ```

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::{MountFlags, mount};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process_group, pidfd_open, wait};
use rustix::system::{RebootCommand, finit_module, reboot};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use crate::report::{Event, Outcome, outcome};

/// The argument that makes this binary PID 1 of the rig. The kernel passes on what it does not know.
pub const BE_INIT: &str = "__rig-init";
/// The argument that makes it the runner.
pub const BE_RUNNER: &str = "__rig-runner";
/// The argument after [`BE_INIT`] for a shell in place of the runner.
pub const WITH_SHELL: &str = "__with-shell";

/// A test that takes so long does not end. The longest takes a minute where the host has nothing else to do, and six
/// have been seen where it did much else.
pub const PATIENCE: Duration = Duration::from_secs(20 * 60);

/// How often the runner shows that it lives.
pub const PULSE: Duration = Duration::from_secs(5);

/// The most of a test's output that is reported.
const OUTPUT: usize = 64 << 10;

/// Where the report goes, and where the kernel and all else write.
const REPORT: &str = "/dev/ttyS1";

/// What is mounted: the type, and where.
const MOUNTS: [(&str, &str); 7] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("devpts", "/dev/pts"),
    ("tmpfs", "/tmp"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("tracefs", "/sys/kernel/tracing"),
];

/// PID 1: sets the rig up, runs the runner or a shell, and powers off.
pub fn init() -> ! {
    let mut arguments = std::env::args().skip(2);
    let with_shell = arguments.next().as_deref() == Some(WITH_SHELL);
    let done =
        set_up().and_then(|()| if with_shell { run_to_end(shell()) } else { run_to_end(runner_command()) });
    if let Err(why) = done {
        println!("rig: {why}");
        say(&Event::Broken { why });
    }
    rustix::fs::sync();
    let why = reboot(RebootCommand::PowerOff);
    panic!("the rig does not power off: {why:?}");
}

fn set_up() -> Result<(), String> {
    for (kind, at) in MOUNTS {
        // The image has the others; this one is in what was mounted before it.
        let _ = std::fs::create_dir_all(at);
        mount(kind, at, kind, MountFlags::empty(), None)
            .map_err(|error| format!("mounting {at}: {error}"))?;
    }
    write("/sys/fs/cgroup/cgroup.subtree_control", "+memory")?;
    let modules = Path::new("/rig/modules");
    let entries = std::fs::read_dir(modules).map_err(|error| format!("{}: {error}", modules.display()))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.sort();
    for path in files {
        let loaded = File::open(&path).and_then(|file| Ok(finit_module(file, c"", 0)?));
        loaded.map_err(|error| format!("{}: {error}", path.display()))?;
    }
    match std::fs::read_to_string("/sys/module/kvm_amd/parameters/npt").as_deref().map(str::trim) {
        Ok("Y") => {}
        other => return Err(format!("kvm-amd has no nested paging (npt: {other:?})")),
    }
    // Debian's is `always`: then every other process's memory is in huge pages, too.
    write("/sys/kernel/mm/transparent_hugepage/enabled", "madvise")?;
    let busybox = Command::new("/bin/busybox").args(["--install", "-s", "/bin"]).status();
    busybox.map_err(|error| format!("/bin/busybox: {error}"))?;
    Ok(())
}

fn write(path: &str, value: &str) -> Result<(), String> {
    std::fs::write(path, value).map_err(|error| format!("writing {value:?} to {path}: {error}"))
}

fn runner_command() -> Command {
    let mut runner = inside("/init");
    runner.arg(BE_RUNNER);
    runner
}

fn shell() -> Command {
    let mut shell = inside("/bin/busybox");
    shell.args(["setsid", "cttyhack", "sh"]);
    shell
}

/// A command with the environment that the suite is told by.
fn inside(program: &str) -> Command {
    let mut command = Command::new(program);
    let mut kernels: Vec<String> = std::fs::read_dir("/guests")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("vmlinuz")))
        .filter(|path| path.exists())
        .map(|path| path.to_string_lossy().into_owned())
        .collect();
    kernels.sort();
    command.current_dir("/tmp").env_clear().envs([
        ("PATH", "/bin"),
        ("HOME", "/tmp"),
        ("TERM", "linux"),
        ("ZAPSCOPE_SHORT", "1"),
        ("ZAPSCOPE_GUEST_INITRD", "/guests/busybox.cpio"),
        ("ZAPSCOPE_GUEST_KERNELS", &kernels.join(":")),
    ]);
    command
}

/// Runs a command to its end, and meanwhile reaps every orphan, as PID 1 must.
fn run_to_end(mut command: Command) -> Result<(), String> {
    let child = command.spawn().map_err(|error| format!("{command:?}: {error}"))?;
    let child = Pid::from_child(&child);
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == child => {
                return if status.exit_status() == Some(0) {
                    Ok(())
                } else {
                    Err(format!("{command:?}: {status:?}"))
                };
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(format!("waiting: {error}")),
        }
    }
}

/// Runs the tests whose names come on the serial port, one after another, until an empty line comes.
#[expect(clippy::disallowed_methods, reason = "the end of PID 1's only child")]
pub fn runner() -> ! {
    let names = names().expect("the rig has two serial ports");
    say(&Event::Up { seconds: uptime() });
    std::thread::spawn(|| {
        loop {
            std::thread::sleep(PULSE);
            say(&Event::Alive);
        }
    });
    say(&Event::Next);
    for test in names.lines().map_while(Result::ok).take_while(|name| !name.is_empty()) {
        let begun = Instant::now();
        let outcome = run(&test).unwrap_or_else(|why| Outcome::Failed { output: why });
        let seconds = begun.elapsed().as_secs_f64();
        println!("rig: {test}: {outcome:?}, {seconds:.1} s");
        say(&Event::End { test, outcome, seconds });
        say(&Event::Next);
    }
    std::process::exit(0);
}

/// The serial port to read from: a line at a time, as it comes, without an echo.
fn names() -> std::io::Result<BufReader<File>> {
    let port = OpenOptions::new().read(true).write(true).open(REPORT)?;
    let mut settings = tcgetattr(&port)?;
    settings.make_raw();
    tcsetattr(&port, OptionalActions::Now, &settings)?;
    Ok(BufReader::new(port))
}

fn run(test: &str) -> Result<Outcome, String> {
    let failed = |what: &'static str| move |error: std::io::Error| format!("{what}: {error}");
    let path = "/tmp/output";
    let file = File::create(path).map_err(failed("the output's file"))?;
    let mut child = inside("/rig/whole")
        .args(["--exact", test, "--color", "never"])
        .stdout(file.try_clone().map_err(failed("the output's file"))?)
        .stderr(file)
        .process_group(0)
        .spawn()
        .map_err(failed("/rig/whole"))?;
    let status = wait_with_patience(&mut child).map_err(failed("waiting for the test"))?;
    let output = std::fs::read(path).map_err(failed("the output's file"))?;
    print!("{}", String::from_utf8_lossy(&output));
    let output = String::from_utf8_lossy(&output[output.len().saturating_sub(OUTPUT)..]).into_owned();
    Ok(match status {
        Some(status) => outcome(test, status.success(), &output),
        None => Outcome::Failed { output: format!("it did not end within {PATIENCE:.0?}\n{output}") },
    })
}

/// Waits for a process that leads its group; `None` if it had to be killed.
fn wait_with_patience(child: &mut Child) -> std::io::Result<Option<ExitStatus>> {
    let pid = Pid::from_child(child);
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(std::io::Error::other)?;
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => {
                kill_process_group(pid, Signal::KILL)?;
                child.wait()?;
                return Ok(None);
            }
            Ok(_) => return child.wait().map(Some),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Reports an event. Without the second serial port, as with a shell, it is lost.
fn say(event: &Event) {
    let mut line = serde_json::to_string(event).expect("an event is plain data");
    line.push('\n');
    // In one write: the kernel keeps those of two threads apart.
    let _: Result<(), _> =
        OpenOptions::new().write(true).open(REPORT).and_then(|mut port| port.write_all(line.as_bytes()));
}

fn uptime() -> f64 {
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    uptime.split(' ').next().and_then(|seconds| seconds.parse().ok()).unwrap_or_default()
}
