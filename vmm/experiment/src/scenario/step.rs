//! One step of a case: what is done, with what. Which steps may follow which is [`super::sequence`]'s.

use std::time::Duration;

use guest_abi::layout::TABLE_ENTRIES;
use guest_abi::order::{Access, Walk};
use guest_mem::{Backing, PAGE_SIZE, PMD_SIZE};

use super::at::At;
use super::error::{Checked, Fault, Lines, Problem};
use super::syntax::StepText;
use super::vocabulary::{AccessKind, Action, HotPages, Unit, VictimKind, WalkKind};
use crate::choice::{ByteRange, Size, TimeSpan, Word};

/// A step of a case.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Write the pattern to every page.
    Fill,
    /// Start a hot loop, which runs until [`Step::Stop`] or the end of the case.
    Hot(HotLoop),
    /// Measure the hot loops for so long, undisturbed.
    Baseline(Duration),
    /// Take the victims.
    Reclaim(ReclaimStep),
    /// Stop every hot loop.
    Stop,
    /// Touch every evicted page once, on this vCPU, counted and timed.
    Refault {
        /// The lowest vCPU that runs no hot loop.
        vcpu: u32,
    },
    /// Touch every page that no step has taken once, on this vCPU: the collateral faults the hot loops have
    /// not met.
    Sweep {
        /// The lowest vCPU that runs no hot loop.
        vcpu: u32,
    },
    /// Run a shell command in a Linux guest, to its end.
    Shell(String),
    /// Have a Linux guest's balloon take so many bytes of the kernel's own memory.
    Inflate(u64),
    /// Have the balloon give back all it took.
    Deflate,
}

impl Step {
    /// The word of the step.
    pub fn action(&self) -> Action {
        match self {
            Self::Fill => Action::Fill,
            Self::Hot(_) => Action::Hot,
            Self::Baseline(_) => Action::Baseline,
            Self::Reclaim(_) => Action::Reclaim,
            Self::Stop => Action::Stop,
            Self::Refault { .. } => Action::Refault,
            Self::Sweep { .. } => Action::Sweep,
            Self::Shell(_) => Action::Shell,
            Self::Inflate(_) => Action::Inflate,
            Self::Deflate => Action::Deflate,
        }
    }

    /// Whether only a guest with an operating system can do it.
    pub fn needs_linux(&self) -> bool {
        matches!(self, Self::Shell(_) | Self::Inflate(_) | Self::Deflate)
    }
}

/// A loop that touches pages for as long as it runs.
#[derive(Clone, Debug, PartialEq)]
pub struct HotLoop {
    /// The pages and their order.
    pub walk: HotWalk,
    /// The kind of touch.
    pub access: Access,
    /// The vCPUs that run the loop: distinct, not empty, each below the scenario's number.
    pub vcpus: Vec<u32>,
}

/// The pages that a hot loop visits, and their order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HotWalk {
    /// A seeded list of distinct pages, over and over.
    List {
        /// The set it is drawn from.
        pages: HotPages,
        /// The number of pages; `None` for all of them.
        count: Option<u64>,
    },
    /// Every page of the arena, lowest first.
    Sequential,
    /// Every `stride`-th page of the arena, lowest first.
    Strided {
        /// Pages from one visit to the next.
        stride: u64,
    },
    /// Pages of the whole arena, drawn uniformly.
    Random {
        /// Visits in a pass.
        count: u64,
    },
    /// Pages of the whole arena, drawn by Zipf's law: the lowest page is the likeliest.
    Zipf {
        /// Visits in a pass.
        count: u64,
        /// Above 0: the larger, the hotter the hottest.
        exponent: f64,
    },
}

impl HotWalk {
    /// The walk as a vCPU is ordered to do it, over the whole arena. `listed` is the length of its list.
    pub fn order(self, seed: u64, listed: u64) -> Walk {
        match self {
            Self::List { .. } => Walk::List { count: listed },
            Self::Sequential => Walk::Sequential,
            Self::Strided { stride } => Walk::Strided { stride },
            Self::Random { count } => Walk::Random { seed, count },
            Self::Zipf { count, .. } => Walk::Zipf { seed, count },
        }
    }
}

