//! A region: one mapping of guest RAM and what backs it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::mm::Advice;

use crate::address::{Address, Hva, PAGE_SIZE, PAGES_PER_PMD, PMD_SIZE};
use crate::backing::Backing;
use crate::hugetlb::{HugetlbLimit, Step};
use crate::mapping::{Mapping, Reservation};
use crate::range::{HvaRange, RangeError};
use crate::remedy::{self, Asked};
use crate::seam::{SeamError, Seams};
use crate::sys::{self, Content, Madvise};
use crate::thp::HostThp;
use crate::victim::Order;

/// Guest RAM could not be mapped.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum RegionError {
    #[error(
        "mapping {len} bytes of guest RAM: the size must be a multiple of 2 MiB, more than 0, below 64 TiB"
    )]
    Length { len: u64 },
    #[error("reserving address space for {len} bytes of guest RAM{}", remedy::after(Asked::AddressSpace, *source))]
    Reserve { len: u64, source: Errno },
    #[error("mapping {len} bytes of `hugetlb:2m`: {limit}")]
    Hugetlb { len: u64, limit: HugetlbLimit, source: Errno },
    #[error("{step} for {len} bytes of `{backing}`{}", remedy::after(Asked::Feature, *source))]
    Setup { step: &'static str, backing: Backing, len: u64, source: Errno },
    #[error("keeping 2 MiB pages out of `{backing}`")]
    Guard { backing: Backing, source: SeamError },
    /// A hugetlb page is mapped and is not there, and the kernel does not give one.
    #[error("the kernel gives no memory for {range} of `hugetlb:2m`: {limit}")]
    NotGiven { range: HvaRange, limit: HugetlbLimit, source: Errno },
    #[error("populating {range}{}", remedy::after(Asked::Populate, *source))]
    Populate { range: HvaRange, source: Errno },
    #[error(transparent)]
    Range(#[from] RangeError),
}

/// No x86-64 process with 47 address bits can map that many bytes.
const LARGEST: u64 = 64 << 40;

/// One mapping of guest RAM, 2 MiB aligned, unmapped when dropped.
///
/// No Rust reference into it exists, ever: a guest writes to it at any time. Host-side access is by volatile
/// words. [`Region::backing`] is the kind of memory asked for; [`crate::PageScanner`] reads the state of the pages.
#[derive(Debug)]
pub struct Region {
    mapping: Mapping,
    backing: Backing,
    memfd: Option<OwnedFd>,
    seams: Seams,
}

impl Region {
    /// Maps `len` bytes of guest RAM, not yet populated; hugetlb memory is populated at once, because the reservation that
    /// comes with the mapping is no promise (see [`HugetlbLimit`]).
    ///
    /// mTHP where the host also has 2 MiB pages on: a fault takes the largest folio that fits inside the VMA,
    /// so a seam (see [`Region::seam`]) is put into every 2 MiB before anything is touched, and no 2 MiB folio
    /// fits any more, at a fault or for khugepaged. Enabled sizes between cannot be kept out that way:
    /// [`Backing::unavailable`] names them.
    ///
    /// # Errors
    /// A length that is 0, no multiple of 2 MiB or absurd; a host without the memory or the feature.
    pub fn map(len: u64, backing: Backing) -> Result<Self, RegionError> {
        if len == 0 || !len.is_multiple_of(PMD_SIZE) || len >= LARGEST {
            return Err(RegionError::Length { len });
        }
        let setup = |step| move |source| RegionError::Setup { step, backing, len, source };
        let memfd = match backing {
            Backing::Memfd | Backing::MemfdThp => {
                Some(sys::memfd(c"zapscope-ram", len).map_err(setup("creating a memfd"))?)
            }
            _ => None,
        };
        let content = match (&memfd, backing) {
            (Some(fd), _) => Content::Shared(fd.as_fd()),
            (None, Backing::Hugetlb2m) => Content::Hugetlb2m,
            (None, _) => Content::Anonymous,
        };
        let reserved = Reservation::of(len).map_err(|source| RegionError::Reserve { len, source })?;
        let mapping = reserved.map(content).map_err(|source| match backing {
            Backing::Hugetlb2m => {
                let limit = HugetlbLimit::find(Step::Reserve, len);
                RegionError::Hugetlb { len, limit, source }
            }
            _ => setup("mapping")(source),
        })?;
        let seams = Seams::new(mapping.range(), seam_len(backing));
        let region = Self { mapping, backing, memfd, seams };
        region.advise_backing()?;
        region.reach(region.range()).map_err(|error| match error {
            RegionError::NotGiven { limit, source, .. } => RegionError::Hugetlb { len, limit, source },
            error => error,
        })?;
        Ok(region)
    }

    /// Tells the kernel which pages to use. On failure the drop of `self` unmaps.
    fn advise_backing(&self) -> Result<(), RegionError> {
        let (advice, step) = match self.backing {
            Backing::Base4k | Backing::Memfd => (Advice::LinuxNoHugepage, "MADV_NOHUGEPAGE"),
            Backing::Thp | Backing::Mthp(_) | Backing::MemfdThp => (Advice::LinuxHugepage, "MADV_HUGEPAGE"),
            Backing::Hugetlb2m => return Ok(()),
        };
        // SAFETY: the mapping was made a moment ago and nothing refers to it.
        match unsafe { sys::madvise(self.range(), Madvise::Known(advice)) } {
            Ok(()) => {}
            // A kernel without huge pages: base pages are what it gives anyway.
            Err(Errno::INVAL) if advice == Advice::LinuxNoHugepage => {}
            Err(source) => {
                let (backing, len) = (self.backing, self.range().len());
                return Err(RegionError::Setup { step, backing, len, source });
            }
        }
        if matches!(self.backing, Backing::Mthp(_))
            && HostThp::read().anonymous_switch(Order::PMD).serves_madvised()
        {
            let backing = self.backing;
            self.seams.install(self.range()).map_err(|source| RegionError::Guard { backing, source })?;
        }
        Ok(())
    }

    /// Where it is mapped.
    pub fn range(&self) -> HvaRange {
        self.mapping.range()
    }
    /// The kind of memory it was mapped with.
    pub fn backing(&self) -> Backing {
        self.backing
    }
    /// The file behind shared memory.
    pub fn memfd(&self) -> Option<BorrowedFd<'_>> {
        self.memfd.as_ref().map(AsFd::as_fd)
    }
    /// The smallest page an operation can take: 2 MiB for hugetlb, else 4 KiB.
    pub fn page_size(&self) -> u64 {
        if self.backing == Backing::Hugetlb2m { PMD_SIZE } else { PAGE_SIZE }
    }
    /// Where in the region (and in its memfd) an address lies.
    pub fn offset_of(&self, at: Hva) -> Option<u64> {
        if !self.range().contains(at) {
            return None;
        }
        at.checked_offset_from(self.range().start())
    }
    /// The address `offset` bytes into the region.
    pub fn hva_at(&self, offset: u64) -> Option<Hva> {
        self.range().start().checked_add(offset).filter(|&at| self.range().contains(at))
    }
    /// `len` bytes of the region from `offset` on.
    pub fn slice(&self, offset: u64, len: u64) -> Option<HvaRange> {
        let part = HvaRange::with_len(self.range().start().checked_add(offset)?, len)?;
        self.range().covers(part).then_some(part)
    }

    /// Checks that an operation can take `range`: that it is made of whole pages of this region.
    pub fn check(&self, range: HvaRange) -> Result<(), RangeError> {
        self.check_aligned(range, self.page_size())
    }

    /// Checks that `range` is made of pages of this region's content, which come in 4 KiB whatever the backing: a huge
    /// page is read and written in parts.
    pub fn check_content(&self, range: HvaRange) -> Result<(), RangeError> {
        self.check_aligned(range, PAGE_SIZE)
    }

    fn check_aligned(&self, range: HvaRange, page_size: u64) -> Result<(), RangeError> {
        if !self.range().covers(range) {
            return Err(RangeError::Outside { range, region: self.range() });
        }
        if !range.start().is_aligned(page_size) || !range.end().is_aligned(page_size) {
            return Err(RangeError::Unaligned { range, page_size });
        }
        Ok(())
    }

    /// Keeps khugepaged out from now on: it would collapse folios that a step has split. Huge pages that exist stay; new
    /// ones, also those of MADV_COLLAPSE, are refused.
    pub fn settle(&self) -> Result<(), RegionError> {
        if matches!(self.backing, Backing::Base4k | Backing::Memfd | Backing::Hugetlb2m) {
            return Ok(());
        }
        let (backing, len) = (self.backing, self.range().len());
        // SAFETY: this mapping; the advice changes no content.
        unsafe { sys::madvise(self.range(), Madvise::Known(Advice::LinuxNoHugepage)) }
            .map_err(|source| RegionError::Setup { step: "MADV_NOHUGEPAGE", backing, len, source })
    }

    /// Faults all of `range` in for writing, in the calling thread's memory cgroup; a huge page of which it is a part, as
    /// a whole. Content stays as it is.
    ///
    /// # Errors
    /// A range that does not fit, or no memory.
    pub fn populate(&self, range: HvaRange) -> Result<(), RegionError> {
        self.check_content(range)?;
        self.fault_in(range).map_err(|source| match self.backing {
            Backing::Hugetlb2m => self.not_given(range, source),
            _ => RegionError::Populate { range, source },
        })
    }

    /// Faults `range` in where a fault of this process could be refused. To be called before every access.
    ///
    /// Only hugetlb memory needs it: there an access to a page that the kernel refuses is a SIGBUS, and the fault by system
    /// call an errno. Elsewhere nothing is done: for anonymous memory and for a memfd (which is sealed to its length, on a file
    /// system without a size) a memory cgroup or a host that has no page left calls the OOM killer. A SIGBUS remains
    /// possible where memory failed or swap cannot be read back.
    ///
    /// # Errors
    /// [`RegionError::NotGiven`], with the limit.
    pub fn reach(&self, range: HvaRange) -> Result<(), RegionError> {
        if self.backing != Backing::Hugetlb2m {
            return Ok(());
        }
        match range.checked_align_outward(PAGE_SIZE).map(|pages| (pages, self.fault_in(pages))) {
            // Before 5.14 there is no such call; and memory that is read-only for a moment (see `toggle_protection`) is populated.
            None | Some((_, Ok(()) | Err(Errno::INVAL))) => Ok(()),
            Some((pages, Err(source))) => Err(self.not_given(pages, source)),
        }
    }

    fn fault_in(&self, range: HvaRange) -> Result<(), Errno> {
        debug_assert!(self.range().covers(range));
        // SAFETY: inside this mapping; populating changes no content.
        unsafe { sys::madvise(range, Madvise::Known(Advice::LinuxPopulateWrite)) }
    }

    /// The error with the limit that keeps `range` from being filled.
    fn not_given(&self, range: HvaRange, source: Errno) -> RegionError {
        let missing = missing_bytes(range.checked_align_outward(PMD_SIZE).unwrap_or(range));
        let limit = HugetlbLimit::find(Step::Take, missing.max(PMD_SIZE));
        RegionError::NotGiven { range, limit, source }
    }

    /// Makes the host map the page at `at`, for writing if `write`, and changes nothing in it.
    ///
    /// # Errors
    /// An address elsewhere, or the kernel gives no page.
    pub fn touch(&self, at: Hva, write: bool) -> Result<(), RegionError> {
        let byte = HvaRange::with_len(at, 1).filter(|&byte| self.range().covers(byte));
        let byte = byte.ok_or(RangeError::Outside { range: HvaRange::empty(at), region: self.range() })?;
        self.reach(byte)?;
        // SAFETY: a byte of this mapping, which lives as long as `self` and is readable; the caller of a toggle stops all
        // writers, as for a guest.
        unsafe { sys::touch_byte(at, write) };
        Ok(())
    }

    /// Reads the word at `at`, faulting it in if it must be.
    ///
    /// # Errors
    /// An address that is no aligned word of this region, or the kernel gives no page.
    pub fn read_u64(&self, at: Hva) -> Result<u64, RegionError> {
        self.reach_word(at)?;
        // SAFETY: checked to be an aligned word of this mapping, which is readable as long as `self` lives.
        Ok(unsafe { sys::read_word(at) })
    }

    /// Writes the word at `at`, faulting it in if it must be. While `at` is read-only by
    /// [`crate::toggle_protection`] this is a segmentation fault: stop all writers before, as for a guest.
    ///
    /// # Errors
    /// An address that is no aligned word of this region, or the kernel gives no page.
    pub fn write_u64(&self, at: Hva, value: u64) -> Result<(), RegionError> {
        self.reach_word(at)?;
        // SAFETY: checked to be an aligned word of this mapping, which lives as long as `self` and is never
        // made unreadable; a write during a toggle traps instead of corrupting.
        unsafe { sys::write_word(at, value) };
        Ok(())
    }

    fn reach_word(&self, at: Hva) -> Result<(), RegionError> {
        match HvaRange::with_len(at, 8).filter(|&word| self.range().covers(word) && at.is_aligned(8)) {
            Some(word) => self.reach(word),
            None => Err(RangeError::Word { at, region: self.range() }.into()),
        }
    }

    /// The region's seams.
    pub(crate) fn seams(&self) -> &Seams {
        &self.seams
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        self.seams.forget();
    }
}

