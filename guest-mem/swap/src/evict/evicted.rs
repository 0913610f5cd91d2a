//! The counts of an eviction.

/// The counts of an eviction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evicted {
    /// Pages that left, those of zeros among them.
    pub pages: u64,
    /// Pages of zeros: nothing of them is in the store.
    pub zeros: u64,
    /// Pages that stayed, because they were written to or discarded on the way.
    pub stayed: u64,
}

impl std::ops::AddAssign for Evicted {
    fn add_assign(&mut self, other: Self) {
        self.pages += other.pages;
        self.zeros += other.zeros;
        self.stayed += other.stayed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up() {
        let mut all = Evicted { pages: 7, zeros: 5, stayed: 3 };
        all += Evicted { pages: 1, zeros: 10, stayed: 100 };
        assert_eq!(all, Evicted { pages: 8, zeros: 15, stayed: 103 });
    }
}
