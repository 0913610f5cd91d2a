//! The nested rig: the tests of the whole on an AMD host with nested paging, on any machine.
//!
//! ```text
//!   this process                         QEMU, -accel tcg -cpu EPYC,+svm
//!   ────────────                         ───────────────────────────────
//!   packages: Debian's kernels ──┐
//!   suite: the binary `whole`  ──┼─ image: kernel, initramfs ──> Debian 6.12, kvm-amd with NPT, zram
//!   archive                    ──┘                                 │
//!                                                                init (this binary as PID 1)
//!                                                                  ├─ zapscope doctor
//!                                                                  └─ `whole --exact NAME`, one by one ──> KVM guests
//!   rig: a trial for each name  <──── ttyS1: names of tests in, a line of JSON for each event out
//!   target/nested/logs          <──── ttyS0: the console
//! ```
//!
//! Two rigs are at work at the same time, each on a host CPU of its own: see `PLAN` and `vcpus_for`.
//!
//! Every inner test is a trial here, with its own result and output. `ZAPSCOPE_RIG_KEEP=1` gives a shell in the
//! rig instead. What the rig cannot have here (QEMU, the packages) is said aloud, and nothing fails for it.
#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a test says what it could not do")]

mod archive;
mod image;
mod init;
mod packages;
mod report;
mod rig;
mod suite;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use harness::Need as _;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use tests::host::Need;

use crate::report::Outcome;
use crate::rig::Work;

/// Why there is no rig.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// This machine lacks something: no test fails for it.
    #[error("{0}")]
    Missing(String),
    /// Something that should work did not.
    #[error("{0}")]
    Broken(String),
}

impl Trouble {
    /// For `map_err`: what was attempted, then why it failed.
    pub fn broken<E: std::fmt::Display>(what: impl std::fmt::Display) -> impl FnOnce(E) -> Self {
        move |why| Self::Broken(format!("{what}: {why}"))
    }
}

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some(init::BE_INIT) => init::init(),
        Some(init::BE_RUNNER) => init::runner(),
        _ => {}
    }
    match outside() {
        Ok(code) => code,
        Err(Trouble::Missing(why)) => {
            println!("tests in the nested rig: 0 ran\nCOULD NOT RUN the nested rig: {why}");
            ExitCode::SUCCESS
        }
        Err(Trouble::Broken(why)) => {
            eprintln!("the nested rig: {why}");
            ExitCode::FAILURE
        }
    }
}

fn outside() -> Result<ExitCode, Trouble> {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(1);
    if let Some(why) = Need::Qemu.missing() {
        return Err(Trouble::Missing(why.to_owned()));
    }
    let directory = working_directory()?;
    let mut phases = Phases::default();
    let packages = phases.time("packages", || packages::unpacked(&directory))?;
    let suite = phases.time("the suite's build", suite::build)?;
    let names = suite.names()?;
    let listed: Vec<Trial> = names.iter().map(|name| Trial::test(name, || Ok(()))).collect();
    let wanted: Vec<&str> =
        listed.iter().filter(|trial| !arguments.is_filtered_out(trial)).map(Trial::name).collect();
    if arguments.list || wanted.is_empty() {
        return Ok(libtest_mimic::run(&arguments, listed).exit_code());
    }
    let work = Work::of(wanted.iter().map(|&name| (vcpus_for(name), name.to_owned())));
    let trials: Vec<Trial> = names.iter().map(|name| trial(&work, name)).collect();
    let image = Arc::new(phases.time("the image", || image::build(&directory, &packages, &suite))?);
    if std::env::var_os("ZAPSCOPE_RIG_KEEP").is_some_and(|value| value == "1") {
        return rig::shell(&image, 2);
    }
    let logs = directory.join("logs");
    let _ = std::fs::remove_dir_all(&logs);
    create(&logs)?;
    for (cpu, kinds) in PLAN.iter().enumerate() {
        rig::start(&work, cpu, kinds, &logs, &image);
    }
    let conclusion = phases.time("the rig", || Ok(libtest_mimic::run(&arguments, trials)))?;
    work.close();
    println!(
        "tests in the nested rig: {} ran, {} could not; {phases}",
        conclusion.num_passed + conclusion.num_failed,
        conclusion.num_ignored
    );
    work.summarise();
    println!("logs: {}", logs.display());
    Ok(conclusion.exit_code())
}

/// The rigs of each host CPU, by their vCPUs: one that has run all tests of its kind helps with those of the next.
const PLAN: [&[u32]; 2] = [&[2], &[1, 2]];

/// vCPUs of the rig that a test runs in. Most want two, so that something else goes on while a guest runs. A guest with
/// interrupts runs in a rig with one: with two, QEMU 7.2's emulation of AMD's virtualisation lets one into a guest that
/// has them disabled now and then, and a Linux guest is stuck in its own spinlock.
fn vcpus_for(test: &str) -> u32 {
    if test.starts_with("linux::") { 1 } else { 2 }
}

/// `nested` in the target directory, which is three above this binary: `target/PROFILE/deps/nested-…`.
fn working_directory() -> Result<PathBuf, Trouble> {
    let binary = std::env::current_exe().map_err(Trouble::broken("this binary's path"))?;
    let target =
        binary.ancestors().nth(3).ok_or_else(|| Trouble::Broken("no target directory".to_owned()))?;
    let directory = target.join("nested");
    create(&directory)?;
    Ok(directory)
}

/// Makes a directory, and those above it.
pub fn create(directory: &Path) -> Result<(), Trouble> {
    std::fs::create_dir_all(directory).map_err(Trouble::broken(directory.display()))
}

/// A trial that waits for a rig's word on the test of the same name.
fn trial(work: &Arc<Work>, name: &str) -> Trial {
    let (work, test) = (work.clone(), name.to_owned());
    Trial::ignorable_test(name, move || match work.wait_for(&test) {
        Ok(Outcome::Passed) => Ok(Completion::Completed),
        Ok(Outcome::CouldNotRun { why }) => Ok(Completion::ignored_with(why)),
        Ok(Outcome::Failed { output }) => Err(Failed::from(output)),
        Err(why) => Err(Failed::from(why)),
    })
}

/// How long each phase took.
#[derive(Default)]
struct Phases(Vec<(&'static str, f64)>);

impl Phases {
    fn time<R>(
        &mut self,
        phase: &'static str,
        work: impl FnOnce() -> Result<R, Trouble>,
    ) -> Result<R, Trouble> {
        let begun = Instant::now();
        let result = work()?;
        self.0.push((phase, begun.elapsed().as_secs_f64()));
        Ok(result)
    }
}

impl std::fmt::Display for Phases {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let phases: Vec<String> =
            self.0.iter().map(|(phase, seconds)| format!("{phase} {seconds:.1} s")).collect();
        out.write_str(&phases.join(", "))
    }
}
