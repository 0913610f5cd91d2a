//! Reading a section's body, of which nothing is believed.

use guest_mem::{MapLevel, Order, PAGE_SIZE, PMD_SIZE};
use notifier_bridge::Cause;

use super::header::{RowHeader, StepEvent};
use super::layout::{HostState, LayoutRun};
use super::{Announcement, OperationEvent, RangeEvent, RowEvents, StallEvent, varint};
use crate::tap::RangeCause;

/// What is wrong with a body, and how many of its bytes were left.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadBody {
    pub what: &'static str,
    pub left: usize,
}

/// A cursor that knows the arena.
struct Body<'a> {
    rest: &'a [u8],
    pages: u64,
}

impl Body<'_> {
    fn bad<T>(&self, what: &'static str) -> Result<T, BadBody> {
        Err(BadBody { what, left: self.rest.len() })
    }

    fn number(&mut self) -> Result<u64, BadBody> {
        let left = self.rest.len();
        varint::take(&mut self.rest)
            .ok_or(BadBody { what: "a number is cut short or has more than 64 bits", left })
    }

    fn after(&mut self, before: u64) -> Result<u64, BadBody> {
        let left = self.rest.len();
        varint::take_after(&mut self.rest, before).ok_or(BadBody { what: "a page before the first", left })
    }

    /// A count of things of which each takes at least `least` bytes: more than there are bytes for is refused before
    /// memory is taken for them.
    fn count(&mut self, least: usize) -> Result<usize, BadBody> {
        let count = self.number()?;
        match usize::try_from(count) {
            Ok(count) if count <= self.rest.len() / least => Ok(count),
            _ => self.bad("a count of more than there is"),
        }
    }

    /// `first` and a length after it that end in the arena.
    fn in_arena(&self, first: u64, pages: u64) -> Result<(), BadBody> {
        match first.checked_add(pages) {
            Some(end) if end <= self.pages && pages > 0 => Ok(()),
            _ => self.bad("pages outside the arena, or none"),
        }
    }

    fn list(&mut self) -> Result<Vec<u32>, BadBody> {
        let count = self.count(1)?;
        let mut list = Vec::with_capacity(count);
        let mut before = 0;
        for _ in 0..count {
            before = self.after(before)?;
            self.in_arena(before, 1)?;
            list.push(u32::try_from(before).or_else(|_| self.bad("a page beyond 2^32"))?);
        }
        Ok(list)
    }

    fn layout(&mut self) -> Result<Vec<LayoutRun>, BadBody> {
        let count = self.count(2)?;
        let mut runs = Vec::with_capacity(count);
        let mut tiled = 0;
        for _ in 0..count {
            let pages = self.number()?;
            self.in_arena(tiled, pages)?;
            tiled += pages;
            let number = self.number()?;
            let Some(state) = HostState::of_number(number) else { return self.bad("an unknown page state") };
            runs.push(LayoutRun { pages, state });
        }
        if tiled == self.pages { Ok(runs) } else { self.bad("a layout that leaves pages out") }
    }

    fn announcement(&mut self, causes: &[Cause], before: u64) -> Result<Announcement, BadBody> {
        let first_page = self.after(before)?;
        let pages = self.number()?;
        self.in_arena(first_page, pages)?;
        let flags = self.number()?;
        let order = u8::try_from(flags >> 2).ok().and_then(Order::new);
        let Some(order) = order else { return self.bad("an order that no folio has") };
        let cause = usize::try_from(self.number()?).ok().and_then(|index| causes.get(index));
        let Some(&cause) = cause else { return self.bad("a cause that the header does not name") };
        Ok(Announcement {
            first_page,
            pages,
            order,
            level: if flags & 1 != 0 { MapLevel::Pmd } else { MapLevel::Pte },
            anonymous: flags & 2 != 0,
            cause,
            began_ns: self.number()?,
            zap_ns: self.number()?,
            operation_ns: self.number()?,
            end_ns: self.number()?,
        })
    }

    fn stall(&mut self, before_ns: u64) -> Result<StallEvent, BadBody> {
        let began_ns = self.later(before_ns)?;
        let ns = self.number()?;
        let Ok(vcpu) = u32::try_from(self.number()?) else { return self.bad("a vCPU that no guest has") };
        let page = self.number()?.checked_sub(1);
        if let Some(page) = page {
            self.in_arena(page, 1)?;
        }
        Ok(StallEvent { began_ns, ns, vcpu, page })
    }

    fn range(&mut self, causes: &[RangeCause], before: (u64, u64)) -> Result<RangeEvent, BadBody> {
        let at_ns = self.later(before.0)?;
        let first_page = self.after(before.1)?;
        let pages = self.number()?;
        self.in_arena(first_page, pages)?;
        let cause = usize::try_from(self.number()?).ok().and_then(|index| causes.get(index));
        let Some(&cause) = cause else { return self.bad("a cause that the header does not name") };
        Ok(RangeEvent { at_ns, first_page, pages, cause })
    }

    /// A time not before another.
    fn later(&mut self, before_ns: u64) -> Result<u64, BadBody> {
        let since = self.number()?;
        before_ns.checked_add(since).map_or_else(|| self.bad("a time beyond 64 bits"), Ok)
    }
}

