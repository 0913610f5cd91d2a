//! The store that keeps nothing: what an eviction costs without a place to go.

use std::sync::atomic::{AtomicU64, Ordering};

use guest_mem::Page;
use swap::{Slot, Store, StoreError, Usage};

use super::check_shape;

/// Discards what it is given. [`get`](Store::get) is an error for every slot, never a made-up page: a caller who
/// knows that a page's content does not matter asks [`keeps_content`](Store::keeps_content) and does not call it.
#[derive(Debug, Default)]
pub struct DiscardStore {
    pages: AtomicU64,
}

impl DiscardStore {
    const NAME: &str = "none";
    /// All pages go to the same place.
    const NOWHERE: Slot = Slot::from_raw(1).unwrap();
}

impl Store for DiscardStore {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn put(&self, pages: &[Page], slots: &mut [Slot]) -> Result<(), StoreError> {
        check_shape(pages.len(), slots.len())?;
        slots.fill(Self::NOWHERE);
        self.pages.fetch_add(pages.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn get(&self, slots: &[Slot], pages: &mut [Page]) -> Result<(), StoreError> {
        check_shape(pages.len(), slots.len())?;
        match slots.first() {
            None => Ok(()),
            Some(&Self::NOWHERE) => Err(StoreError::Discarded { store: Self::NAME, index: 0 }),
            Some(&slot) => Err(StoreError::NoSuchPage { store: Self::NAME, index: 0, slot }),
        }
    }

    fn free(&self, slots: &[Slot]) {
        let freed = slots.iter().filter(|&&slot| slot == Self::NOWHERE).count() as u64;
        let less = |pages: u64| Some(pages.saturating_sub(freed));
        // The closure never declines, so there is no error.
        let _ = self.pages.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    fn usage(&self) -> Usage {
        Usage { pages: self.pages.load(Ordering::Relaxed), stored_bytes: 0, held_bytes: 0 }
    }

    fn keeps_content(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_comes_back() {
        let store = DiscardStore::default();
        let mut slots = [Slot::default(); 3];
        store.put(&[Page::ZERO; 3], &mut slots).unwrap();
        assert_eq!(store.usage(), Usage { pages: 3, ..Usage::default() });
        assert!(!store.keeps_content());
        let mut back = [Page::ZERO; 1];
        assert!(matches!(store.get(&slots[..1], &mut back), Err(StoreError::Discarded { index: 0, .. })));
        assert!(matches!(store.get(&[Slot::default()], &mut back), Err(StoreError::NoSuchPage { .. })));
        assert!(matches!(store.get(&slots, &mut back), Err(StoreError::Shape { pages: 1, slots: 3 })));
        store.free(&slots);
        store.free(&slots);
        assert_eq!(store.usage().pages, 0);
    }
}
