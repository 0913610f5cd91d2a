//! Scenarios: what is tried, written in TOML.
//!
//! A scenario is a matrix and one or more cases. Every combination of the matrix's axes is one row of the
//! report; the case says step by step what happens in it.
//!
//! ```toml
//! name = "example"          # lower-case letters, digits, hyphens
//! about = "one line"        # optional
//! memory = "64MiB"          # the arena, the memory under test: a multiple of 2 MiB, up to 62 GiB
//! vcpus = 1                 # 1 to 32; default 1
//! seed = 42                 # of every choice below; default 42
//! repetitions = 1           # trials of each row: counts must agree, times are pooled; default 1
//! guest = "linux"           # bare | linux; default bare
//! # kernel = "my-guest.elf" # another PVH image in place of the built-in test guest, or the Linux kernel (bzImage or
//! #                         # ELF); seen from the scenario's directory
//! slot_zap_all_quirk = false # true: deleting one memslot drops every SPTE of the VM, KVM's default
//! shared_tlb = false         # true: a device on the host's own page tables reads each victim before it is taken;
//!                            # its TLB is told by flushes alone, and shows what the double call finds
//! pinned = true              # vCPU n runs on the n-th processor, its userfaultfd handler too; false: anywhere
//!
//! [linux]                      # of guest = "linux" only; every key may be left out
//! memory = "512MiB"            # the kernel's own, beside the memory under test
//! backing = "4k"               # what fills it
//! pages = "huge"               # what the guest maps the memory under test with: huge (its own THP) | small
//! modules = "modules/6.12"     # default: beside the kernel, or /lib/modules/RELEASE
//! free_page_reporting = false  # true: the guest reports free pages when it likes, and the host takes them
//! cmdline = "quiet"            # added to the kernel's command line
//! initrd = "tools.cpio"        # files the guest has besides the agent: `sh` steps run in it, if it has a shell
//! disk = "tools.img"           # a raw image with a root file system, read-only: `sh` steps run in it otherwise
//!
//! [uffd]                       # of reclaim = ["uffd"] only; every key may be left out
//! store = "lz4"                # where evicted pages go: lz4 | zstd (memory of this process) | file
//! limit = "1GiB"               # the most the store may hold
//! fault_around = "4KiB"        # what one fault brings back: a power of two up to 2MiB, or "adaptive"
//! handlers = 2                 # threads that serve faults, 1 to 16; default one for each vCPU
//! events = false               # true: the kernel reports what else happens to the mapping, and waits for a reader
//!
//! [matrix]
//! backing = ["4k", "thp"]      # 4k | mthp:SIZE | thp | hugetlb:2m | memfd | memfd:thp
//! policy = ["kernel", "folio"] # kernel | page | pmd | folio | modern | slot | vm
//! reclaim = ["pageout", "uffd"] # pageout | dontneed | cold | free | collapse | remove (or punch-hole) | punch |
//!                              # protect | remap | cgroup | uffd (by ourselves, see above); default pageout
//! granule = ["2MiB"]           # bytes of a memslot: a power of two, 4 KiB to the memory; default 2 MiB
//! zap = ["auto"]               # how the policy's range is zapped; default auto:
//!                              # memslot (delete and re-create), protect (mprotect, exact), unmap (memfd only);
//!                              # auto is protect for page, pmd, folio and modern, memslot for slot and vm
//! exclude = [{ reclaim = "uffd", policy = "vm" }] # combinations to leave out: like this in all that is said
//!
//! [[case]]
//! name = "sparse"
//! about = "one line"           # optional
//! matrix.backing = ["4k"]      # optional: replaces that axis for this case
//! expect = ["integrity_errors == 0", "amplification <= 1.0 for policy kernel folio"]
//!                              # optional: what must be true of each row, see `expect`; else the run ends with 1
//!
//! [[case.step]]
//! do = "fill"                  # write the pattern to every page; always first
//!
//! [[case.step]]
//! do = "hot"                   # start a hot loop, until `stop` or the end of the case
//! pages = "others"             # "others": a sample of the pages that no step of the case takes; or "all"
//! count = 256                  # how many of them; for random and zipf the visits of a pass; default all
//! walk = "list"                # list; and over "all" sequential | strided (stride = pages) | random |
//!                              # zipf (exponent = 1.0)
//! access = "read"              # read | write | locked-add; default read
//! vcpus = [0]                  # who runs it; default vCPU 0
//!
//! [[case.step]]
//! do = "baseline"              # measure the hot loop undisturbed
//! for = "100ms"
//!
//! [[case.step]]
//! do = "reclaim"
//! victims = "sparse"           # `count` distinct units at seeded places; or a range = "0..16MiB" instead
//! count = 256
//! unit = "page"                # what one operation takes: page (4 KiB) | folio (of the backing's size) |
//!                              # region (2 MiB) | range (all at once); default page
//!                              # or victims = "idle", of reclaim = ["uffd"] only: units that nobody used, as far as that
//!                              # shows, while they were watched (after = "50ms"), until no more than
//!                              # target = "32MiB" are in memory
//! pace = "50us"                # wait from one operation to the next; default none
//!
//! [[case.step]]
//! do = "stop"                  # stop the hot loops
//!
//! [[case.step]]
//! do = "refault"               # touch every evicted page once, counted and timed
//!
//! [[case.step]]
//! do = "sweep"                 # touch every other page once: the collateral faults no hot loop has met
//!
//! [[case.step]]
//! do = "sh"                    # Linux guest: run a command to its end, beside the hot loops
//! command = "stress-ng --vm 1 --vm-bytes 100M --timeout 5"
//!
//! [[case.step]]
//! do = "inflate"               # Linux guest: the balloon takes memory that is the kernel's own, until it has it all
//! size = "64MiB"
//!
//! [[case.step]]
//! do = "deflate"               # Linux guest: and gives it back
//! ```
//!
//! The end of a case verifies every page of the arena; that needs no step. Sizes are binary however they are
//! written (`4k` is 4096).
//!
//! A scenario is read in two stages: `syntax` knows which keys and words there are, and the checked types
//! of this module know what they mean together. Both name file and line.

