//! The range that is announced for a victim: one rule for each era of the kernel, and two wider ones.
//!
//! `A` is the address of the first mapped page of the victim folio in its mapping, `order` the folio's.
//!
//! | policy | bracket | in force |
//! | --- | --- | --- |
//! | [`Page`](Policy::Page) | none: one `invalidate_page` per 4 KiB, after the page is unmapped | up to 4.12 |
//! | [`Pmd`](Policy::Pmd) | `[A, min(vma_end, (A & PMD_MASK) + 2M))` | the first version of the 2017 patch |
//! | [`Folio`](Policy::Folio) | `[A, min(vma_end, A + (4K << order)))` | 4.13 to 6.5 |
//! | [`Modern`](Policy::Modern) | as `folio`, sharing listeners told once | 6.6 and later |
//! | [`Slot`](Policy::Slot) | the memslots the victim touches, whole | a VMM that zaps one slot |
//! | [`Vm`](Policy::Vm) | every memslot | KVM's own reaction to a deleted slot, with its default quirk |
//!
//! The first four are `try_to_unmap_one` in `mm/rmap.c` of their time. [`crate::calls`] turns the bracket
//! into the exact sequence of calls.
//!
//! Three consequences, each with a test:
//! - `pmd` rounds the end up and **not the start down**: a random 4 KiB page costs 1 MiB on average.
//! - `folio` lies inside `pmd` for a folio inside one 2 MiB region, and only there: a folio that crosses a
//!   2 MiB boundary and a 1 GiB page are *under*-covered by `pmd`. The policy says so faithfully; a
//!   listener that trusts it keeps stale translations.
//! - The rule of an era is for a folio found by the reverse map. A victim wider than its folio is a range
//!   operation (`MADV_DONTNEED`, `munmap`), which every era announced exactly, in a bracket.

use guest_mem::{Address, Hva, HvaRange, PAGE_SIZE, PMD_SIZE, SlotTable, Victim};

use crate::calls::{Brackets, Call, Calls, Inside};
use crate::names::UnknownName;

/// A rule for the range announced. See the [module](self) for the table.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    strum::Display,
    strum::EnumString,
    strum::IntoStaticStr,
    strum::VariantArray,
    strum::VariantNames,
)]
#[strum(serialize_all = "kebab-case", parse_err_ty = UnknownName, parse_err_fn = unknown)]
pub enum Policy {
    /// One call per 4 KiB page, no bracket.
    Page,
    /// To the end of the 2 MiB region.
    Pmd,
    /// The folio's own size, sharing listeners told twice.
    Folio,
    /// The folio's own size, sharing listeners told once.
    Modern,
    /// The memslots the victim touches.
    Slot,
    /// Every memslot of the VM.
    Vm,
}

fn unknown(given: &str) -> UnknownName {
    UnknownName::of::<Policy>("range policy", given)
}

impl Policy {
    /// Every member, in order of declaration.
    pub const ALL: &[Self] = <Self as strum::VariantArray>::VARIANTS;

    /// The name used in reports and on the command line.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// Whether the range is made of memslots, so that a listener which deletes slots drops exactly what is announced. The
    /// others follow the victim.
    pub const fn is_of_slots(self) -> bool {
        match self {
            Self::Slot | Self::Vm => true,
            Self::Page | Self::Pmd | Self::Folio | Self::Modern => false,
        }
    }

    /// Whether the range is the victim folio's own, as kernels since 4.13 announce it.
    pub const fn is_the_folio(self) -> bool {
        match self {
            Self::Folio | Self::Modern => true,
            Self::Page | Self::Pmd | Self::Slot | Self::Vm => false,
        }
    }

    /// The exact sequence of calls for this victim, in order. Allocates nothing.
    ///
    /// A victim that no slot covers (the memory of a device that is no guest RAM) must still be announced,
    /// since a sharing listener knows nothing of slots: `slot` then announces the victim itself, and `vm`
    /// adds a bracket for it. A victim that sticks out of its slots is announced with them.
    ///
    /// ```
    /// use guest_mem::{Gpa, Hva, HvaRange, MapLevel, Order, SlotTableBuilder, Victim};
    /// use notifier_bridge::{Call, Policy};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let range = |start, len| HvaRange::with_len(Hva::new(start), len).expect("small numbers");
    /// let vma = range(0x20_0000, 0x40_0000);
    /// let mut slots = SlotTableBuilder::new(16);
    /// slots.add_region(Gpa::new(0), vma, 2 << 20)?;
    /// let slots = slots.build()?;
    /// let page = range(0x2f_f000, 0x1000);
    /// let victim = Victim { pages: page, order: Order::BASE, level: MapLevel::Pte, anonymous: true };
    ///
    /// let told: Vec<Call> = Policy::Modern.calls(&victim, vma, &slots).collect();
    /// assert_eq!(told, [Call::Start(page), Call::Operation, Call::InvalidateRange(page), Call::End(page)]);
    /// let to_the_end = range(0x2f_f000, 0x40_0000 - 0x2f_f000);
    /// assert_eq!(Policy::Pmd.ranges(&victim, vma, &slots).collect::<Vec<_>>(), [to_the_end]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn calls<'a>(self, victim: &Victim, vma: HvaRange, slots: &'a SlotTable) -> Calls<'a> {
        match self {
            Self::Page => page(victim),
            Self::Pmd => pmd(victim, vma),
            Self::Folio => folio(victim, vma),
            Self::Modern => modern(victim, vma),
            Self::Slot => slot(victim, slots),
            Self::Vm => vm(victim, slots),
        }
    }

    /// The ranges told to shadowing listeners, in order.
    pub fn ranges<'a>(
        self,
        victim: &Victim,
        vma: HvaRange,
        slots: &'a SlotTable,
    ) -> impl Iterator<Item = HvaRange> + use<'a> {
        self.calls(victim, vma, slots).filter_map(|call| match call {
            Call::Start(range) | Call::InvalidatePage(range) => Some(range),
            _ => None,
        })
    }
}

