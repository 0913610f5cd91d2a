//! Tests with needs, and how they are run and counted.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::watchdog::{PATIENCE, watched};

/// Something of the host that a test cannot do without.
pub trait Need: Copy + fmt::Debug {
    /// Why the host has it not, with the remedy; `None` if it has. Asked once.
    fn missing(self) -> Option<String>;

    /// Whether the host may have run out of it when its test comes, as it may of huge pages.
    fn may_run_out(self) -> bool {
        false
    }
}

/// A need of one test.
struct Needed {
    need: String,
    may_run_out: bool,
    /// Asks the host, which takes a moment: not for a test that is not wanted.
    missing: Box<dyn Fn() -> Option<String> + Send>,
}

/// A test, and what it needs.
pub struct Test {
    name: String,
    needs: Vec<Needed>,
    patience: Duration,
    run: Box<dyn FnOnce() + Send>,
}

impl Test {
    /// A test by its path, which begins with the name of its target.
    pub fn new<N: Need + Send + 'static>(
        path: &str,
        needs: &[N],
        run: impl FnOnce() + Send + 'static,
    ) -> Self {
        let name = path.split_once("::").map_or(path, |(_target, name)| name).to_owned();
        let needed = |&need: &N| Needed {
            need: format!("{need:?}"),
            may_run_out: need.may_run_out(),
            missing: Box::new(move || asked_once(need)),
        };
        Self { name, needs: needs.iter().map(needed).collect(), patience: PATIENCE, run: Box::new(run) }
    }

    /// Gives it another deadline than the usual.
    #[must_use]
    pub fn within(mut self, seconds: u64) -> Self {
        self.patience = Duration::from_secs(seconds);
        self
    }

    /// Why it cannot run here.
    fn missing(&self) -> Option<String> {
        self.needs.iter().find_map(|needed| (needed.missing)())
    }
}

fn asked_once(need: impl Need) -> Option<String> {
    static ANSWERS: Mutex<BTreeMap<String, Option<String>>> = Mutex::new(BTreeMap::new());
    lock(&ANSWERS).entry(format!("{need:?}")).or_insert_with(|| need.missing()).clone()
}

/// Why a test ended that could not run.
struct CouldNotRun {
    need: String,
    why: String,
}

/// Ends this test, on its own thread, as one that could not run. The need must be among those that it declares, and be
/// one that the host may run out of: of anything else the probe has the last word, and the test fails.
pub fn could_not_run(need: impl Need, why: impl fmt::Display) -> ! {
    // Not a panic: there is nothing for its hook to print.
    resume_unwind(Box::new(CouldNotRun { need: format!("{need:?}"), why: why.to_string() }))
}

/// Runs a test whose declared needs are met. The error is why it fails.
fn outcome(needs: &[Needed], run: Box<dyn FnOnce() + Send>) -> Result<Option<String>, String> {
    let Err(panic) = catch_unwind(AssertUnwindSafe(run)) else { return Ok(None) };
    let CouldNotRun { need, why } = match panic.downcast::<CouldNotRun>() {
        Ok(said) => *said,
        Err(panic) => resume_unwind(panic),
    };
    match needs.iter().find(|needed| needed.need == need) {
        Some(needed) if needed.may_run_out => Ok(Some(why)),
        Some(_) => Err(format!("the host has {need}, and the test says that it could not run: {why}")),
        None => Err(format!("it could not run for want of {need}, which it does not declare: {why}")),
    }
}

/// Runs the tests of a target as the command line says; those of one target share the host, and run one after another
/// unless told otherwise. Says at the end how many ran, and which could not.
pub fn main(target: &str, tests: Vec<Test>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(1);
    let unable = Arc::new(Mutex::new(Vec::new()));
    let trials = tests.into_iter().map(|test| trial(test, &arguments, &unable)).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    if !arguments.list {
        let ran = conclusion.num_passed + conclusion.num_failed;
        say(&format!("tests of {target}: {ran} ran, {}", could_not(&lock(&unable))));
    }
    conclusion.exit_code()
}

