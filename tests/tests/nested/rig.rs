//! The emulated machines as their host sees them: started, given tests, listened to.
//!
//! ```text
//!   Work: the tests that are left, by vCPUs ──── supervisor of a host CPU ────> QEMU's standard input (the rig's ttyS1)
//!     ▲                                             ▲      │
//!     └── outcomes, for trials that wait ───────────┘      └── started again, if it shows no sign of life
//! ```

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::image::Image;
use crate::report::{Event, Outcome};
use crate::{Trouble, init};

/// A rig that says nothing for so long has stopped dead: its init shows a sign of life every few seconds
/// ([`init::PULSE`]), whatever a test does.
const SILENCE: Duration = Duration::from_secs(180);

/// How often a test is tried in which the rig stops dead. The emulator has been seen to lose an interrupt, and with it the
/// machine; a test that hangs ends by itself ([`init::PATIENCE`]), and one that stops the machine every time fails.
const TRIES: usize = 3;

/// The rig's memory, in MiB. The initramfs takes 60, the largest inner test some hundreds.
const MEMORY_MIB: u32 = 3072;

/// How much of the console a failure shows.
const TAIL_LINES: usize = 60;

/// QEMU's arguments that do not depend on what is booted.
///
/// All vCPUs share one thread. With a thread each (QEMU 7.2), a vCPU now and then executes the breakpoint
/// through which the other's kernel is just patching its code, after it is gone, and that kernel dies of an
/// unexpected int3; and KVM has code patched whenever the first VM comes and the last one goes. Tests that stop and wait
/// for vCPUs take less time this way, tests that let everything run take more.
const MACHINE: &[&str] =
    &["-accel", "tcg,thread=single", "-cpu", "EPYC,+svm", "-nodefaults", "-display", "none", "-no-reboot"];

/// The kernel's command line. An Oops ends the rig (`-no-reboot`): nothing after it would be worth believing.
const COMMAND_LINE: &str = "console=ttyS0 loglevel=4 mitigations=off rdinit=/init oops=panic panic=-1";

/// The tests, and what became of them.
pub struct Work {
    state: Mutex<State>,
    more: Condvar,
}

#[derive(Default)]
struct State {
    /// The tests that are left, each with the vCPUs of its rig.
    left: VecDeque<(u32, String)>,
    ended: Vec<Ended>,
    /// The tests in which a rig stopped dead, once for each time.
    restarts: Vec<String>,
    /// The rigs that run, by host CPU.
    running: Vec<(usize, Child)>,
    supervisors: usize,
    /// Why tests that have not ended never will.
    over: Option<String>,
}

struct Ended {
    test: String,
    outcome: Outcome,
    seconds: f64,
}

fn qemu(image: &Image, vcpus: u32, more: &str) -> Command {
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(MACHINE).args(["-smp", &vcpus.to_string(), "-m", &MEMORY_MIB.to_string()]);
    qemu.arg("-kernel").arg(&image.kernel).arg("-initrd").arg(&image.initramfs);
    qemu.args(["-append", &format!("{COMMAND_LINE} {more}")]);
    qemu
}

/// Boots the rig with a shell on this terminal; the end of the shell is its end.
pub fn shell(image: &Image, vcpus: u32) -> Result<ExitCode, Trouble> {
    let mut command = qemu(image, vcpus, &format!("{} {}", init::BE_INIT, init::WITH_SHELL));
    command.args(["-serial", "mon:stdio"]);
    let status = spawn_on(0, &mut command)
        .and_then(|mut child| child.wait())
        .map_err(Trouble::broken("qemu-system-x86_64"))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Spawns a process all of whose threads run on one CPU of the host.
///
/// QEMU 7.2 changes a vCPU's pending interrupts from two threads, the vCPU's (in VMRUN and #VMEXIT, without its lock) and
/// that of the timers. On two CPUs one change in some millions is lost: the local timer's interrupt never comes while a
/// guest runs, and the machine stops dead with `IRR` set. On one CPU each change is one instruction of its own.
fn spawn_on(cpu: usize, command: &mut Command) -> std::io::Result<Child> {
    // Inherited by what a thread spawns, so it takes a thread.
    std::thread::scope(|scope| {
        let spawning = scope.spawn(|| {
            let allowed = sched_getaffinity(None)?;
            let cpus: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).collect();
            let mut own = CpuSet::new();
            own.set(cpus[cpu % cpus.len()]);
            sched_setaffinity(None, &own)?;
            command.spawn()
        });
        spawning.join().expect("nothing in it panics")
    })
}

