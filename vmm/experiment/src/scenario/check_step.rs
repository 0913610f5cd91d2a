//! The check of one step by itself. Which steps may follow which is [`super::sequence`]'s.

use std::time::Duration;

use guest_abi::layout::TABLE_ENTRIES;
use guest_abi::order::Access;
use guest_mem::PAGE_SIZE;

use super::error::{At, Checked, Fault, Problem, fault};
use super::step::{Action, HotLoop, HotWalk, Idle, ReclaimStep, Step, VictimChoice};
use super::syntax::StepText;
use super::vocabulary::{AccessKind, HotPages, Unit, VictimKind, WalkKind};
use crate::choice::{ByteRange, Size, TimeSpan, Word};

/// The limits that a step is checked against.
pub(super) struct Limits {
    pub memory: u64,
    pub vcpus: u32,
    /// Bytes of a Linux guest's own memory; `None` for the bare guest.
    pub linux: Option<u64>,
}

/// A step, as far as it can be checked alone.
pub(super) fn check(text: &StepText, limits: &Limits) -> Checked<Step> {
    let Word(action) = *text.action.get_ref();
    refuse_stray_keys(text, action)?;
    if limits.linux.is_none() && action.needs_linux() {
        return Err(fault(&text.action, Problem::NeedsLinux(action)));
    }
    match action {
        Action::Fill => Ok(Step::Fill),
        Action::Stop => Ok(Step::Stop),
        // The free vCPU is known when the whole sequence is.
        Action::Refault => Ok(Step::Refault { vcpu: 0 }),
        Action::Sweep => Ok(Step::Sweep { vcpu: 0 }),
        Action::Hot => hot(text, limits).map(Step::Hot),
        Action::Baseline => baseline(text).map(Step::Baseline),
        Action::Reclaim => reclaim(text, limits).map(Step::Reclaim),
        Action::Shell => shell(text).map(Step::Shell),
        Action::Inflate => inflate(text, limits).map(Step::Inflate),
        Action::Deflate => Ok(Step::Deflate),
    }
}

fn refuse_stray_keys(text: &StepText, step: Action) -> Checked<()> {
    let (known, stray) = keys_of(text, step);
    for (key, at) in text.keys() {
        let hint = match stray.iter().find(|(name, _)| *name == key) {
            Some(&(_, hint)) => hint,
            None if known.contains(&key) => continue,
            None => "",
        };
        return Err(Fault { at, problem: Problem::StrayKey { key, step, hint } });
    }
    Ok(())
}

/// A key that means nothing to the walk or to the victims of a step, and the end of the message.
type StrayKey = (&'static str, &'static str);

/// The keys of a step of this kind, and those of them that are stray in this one.
fn keys_of(text: &StepText, step: Action) -> (&'static [&'static str], &'static [StrayKey]) {
    const STRIDED: &str = " with walk = \"strided\"";
    const SEQUENTIAL: &str = " with walk = \"sequential\"";
    const NOT_IDLE: &str = " without victims = \"idle\"";
    match step {
        Action::Hot => {
            let stray: &[_] = match word(&text.walk, WalkKind::List) {
                WalkKind::Strided => &[("exponent", STRIDED), ("count", STRIDED)],
                WalkKind::Zipf => &[("stride", " with walk = \"zipf\"")],
                WalkKind::Sequential => {
                    &[("stride", SEQUENTIAL), ("exponent", SEQUENTIAL), ("count", SEQUENTIAL)]
                }
                WalkKind::List | WalkKind::Random => {
                    &[("stride", " without walk = \"strided\""), ("exponent", " without walk = \"zipf\"")]
                }
            };
            (&["pages", "count", "walk", "stride", "exponent", "access", "vcpus"], stray)
        }
        Action::Reclaim => {
            let stray: &[_] = match victims(text) {
                Some(VictimKind::Sparse) => {
                    &[("range", " with victims = \"sparse\""), ("target", NOT_IDLE), ("after", NOT_IDLE)]
                }
                Some(VictimKind::Range) => &[
                    ("count", " with a range, all of which is taken"),
                    ("target", NOT_IDLE),
                    ("after", NOT_IDLE),
                ],
                Some(VictimKind::Idle) => {
                    &[("range", " with victims = \"idle\""), ("count", " with victims = \"idle\"")]
                }
                None => &[],
            };
            (&["victims", "count", "range", "unit", "pace", "target", "after"], stray)
        }
        Action::Baseline => (&["for"], &[]),
        Action::Shell => (&["command"], &[]),
        Action::Inflate => (&["size"], &[]),
        Action::Fill | Action::Stop | Action::Refault | Action::Sweep | Action::Deflate => (&[], &[]),
    }
}

