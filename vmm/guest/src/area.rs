//! A worker's control area, in memory that stays mapped as long as the area can be reached.

use std::ops::Deref;
use std::sync::Arc;

use guest_abi::block::ControlArea;
use guest_abi::layout::AREA_SIZE;
use guest_mem::{Address, Hva, HvaRange, PAGE_SIZE, RangeError, Region, RegionError};

/// A control area and the memory it lies in.
#[derive(Debug)]
pub struct Area {
    area: ControlArea,
    _memory: Arc<Region>,
}

impl Area {
    /// The control area at `at`.
    ///
    /// # Errors
    /// It does not lie in `memory`, not on a page, or the kernel gives no memory for it.
    pub fn new(memory: Arc<Region>, at: Hva) -> Result<Self, RegionError> {
        let range = HvaRange::with_len(at, AREA_SIZE).unwrap_or(HvaRange::empty(at));
        if range.is_empty() || !memory.range().covers(range) || !at.is_aligned(PAGE_SIZE) {
            return Err(RangeError::Outside { range, region: memory.range() }.into());
        }
        memory.reach(range)?;
        // SAFETY: page aligned, and that many bytes of a region that stays mapped as long as `self`: a `ControlArea` is no
        // `Copy`, and only lent.
        let area = unsafe { ControlArea::new(at.as_ptr()) };
        Ok(Self { area, _memory: memory })
    }
}

impl Deref for Area {
    type Target = ControlArea;

    fn deref(&self) -> &ControlArea {
        &self.area
    }
}

#[cfg(test)]
mod tests {
    use guest_mem::Backing;

    use super::*;

    #[test]
    fn an_area_lies_in_its_memory() {
        let memory = Arc::new(Region::map(2 * AREA_SIZE, Backing::Base4k).unwrap());
        let end = memory.range().end();
        for at in [Hva::new(end.get() - AREA_SIZE + PAGE_SIZE), end, Hva::new(0), Hva::new(u64::MAX - 4095)] {
            assert!(Area::new(memory.clone(), at).is_err(), "{at}");
        }
        assert!(Area::new(memory.clone(), memory.hva_at(8).unwrap()).is_err());
        let area = Area::new(memory.clone(), memory.hva_at(AREA_SIZE).unwrap()).unwrap();
        area.set_touches(5);
        let kept = Arc::downgrade(&memory);
        drop(memory);
        assert_eq!(area.touches(), 5);
        drop(area);
        assert!(kept.upgrade().is_none());
    }
}
