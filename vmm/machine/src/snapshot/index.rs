//! The index of a snapshot: the pages that it stores, and the checksum of each.
//!
//! ```text
//!   a bit for each page, low memory's first: 1 stored, 0 all zeros │ a checksum for each stored page, in the same order
//! ```
//!
//! Stored pages lie in the file one behind another in that order, so a page's place is the number of ones before it.

/// The index of a snapshot, as it is written or was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    bits: Vec<u8>,
    checksums: Vec<u32>,
    pages: u64,
}

/// A page by the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// All of it is zero.
    Zero,
    /// It is in the file.
    Stored {
        /// The number of stored pages before it.
        rank: u64,
        /// Its [`swap::checksum()`].
        checksum: u32,
    },
}

/// An index is damaged, or does not fit its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum IndexError {
    #[error(
        "its page index is damaged: the checksum is {found:#010x}, not {expected:#010x}; make the snapshot again"
    )]
    Checksum { expected: u32, found: u32 },
    #[error(
        "its page index has {found} pages, and its header says {expected}: it was not written by this program"
    )]
    Pages { expected: u64, found: u64 },
}

impl Index {
    /// The next page, lowest first. `None`: all of it is zero.
    pub fn push(&mut self, checksum: Option<u32>) {
        let (byte, bit) = ((self.pages / 8) as usize, self.pages % 8);
        if bit == 0 {
            self.bits.push(0);
        }
        if let Some(checksum) = checksum {
            self.bits[byte] |= 1 << bit;
            self.checksums.push(checksum);
        }
        self.pages += 1;
    }

    /// How many pages are in the file.
    pub fn stored(&self) -> u64 {
        self.checksums.len() as u64
    }

    /// As it is in the file, and its checksum.
    pub fn encode(&self) -> (Vec<u8>, u32) {
        let mut bytes = self.bits.clone();
        bytes.extend(self.checksums.iter().flat_map(|checksum| checksum.to_le_bytes()));
        let crc = crc32fast::hash(&bytes);
        (bytes, crc)
    }

    /// Reads the index of `pages` pages, a multiple of 8, of which `stored` are in the file.
    pub fn decode(bytes: &[u8], crc: u32, pages: u64, stored: u64) -> Result<Self, IndexError> {
        let found = crc32fast::hash(bytes);
        if found != crc {
            return Err(IndexError::Checksum { expected: crc, found });
        }
        let wrong = |found| IndexError::Pages { expected: stored, found };
        let Some((bits, sums)) = bytes.split_at_checked((pages / 8) as usize) else {
            return Err(wrong(0));
        };
        let set = bits.iter().map(|byte| u64::from(byte.count_ones())).sum();
        let (words, rest) = sums.as_chunks::<4>();
        if set != stored || words.len() as u64 != stored || !rest.is_empty() {
            return Err(wrong(set));
        }
        let checksums = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
        Ok(Self { bits: bits.to_vec(), checksums, pages })
    }

    /// Every page, lowest first.
    pub fn entries(&self) -> impl Iterator<Item = Entry> {
        let mut rank = 0;
        (0..self.pages).map(move |page| {
            if self.bits[(page / 8) as usize] & 1 << (page % 8) == 0 {
                return Entry::Zero;
            }
            let entry = Entry::Stored { rank, checksum: self.checksums[rank as usize] };
            rank += 1;
            entry
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(pages: &[Option<u32>]) -> Index {
        let mut index = Index::default();
        pages.iter().for_each(|page| index.push(*page));
        index
    }

    proptest! {
        #[test]
        fn an_index_reads_back(groups in prop::collection::vec(any::<[Option<u32>; 8]>(), 1..40)) {
            let pages = groups.as_flattened();
            let index = of(pages);
            let (bytes, crc) = index.encode();
            let (count, stored) = (pages.len() as u64, pages.iter().flatten().count() as u64);
            let read = Index::decode(&bytes, crc, count, stored);
            prop_assert_eq!(read.as_ref(), Ok(&index));
            let checksums: Vec<_> = index.entries().map(|entry| match entry {
                Entry::Zero => None,
                Entry::Stored { checksum, .. } => Some(checksum),
            }).collect();
            prop_assert_eq!(&checksums[..], pages);
            let ranks: Vec<_> = index.entries().filter_map(|entry| match entry {
                Entry::Zero => None,
                Entry::Stored { rank, .. } => Some(rank),
            }).collect();
            prop_assert_eq!(ranks, (0..stored).collect::<Vec<_>>());
        }

        /// Whatever the bytes and the numbers: refused, or every page of it is there.
        #[test]
        fn hostile_bytes_are_refused_or_sound(
            bytes in prop::collection::vec(any::<u8>(), 0..400), groups in 0u64..40, stored in 0u64..400,
        ) {
            let crc = crc32fast::hash(&bytes);
            if let Ok(index) = Index::decode(&bytes, crc, groups * 8, stored) {
                prop_assert_eq!(index.entries().count() as u64, groups * 8);
                prop_assert_eq!(index.stored(), stored);
            }
        }

        #[test]
        fn no_flipped_bit_passes(groups in prop::collection::vec(any::<[Option<u32>; 8]>(), 1..20), bit: usize) {
            let pages = groups.as_flattened();
            let (mut bytes, crc) = of(pages).encode();
            let bit = bit % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            let (count, stored) = (pages.len() as u64, pages.iter().flatten().count() as u64);
            let is_refused = matches!(Index::decode(&bytes, crc, count, stored), Err(IndexError::Checksum { .. }));
            prop_assert!(is_refused);
        }
    }
}