fn baseline(text: &StepText) -> Checked<Duration> {
    let length = required(&text.length, text, "for", "for = \"100ms\"")?;
    if length.get_ref().0.0.is_zero() {
        return Err(fault(length, Problem::Zero { key: "for" }));
    }
    bounded(length, "for", 60)
}

fn shell(text: &StepText) -> Checked<String> {
    let at = required(&text.command, text, "command", "command = \"stress-ng --vm 1 --timeout 5\"")?;
    if at.get_ref().trim().is_empty() {
        return Err(fault(at, Problem::EmptyCommand));
    }
    Ok(at.get_ref().clone())
}

fn inflate(text: &StepText, limits: &Limits) -> Checked<u64> {
    /// Without so much a kernel does not live.
    const LEFT: u64 = 64 << 20;
    let at = required(&text.size, text, "size", "size = \"64MiB\"")?;
    let Word(size) = *at.get_ref();
    let memory = limits.linux.unwrap_or_default();
    if size.0 == 0 {
        return Err(fault(at, Problem::Zero { key: "size" }));
    }
    if size.0 > memory.saturating_sub(LEFT) {
        return Err(fault(at, Problem::Balloon { size, memory: Size(memory) }));
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
    let kind = word(&text.walk, WalkKind::List);
    let pages = word(&text.pages, HotPages::Others);
    let count = not_zero(&text.count, "count")?;
    if kind != WalkKind::List && pages == HotPages::Others {
        let at = text.pages.as_ref().map(At::span).or(text.walk.as_ref().map(At::span));
        let at = at.unwrap_or(text.action.span()).start;
        return Err(Fault { at, problem: Problem::WalkOverOthers });
    }
    let arena = limits.memory / PAGE_SIZE;
    match kind {
        WalkKind::List => {
            let listed = count.or((pages == HotPages::All).then_some(arena));
            listed.map_or(Ok(()), |listed| fits_table(listed, &text.count, text))?;
            Ok(HotWalk::List { pages, count })
        }
        WalkKind::Sequential => Ok(HotWalk::Sequential),
        WalkKind::Strided => strided(text, arena),
        WalkKind::Random => Ok(HotWalk::Random { count: count.unwrap_or(arena) }),
        WalkKind::Zipf => {
            fits_table(arena, &text.walk, text)?;
            Ok(HotWalk::Zipf { count: count.unwrap_or(arena), exponent: exponent(text)? })
        }
    }
}

fn strided(text: &StepText, pages: u64) -> Checked<HotWalk> {
    let at = required(&text.stride, text, "stride", "stride = 512, in pages")?;
    match *at.get_ref() {
        0 => Err(fault(at, Problem::Zero { key: "stride" })),
        stride if stride >= pages => Err(fault(at, Problem::Stride { stride, pages })),
        stride => Ok(HotWalk::Strided { stride }),
    }
}

fn exponent(text: &StepText) -> Checked<f64> {
    let at = required(&text.exponent, text, "exponent", "exponent = 1.0")?;
    let exponent = *at.get_ref();
    // Written so that NaN fails too.
    if !(exponent > 0.0 && exponent <= 8.0) {
        return Err(fault(at, Problem::Exponent(exponent)));
    }
    Ok(exponent)
}

fn fits_table<T>(pages: u64, at: &Option<At<T>>, text: &StepText) -> Checked<()> {
    if pages <= TABLE_ENTRIES {
        return Ok(());
    }
    let at = at.as_ref().map_or(text.action.span(), At::span).start;
    Err(Fault { at, problem: Problem::TableFull { pages, limit: TABLE_ENTRIES } })
}

fn vcpus(text: &StepText, limits: &Limits) -> Checked<Vec<u32>> {
    let Some(written) = &text.vcpus else { return Ok(vec![0]) };
    let mut vcpus = Vec::new();
    for at in written.get_ref() {
        let number = *at.get_ref();
        let known = u32::try_from(number).ok().filter(|&vcpu| vcpu < limits.vcpus);
        let unknown = Problem::NoSuchVcpu { vcpu: number, vcpus: limits.vcpus };
        let vcpu = known.ok_or_else(|| fault(at, unknown))?;
        if vcpus.contains(&vcpu) {
            return Err(fault(at, Problem::DuplicateVcpu(number)));
        }
        vcpus.push(vcpu);
    }
    if vcpus.is_empty() {
        return Err(fault(written, Problem::EmptyAxis { axis: "vcpus" }));
    }
    Ok(vcpus)
}

/// The choice of victims, if the step says it.
fn victims(text: &StepText) -> Option<VictimKind> {
    let by_range = text.range.as_ref().map(|_| VictimKind::Range);
    text.victims.as_ref().map(|kind| kind.get_ref().0).or(by_range)
}

fn reclaim(text: &StepText, limits: &Limits) -> Checked<ReclaimStep> {
    let Some(kind) = victims(text) else {
        let example = "victims = \"sparse\" or range = \"0..16MiB\"";
        return Err(missing(text, "victims", example));
    };
    let unit = word(&text.unit, Unit::Page);
    if let (Some(at), Unit::Range) = (&text.unit, unit)
        && kind != VictimKind::Range
    {
        return Err(fault(at, Problem::SparseUnit(unit)));
    }
    let victims = match kind {
        VictimKind::Sparse => {
            required(&text.count, text, "count", "count = 256")?;
            VictimChoice::Sparse { count: not_zero(&text.count, "count")?.unwrap_or_default() }
        }
        VictimKind::Range => VictimChoice::Range(range(text, limits)?),
        VictimKind::Idle => VictimChoice::Idle(idle(text, limits)?),
    };
    let pace = text.pace.as_ref().map_or(Ok(Duration::ZERO), |at| bounded(at, "pace", 10))?;
    Ok(ReclaimStep { victims, unit, pace })
}

fn idle(text: &StepText, limits: &Limits) -> Checked<Idle> {
    /// Long enough for every page of a working set to be touched, short enough to be waited for.
    const AFTER: Duration = Duration::from_millis(50);
    let at = required(&text.target, text, "target", "target = \"32MiB\"")?;
    let Word(target) = *at.get_ref();
    if target.0 >= limits.memory || !target.0.is_multiple_of(PAGE_SIZE) {
        return Err(fault(at, Problem::Target { target, memory: Size(limits.memory) }));
    }
    let after = text.after.as_ref().map_or(Ok(AFTER), |at| bounded(at, "after", 60))?;
    Ok(Idle { target: target.0, after })
}

fn range(text: &StepText, limits: &Limits) -> Checked<ByteRange> {
    let at = required(&text.range, text, "range", "range = \"0..16MiB\"")?;
    let Word(range) = *at.get_ref();
    if range.end > limits.memory {
        return Err(fault(at, Problem::RangeOutside { end: Size(range.end), memory: Size(limits.memory) }));
    }
    Ok(range)
}

fn word<T: Copy>(at: &Option<At<Word<T>>>, default: T) -> T {
    at.as_ref().map_or(default, |at| at.get_ref().0)
}

fn missing(text: &StepText, key: &'static str, example: &'static str) -> Fault {
    fault(&text.action, Problem::MissingKey { step: text.action.get_ref().0, key, example })
}

fn required<'a, T>(
    value: &'a Option<At<T>>,
    text: &StepText,
    key: &'static str,
    example: &'static str,
) -> Checked<&'a At<T>> {
    value.as_ref().ok_or_else(|| missing(text, key, example))
}

fn not_zero(value: &Option<At<u64>>, key: &'static str) -> Checked<Option<u64>> {
    match value {
        Some(at) if *at.get_ref() == 0 => Err(fault(at, Problem::Zero { key })),
        at => Ok(at.as_ref().map(|at| *at.get_ref())),
    }
}

fn bounded(at: &At<Word<TimeSpan>>, key: &'static str, most_seconds: u64) -> Checked<Duration> {
    let Word(TimeSpan(time)) = *at.get_ref();
    if time > Duration::from_secs(most_seconds) {
        return Err(fault(at, Problem::TooLong { key, seconds: most_seconds }));
    }
    Ok(time)
}
