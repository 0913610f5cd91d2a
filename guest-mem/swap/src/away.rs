//! The parts of the region whose pages were moved elsewhere, by `mremap` events.

use std::sync::{Mutex, PoisonError};

use guest_mem::HvaRange;

/// Ranges whose pages were moved away. The old place is empty: events about it are ignored.
#[derive(Debug, Default)]
pub(crate) struct Away(Mutex<Vec<HvaRange>>);

impl Away {
    /// The pages of a range have left.
    pub fn left(&self, range: HvaRange) {
        self.with(|away| away.push(range));
    }

    /// Pages have come to a range.
    pub fn came_back(&self, range: HvaRange) {
        self.with(|away| {
            let rest = away.iter().flat_map(|&gone| outside(gone, range)).collect();
            *away = rest;
        });
    }

    /// Calls `act` with each part of a range that is not away.
    pub fn without(&self, range: HvaRange, act: impl FnMut(HvaRange)) {
        let mut parts = vec![range];
        self.with(|away| {
            for &gone in away.iter() {
                parts = parts.iter().flat_map(|&part| outside(part, gone)).collect();
            }
        });
        parts.into_iter().for_each(act);
    }

    fn with(&self, act: impl FnOnce(&mut Vec<HvaRange>)) {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// The parts of `range` outside of `hole`: before it, and behind.
pub(crate) fn outside(range: HvaRange, hole: HvaRange) -> impl Iterator<Item = HvaRange> {
    let before = HvaRange::new(range.start(), range.end().min(hole.start()));
    let behind = HvaRange::new(range.start().max(hole.end()), range.end());
    let both = if range.overlaps(hole) { [before, behind] } else { [Some(range), None] };
    both.into_iter().flatten().filter(|part| !part.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_mem::Hva;

    fn range(start: u64, end: u64) -> HvaRange {
        HvaRange::new(Hva::new(start), Hva::new(end)).unwrap()
    }

    fn rest_of(away: &Away, of: HvaRange) -> Vec<HvaRange> {
        let mut rest = Vec::new();
        away.without(of, |part| rest.push(part));
        rest
    }

    #[test]
    fn a_range_that_moved_is_left_out_until_it_is_back() {
        let away = Away::default();
        assert_eq!(rest_of(&away, range(0, 10)), [range(0, 10)]);
        away.left(range(2, 4));
        away.left(range(6, 8));
        assert_eq!(rest_of(&away, range(0, 10)), [range(0, 2), range(4, 6), range(8, 10)]);
        assert_eq!(rest_of(&away, range(2, 4)), []);
        away.came_back(range(2, 3));
        assert_eq!(rest_of(&away, range(0, 8)), [range(0, 3), range(4, 6)]);
        away.came_back(range(0, 10));
        assert_eq!(rest_of(&away, range(0, 10)), [range(0, 10)]);
    }
}
