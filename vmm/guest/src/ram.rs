//! Guest memory as loaders and devices take it: by guest physical address, through `vm-memory`'s volatile accesses.
//!
//! The view owns what it shows: a view, or a copy of it, keeps the memory mapped.

use std::sync::{Arc, OnceLock};

use guest_mem::{Gpa, Region};
use vm_memory::bitmap::BS;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes,
    GuestRegionCollection, GuestUsize, MemoryRegionAddress, VolatileSlice,
};

/// One region of guest memory.
#[derive(Debug)]
pub struct RamPart {
    at: Gpa,
    memory: Arc<Region>,
    /// Bytes shown, from the region's start: all of it but in tests, which want memory of odd sizes.
    len: u64,
    /// What the kernel did not give, the first time: a device can only say that its request failed.
    refused: OnceLock<String>,
}

impl GuestMemoryRegion for RamPart {
    type B = ();

    fn len(&self) -> GuestUsize {
        self.len
    }
    fn start_addr(&self) -> GuestAddress {
        GuestAddress(self.at.get())
    }
    fn bitmap(&self) -> BS<'_, ()> {}

    fn get_host_address(&self, at: MemoryRegionAddress) -> Result<*mut u8, GuestMemoryError> {
        let at = self.check_address(at).and_then(|at| self.memory.hva_at(at.0));
        at.map(|at| at.as_ptr()).ok_or(GuestMemoryError::InvalidBackendAddress)
    }

    /// Every access goes through here: what the kernel refuses of it is an error, and no signal.
    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_, BS<'_, ()>>, GuestMemoryError> {
        let end = offset.0.checked_add(count as u64).filter(|&end| end <= self.len);
        let slice = end.and_then(|_| self.memory.slice(offset.0, count as u64));
        let slice = slice.ok_or(GuestMemoryError::InvalidBackendAddress)?;
        self.memory.reach(slice).map_err(|error| {
            let why = self.refused.get_or_init(|| guest_mem::with_causes(&error));
            GuestMemoryError::IOError(std::io::Error::other(why.clone()))
        })?;
        // SAFETY: a part of a mapping that `self` keeps, and the slice borrows `self`; every other user of the memory
        // does so by volatile or atomic access, or is the guest.
        Ok(unsafe { VolatileSlice::new(slice.start().as_ptr(), count) })
    }
}

impl GuestMemoryRegionBytes for RamPart {}

/// All memory of a guest that loaders and devices may use.
#[derive(Clone, Debug)]
pub struct GuestRam(GuestRegionCollection<RamPart>);

impl GuestRam {
    /// Each region at its guest physical address: in order, and apart.
    pub fn new(parts: impl IntoIterator<Item = (Gpa, Arc<Region>)>) -> Self {
        let part = |(at, memory): (Gpa, Arc<Region>)| {
            let (len, refused) = (memory.range().len(), OnceLock::new());
            RamPart { at, memory, len, refused }
        };
        Self::of(parts.into_iter().map(part).collect())
    }

    fn of(parts: Vec<RamPart>) -> Self {
        Self(
            GuestRegionCollection::from_regions(parts).expect("a memory map is in order and without overlap"),
        )
    }

    /// What the kernel did not give to a loader or a device, if so.
    pub fn refused(&self) -> Option<String> {
        self.0.iter().find_map(|part| part.refused.get().cloned())
    }

    /// Memory of its own, of any length.
    ///
    /// # Panics
    /// Where the host has none.
    #[cfg(any(test, feature = "fixture"))]
    #[expect(clippy::unwrap_used, reason = "for tests")]
    pub fn mapped(ranges: &[(u64, usize)]) -> Self {
        let map = |&(at, len): &(u64, usize)| {
            let whole = (len as u64).next_multiple_of(guest_mem::PMD_SIZE);
            let memory = Region::map(whole, guest_mem::Backing::Base4k).unwrap().into();
            RamPart { at: Gpa::new(at), memory, len: len as u64, refused: OnceLock::new() }
        };
        Self::of(ranges.iter().map(map).collect())
    }
}

impl GuestMemoryBackend for GuestRam {
    type R = RamPart;

    fn num_regions(&self) -> usize {
        self.0.num_regions()
    }
    fn find_region(&self, address: GuestAddress) -> Option<&RamPart> {
        self.0.find_region(address)
    }
    fn iter(&self) -> impl Iterator<Item = &RamPart> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use guest_mem::{Backing, PMD_SIZE};
    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn what_is_shown_is_the_region_and_nothing_beyond() {
        let memory = Arc::new(Region::map(PMD_SIZE, Backing::Base4k).unwrap());
        let ram = GuestRam::new([(Gpa::new(PMD_SIZE), memory.clone())]);
        ram.write_obj(0x1234_u64, GuestAddress(PMD_SIZE + 8)).unwrap();
        assert_eq!(memory.read_u64(memory.hva_at(8).unwrap()).unwrap(), 0x1234);
        for (at, len) in [(PMD_SIZE - 1, 2), (2 * PMD_SIZE - 1, 2), (0, 1), (u64::MAX, 1)] {
            assert!(ram.write_slice(&vec![0; len], GuestAddress(at)).is_err(), "{at:#x}");
        }
        // An odd length ends where it says.
        let odd = GuestRam::mapped(&[(0, 5)]);
        assert!(odd.write_slice(&[1; 5], GuestAddress(0)).is_ok());
        assert!(odd.write_slice(&[1; 2], GuestAddress(4)).is_err());
    }

    /// A device that holds a view holds the memory, after every other owner has let go of it.
    #[test]
    fn a_view_keeps_the_memory_mapped() {
        let memory = Arc::new(Region::map(PMD_SIZE, Backing::Base4k).unwrap());
        let ram = GuestRam::new([(Gpa::new(0), memory.clone())]);
        let (view, kept) = (ram.clone(), Arc::downgrade(&memory));
        drop((memory, ram));
        view.write_obj(7_u32, GuestAddress(4096)).unwrap();
        assert_eq!(view.read_obj::<u32>(GuestAddress(4096)).unwrap(), 7);
        drop(view);
        assert!(kept.upgrade().is_none());
    }
}