/// Tests that could not run, with the reasons.
type Unable = Arc<Mutex<Vec<(String, String)>>>;

fn trial(test: Test, arguments: &Arguments, unable: &Unable) -> Trial {
    // What is wanted is asked of a trial.
    let wanted = !arguments.list && !arguments.is_filtered_out(&Trial::test(&test.name, || Ok(())));
    let missing = if wanted { test.missing() } else { None };
    let is_missing = missing.is_some();
    let Test { name, needs, patience, run } = test;
    lock(unable).extend(missing.map(|why| (name.clone(), why)));
    let (label, unable) = (name.clone(), unable.clone());
    let trial =
        Trial::ignorable_test(name, move || match watched(&label, patience, || outcome(&needs, run)) {
            Ok(None) => Ok(Completion::Completed),
            Ok(Some(why)) => {
                lock(&unable).push((label, why.clone()));
                Ok(Completion::ignored_with(why))
            }
            Err(why) => Err(Failed::from(why)),
        });
    trial.with_ignored_flag(is_missing)
}

/// How many could not run, and for each reason which.
fn could_not(unable: &[(String, String)]) -> String {
    let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    unable.iter().for_each(|(name, why)| reasons.entry(why).or_default().push(name));
    let mut text = format!("{} could not\n", unable.len());
    for (why, names) in reasons {
        text += &match names[..] {
            [name] => format!("COULD NOT RUN {name}: {why}\n"),
            _ => format!("COULD NOT RUN {} tests: {why}\n    {}\n", names.len(), names.join("\n    ")),
        };
    }
    text
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes to standard output. Without a reader the text is lost.
#[expect(clippy::disallowed_methods, reason = "a test binary speaks for itself")]
fn say(text: &str) {
    let _ = std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Has {
        Always,
        ByChance,
    }

    impl Need for Has {
        fn missing(self) -> Option<String> {
            None
        }
        fn may_run_out(self) -> bool {
            matches!(self, Self::ByChance)
        }
    }

    fn outcome_of(needs: &[Has], run: fn()) -> Result<Option<String>, String> {
        let test = Test::new("target::a_test", needs, run);
        assert_eq!(test.name, "a_test");
        outcome(&test.needs, test.run)
    }

    #[test]
    fn a_test_passes_by_its_end() {
        assert_eq!(outcome_of(&[Has::Always], || ()), Ok(None));
    }

    #[test]
    fn only_what_may_run_out_excuses_a_test() {
        let unable = outcome_of(&[Has::ByChance], || could_not_run(Has::ByChance, "none left"));
        assert_eq!(unable, Ok(Some("none left".to_owned())));
        let contradiction = outcome_of(&[Has::Always], || could_not_run(Has::Always, "none"));
        assert!(contradiction.unwrap_err().contains("the host has Always"));
    }

    #[test]
    fn an_excuse_must_be_declared() {
        let undeclared = outcome_of(&[Has::Always], || could_not_run(Has::ByChance, "none left"));
        assert!(undeclared.unwrap_err().contains("does not declare"));
    }

    #[test]
    fn a_reason_is_said_once_with_all_that_it_keeps_from_running() {
        let of = |(name, why): (&str, &str)| (name.to_owned(), why.to_owned());
        assert_eq!(could_not(&[]), "0 could not\n");
        assert_eq!(could_not(&[of(("a", "no KVM"))]), "1 could not\nCOULD NOT RUN a: no KVM\n");
        assert_eq!(
            could_not(&[("a", "no KVM"), ("b", "no swap"), ("c", "no KVM")].map(of)),
            "3 could not\nCOULD NOT RUN 2 tests: no KVM\n    a\n    c\nCOULD NOT RUN b: no swap\n"
        );
    }

    #[test]
    fn a_panic_is_no_excuse() {
        let panic = catch_unwind(|| outcome_of(&[Has::ByChance], || panic!("wrong")));
        assert!(panic.is_err());
    }
}
