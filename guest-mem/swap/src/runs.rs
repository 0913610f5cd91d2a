//! Maximal runs of neighbours with the same key.

use std::ops::Range;

/// Cuts `0..len` into maximal runs of places that have the same key; those without one are left out.
pub(crate) fn runs<K: PartialEq>(
    len: usize,
    key: impl Fn(usize) -> Option<K>,
) -> impl Iterator<Item = (Range<usize>, K)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let (start, found) = (at..len).find_map(|place| Some((place, key(place)?)))?;
        let end = (start..len).find(|&place| key(place).as_ref() != Some(&found)).unwrap_or(len);
        at = end;
        Some((start..end, found))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    proptest! {
        #[test]
        fn runs_tile_what_has_a_key(keys in proptest::collection::vec(proptest::option::of(0u8..3), 0..40)) {
            let found: Vec<_> = runs(keys.len(), |place| keys[place]).collect();
            let mut rebuilt = vec![None; keys.len()];
            for (range, key) in &found {
                prop_assert!(!range.is_empty());
                rebuilt[range.clone()].fill(Some(*key));
            }
            prop_assert_eq!(rebuilt, keys);
            for pair in found.windows(2) {
                prop_assert!(pair[0].0.end < pair[1].0.start || pair[0].1 != pair[1].1, "not maximal");
            }
        }
    }
}
