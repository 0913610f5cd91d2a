//! The emulated machine as its host sees it: started, listened to, waited for.
//!
//! ```text
//!   QEMU's standard output (the rig's ttyS1) ── listening thread ──> Log ──> trials that wait for their test
//! ```

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::image::Image;
use crate::report::{Event, Outcome};
use crate::{Trouble, init};

/// A rig that says nothing for so long hangs: it ends a test that does not end by itself, in half the time.
const SILENCE: Duration = Duration::from_secs(2 * init::PATIENCE.as_secs());

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
    heard: Option<Instant>,
    /// Why no more will come.
    over: Option<Over>,
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
    let status = qemu(image, vcpus, &format!("{} {}", init::BE_INIT, init::WITH_SHELL))
        .args(["-serial", "mon:stdio"])
        .status()
        .map_err(Trouble::broken("qemu-system-x86_64"))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Boots the rig and listens to it.
pub fn start(rig: &Arc<Rig>, image: &Image, directory: &Path) -> Result<(), Trouble> {
    let console = directory.join("console.log");
    let errors = std::fs::File::create(directory.join("qemu.log")).map_err(Trouble::broken("qemu.log"))?;
    let report =
        std::fs::File::create(directory.join("report.jsonl")).map_err(Trouble::broken("report.jsonl"))?;
    let mut file = std::ffi::OsString::from("file:");
    file.push(&console);
    let mut child = qemu(image, rig.vcpus, init::BE_INIT)
        .arg("-serial")
        .arg(file)
        .args(["-serial", "stdio"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(errors)
        .spawn()
        .map_err(Trouble::broken("qemu-system-x86_64"))?;
    let stdout = child.stdout.take().expect("it is piped");
    let mut log = rig.lock();
    (log.qemu, log.console, log.heard) = (Some(child), console, Some(Instant::now()));
    drop(log);
    let listening = rig.clone();
    std::thread::spawn(move || listening.listen(stdout, report));
    Ok(())
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

    /// Takes the report down, until the rig ends.
    fn listen(&self, stdout: ChildStdout, mut report: std::fs::File) {
        let mut last_words = "it said nothing".to_owned();
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            // A report that cannot be kept is still heard.
            let _ = std::io::Write::write_all(&mut report, format!("{}\n", line.trim_end()).as_bytes());
            match serde_json::from_str(&line) {
                Ok(event) => {
                    last_words = format!("its last word was {event:?}");
                    self.lock().take(event);
                }
                Err(_) => last_words = format!("it said {line:?}"),
            }
            self.more.notify_all();
        }
        let mut log = self.lock();
        let status = match log.qemu.as_mut().map(Child::wait) {
            Some(Ok(status)) => status.to_string(),
            other => format!("{other:?}"),
        };
        log.over(&format!("the rig has ended ({status}): {last_words}"));
        drop(log);
        self.more.notify_all();
    }

    /// Waits for a test's outcome.
    ///
    /// # Errors
    /// The rig ended, or hangs, without it.
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
            let quiet = log.heard.map_or(Duration::ZERO, |heard| heard.elapsed());
            let Some(patience) = SILENCE.checked_sub(quiet) else {
                let running = log.running.clone().unwrap_or_else(|| "no test".to_owned());
                log.over(&format!("the rig has said nothing for {SILENCE:.0?}, running {running}"));
                log.kill();
                continue;
            };
            log = self.more.wait_timeout(log, patience).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Ends the rig, if it has not ended by itself.
    pub fn close(&self) {
        self.lock().kill();
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
        self.heard = Some(Instant::now());
        match event {
            Event::Up { .. } => {}
            Event::Begin { test } => self.running = Some(test),
            Event::End { test, outcome, seconds } => {
                self.running = None;
                self.ended.push(Ended { test, outcome, seconds });
            }
            Event::Done => self.over("the rig has run all it was given"),
            Event::Broken { why } => self.over(&format!("the rig could not be set up: {why}")),
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