impl AsRef<Region> for Region {
    fn as_ref(&self) -> &Region {
        self
    }
}

/// Bytes of the 2 MiB pages of a range that are not in memory yet. All of them if the kernel does not tell.
fn missing_bytes(range: HvaRange) -> u64 {
    let mut resident = vec![0u8; range.page_count() as usize];
    match sys::mincore(range, &mut resident) {
        Ok(()) => {
            let missing = |block: &&[u8]| block[0] & 1 == 0;
            resident.chunks(PAGES_PER_PMD as usize).filter(missing).count() as u64 * PMD_SIZE
        }
        Err(_) => range.len(),
    }
}

/// A seam must not cut through a folio of the backing.
fn seam_len(backing: Backing) -> u64 {
    match backing {
        Backing::Mthp(order) => order.bytes(),
        _ => PAGE_SIZE,
    }
}

/// The owner of a region, which keeps it mapped. Types that work on guest memory for long hold one.
pub type Memory = Arc<dyn AsRef<Region> + Send + Sync>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_lengths_are_refused() {
        for len in [0, 3, PAGE_SIZE, PMD_SIZE - 1, PMD_SIZE + PAGE_SIZE, 1 << 63, LARGEST, u64::MAX] {
            let error = Region::map(len, Backing::Base4k).unwrap_err();
            assert!(matches!(error, RegionError::Length { .. }), "{len}: {error}");
            assert!(error.to_string().contains(&len.to_string()));
        }
    }

    #[test]
    fn a_region_is_aligned_and_answers_for_its_addresses() {
        let region = Region::map(3 * PMD_SIZE, Backing::Base4k).unwrap();
        let range = region.range();
        assert!(range.start().is_aligned(PMD_SIZE));
        assert_eq!(range.len(), 3 * PMD_SIZE);
        assert_eq!(region.hva_at(3 * PMD_SIZE), None);
        assert_eq!(region.offset_of(range.end()), None);
        assert_eq!(region.slice(PMD_SIZE, 2 * PMD_SIZE).map(|part| part.end()), Some(range.end()));
        assert_eq!(region.slice(PMD_SIZE, 2 * PMD_SIZE + 1), None);
    }

    #[test]
    fn words_are_bounds_checked() {
        let region = Region::map(PMD_SIZE, Backing::Memfd).unwrap();
        let last = region.hva_at(PMD_SIZE - 8).unwrap();
        region.write_u64(last, 0x1234).unwrap();
        assert_eq!(region.read_u64(last).unwrap(), 0x1234);
        assert_eq!(region.read_u64(region.range().start()).unwrap(), 0);
        for at in [region.range().end(), Hva::new(last.get() + 4), Hva::new(0), Hva::new(u64::MAX - 3)] {
            assert!(matches!(region.read_u64(at), Err(RegionError::Range(RangeError::Word { .. }))), "{at}");
            assert!(region.write_u64(at, 1).is_err());
        }
    }

    #[test]
    fn ranges_are_checked_against_the_region() {
        let region = Region::map(PMD_SIZE, Backing::Base4k).unwrap();
        let start = region.range().start();
        let odd = HvaRange::with_len(start, 100).unwrap();
        assert!(matches!(region.check(odd), Err(RangeError::Unaligned { page_size: 4096, .. })));
        let wide = HvaRange::with_len(start, 2 * PMD_SIZE).unwrap();
        assert!(matches!(region.check(wide), Err(RangeError::Outside { .. })));
        assert!(matches!(region.populate(wide), Err(RegionError::Range(_))));
        assert_eq!(region.check(region.range()), Ok(()));
    }
}
