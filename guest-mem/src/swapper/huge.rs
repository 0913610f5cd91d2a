//! Where a huge page is put together before it moves to its place whole.

use crate::address::PMD_SIZE;
use crate::backing::Backing;
use crate::region::Region;
use crate::store::Page;

/// 2 MiB of memory of its own. `UFFDIO_MOVE` takes its pages away, and the next use begins with new ones.
#[derive(Debug, Default)]
pub(super) struct HugeStage {
    region: Option<Region>,
}

impl HugeStage {
    /// Has the stage filled, and gives it to be moved. `None` if there is no memory for one.
    pub fn fill<E>(&mut self, fill: impl FnOnce(&mut [Page]) -> Result<(), E>) -> Option<Result<&Region, E>> {
        if self.region.is_none() {
            self.region = Some(Region::map(PMD_SIZE, Backing::Thp).ok()?);
        }
        let region = self.region.as_ref()?;
        let pages = PMD_SIZE as usize / size_of::<Page>();
        // SAFETY: the region is ours alone: no guest has it, it is registered nowhere, and the exclusive borrow of
        // `self` is the only way to it. Its bytes are zeros until written.
        let pages = unsafe { std::slice::from_raw_parts_mut(region.range().start().as_ptr(), pages) };
        Some(fill(pages).map(|()| region))
    }
}
