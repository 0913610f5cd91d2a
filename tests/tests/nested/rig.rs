//! The emulated machine as its host sees it: started, listened to, waited for.
//!
//! ```text
//!   QEMU's standard output (the rig's ttyS1) ── supervisor ──> Log ──> trials that wait for their test
//!        ▲                                          │
//!        └── started again, with what is left <─────┘ no sign of life
//! ```

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::image::Image;
use crate::report::{Event, Outcome};
use crate::{Trouble, init};

/// A rig that says nothing for so long has stopped dead: its init shows a sign of life every few seconds
/// ([`init::PULSE`]), whatever a test does.
const SILENCE: Duration = Duration::from_secs(180);

/// How often a rig is started. The emulator has been seen to lose an interrupt, and with it the machine; a test that
/// hangs ends by itself ([`init::PATIENCE`]), and one that stops the machine every time fails.
const STARTS: u32 = 3;

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

/// The rig: what it has said so far.
pub struct Rig {
    vcpus: u32,
    log: Mutex<Log>,
    more: Condvar,
}

#[derive(Default)]
struct Log {
    qemu: Option<Child>,
    console: PathBuf,
    ended: Vec<Ended>,
    running: Option<String>,
    /// What it was doing each time it stopped dead and was started again.
    restarts: Vec<String>,
    /// Nobody waits for it any more.
    closed: bool,
    /// Why no more will come.
    over: Option<Over>,
}

/// How a start of the rig ended.
enum End {
    /// It has said that it is done, or cannot be set up; or QEMU has ended.
    Over(String),
    /// Neither word nor sign of life for [`SILENCE`].
    Dead,
}

