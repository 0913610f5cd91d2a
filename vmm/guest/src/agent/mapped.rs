//! Where the agent says its memory lies, and whether that can be.

use guest_abi::layout::AREA_SIZE;
use guest_abi::link::Mapped;
use guest_mem::{Address, Gpa, GpaRange, PMD_SIZE};

/// An address that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum Misplaced {
    #[error("{0} is not a multiple of 2 MiB")]
    Unaligned(Gpa),
    #[error("it has no RAM in all of {len:#x} bytes from {start}")]
    NoRam { start: Gpa, len: u64 },
    #[error("{0:?} and {1:?} overlap")]
    Overlap(GpaRange, GpaRange),
    #[error("{areas} control areas for {vcpus} vCPUs")]
    Areas { areas: usize, vcpus: u16 },
    #[error("{huge} bytes of huge pages in an arena of {bytes}")]
    Huge { huge: u64, bytes: u64 },
}

/// The memory that orders are about, in guest physical memory; checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArenaMap {
    /// The arena.
    pub arena: GpaRange,
    /// How many bytes of it the guest maps by huge pages.
    pub huge_bytes: u64,
    /// Each vCPU's control area, all of them inside RAM and apart from each other and from the arena.
    pub areas: Vec<GpaRange>,
}

impl ArenaMap {
    /// Checks what the agent said about an arena of `bytes`. `is_ram` tells whether all of a range is RAM.
    pub fn check(
        mapped: &Mapped,
        bytes: u64,
        vcpus: u16,
        is_ram: &dyn Fn(GpaRange) -> bool,
    ) -> Result<Self, Misplaced> {
        let place = |gpa, len| {
            let start = Gpa::new(gpa);
            if !start.is_aligned(PMD_SIZE) {
                return Err(Misplaced::Unaligned(start));
            }
            GpaRange::with_len(start, len)
                .filter(|&range| is_ram(range))
                .ok_or(Misplaced::NoRam { start, len })
        };
        let gpas = mapped.area_gpas.as_slice();
        if gpas.len() != usize::from(vcpus) {
            return Err(Misplaced::Areas { areas: gpas.len(), vcpus });
        }
        if mapped.huge_bytes > bytes {
            return Err(Misplaced::Huge { huge: mapped.huge_bytes, bytes });
        }
        let arena = place(mapped.arena_gpa, bytes)?;
        let areas = gpas.iter().map(|&gpa| place(gpa, AREA_SIZE)).collect::<Result<Vec<_>, _>>()?;
        for (index, &area) in areas.iter().enumerate() {
            let others = areas[..index].iter().copied().chain([arena]);
            if let Some(other) = others.into_iter().find(|other| other.overlaps(area)) {
                return Err(Misplaced::Overlap(other, area));
            }
        }
        Ok(Self { arena, huge_bytes: mapped.huge_bytes, areas })
    }
}