/// The lines of a rig's report, as they come; the end of the channel is QEMU's end.
fn lines_of(stdout: ChildStdout) -> mpsc::Receiver<String> {
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                break;
            }
        }
    });
    receive
}

/// A rig on one CPU of the host, and what it is given.
struct Supervisor {
    work: Arc<Work>,
    cpu: usize,
    vcpus: u32,
    directory: PathBuf,
    image: Arc<Image>,
    report: File,
}

/// A rig that runs.
struct Rig {
    lines: mpsc::Receiver<String>,
    to: ChildStdin,
    console: PathBuf,
    /// The test that it has been given.
    test: Option<String>,
}

/// Starts the supervisor of a host CPU: it boots a rig with each of these numbers of vCPUs, as long as tests are left for
/// such a rig.
pub fn start(work: &Arc<Work>, cpu: usize, kinds: &'static [u32], directory: &Path, image: &Arc<Image>) {
    let (work, directory, image) = (work.clone(), directory.to_owned(), image.clone());
    work.lock().supervisors += 1;
    std::thread::spawn(move || {
        let supervise = || -> Result<(), Trouble> {
            let path = directory.join(format!("report-{cpu}.jsonl"));
            let report = File::create(&path).map_err(Trouble::broken(path.display()))?;
            let mut own = Supervisor { work: work.clone(), cpu, vcpus: 0, directory, image, report };
            for &vcpus in kinds {
                own.vcpus = vcpus;
                while own.work.has_left(vcpus) {
                    own.run()?;
                }
            }
            Ok(())
        };
        let ended = supervise();
        let mut state = work.lock();
        state.supervisors -= 1;
        match ended {
            Err(why) => state.over = Some(why.to_string()),
            Ok(()) if state.supervisors == 0 => state.over = Some("every rig has ended".to_owned()),
            Ok(()) => {}
        }
        drop(state);
        work.more.notify_all();
    });
}

impl Supervisor {
    /// Boots a rig and gives it tests until none is left or it ends.
    fn run(&mut self) -> Result<(), Trouble> {
        let mut rig = self.boot()?;
        let dead = self.listen(&mut rig)?;
        let status = self.work.end(self.cpu);
        let Some(test) = rig.test.take() else { return Ok(()) };
        let why = format!("the rig ended in it ({status})\n{}", tail(&rig.console));
        let mut state = self.work.lock();
        if dead {
            state.restarts.push(test.clone());
            if state.restarts.iter().filter(|other| **other == test).count() < TRIES {
                state.left.push_front((self.vcpus, test));
                return Ok(());
            }
        }
        state.ended.push(Ended { test, outcome: Outcome::Failed { output: why }, seconds: 0.0 });
        drop(state);
        self.work.more.notify_all();
        Ok(())
    }

