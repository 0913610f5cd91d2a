//! Scenarios: what is tried, written in TOML.
//!
//! A scenario is a matrix and one or more cases. Every combination of the matrix's axes is one row of the report; the case
//! says step by step what happens in it. The keys are documented where serde reads them: in `syntax`, `linux` and `uffd`.
//! The reference in the book is written from there (`tests/reference.rs`); `docs/src/scenarios.md` has an example.
//!
//! The end of a case verifies every page of the arena; that needs no step. Sizes are binary however they are
//! written (`4k` is 4096).
//!
//! A scenario is read in two stages: `syntax` knows which keys and words there are, and the checked types
//! of this module know what they mean together. Both name file and line.

mod axes;
mod check_step;
mod error;
pub mod expect;
mod linux;
mod plan;
pub mod select;
mod sequence;
mod step;
mod syntax;
mod uffd;
mod vocabulary;

use std::path::{Path, PathBuf};

use guest_abi::layout::{ARENA_MAX, MAX_VCPUS};
use guest_mem::{PAGE_SIZE, PMD_SIZE};

use crate::choice::{Combination, Listener, Reclaim, RowLabel, Size, Word, Zap};
use check_step::Limits;
use error::{At, Checked, Fault, fault};
use program::input::{self, FileKind};
use syntax::{AxesText, CaseText, ScenarioText};

pub use axes::Axes;
pub use error::{Problem, ScenarioError};
pub use expect::Expectation;
pub use linux::LinuxGuest;
pub use plan::{HotSet, Plan, Victims};
pub use step::{Action, HotLoop, HotWalk, Idle, ReclaimStep, Step, VictimChoice};
pub use uffd::Uffd;
pub use vocabulary::{DeviceTlb, Guest, GuestPages, HotPages, UffdStore, Unit};

/// A checked scenario: it can be carried out, if the host gives what it needs.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Its name: lower-case letters, digits and hyphens.
    pub name: String,
    /// What it is about, possibly empty.
    pub about: String,
    /// Bytes of the arena: a multiple of 2 MiB.
    pub memory: u64,
    /// The number of vCPUs, 1 to 32.
    pub vcpus: u32,
    /// Seed of every choice.
    pub seed: u64,
    /// Trials of each row, at least 1.
    pub repetitions: u32,
    /// An image in place of the built-in test guest; the kernel of a Linux guest.
    pub kernel: Option<PathBuf>,
    /// The Linux guest; `None` for the bare guest.
    pub linux: Option<LinuxGuest>,
    /// The swap in user space, for `reclaim = ["uffd"]`.
    pub uffd: Uffd,
    /// Whether KVM keeps its default of dropping every SPTE when one memslot is deleted.
    pub slot_zap_all_quirk: bool,
    /// The device that shares the host's page tables and reads each victim before it is taken.
    pub shared_tlb: DeviceTlb,
    /// Whether each vCPU has a processor of its own, as far as there are enough, and its userfaultfd handler the same.
    pub pinned: bool,
    /// The cases, at least one.
    pub cases: Vec<Case>,
    /// The origin of the text: a file, or the name of a built-in.
    origin: String,
    text: String,
}

/// A case of a scenario.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its name, the only one in the scenario.
    pub name: String,
    /// What it is about, possibly empty.
    pub about: String,
    /// The combinations of the case.
    pub axes: Axes,
    /// Conditions that each row must meet.
    pub expect: Vec<Expectation>,
    /// The steps, in order; at least one.
    pub steps: Vec<Step>,
}

/// One row to be made: a case in one combination.
#[derive(Clone, Copy, Debug)]
pub struct RowPlan<'a> {
    /// The case.
    pub case: &'a Case,
    /// The combination.
    pub combination: Combination,
}

impl RowPlan<'_> {
    /// The label of its row with this listener.
    pub fn label(&self, listener: Listener) -> RowLabel {
        RowLabel { case: self.case.name.clone(), tried: self.combination, listener }
    }
}

impl Scenario {
    /// Reads a scenario from a file. Its `kernel` is seen from the file's directory.
    ///
    /// # Errors
    /// No such file, no text, or no scenario.
    pub fn load(path: &Path) -> Result<Self, ScenarioError> {
        let text = String::from_utf8(input::read(FileKind::Scenario, path)?).map_err(|bad| {
            let offset = bad.utf8_error().valid_up_to();
            let line = error::line_of(bad.as_bytes(), offset);
            ScenarioError::NotUtf8 { path: path.to_owned(), line, offset }
        })?;
        let mut scenario = Self::parse(&text, &path.display().to_string())?;
        if let Some(directory) = path.parent() {
            scenario.kernel = scenario.kernel.map(|kernel| directory.join(kernel));
            if let Some(linux) = &mut scenario.linux {
                linux.seen_from(directory);
            }
        }
        Ok(scenario)
    }