struct Over {
    why: String,
    /// The end of the console, for the first who asks.
    tail: Option<String>,
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

/// Starts the rig's supervisor: it boots the rig with `image_of` the tests that are left, listens to it, and boots it
/// again if it stops dead. `cpu` is the host's CPU that it has for itself.
pub fn start(
    rig: &Arc<Rig>,
    tests: Vec<String>,
    cpu: usize,
    directory: PathBuf,
    image_of: impl Fn(&[String]) -> Result<Image, Trouble> + Send + 'static,
) {
    let rig = rig.clone();
    std::thread::spawn(move || {
        let ended = rig.supervise(tests, cpu, &directory, image_of);
        let mut log = rig.lock();
        log.over(&ended.unwrap_or_else(|trouble| trouble.to_string()));
        log.kill();
        drop(log);
        rig.more.notify_all();
    });
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

impl Rig {
    /// One with so many vCPUs, not started yet.
    pub fn with(vcpus: u32) -> Self {
        Self { vcpus, log: Mutex::default(), more: Condvar::new() }
    }

    /// How many it has.
    pub fn vcpus(&self) -> u32 {
        self.vcpus
    }

    /// A panic while the lock is held leaves the log whole: events are only ever appended.
    fn lock(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn supervise(
        &self,
        tests: Vec<String>,
        cpu: usize,
        directory: &Path,
        image_of: impl Fn(&[String]) -> Result<Image, Trouble>,
    ) -> Result<String, Trouble> {
        let report = directory.join("report.jsonl");
        let mut report = std::fs::File::create(&report).map_err(Trouble::broken(report.display()))?;
        for start in 1..=STARTS {
            let left: Vec<String> = tests.iter().filter(|test| !self.has_ended(test)).cloned().collect();
            let lines = self.boot(&image_of(&left)?, cpu, directory, start)?;
            match self.listen(&lines, &mut report) {
                End::Over(why) => return Ok(why),
                End::Dead => {
                    let mut log = self.lock();
                    let at = log.running.take().unwrap_or_else(|| "between two tests".to_owned());
                    log.restarts.push(at);
                    log.kill();
                    if log.closed {
                        break;
                    }
                }
            }
        }
        Ok(format!(
            "the rig has stopped dead {STARTS} times, with no sign of life for {SILENCE:.0?}: in {}",
            self.lock().restarts.join(", then in ")
        ))
    }

    fn has_ended(&self, test: &str) -> bool {
        self.lock().ended.iter().any(|ended| ended.test == test)
    }

    fn boot(
        &self,
        image: &Image,
        cpu: usize,
        directory: &Path,
        start: u32,
    ) -> Result<mpsc::Receiver<String>, Trouble> {
        let again = if start == 1 { String::new() } else { format!("-{start}") };
        let console = directory.join(format!("console{again}.log"));
        let errors = directory.join(format!("qemu{again}.log"));
        let errors = std::fs::File::create(&errors).map_err(Trouble::broken(errors.display()))?;
        let mut file = std::ffi::OsString::from("file:");
        file.push(&console);
        let mut command = qemu(image, self.vcpus, init::BE_INIT);
        command.arg("-serial").arg(file).args(["-serial", "stdio"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
        let mut child = spawn_on(cpu, &mut command).map_err(Trouble::broken("qemu-system-x86_64"))?;
        let lines = lines_of(child.stdout.take().expect("it is piped"));
        let mut log = self.lock();
        (log.qemu, log.console) = (Some(child), console);
        if log.closed {
            log.kill();
        }
        Ok(lines)
    }

    /// Takes the report down, until the rig ends or dies.
    fn listen(&self, lines: &mpsc::Receiver<String>, report: &mut std::fs::File) -> End {
        let mut last_words = "it said nothing".to_owned();
        loop {
            let line = match lines.recv_timeout(SILENCE) {
                Ok(line) => line,
                Err(mpsc::RecvTimeoutError::Timeout) => return End::Dead,
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            };
            // A report that cannot be kept is still heard.
            let _ = std::io::Write::write_all(report, format!("{}\n", line.trim_end()).as_bytes());
            match serde_json::from_str(&line) {
                Ok(Event::Alive) => continue,
                Ok(Event::Done) => return End::Over("the rig has run all it was given".to_owned()),
                Ok(Event::Broken { why }) => {
                    return End::Over(format!("the rig could not be set up: {why}"));
                }
                Ok(event) => {
                    last_words = format!("its last word was {event:?}");
                    self.lock().take(event);
                }
                Err(_) => last_words = format!("it said {line:?}"),
            }
            self.more.notify_all();
        }
        let status = match self.lock().qemu.as_mut().map(Child::wait) {
            Some(Ok(status)) => status.to_string(),
            other => format!("{other:?}"),
        };
        End::Over(format!("the rig has ended ({status}): {last_words}"))
    }

    /// Waits for a test's outcome.
    pub fn wait_for(&self, test: &str) -> Result<Outcome, String> {
        let mut log = self.lock();
        loop {
            if let Some(ended) = log.ended.iter().find(|ended| ended.test == test) {
                return Ok(ended.outcome.clone());
            }
            if let Some(over) = &mut log.over {
                return Err(over
                    .tail
                    .take()
                    .map_or(over.why.clone(), |tail| format!("{}\n{tail}", over.why)));
            }
            log = self.more.wait(log).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends the rig, if it has not ended by itself.
    pub fn close(&self) {
        let mut log = self.lock();
        log.closed = true;
        log.kill();
    }

    /// Says where it stopped dead and was started again.
    pub fn say_restarts(&self) {
        for at in &self.lock().restarts {
            println!("STARTED AGAIN: the rig with {} vCPUs stopped dead in {at}", self.vcpus);
        }
    }

    /// Names what could not run, and why.
    pub fn say_what_could_not_run(&self) {
        for ended in &self.lock().ended {
            if let Outcome::CouldNotRun { why } = &ended.outcome {
                println!("COULD NOT RUN {} in the rig: {why}", ended.test);
            }
        }
    }

    /// The five tests that took longest.
    pub fn slowest(&self) -> String {
        let log = self.lock();
        let mut tests: Vec<&Ended> = log.ended.iter().collect();
        tests.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        let named: Vec<String> =
            tests.iter().take(5).map(|ended| format!("{} {:.1} s", ended.test, ended.seconds)).collect();
        named.join(", ")
    }
}

impl Log {
    fn take(&mut self, event: Event) {
        match event {
            Event::Begin { test } => self.running = Some(test),
            Event::End { test, outcome, seconds } => {
                self.running = None;
                self.ended.push(Ended { test, outcome, seconds });
            }
            Event::Up { .. } | Event::Alive | Event::Done | Event::Broken { .. } => {}
        }
    }

    /// No more will come. The first reason stays: what follows it is its consequence.
    fn over(&mut self, why: &str) {
        if self.over.is_none() {
            self.over = Some(Over { why: why.to_owned(), tail: Some(tail(&self.console)) });
        }
    }

    fn kill(&mut self) {
        if let Some(mut qemu) = self.qemu.take() {
            // One that has ended already cannot be killed, and need not be.
            let _ = qemu.kill();
            let _ = qemu.wait();
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The end of the console's log.
fn tail(console: &Path) -> String {
    let mut bytes = Vec::new();
    let read = std::fs::File::open(console).and_then(|mut file| file.read_to_end(&mut bytes));
    if let Err(why) = read {
        return format!("its console cannot be read: {why}");
    }
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
    format!("the end of {}:\n{tail}", console.display())
}
