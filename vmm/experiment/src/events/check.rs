//! The check of each event against those before it: a log is untrusted input.

use guest_mem::{PAGE_SIZE, PMD_SIZE};

use super::event::{Event, HotLoops, Step};
use super::layout::LayoutRun;
use super::setting::Setting;

/// The largest number of steps of a case.
const MOST_STEPS: u32 = 4096;

/// The state of a stream of events.
#[derive(Debug, Default)]
pub(super) struct Check {
    /// Pages of the memory under test, once a trial has begun.
    pages: Option<u64>,
    at: At,
    steps: u32,
    filled: bool,
    loops: u64,
}

/// The innermost thing that has begun and not ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    #[default]
    Outside,
    Step,
    Reclaim,
    Operation,
}

type Checked = Result<(), &'static str>;

impl Check {
    /// Whether `event` may come now.
    pub fn event(&mut self, event: &Event) -> Checked {
        if let Event::Trial(setting) = event {
            return self.trial(setting);
        }
        let Some(pages) = self.pages else { return Err("an event before the setting of its trial") };
        match event {
            Event::Trial(_) => Ok(()),
            Event::StepBegan { step, .. } => self.step(step, pages),
            Event::StepEnded { .. } => self.go(&[At::Step, At::Reclaim], At::Outside, "an end of no step"),
            Event::OperationBegan(operation) => {
                self.go(&[At::Reclaim], At::Operation, "an operation outside of any reclaim step")?;
                inside(operation.first_page, operation.pages, pages)
            }
            Event::OperationEnded(_) => self.go(&[At::Operation], At::Reclaim, "an end of no operation"),
            Event::Announced(one) => {
                self.go(&[At::Operation], At::Operation, "an announcement outside of any operation")?;
                inside(one.first_page, one.pages, pages)
            }
            Event::Called(call) => {
                self.go(&[At::Operation], At::Operation, "a system call outside of any operation")?;
                call.expected.iter().try_for_each(|range| inside(range.first_page, range.pages, pages))
            }
            Event::Stall(stall) => stall.page.map_or(Ok(()), |page| inside(page, 1, pages)),
            _ => Ok(()),
        }
    }

    /// Whether the stream may end now.
    pub fn end(&self) -> Checked {
        match (self.pages, self.at) {
            (Some(_), At::Outside) => Ok(()),
            (None, _) => Err("no trial"),
            _ => Err("events that end in the middle of a step"),
        }
    }

    fn go(&mut self, from: &[At], to: At, otherwise: &'static str) -> Checked {
        if !from.contains(&self.at) {
            return Err(otherwise);
        }
        self.at = to;
        Ok(())
    }

    fn trial(&mut self, setting: &Setting) -> Checked {
        self.go(&[At::Outside], At::Outside, "a trial in the middle of a step")?;
        let arena = setting.arena;
        let sized = arena.bytes > 0 && arena.bytes <= guest_abi::layout::ARENA_MAX;
        if !sized || !arena.bytes.is_multiple_of(PMD_SIZE) {
            return Err("an arena that no guest has");
        }
        let placed = arena.hva.is_multiple_of(PMD_SIZE) && arena.gpa.is_multiple_of(PAGE_SIZE);
        if arena.range().is_none() || !placed {
            return Err("an arena at an address that none has");
        }
        if setting.slots.len() > 64 || setting.slot_table(None).is_err() {
            return Err("memslots that no VM has");
        }
        *self = Self { pages: Some(setting.pages()), ..Self::default() };
        Ok(())
    }

    fn step(&mut self, step: &Step, pages: u64) -> Checked {
        self.steps += 1;
        if self.steps > MOST_STEPS {
            return Err("more steps than any case has");
        }
        let at = if matches!(step, Step::Reclaim(_)) { At::Reclaim } else { At::Step };
        self.go(&[At::Outside], at, "a step inside another")?;
        match step {
            Step::Fill => self.filled = true,
            Step::Stop => self.loops = 0,
            Step::Hot(hot) => {
                self.loops += u64::from(hot.loops);
                if self.loops > u64::from(guest_abi::layout::MAX_VCPUS) {
                    return Err("more hot loops than there are vCPUs");
                }
                return visits(hot, pages);
            }
            Step::Reclaim(_) if !self.filled => return Err("a reclaim step before any fill"),
            Step::Reclaim(layout) => return tiles(layout, pages),
            Step::Baseline | Step::Refault | Step::Sweep | Step::Other => {}
        }
        Ok(())
    }
}

fn visits(hot: &HotLoops, pages: u64) -> Checked {
    if hot.stride == Some(0) {
        return Err("a hot loop with a stride of 0");
    }
    let mut listed = hot.list.iter().flatten();
    listed.try_for_each(|&page| inside(page.into(), 1, pages))
}

fn tiles(layout: &[LayoutRun], pages: u64) -> Checked {
    let mut tiled = 0u64;
    for run in layout {
        inside(tiled, run.pages, pages)?;
        tiled += run.pages;
    }
    if tiled == pages { Ok(()) } else { Err("a layout that leaves pages out") }
}

/// Whether `count` pages from `first` on, and not none, lie in memory of so many pages.
fn inside(first: u64, count: u64, pages: u64) -> Checked {
    match first.checked_add(count) {
        Some(end) if end <= pages && count > 0 => Ok(()),
        _ => Err("pages outside the arena, or none"),
    }
}
