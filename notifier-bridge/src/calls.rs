//! The calls of one invalidation, in order, as an iterator that allocates nothing.
//!
//! ```text
//!            every bracket                                          every bracket, innermost first
//!   Starts ── Start(r) ──> Operation ──> Inside ── one of: ──> Ends ── [InvalidateRangeAgain(r)] End(r)
//!                                          Nothing
//!                                          Pages: InvalidatePage(4K) …      told to every listener
//!                                          Ptes:  InvalidateRange(4K) …     told to sharing listeners
//!                                          Flush: InvalidateRange(victim)   told to sharing listeners
//! ```
//!
//! Starts and Ends balance. A caller that stops halfway takes the missing Ends from [`Calls::unwind`].

use guest_mem::{Chunks, Hva, HvaRange};

/// One call of the sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// `invalidate_range_start` to shadowing listeners. Its other half is [`Call::End`].
    Start(HvaRange),
    /// The operation itself: the primary MMU changes here.
    Operation,
    /// `invalidate_range`, since 6.6 `invalidate_secondary_tlbs`, to sharing listeners. It belongs to the
    /// operation (the PTE is cleared and its lock held), and comes after it here because user space cannot act inside it.
    InvalidateRange(HvaRange),
    /// `invalidate_page` to every listener, up to 4.12.
    InvalidatePage(HvaRange),
    /// `invalidate_range` to sharing listeners **again**, the first act of `invalidate_range_end` before
    /// 6.6: the double call.
    InvalidateRangeAgain(HvaRange),
    /// `invalidate_range_end` to shadowing listeners. Its other half is [`Call::Start`].
    End(HvaRange),
}

/// The calls between the operation and the first end.
#[derive(Clone, Debug)]
pub(crate) enum Inside {
    Nothing,
    Pages(Chunks<Hva>),
    Ptes(Chunks<Hva>),
    Flush(HvaRange),
}

impl Inside {
    fn next(&mut self) -> Option<Call> {
        match self {
            Self::Nothing => None,
            Self::Pages(pages) => pages.next().map(Call::InvalidatePage),
            Self::Ptes(ptes) => ptes.next().map(Call::InvalidateRange),
            Self::Flush(range) => {
                let call = Call::InvalidateRange(*range);
                *self = Self::Nothing;
                Some(call)
            }
        }
    }
}

/// The brackets of one invalidation: opened from the front, closed from the back.
#[derive(Clone, Debug)]
pub(crate) struct Brackets<'a> {
    /// One bracket that does not come from the slots, opened first and closed last.
    single: Option<HvaRange>,
    single_is_open: bool,
    /// One bracket each, opened in this order.
    runs: &'a [HvaRange],
    /// `runs[..opened]` are open.
    opened: usize,
}

impl<'a> Brackets<'a> {
    pub(crate) fn none() -> Self {
        Self { single: None, single_is_open: false, runs: &[], opened: 0 }
    }
    pub(crate) fn one(range: HvaRange) -> Self {
        Self { single: Some(range), ..Self::none() }
    }
    pub(crate) fn runs(runs: &'a [HvaRange], single: Option<HvaRange>) -> Self {
        Self { single, runs, ..Self::none() }
    }

    /// Opens the next bracket. Its other half is [`Brackets::close`].
    fn open(&mut self) -> Option<HvaRange> {
        if let Some(range) = self.single.filter(|_| !self.single_is_open) {
            self.single_is_open = true;
            return Some(range);
        }
        let range = self.runs.get(self.opened)?;
        self.opened += 1;
        Some(*range)
    }

    /// The bracket opened last of those still open.
    fn innermost(&self) -> Option<HvaRange> {
        let run = self.opened.checked_sub(1).map(|last| self.runs[last]);
        run.or(self.single.filter(|_| self.single_is_open))
    }

    /// Closes the bracket opened last. Its other half is [`Brackets::open`].
    fn close(&mut self) -> Option<HvaRange> {
        let range = self.innermost()?;
        match self.opened.checked_sub(1) {
            Some(rest) => self.opened = rest,
            None => self.single_is_open = false,
        }
        Some(range)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Starts,
    Inside,
    /// `told`: the repeat for the innermost bracket is out, its end is next.
    Ends {
        told: bool,
    },
}

/// The calls of one invalidation. Made by [`Policy::calls`](crate::Policy::calls).
#[derive(Clone, Debug)]
pub struct Calls<'a> {
    brackets: Brackets<'a>,
    inside: Inside,
    end_repeats: bool,
    phase: Phase,
}

impl<'a> Calls<'a> {
    pub(crate) fn new(brackets: Brackets<'a>, inside: Inside, end_repeats: bool) -> Self {
        Self { brackets, inside, end_repeats, phase: Phase::Starts }
    }

    /// The ends that are missing at this point: the ranges of every [`Call::Start`] handed out whose
    /// [`Call::End`] was not, innermost first.
    ///
    /// The repeat before each end is left out: an operation that was not performed changed nothing that a
    /// sharing listener could hold.
    pub fn unwind(&self) -> impl Iterator<Item = HvaRange> + use<'a> {
        let mut brackets = self.brackets.clone();
        std::iter::from_fn(move || brackets.close())
    }

    fn next_end(&mut self, told: bool) -> Option<Call> {
        if self.end_repeats && !told {
            let range = self.brackets.innermost()?;
            self.phase = Phase::Ends { told: true };
            return Some(Call::InvalidateRangeAgain(range));
        }
        self.phase = Phase::Ends { told: false };
        self.brackets.close().map(Call::End)
    }
}

impl Iterator for Calls<'_> {
    type Item = Call;

    fn next(&mut self) -> Option<Call> {
        match self.phase {
            Phase::Starts => {
                let start = self.brackets.open();
                if start.is_none() {
                    self.phase = Phase::Inside;
                }
                Some(start.map_or(Call::Operation, Call::Start))
            }
            Phase::Inside => match self.inside.next() {
                Some(call) => Some(call),
                None => self.next_end(false),
            },
            Phase::Ends { told } => self.next_end(told),
        }
    }
}

impl std::iter::FusedIterator for Calls<'_> {}