/// Victims, and how they are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReclaimStep {
    /// The pages to take.
    pub victims: VictimChoice,
    /// The memory that one operation takes.
    pub unit: Unit,
    /// The pause from one operation to the next.
    pub pace: Duration,
}

/// The choice of victims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VictimChoice {
    /// So many distinct units, at seeded places. Never with [`Unit::Range`].
    Sparse {
        /// The number of units.
        count: u64,
    },
    /// All of these bytes of the arena, lowest first.
    Range(ByteRange),
    /// Units that are not used. Never with [`Unit::Range`].
    Idle(Idle),
}

/// The choice of idle units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Idle {
    /// As many as leave at most so many bytes in memory.
    pub target: u64,
    /// Those that were not used for so long.
    pub after: Duration,
}

impl ReclaimStep {
    /// Bytes that one operation takes from an arena with this backing.
    pub fn unit_bytes(&self, backing: Backing) -> u64 {
        match (self.unit, self.victims) {
            (Unit::Page, _) => PAGE_SIZE,
            (Unit::Folio, _) => backing.wanted_order().bytes(),
            (Unit::Range, VictimChoice::Range(range)) => range.end - range.start,
            (Unit::Block | Unit::Range, _) => PMD_SIZE,
        }
    }
}

/// The limits that a step is checked against.
pub(super) struct Limits<'a> {
    pub memory: u64,
    pub vcpus: u32,
    /// Bytes of a Linux guest's own memory; `None` for the bare guest.
    pub linux: Option<u64>,
    pub lines: &'a Lines,
}

/// A step, as far as it can be checked alone.
pub(super) fn check(text: &StepText, limits: &Limits) -> Checked<Step> {
    let Word(action) = *text.action.get_ref();
    refuse_stray_keys(text, action, limits.lines)?;
    if limits.linux.is_none() && matches!(action, Action::Shell | Action::Inflate | Action::Deflate) {
        return Err(limits.lines.fault(&text.action, Problem::NeedsLinux(action)));
    }
    match action {
        Action::Fill => Ok(Step::Fill),
        Action::Stop => Ok(Step::Stop),
        // The free vCPU is known when the whole sequence is.
        Action::Refault => Ok(Step::Refault { vcpu: 0 }),
        Action::Sweep => Ok(Step::Sweep { vcpu: 0 }),
        Action::Hot => hot(text, limits).map(Step::Hot),
        Action::Baseline => baseline(text, limits.lines).map(Step::Baseline),
        Action::Reclaim => reclaim(text, limits).map(Step::Reclaim),
        Action::Shell => shell(text, limits.lines).map(Step::Shell),
        Action::Inflate => inflate(text, limits).map(Step::Inflate),
        Action::Deflate => Ok(Step::Deflate),
    }
}

fn refuse_stray_keys(text: &StepText, step: Action, lines: &Lines) -> Checked<()> {
    let known: &[&str] = match step {
        Action::Hot => &["pages", "count", "walk", "stride", "exponent", "access", "vcpus"],
        Action::Baseline => &["for"],
        Action::Reclaim => &["victims", "count", "range", "unit", "pace", "target", "after"],
        Action::Shell => &["command"],
        Action::Inflate => &["size"],
        Action::Fill | Action::Stop | Action::Refault | Action::Sweep | Action::Deflate => &[],
    };
    match text.keys().find(|(key, _)| !known.contains(key)) {
        Some((key, at)) => {
            Err(Fault { line: lines.line(at), problem: Problem::StrayKey { key, step, hint: "" } })
        }
        None => Ok(()),
    }
}