    /// Reads a scenario from a text. `origin` says in errors where the text comes from.
    ///
    /// # Errors
    /// It is no TOML, has unknown keys, or makes no sense.
    pub fn parse(text: &str, origin: &str) -> Result<Self, ScenarioError> {
        let written: ScenarioText = toml::from_str(text).map_err(|bad| ScenarioError::Syntax {
            origin: origin.to_owned(),
            line: error::line_of(text.as_bytes(), bad.span().unwrap_or_default().start),
            message: bad.message().trim().to_owned(),
        })?;
        check(written, text, origin).map_err(|fault| fault.of_text(text, origin))
    }

    /// The same scenario in a Linux guest, whatever its text says; `kernel` and `modules` replace the text's if
    /// given.
    #[must_use]
    pub fn in_linux(mut self, kernel: Option<PathBuf>, modules: Option<PathBuf>) -> Self {
        let linux = self.linux.get_or_insert_default();
        linux.modules = modules.or(linux.modules.take());
        self.kernel = kernel.or(self.kernel);
        self
    }

    /// The same scenario in the bare guest, whatever its text says.
    ///
    /// # Errors
    /// A step of it needs a Linux guest.
    pub fn in_bare_guest(mut self) -> Result<Self, ScenarioError> {
        let mut actions = self.cases.iter().flat_map(|case| &case.steps).map(Action::from);
        if let Some(action) = actions.find(|action| action.needs_linux()) {
            let fault = Fault { at: 0, problem: Problem::NeedsLinux(action) };
            return Err(fault.of_text(&self.text, &self.origin));
        }
        // With a Linux guest it was that guest's kernel.
        if self.linux.take().is_some() {
            self.kernel = None;
        }
        Ok(self)
    }

    /// The text it was read from.
    pub fn text(&self) -> &str {
        &self.text
    }
    /// Pages of the arena.
    pub fn pages(&self) -> u64 {
        self.memory / PAGE_SIZE
    }

    /// Every row, in a stable order: case by case, each in the order of [`Axes::combinations`].
    pub fn rows(&self) -> impl Iterator<Item = RowPlan<'_>> {
        self.cases.iter().flat_map(|case| {
            case.axes.combinations().into_iter().map(move |combination| RowPlan { case, combination })
        })
    }

    /// The pages that each step of the row takes, and that each hot loop visits.
    pub fn plan(&self, row: &RowPlan) -> Plan {
        Plan::of(&row.case.steps, row.combination.backing, self.memory, self.seed)
            .expect("every backing of every case was laid out when the scenario was checked")
    }

    /// Whether the arena fits a host with room for `limit` memslots beside those of low memory.
    ///
    /// # Errors
    /// A granule is too small for that; the message names the smallest that is not.
    pub fn check_slots(&self, limit: u64) -> Result<(), ScenarioError> {
        for granule in self.cases.iter().flat_map(|case| case.axes.granules()) {
            let slots = granule.get_ref().slots(self.memory);
            if slots <= limit {
                continue;
            }
            let smallest = self.memory.div_ceil(limit.max(1)).next_power_of_two().max(PAGE_SIZE);
            let problem = Problem::TooManySlots {
                granule: Size(granule.get_ref().bytes()),
                memory: Size(self.memory),
                slots,
                limit,
                smallest: Size(smallest),
            };
            return Err(fault(granule, problem).of_text(&self.text, &self.origin));
        }
        Ok(())
    }
}