/// Up to 4.12: the page is unmapped, then every listener is told, page by page.
fn page<'a>(victim: &Victim) -> Calls<'a> {
    if is_wide(victim) {
        return exact_repeated(victim);
    }
    Calls::new(Brackets::none(), Inside::Pages(victim.pages.chunks(PAGE_SIZE)), false)
}

/// The first 2017 version: `min(vma->vm_end, (address & PMD_MASK) + PMD_SIZE)`.
fn pmd<'a>(victim: &Victim, vma: HvaRange) -> Calls<'a> {
    if is_wide(victim) {
        return exact_repeated(victim);
    }
    let start = victim.pages.start();
    let end = start.align_down(PMD_SIZE).checked_add(PMD_SIZE);
    Calls::new(Brackets::one(clipped(start, end, vma)), ptes(victim), true)
}

/// The released version: `min(vma->vm_end, address + (PAGE_SIZE << compound_order(page)))`.
fn folio<'a>(victim: &Victim, vma: HvaRange) -> Calls<'a> {
    if is_wide(victim) {
        return exact_repeated(victim);
    }
    Calls::new(Brackets::one(folio_range(victim, vma)), ptes(victim), true)
}

/// Since 6.6: the same range; the TLB flush inside the walk tells sharing listeners, end repeats nothing.
fn modern<'a>(victim: &Victim, vma: HvaRange) -> Calls<'a> {
    let range = if is_wide(victim) { victim.pages } else { folio_range(victim, vma) };
    Calls::new(Brackets::one(range), Inside::Flush(victim.pages), false)
}

/// The victim and every slot it touches. One range: between two slots that a victim touches there is
/// nothing but the victim.
fn slot<'a>(victim: &Victim, slots: &SlotTable) -> Calls<'a> {
    let range = match slots.covering(victim.pages) {
        [] => victim.pages,
        [first, .., last] => first.hva_range().hull(last.hva_range()).hull(victim.pages),
        [only] => only.hva_range().hull(victim.pages),
    };
    Calls::new(Brackets::one(range), Inside::Flush(victim.pages), false)
}

/// Every host-contiguous run of slots, nested; and the victim, should no run hold it.
fn vm<'a>(victim: &Victim, slots: &'a SlotTable) -> Calls<'a> {
    let outside = !slots.runs().iter().any(|run| run.covers(victim.pages));
    let brackets = Brackets::runs(slots.runs(), outside.then_some(victim.pages));
    Calls::new(brackets, Inside::Flush(victim.pages), false)
}

/// A range operation of an era that told sharing listeners twice: exact, flushed once, repeated by end.
fn exact_repeated<'a>(victim: &Victim) -> Calls<'a> {
    Calls::new(Brackets::one(victim.pages), Inside::Flush(victim.pages), true)
}

/// Whether the victim is more than its folio, and so was never found through the reverse map.
fn is_wide(victim: &Victim) -> bool {
    victim.pages.len() > victim.order.bytes()
}

/// One `invalidate_range` for each anonymous PTE the walk clears. PTEs of files and shmem were not announced inside the
/// walk: the page is locked, so that no other can take its place in the page cache before end.
fn ptes(victim: &Victim) -> Inside {
    if victim.anonymous { Inside::Ptes(victim.pages.chunks(PAGE_SIZE)) } else { Inside::Nothing }
}

fn folio_range(victim: &Victim, vma: HvaRange) -> HvaRange {
    let start = victim.pages.start();
    clipped(start, start.checked_add(victim.order.bytes()), vma)
}

/// `[start, min(vma_end, end))`. A start at or past the end of its VMA, which the kernel never produces,
/// gives the empty range and not a range that runs backwards.
fn clipped(start: Hva, end: Option<Hva>, vma: HvaRange) -> HvaRange {
    let end = end.map_or(vma.end(), |end| end.min(vma.end()));
    HvaRange::new(start, end).unwrap_or(HvaRange::empty(start))
}

#[cfg(test)]
mod tests;