mod at;
mod axes;
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

use crate::choice::{Combination, Listener, Reclaim, RowLabel, Size, Zap};
use at::At;
use error::{Checked, Fault, Lines};
use program::input::{self, What};
use syntax::{CaseText, ScenarioText};

pub use axes::Axes;
pub use error::{Problem, ScenarioError};
pub use expect::Expectation;
pub use linux::LinuxGuest;
pub use plan::{HotSet, Plan, Victims};
pub use step::{HotLoop, HotWalk, Idle, ReclaimStep, Step, VictimChoice};
pub use uffd::Uffd;
pub use vocabulary::{Action, Guest, GuestPages, HotPages, UffdStore, Unit};

/// A checked scenario: it can be carried out, if the host gives what it needs.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Its name: lower-case letters, digits and hyphens.
    pub name: String,
    /// What it is about, possibly empty.
    pub about: String,
    /// Bytes of the arena: a multiple of 2 MiB.
    pub memory: u64,
    /// How many vCPUs, 1 to 32.
    pub vcpus: u32,
    /// Seed of every choice.
    pub seed: u64,
    /// Trials of each row, at least 1.
    pub repetitions: u32,
    /// An image in place of the built-in test guest; the kernel of a Linux guest.
    pub kernel: Option<PathBuf>,
    /// What a Linux guest is made of; `None` for the bare guest.
    pub linux: Option<LinuxGuest>,
    /// How memory is taken by `reclaim = ["uffd"]`.
    pub uffd: Uffd,
    /// Whether KVM keeps its default of dropping every SPTE when one memslot is deleted.
    pub slot_zap_all_quirk: bool,
    /// Whether a device that shares the host's page tables reads each victim before it is taken.
    pub shared_tlb: bool,
    /// Whether each vCPU has a processor of its own, as far as there are enough, and its userfaultfd handler the same.
    pub pinned: bool,
    /// The cases, at least one.
    pub cases: Vec<Case>,
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
    /// What is tried.
    pub axes: Axes,
    /// What must be true of each row.
    pub expect: Vec<Expectation>,
    /// What happens, in order; at least one step.
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
    /// What tells its row from the others, if this is who listened.
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
        let text = String::from_utf8(input::read(What::Scenario, path)?).map_err(|bad| {
            let offset = bad.utf8_error().valid_up_to();
            let line = Lines::of(bad.as_bytes()).line(offset);
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
        let lines = Lines::of(text.as_bytes());
        let written: ScenarioText = toml::from_str(text).map_err(|bad| ScenarioError::Syntax {
            origin: origin.to_owned(),
            line: bad.span().map_or(1, |span| lines.line(span.start)),
            message: bad.message().trim().to_owned(),
        })?;
        let checked = check(written, &lines, origin, text);
        checked.map_err(|Fault { line, problem }| meaning(origin, line, problem))
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
        let mut steps = self.cases.iter().flat_map(|case| &case.steps);
        if let Some(step) = steps.find(|step| step.needs_linux()) {
            return Err(meaning(&self.origin, 1, Problem::NeedsLinux(step.action())));
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
    /// Where the text came from.
    pub fn origin(&self) -> &str {
        &self.origin
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

    /// Which pages each step of the row takes, and which each hot loop visits.
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
            let slots = granule.value.slots(self.memory);
            if slots <= limit {
                continue;
            }
            let smallest = self.memory.div_ceil(limit.max(1)).next_power_of_two().max(PAGE_SIZE);
            let problem = Problem::TooManySlots {
                granule: Size(granule.value.bytes()),
                memory: Size(self.memory),
                slots,
                limit,
                smallest: Size(smallest),
            };
            return Err(meaning(&self.origin, granule.line, problem));
        }
        Ok(())
    }
}

fn meaning(origin: &str, line: usize, problem: Problem) -> ScenarioError {
    ScenarioError::Meaning { origin: origin.to_owned(), line, problem }
}

fn check(mut written: ScenarioText, lines: &Lines, origin: &str, text: &str) -> Checked<Scenario> {
    usable_name("scenario", &written.name, lines)?;
    let memory = memory(&written, lines)?;
    let vcpus = in_bounds(&written.vcpus, 1, u64::from(MAX_VCPUS), Problem::Vcpus, lines)?;
    let repetitions = in_bounds(&written.repetitions, 1, 1000, Problem::Repetitions, lines)?;
    let linux = linux_guest(&mut written, lines)?;
    if written.case.is_empty() {
        return Err(Fault { line: lines.line_of(&written.name), problem: Problem::NoCase });
    }
    let limits = step::Limits { memory, vcpus, linux: linux.as_ref().map(|linux| linux.memory), lines };
    let uffd = match &written.uffd {
        Some(at) => uffd::check(at.get_ref(), lines)?,
        None => Uffd::default(),
    };
    let seed = written.seed.unwrap_or(42);
    let mut cases: Vec<Case> = Vec::new();
    for (index, case) in written.case.iter().enumerate() {
        let twin = written.case[..index].iter().find(|earlier| earlier.name.get_ref() == case.name.get_ref());
        if let Some(twin) = twin {
            let (name, first_line) = (case.name.get_ref().clone(), lines.line_of(&twin.name));
            return Err(lines.fault(&case.name, Problem::DuplicateCase { name, first_line }));
        }
        cases.push(check_case(case, &written, &limits, seed)?);
    }
    let quirk = written.slot_zap_all_quirk.as_ref().filter(|quirk| *quirk.get_ref());
    if let Some(quirk) = quirk {
        let mut combinations = cases.iter().flat_map(|case| case.axes.combinations());
        if !combinations.any(|combination| combination.zap == Zap::Memslot) {
            return Err(lines.fault(quirk, Problem::IdleQuirk));
        }
    }
    if let Some(table) = written.uffd.as_ref() {
        let mut combinations = cases.iter().flat_map(|case| case.axes.combinations());
        if !combinations.any(|combination| combination.reclaim == Reclaim::Uffd) {
            return Err(lines.fault(table, Problem::IdleUffd));
        }
    }
    Ok(Scenario {
        uffd,
        name: written.name.get_ref().clone(),
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

fn check_case(case: &CaseText, written: &ScenarioText, limits: &step::Limits, seed: u64) -> Checked<Case> {
    let lines = limits.lines;
    usable_name("case", &case.name, lines)?;
    let name = case.name.get_ref().clone();
    if case.step.is_empty() {
        return Err(lines.fault(&case.name, Problem::NoSteps(name)));
    }
    let axes = Axes::check(&case.matrix, &written.matrix, limits.memory, lines.line_of(&case.name), lines)?;
    let mut sequence = sequence::Sequence::default();
    let mut steps = Vec::new();
    for step in &case.step {
        let line = lines.line_of(&step.action);
        steps.push(sequence.take(step::check(step, limits)?, line, limits.vcpus)?);
    }
    let idle = |step: &Step| matches!(step, Step::Reclaim(reclaim) if matches!(reclaim.victims, VictimChoice::Idle(_)));
    if let Some(index) = steps.iter().position(idle)
        && axes.combinations().iter().any(|combination| combination.reclaim != Reclaim::Uffd)
    {
        return Err(lines.fault(&case.step[index].action, Problem::IdleNeedsUffd));
    }
    for backing in axes.backings() {
        Plan::of(&steps, backing.value, limits.memory, seed)
            .map_err(|(index, problem)| lines.fault(&case.step[index].action, problem))?;
    }
    let combinations = axes.combinations();
    let mut expect = Vec::new();
    for line in &case.expect {
        let expectation =
            Expectation::parse(line.get_ref()).map_err(|bad| lines.fault(line, Problem::Expectation(bad)))?;
        if !combinations.iter().any(|tried| expectation.concerns(tried)) {
            return Err(lines.fault(line, Problem::IdleExpectation(expectation.line().to_owned())));
        }
        expect.push(expectation);
    }
    Ok(Case { name, about: case.about.clone(), axes, expect, steps })
}

/// What a Linux guest is made of, if the scenario has one.
fn linux_guest(written: &mut ScenarioText, lines: &Lines) -> Checked<Option<LinuxGuest>> {
    let is_linux = written.guest.as_ref().is_some_and(|guest| guest.get_ref().0 == Guest::Linux);
    match written.linux.take() {
        Some(table) if !is_linux => Err(lines.fault(&table, Problem::NotLinux)),
        Some(table) => linux::check(table.into_inner(), lines).map(Some),
        None => Ok(is_linux.then(LinuxGuest::default)),
    }
}

/// A name becomes a directory's and a heading, and is typed on a command line.
fn usable_name(what: &'static str, name: &At<String>, lines: &Lines) -> Checked<()> {
    let text = name.get_ref();
    let usable = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if (1..=64).contains(&text.len()) && !text.starts_with('-') && text.bytes().all(usable) {
        return Ok(());
    }
    Err(lines.fault(name, Problem::Name { what, name: text.clone() }))
}

fn memory(written: &ScenarioText, lines: &Lines) -> Checked<u64> {
    let size = written.memory.get_ref().0;
    if size.0 == 0 || size.0 > ARENA_MAX || !size.0.is_multiple_of(PMD_SIZE) {
        return Err(lines.fault(&written.memory, Problem::Memory(size)));
    }
    Ok(size.0)
}

/// The number, 1 if it is not given.
fn in_bounds(
    value: &Option<At<u64>>,
    least: u64,
    most: u64,
    problem: impl Fn(u64) -> Problem,
    lines: &Lines,
) -> Checked<u32> {
    let Some(at) = value else { return Ok(1) };
    let number = *at.get_ref();
    match u32::try_from(number) {
        Ok(small) if (least..=most).contains(&number) => Ok(small),
        _ => Err(lines.fault(at, problem(number))),
    }
}

#[cfg(test)]
mod tests;