fn baseline(text: &StepText, lines: &Lines) -> Checked<Duration> {
    let length = required(&text.length, text, "for", "for = \"100ms\"", lines)?;
    let Word(TimeSpan(time)) = *length.get_ref();
    if time.is_zero() {
        return Err(lines.fault(length, Problem::Zero { key: "for" }));
    }
    bounded(length, time, Duration::from_secs(60), ("for", "60 s"), lines)
}

fn shell(text: &StepText, lines: &Lines) -> Checked<String> {
    let at = required(&text.command, text, "command", "command = \"stress-ng --vm 1 --timeout 5\"", lines)?;
    if at.get_ref().trim().is_empty() {
        return Err(lines.fault(at, Problem::EmptyCommand));
    }
    Ok(at.get_ref().clone())
}

fn inflate(text: &StepText, limits: &Limits) -> Checked<u64> {
    /// Without so much a kernel does not live.
    const LEFT: u64 = 64 << 20;
    let at = required(&text.size, text, "size", "size = \"64MiB\"", limits.lines)?;
    let Word(size) = *at.get_ref();
    let memory = limits.linux.unwrap_or_default();
    if size.0 == 0 {
        return Err(limits.lines.fault(at, Problem::Zero { key: "size" }));
    }
    if size.0 > memory.saturating_sub(LEFT) {
        return Err(limits.lines.fault(at, Problem::Balloon { size, memory: Size(memory) }));
    }
    Ok(size.0.next_multiple_of(PAGE_SIZE))
}

fn hot(text: &StepText, limits: &Limits) -> Checked<HotLoop> {
    let access = match word(&text.access, AccessKind::Read) {
        AccessKind::Read => Access::Read,
        AccessKind::Write => Access::Write,
        AccessKind::LockedAdd => Access::LockedAdd,
    };
    Ok(HotLoop { walk: walk(text, limits)?, access, vcpus: vcpus(text, limits)? })
}

fn walk(text: &StepText, limits: &Limits) -> Checked<HotWalk> {
    let lines = limits.lines;
    let kind = word(&text.walk, WalkKind::List);
    let pages = word(&text.pages, HotPages::Others);
    let count = not_zero(&text.count, "count", lines)?;
    refuse_idle_walk_keys(text, kind, lines)?;
    if kind != WalkKind::List && pages == HotPages::Others {
        let at = text.pages.as_ref().map(|at| at.span()).or(text.walk.as_ref().map(|at| at.span()));
        let line = at.map_or_else(|| lines.line_of(&text.action), |span| lines.line(span.start));
        return Err(Fault { line, problem: Problem::WalkOverOthers });
    }
    let arena = limits.memory / PAGE_SIZE;
    match kind {
        WalkKind::List => {
            let listed = count.or((pages == HotPages::All).then_some(arena));
            listed.map_or(Ok(()), |listed| fits_table(listed, &text.count, text, lines))?;
            Ok(HotWalk::List { pages, count })
        }
        WalkKind::Sequential => Ok(HotWalk::Sequential),
        WalkKind::Strided => strided(text, arena, lines),
        WalkKind::Random => Ok(HotWalk::Random { count: count.unwrap_or(arena) }),
        WalkKind::Zipf => {
            fits_table(arena, &text.walk, text, lines)?;
            Ok(HotWalk::Zipf { count: count.unwrap_or(arena), exponent: exponent(text, lines)? })
        }
    }
}