fn check(mut written: ScenarioText, text: &str, origin: &str) -> Checked<Scenario> {
    usable_name("scenario", &written.name)?;
    let Word(memory) = *written.memory.get_ref();
    if memory.0 == 0 || memory.0 > ARENA_MAX || !memory.0.is_multiple_of(PMD_SIZE) {
        return Err(fault(&written.memory, Problem::Memory(memory)));
    }
    let memory = memory.0;
    let vcpus = at_most(u64::from(MAX_VCPUS), &written.vcpus, Problem::Vcpus)?;
    let repetitions = at_most(1000, &written.repetitions, Problem::Repetitions)?;
    let linux = linux_guest(&mut written)?;
    if written.case.is_empty() {
        return Err(fault(&written.name, Problem::NoCase));
    }
    let limits = Limits { memory, vcpus, linux: linux.as_ref().map(|linux| linux.memory) };
    let uffd = match &written.uffd {
        Some(at) => uffd::check(at.get_ref())?,
        None => Uffd::default(),
    };
    let seed = written.seed.unwrap_or(42);
    let mut cases: Vec<Case> = Vec::new();
    for (index, case) in written.case.iter().enumerate() {
        let twin = written.case[..index].iter().find(|earlier| earlier.name == case.name);
        if let Some(twin) = twin {
            let first_line = error::line_of(text.as_bytes(), twin.name.span().start);
            let name = case.name.get_ref().clone();
            return Err(fault(&case.name, Problem::DuplicateCase { name, first_line }));
        }
        cases.push(check_case(case, &written.matrix, &limits, seed, text)?);
    }
    let some_row = |wanted: fn(&Combination) -> bool| {
        cases.iter().flat_map(|case| case.axes.combinations()).any(|tried| wanted(&tried))
    };
    let quirk = written.slot_zap_all_quirk.as_ref().filter(|quirk| *quirk.get_ref());
    if let Some(quirk) = quirk.filter(|_| !some_row(|tried| tried.zap == Zap::Memslot)) {
        return Err(fault(quirk, Problem::IdleQuirk));
    }
    if let Some(table) = written.uffd.as_ref().filter(|_| !some_row(|tried| tried.reclaim == Reclaim::Uffd)) {
        return Err(fault(table, Problem::IdleUffd));
    }
    Ok(Scenario {
        uffd,
        name: written.name.into_inner(),
        memory,
        vcpus,
        seed,
        repetitions,
        slot_zap_all_quirk: quirk.is_some(),
        shared_tlb: written.shared_tlb,
        pinned: written.pinned.unwrap_or(true),
        about: written.about,
        kernel: written.kernel,
        linux,
        cases,
        origin: origin.to_owned(),
        text: text.to_owned(),
    })
}

fn check_case(case: &CaseText, matrix: &AxesText, limits: &Limits, seed: u64, text: &str) -> Checked<Case> {
    usable_name("case", &case.name)?;
    let name = case.name.get_ref().clone();
    if case.step.is_empty() {
        return Err(fault(&case.name, Problem::NoSteps(name)));
    }
    let axes = Axes::check(case, matrix, limits.memory)?;
    let combinations = axes.combinations();
    let mut sequence = sequence::Sequence::default();
    let mut steps = Vec::new();
    for step in &case.step {
        let at = step.action.span().start;
        let place = (at, error::line_of(text.as_bytes(), at));
        steps.push(sequence.take(check_step::check(step, limits)?, place, limits.vcpus)?);
    }
    let idle = |step: &Step| matches!(step, Step::Reclaim(reclaim) if matches!(reclaim.victims, VictimChoice::Idle(_)));
    if let Some(index) = steps.iter().position(idle)
        && combinations.iter().any(|combination| combination.reclaim != Reclaim::Uffd)
    {
        return Err(fault(&case.step[index].action, Problem::IdleNeedsUffd));
    }
    for backing in axes.backings() {
        Plan::of(&steps, backing, limits.memory, seed)
            .map_err(|(index, problem)| fault(&case.step[index].action, problem))?;
    }
    let mut expect = Vec::new();
    for line in &case.expect {
        let expectation =
            Expectation::parse(line.get_ref()).map_err(|bad| fault(line, Problem::Expectation(bad)))?;
        if !combinations.iter().any(|tried| expectation.concerns(tried)) {
            return Err(fault(line, Problem::IdleExpectation(expectation.line().to_owned())));
        }
        expect.push(expectation);
    }
    Ok(Case { name, about: case.about.clone(), axes, expect, steps })
}

/// The Linux guest, if the scenario has one.
fn linux_guest(written: &mut ScenarioText) -> Checked<Option<LinuxGuest>> {
    let is_linux = written.guest.as_ref().is_some_and(|guest| guest.get_ref().0 == Guest::Linux);
    match written.linux.take() {
        Some(table) if !is_linux => Err(fault(&table, Problem::NotLinux)),
        Some(table) => linux::check(table.into_inner()).map(Some),
        None => Ok(is_linux.then(LinuxGuest::default)),
    }
}

/// A name becomes a directory's and a heading, and is typed on a command line.
fn usable_name(what: &'static str, name: &At<String>) -> Checked<()> {
    let text = name.get_ref();
    let usable = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if (1..=64).contains(&text.len()) && !text.starts_with('-') && text.bytes().all(usable) {
        return Ok(());
    }
    Err(fault(name, Problem::Name { what, name: text.clone() }))
}

/// The number, which is at least 1, and 1 if it is not given.
fn at_most(most: u64, value: &Option<At<u64>>, problem: fn(u64) -> Problem) -> Checked<u32> {
    let Some(at) = value else { return Ok(1) };
    let number = *at.get_ref();
    let small = u32::try_from(number).ok().filter(|_| (1..=most).contains(&number));
    small.ok_or_else(|| fault(at, problem(number)))
}

#[cfg(test)]
mod tests;