    fn boot(&self) -> Result<Rig, Trouble> {
        let name =
            |kind: &str, number: usize| self.directory.join(format!("{kind}-{}.{number}.log", self.cpu));
        let number = (1..).find(|&number| !name("console", number).exists()).unwrap_or_default();
        let (console, errors) = (name("console", number), name("qemu", number));
        let errors = File::create(&errors).map_err(Trouble::broken(errors.display()))?;
        let mut command = qemu(&self.image, self.vcpus, init::BE_INIT);
        command.args(["-serial", &format!("file:{}", console.display()), "-serial", "stdio"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors);
        let mut child = spawn_on(self.cpu, &mut command).map_err(Trouble::broken("qemu-system-x86_64"))?;
        let lines = lines_of(child.stdout.take().expect("it is piped"));
        let to = child.stdin.take().expect("it is piped");
        self.work.lock().running.push((self.cpu, child));
        Ok(Rig { lines, to, console, test: None })
    }

    /// Answers the rig until it ends. Whether it has stopped dead.
    fn listen(&mut self, rig: &mut Rig) -> Result<bool, Trouble> {
        loop {
            let line = match rig.lines.recv_timeout(SILENCE) {
                Ok(line) => line,
                Err(mpsc::RecvTimeoutError::Timeout) => return Ok(true),
                Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(false),
            };
            // A report that cannot be kept is still heard.
            let _ = self.report.write_all(format!("{}\n", line.trim_end()).as_bytes());
            match serde_json::from_str(&line) {
                Ok(Event::Broken { why }) => {
                    return Err(Trouble::Broken(format!("the rig could not be set up: {why}")));
                }
                Ok(Event::Next) => {
                    rig.test = self.work.take(self.vcpus);
                    let name = rig.test.as_deref().unwrap_or_default();
                    // One that has ended meanwhile is told of by the end of its lines.
                    let _ = rig.to.write_all(format!("{name}\n").as_bytes());
                }
                Ok(Event::End { test, outcome, seconds }) => {
                    rig.test = None;
                    self.work.lock().ended.push(Ended { test, outcome, seconds });
                    self.work.more.notify_all();
                }
                Ok(Event::Up { .. } | Event::Alive) | Err(_) => {}
            }
        }
    }
}

impl Work {
    /// These tests, each with the vCPUs of the rig that it needs.
    pub fn of(tests: impl Iterator<Item = (u32, String)>) -> Arc<Self> {
        let state = State { left: tests.collect(), ..State::default() };
        Arc::new(Self { state: Mutex::new(state), more: Condvar::new() })
    }

    /// A panic while the lock is held leaves the state whole: outcomes are only ever appended.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_left(&self, vcpus: u32) -> bool {
        self.lock().left.iter().any(|(kind, _)| *kind == vcpus)
    }

    /// The next test for a rig with this many vCPUs.
    fn take(&self, vcpus: u32) -> Option<String> {
        let left = &mut self.lock().left;
        let at = left.iter().position(|(kind, _)| *kind == vcpus)?;
        left.remove(at).map(|(_, test)| test)
    }

    /// Ends the rig of a host CPU, if it has not ended by itself, and says how it ended.
    fn end(&self, cpu: usize) -> String {
        let mut state = self.lock();
        let Some(at) = state.running.iter().position(|(own, _)| *own == cpu) else { return String::new() };
        let (_, mut qemu) = state.running.remove(at);
        // One that has ended already cannot be killed, and need not be.
        let _ = qemu.kill();
        qemu.wait().map_or_else(|why| why.to_string(), |status| status.to_string())
    }

    /// Waits for a test's outcome. The error is why there is none.
    pub fn wait_for(&self, test: &str) -> Result<Outcome, String> {
        let mut state = self.lock();
        loop {
            if let Some(ended) = state.ended.iter().find(|ended| ended.test == test) {
                return Ok(ended.outcome.clone());
            }
            if let Some(why) = &state.over {
                return Err(why.clone());
            }
            state = self.more.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends what still runs.
    pub fn close(&self) {
        self.lock().left.clear();
        let cpus: Vec<usize> = self.lock().running.iter().map(|(cpu, _)| *cpu).collect();
        cpus.into_iter().for_each(|cpu| drop(self.end(cpu)));
    }

    /// Says where rigs stopped dead, what could not run and why, and what took longest.
    pub fn summarise(&self) {
        let mut state = self.lock();
        for at in &state.restarts {
            println!("STARTED AGAIN: a rig stopped dead in {at}");
        }
        for ended in &state.ended {
            if let Outcome::CouldNotRun { why } = &ended.outcome {
                println!("COULD NOT RUN {} in the rig: {why}", ended.test);
            }
        }
        state.ended.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        let all: f64 = state.ended.iter().map(|ended| ended.seconds).sum();
        let slowest =
            state.ended.iter().take(8).map(|ended| format!("{} {:.1} s", ended.test, ended.seconds));
        println!("{all:.0} s of tests; slowest: {}", slowest.collect::<Vec<_>>().join(", "));
    }
}

/// The end of the console's log.
fn tail(console: &Path) -> String {
    let mut bytes = Vec::new();
    let read = File::open(console).and_then(|mut file| file.read_to_end(&mut bytes));
    if let Err(why) = read {
        return format!("its console cannot be read: {why}");
    }
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
    format!("the end of {}:\n{tail}", console.display())
}