fn refuse_idle_walk_keys(text: &StepText, kind: WalkKind, lines: &Lines) -> Checked<()> {
    let idle: &[(&str, &'static str)] = match kind {
        WalkKind::Strided => {
            &[("exponent", " with walk = \"strided\""), ("count", " with walk = \"strided\"")]
        }
        WalkKind::Zipf => &[("stride", " with walk = \"zipf\"")],
        WalkKind::Sequential => &[
            ("stride", " with walk = \"sequential\""),
            ("exponent", " with walk = \"sequential\""),
            ("count", " with walk = \"sequential\""),
        ],
        WalkKind::List | WalkKind::Random => {
            &[("stride", " without walk = \"strided\""), ("exponent", " without walk = \"zipf\"")]
        }
    };
    for (key, at) in text.keys() {
        if let Some(&(_, hint)) = idle.iter().find(|(name, _)| *name == key) {
            let problem = Problem::StrayKey { key, step: Action::Hot, hint };
            return Err(Fault { line: lines.line(at), problem });
        }
    }
    Ok(())
}

fn strided(text: &StepText, pages: u64, lines: &Lines) -> Checked<HotWalk> {
    let at = required(&text.stride, text, "stride", "stride = 512, in pages", lines)?;
    let stride = *at.get_ref();
    if stride == 0 {
        return Err(lines.fault(at, Problem::Zero { key: "stride" }));
    }
    if stride >= pages {
        return Err(lines.fault(at, Problem::Stride { stride, pages }));
    }
    Ok(HotWalk::Strided { stride })
}

fn exponent(text: &StepText, lines: &Lines) -> Checked<f64> {
    let at = required(&text.exponent, text, "exponent", "exponent = 1.0", lines)?;
    let exponent = *at.get_ref();
    // Written so that NaN fails too.
    if !(exponent > 0.0 && exponent <= 8.0) {
        return Err(lines.fault(at, Problem::Exponent(exponent)));
    }
    Ok(exponent)
}

fn fits_table<T>(pages: u64, at: &Option<At<T>>, text: &StepText, lines: &Lines) -> Checked<()> {
    if pages <= TABLE_ENTRIES {
        return Ok(());
    }
    let line = at.as_ref().map_or_else(|| lines.line_of(&text.action), |at| lines.line_of(at));
    Err(Fault { line, problem: Problem::TableFull { pages, limit: TABLE_ENTRIES } })
}

fn vcpus(text: &StepText, limits: &Limits) -> Checked<Vec<u32>> {
    let Some(written) = &text.vcpus else { return Ok(vec![0]) };
    let mut vcpus = Vec::new();
    for at in written.get_ref() {
        let number = *at.get_ref();
        let known = u32::try_from(number).ok().filter(|&vcpu| vcpu < limits.vcpus);
        let vcpu = known.ok_or_else(|| {
            limits.lines.fault(at, Problem::NoSuchVcpu { vcpu: number, vcpus: limits.vcpus })
        })?;
        if vcpus.contains(&vcpu) {
            return Err(limits.lines.fault(at, Problem::DuplicateVcpu(number)));
        }
        vcpus.push(vcpu);
    }
    if vcpus.is_empty() {
        return Err(limits.lines.fault(written, Problem::EmptyAxis { axis: "vcpus" }));
    }
    Ok(vcpus)
}

fn reclaim(text: &StepText, limits: &Limits) -> Checked<ReclaimStep> {
    let lines = limits.lines;
    let unit = word(&text.unit, Unit::Page);
    let kind = match (&text.victims, &text.range) {
        (Some(kind), _) => kind.get_ref().0,
        (None, Some(_)) => VictimKind::Range,
        (None, None) => {
            required(&text.victims, text, "victims", "victims = \"sparse\" or range = \"0..16MiB\"", lines)?;
            VictimKind::Sparse
        }
    };
    let victims = match kind {
        VictimKind::Sparse => sparse(text, unit, lines)?,
        VictimKind::Range => VictimChoice::Range(range(text, limits)?),
        VictimKind::Idle => VictimChoice::Idle(idle(text, unit, limits)?),
    };
    if kind != VictimKind::Idle {
        let hint = " without victims = \"idle\"";
        let stray = |key| Problem::StrayKey { key, step: Action::Reclaim, hint };
        if let Some(at) = &text.target {
            return Err(lines.fault(at, stray("target")));
        }
        if let Some(at) = &text.after {
            return Err(lines.fault(at, stray("after")));
        }
    }
    let pace = match &text.pace {
        Some(at) => bounded(at, at.get_ref().0.0, Duration::from_secs(10), ("pace", "10 s"), lines)?,
        None => Duration::ZERO,
    };
    Ok(ReclaimStep { victims, unit, pace })
}

fn sparse(text: &StepText, unit: Unit, lines: &Lines) -> Checked<VictimChoice> {
    let stray = |key| Problem::StrayKey { key, step: Action::Reclaim, hint: " with victims = \"sparse\"" };
    if let Some(range) = &text.range {
        return Err(lines.fault(range, stray("range")));
    }
    if let (Unit::Range, Some(at)) = (unit, &text.unit) {
        return Err(lines.fault(at, Problem::SparseUnit(unit)));
    }
    required(&text.count, text, "count", "count = 256", lines)?;
    let count = not_zero(&text.count, "count", lines)?.unwrap_or_default();
    Ok(VictimChoice::Sparse { count })
}

fn idle(text: &StepText, unit: Unit, limits: &Limits) -> Checked<Idle> {
    /// Long enough for every page of a working set to be touched, short enough to be waited for.
    const AFTER: Duration = Duration::from_millis(50);
    let lines = limits.lines;
    let stray = |key| Problem::StrayKey { key, step: Action::Reclaim, hint: " with victims = \"idle\"" };
    if let Some(at) = &text.range {
        return Err(lines.fault(at, stray("range")));
    }
    if let Some(at) = &text.count {
        return Err(lines.fault(at, stray("count")));
    }
    if let (Unit::Range, Some(at)) = (unit, &text.unit) {
        return Err(lines.fault(at, Problem::SparseUnit(unit)));
    }
    let at = required(&text.target, text, "target", "target = \"32MiB\"", lines)?;
    let Word(target) = *at.get_ref();
    if target.0 >= limits.memory || !target.0.is_multiple_of(PAGE_SIZE) {
        return Err(lines.fault(at, Problem::Target { target, memory: Size(limits.memory) }));
    }
    let after = match &text.after {
        Some(at) => bounded(at, at.get_ref().0.0, Duration::from_secs(60), ("after", "60 s"), lines)?,
        None => AFTER,
    };
    Ok(Idle { target: target.0, after })
}

fn range(text: &StepText, limits: &Limits) -> Checked<ByteRange> {
    let lines = limits.lines;
    if let Some(count) = &text.count {
        let hint = " with a range, all of which is taken";
        return Err(lines.fault(count, Problem::StrayKey { key: "count", step: Action::Reclaim, hint }));
    }
    let at = required(&text.range, text, "range", "range = \"0..16MiB\"", lines)?;
    let Word(range) = *at.get_ref();
    if range.end > limits.memory {
        let problem = Problem::RangeOutside { end: Size(range.end), memory: Size(limits.memory) };
        return Err(lines.fault(at, problem));
    }
    Ok(range)
}

fn word<T: Copy>(at: &Option<At<Word<T>>>, default: T) -> T {
    at.as_ref().map_or(default, |at| at.get_ref().0)
}

fn required<'a, T>(
    value: &'a Option<At<T>>,
    text: &StepText,
    key: &'static str,
    example: &'static str,
    lines: &Lines,
) -> Checked<&'a At<T>> {
    let step = text.action.get_ref().0;
    value.as_ref().ok_or_else(|| lines.fault(&text.action, Problem::MissingKey { step, key, example }))
}

fn not_zero(value: &Option<At<u64>>, key: &'static str, lines: &Lines) -> Checked<Option<u64>> {
    match value {
        Some(at) if *at.get_ref() == 0 => Err(lines.fault(at, Problem::Zero { key })),
        Some(at) => Ok(Some(*at.get_ref())),
        None => Ok(None),
    }
}

fn bounded<T>(
    at: &At<T>,
    time: Duration,
    most: Duration,
    (key, limit): (&'static str, &'static str),
    lines: &Lines,
) -> Checked<Duration> {
    if time > most { Err(lines.fault(at, Problem::TooLong { key, limit })) } else { Ok(time) }
}