/// A case of more steps is no case.
const MOST_STEPS: usize = 4096;

/// Causes, as a body has them by number.
pub(super) struct Causes {
    announcements: Vec<Cause>,
    ranges: Vec<RangeCause>,
}

/// What makes no sense in a header, if anything does. The body is read with its help.
pub(super) fn check_header(header: &RowHeader) -> Result<Causes, &'static str> {
    let arena = header.arena;
    if arena.bytes == 0 || arena.bytes > guest_abi::layout::ARENA_MAX || !arena.bytes.is_multiple_of(PMD_SIZE)
    {
        return Err("an arena that no guest has");
    }
    if arena.range().is_none() || !arena.hva.is_multiple_of(PMD_SIZE) || !arena.gpa.is_multiple_of(PAGE_SIZE)
    {
        return Err("an arena at an address that none has");
    }
    if header.slots.len() > 64 || header.slot_table(None).is_err() {
        return Err("memslots that no VM has");
    }
    if header.steps.len() > MOST_STEPS {
        return Err("more steps than any case has");
    }
    let (mut operations, mut loops, mut filled) = (0u64, 0u64, false);
    for step in &header.steps {
        if let StepEvent::Hot { loops: of_step, .. } = step {
            loops += u64::from(*of_step);
            if loops > u64::from(guest_abi::layout::MAX_VCPUS) {
                return Err("more hot loops than there are vCPUs");
            }
        }
        match *step {
            StepEvent::Fill => filled = true,
            StepEvent::Stop => loops = 0,
            StepEvent::Reclaim { layout, operations: of_step, .. } => {
                operations += u64::from(of_step);
                if layout >= header.layouts || !filled {
                    return Err("a reclaim step without a layout, or before any fill");
                }
            }
            StepEvent::Hot { list: Some(list), .. } if list >= header.lists => {
                return Err("a hot loop over a list that is not there");
            }
            StepEvent::Hot { stride: Some(0), .. } => return Err("a hot loop with a stride of 0"),
            _ => {}
        }
    }
    if operations != u64::from(header.operations) {
        return Err("steps with other operations than there are");
    }
    if header.step_times.len() != header.steps.len() {
        return Err("steps without times, or times without steps");
    }
    let announcements = header.causes.iter().map(|name| name.parse()).collect::<Result<_, _>>();
    let ranges = header.range_causes.iter().map(|name| RangeCause::named(name)).collect::<Option<_>>();
    match (announcements, ranges) {
        (Ok(announcements), Some(ranges)) => Ok(Causes { announcements, ranges }),
        _ => Err("a cause that this version does not know"),
    }
}

/// Reads a body whose header was checked.
pub(super) fn body(header: RowHeader, causes: &Causes, bytes: &[u8]) -> Result<RowEvents, BadBody> {
    let mut body = Body { rest: bytes, pages: header.arena.bytes / PAGE_SIZE };
    // Nothing is reserved by the header's word: each of these has at least a byte.
    let mut lists = Vec::new();
    for _ in 0..header.lists {
        lists.push(body.list()?);
    }
    let mut layouts = Vec::new();
    for _ in 0..header.layouts {
        layouts.push(body.layout()?);
    }
    let (mut operations, mut announcements) = (Vec::new(), Vec::new());
    let (mut began_ns, mut last_page) = (0u64, 0);
    for _ in 0..header.operations {
        began_ns = body.later(began_ns)?;
        let (touches, first_page, pages) = (body.number()?, body.number()?, body.number()?);
        body.in_arena(first_page, pages)?;
        let evicted = body.number()?;
        let count = body.count(8)?;
        for _ in 0..count {
            let one = body.announcement(&causes.announcements, last_page)?;
            last_page = one.first_page;
            announcements.push(one);
        }
        let count = count as u32;
        operations.push(OperationEvent {
            began_ns,
            touches,
            first_page,
            pages,
            evicted,
            announcements: count,
        });
    }
    let (mut stalls, mut ranges) = (Vec::new(), Vec::new());
    for _ in 0..header.stalls {
        let before = stalls.last().map_or(0, |stall: &StallEvent| stall.began_ns);
        stalls.push(body.stall(before)?);
    }
    for _ in 0..header.ranges {
        let before = ranges.last().map_or((0, 0), |range: &RangeEvent| (range.at_ns, range.first_page));
        ranges.push(body.range(&causes.ranges, before)?);
    }
    if !body.rest.is_empty() {
        return body.bad("bytes after the last range");
    }
    Ok(RowEvents { header, lists, layouts, operations, announcements, stalls, ranges })
}
