//! The errors of a scenario: the place, the problem, the remedy.

use std::path::PathBuf;

use guest_mem::Backing;

use super::expect::BadExpectation;
use super::step::Action;
use super::vocabulary::Unit;
use crate::choice::{CannotZap, Reclaim, Size};
use program::exit::{Class, Classified};
use program::input::InputError;

/// A file or a text that is no scenario.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum ScenarioError {
    #[error(transparent)]
    Input(#[from] InputError),
    #[error("{}:{line}: byte {offset} of the file is not UTF-8; a scenario is a TOML text in UTF-8", path.display())]
    NotUtf8 { path: PathBuf, line: usize, offset: usize },
    #[error("{origin}:{line}: {message}")]
    Syntax { origin: String, line: usize, message: String },
    #[error("{origin}:{line}: {problem}")]
    Meaning { origin: String, line: usize, problem: Problem },
}

impl Classified for ScenarioError {
    fn class(&self) -> Class {
        match self {
            Self::Input(error) => error.class(),
            Self::NotUtf8 { .. } | Self::Syntax { .. } | Self::Meaning { .. } => Class::Mistake,
        }
    }
}

/// A contradiction in a scenario whose syntax is correct. Each message says its remedy.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum Problem {
    // The scenario as a whole.
    #[error("the {what} name `{name}` is not usable: use 1 to 64 lower-case letters, digits and hyphens")]
    Name { what: &'static str, name: String },
    #[error("a memory of {0}: it must be a multiple of 2 MiB, at least 2 MiB and at most 62 GiB")]
    Memory(Size),
    #[error("{0} vCPUs: the guest is built for 1 to 32")]
    Vcpus(u64),
    #[error("{0} repetitions: a row needs at least one trial and at most 1000")]
    Repetitions(u64),
    #[error(
        "[linux] says what a Linux guest is made of, and this is none: set guest = \"linux\", or remove it"
    )]
    NotLinux,
    #[error("a kernel memory of {0}: it must be a multiple of 2 MiB, at least 128 MiB and at most 1 TiB")]
    LinuxMemory(Size),
    #[error("a `{0}` step needs a Linux guest: set guest = \"linux\", or remove the step")]
    NeedsLinux(Action),
    #[error("the command of an `sh` step is empty: say what to run")]
    EmptyCommand,
    #[error(
        "a balloon of {size}, and the Linux guest has {memory} of its own: it needs 64 MiB of them to live"
    )]
    Balloon { size: Size, memory: Size },
    #[error("there is no case: add a [[case]] with a name and steps")]
    NoCase,
    #[error("there is already a case `{name}` in line {first_line}: give this one another name")]
    DuplicateCase { name: String, first_line: usize },
    #[error("the case `{0}` has no steps: add [[case.step]] with do = \"fill\", then what follows")]
    NoSteps(String),

    // The axes.
    #[error("no {axis} is given: add `{axis} = [...]` to [matrix], or `matrix.{axis}` to the case")]
    MissingAxis { axis: &'static str },
    #[error("`{axis}` is empty: give it at least one value")]
    EmptyAxis { axis: &'static str },
    #[error("`{value}` stands twice in the axis `{axis}`: remove one")]
    DuplicateValue { axis: &'static str, value: String },
    #[error(
        "`exclude` leaves nothing: name the values of the rows to leave out, as in `{{ reclaim = \"uffd\", policy = \"vm\" }}`"
    )]
    ExcludesAll,
    #[error("no row of this case is like that: remove it from `exclude`, or correct it")]
    ExcludesNone,
    #[error("a granule of {granule} in a memory of {memory}: it can be at most as large as the memory")]
    GranuleAboveMemory { granule: Size, memory: Size },
    #[error(
        "a granule of {granule} cuts {memory} into {slots} memslots, and this host has room for {limit}: use a \
         granule of at least {smallest}"
    )]
    TooManySlots { granule: Size, memory: Size, slots: u64, limit: u64, smallest: Size },
    #[error(transparent)]
    CannotZap(CannotZap),
    #[error("nothing is zapped under policy `kernel` alone: remove the axis `zap`, or add a policy")]
    NothingToZap,
    #[error(
        "slot_zap_all_quirk changes what the deletion of a memslot does, and no row deletes one: use zap = \
         [\"memslot\"], or the policies slot or vm"
    )]
    IdleQuirk,
    #[error("`[uffd]` does nothing: no case has `reclaim = [\"uffd\"]`")]
    IdleUffd,
    #[error("{0} handlers: 1 to 16, or none said for one a vCPU")]
    Handlers(u32),
    #[error("{reclaim} cannot take {backing}: {why}")]
    Impossible { reclaim: Reclaim, backing: Backing, why: &'static str },
    #[error(
        "unit = \"page\" takes 4 KiB, and hugetlb:2m gives only whole pages of 2 MiB: use unit = \"folio\""
    )]
    HugetlbPage,

    // The expectations.
    #[error(transparent)]
    Expectation(#[from] BadExpectation),
    #[error("`{0}` is limited to rows that this case does not have: change its `for`, or the matrix")]
    IdleExpectation(String),

    // The steps.
    #[error("`{key}` means nothing to a `{step}` step{hint}: remove it")]
    StrayKey { key: &'static str, step: Action, hint: &'static str },
    #[error("a `{step}` step needs `{key}`: add {example}")]
    MissingKey { step: Action, key: &'static str, example: &'static str },
    #[error("`{key}` is 0: it must be at least 1")]
    Zero { key: &'static str },
    #[error("`{key}` is longer than {seconds} s: a shorter one says as much")]
    TooLong { key: &'static str, seconds: u64 },
    #[error("there is no vCPU {vcpu}: the scenario has {vcpus}, numbered from 0")]
    NoSuchVcpu { vcpu: u64, vcpus: u32 },
    #[error("vCPU {0} is named twice: remove one")]
    DuplicateVcpu(u64),
    #[error("vCPU {vcpu} runs the hot loop of line {since} already: stop it first, or use another vCPU")]
    BusyVcpu { vcpu: u32, since: usize },
    #[error(
        "every vCPU runs a hot loop, and `{0}` needs one that does not: put a `stop` before it, or add a vCPU"
    )]
    NoFreeVcpu(Action),
    #[error(
        "a walk that is no list visits a whole range and cannot leave out the victims: use walk = \"list\", or \
         pages = \"all\""
    )]
    WalkOverOthers,
    #[error("the exponent {0} is no use to Zipf's law here: use a number above 0 and at most 8")]
    Exponent(f64),
    #[error("a stride of {stride} pages in an arena of {pages} visits one page only: use a smaller one")]
    Stride { stride: u64, pages: u64 },
    #[error(
        "{pages} pages, and the guest's table holds {limit}: set a smaller `count`, or for zipf a smaller memory"
    )]
    TableFull { pages: u64, limit: u64 },
    #[error("the range ends at {end}, and the memory at {memory}: shorten the range, or enlarge the memory")]
    RangeOutside { end: Size, memory: Size },
    #[error("the range's start or end is no multiple of {align}, the unit of {backing}: move it")]
    RangeUnaligned { align: Size, backing: Backing },
    #[error(
        "victims = \"idle\" needs rows that see what is used: give the case `matrix.reclaim = [\"uffd\"]`"
    )]
    IdleNeedsUffd,
    #[error("a target of {target} in a memory of {memory}: it must be smaller, and whole pages of 4 KiB")]
    Target { target: Size, memory: Size },
    #[error(
        "sparse and idle victims stand alone, and unit = \"{0}\" takes a range at once: use page, folio or region"
    )]
    SparseUnit(Unit),
    #[error(
        "{count} victims of {unit} each, and {backing} in this memory has {available}: lower `count`, enlarge \
         `memory`, or give the case a `matrix.backing` without {backing}"
    )]
    TooManyVictims { count: u64, unit: Size, backing: Backing, available: u64 },
    #[error(
        "{wanted} hot pages, and with backing {backing} the steps of this case leave only {left} pages alone: \
         lower `count`, take fewer victims, or enlarge `memory`"
    )]
    TooFewOthers { wanted: u64, left: u64, backing: Backing },

    // Their order.
    #[error("`{0}` before `fill` meets memory that holds nothing: make `fill` the first step")]
    BeforeFill(Action),
    #[error("`fill` while a hot loop runs would overwrite what the loop counts: put a `stop` before it")]
    FillWhileHot,
    #[error("`{0}` without a hot loop: put a `hot` step before it")]
    WithoutHot(Action),
    #[error("`baseline` after `reclaim` measures no undisturbed loop: move it before the `reclaim`")]
    LateBaseline,
    #[error("`{0}` before any `reclaim` since the last `fill`: put a `reclaim` before it")]
    BeforeReclaim(Action),
}

/// A value with its place in the text.
pub(super) type At<T> = toml::Spanned<T>;

/// A problem, and the byte of the text at which it stands.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Fault {
    pub at: usize,
    pub problem: Problem,
}

/// A result of the second stage.
pub(super) type Checked<T> = Result<T, Fault>;

/// The problem of a value.
pub(super) fn fault<T>(at: &At<T>, problem: Problem) -> Fault {
    Fault { at: at.span().start, problem }
}

impl Fault {
    /// The error of a text from `origin`.
    pub(super) fn of_text(self, text: &str, origin: &str) -> ScenarioError {
        let line = line_of(text.as_bytes(), self.at);
        ScenarioError::Meaning { origin: origin.to_owned(), line, problem: self.problem }
    }
}

/// The line of the byte at `offset`, from 1.
pub(super) fn line_of(text: &[u8], offset: usize) -> usize {
    text.iter().take(offset).filter(|&&byte| byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted_from_one() {
        let found: Vec<usize> = (0..7).map(|offset| line_of(b"ab\n\ncd", offset)).collect();
        assert_eq!(found, [1, 1, 1, 2, 3, 3, 3]);
        assert_eq!(line_of(b"", 0), 1);
    }
}
