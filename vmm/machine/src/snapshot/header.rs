//! The snapshot's first page: the guest's configuration, and the sizes of the parts of the file.
//!
//! It is little-endian, and untrusted input: the checksum, the bounds of each field and the file's length are checked.
//! The parts follow one another, so their offsets are not written down.

use std::ops::Range;

use guest_abi::layout::{ARENA_MAX, MAX_VCPUS, low_memory};
use guest_mem::{Backing, PAGE_SIZE, PMD_SIZE};

use program::units;

/// The first bytes of a snapshot.
const MAGIC: [u8; 8] = *b"ZAPSNAP\0";
/// The version that this program writes and reads.
pub const VERSION: u32 = 1;
/// Bytes of a header.
pub const HEADER_BYTES: usize = PAGE_SIZE as usize;
/// The offset of its checksum, which is over all bytes before it.
const CRC_AT: usize = HEADER_BYTES - 4;
/// Bytes of a backing's name: the longest is `hugetlb:2m`.
const NAME_BYTES: usize = 20;
/// The most bytes of state one vCPU has: the FPU 4 KiB, 256 CPUID leaves 10 KiB, MSRs by the hundred.
const VCPU_BYTES: u64 = 128 << 10;

/// The header's fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// vCPUs.
    pub vcpus: u32,
    /// The arena's backing.
    pub backing: Backing,
    /// Bytes of the arena.
    pub arena: u64,
    /// Bytes of it, from the start, that hold the pattern; the rest is zeros.
    pub filled: u64,
    /// The pattern's generation.
    pub generation: u64,
    /// Bytes of the vCPUs' states, and their checksum.
    pub state: (u64, u32),
    /// The index's checksum.
    pub index_crc: u32,
    /// Pages that are in the file; all others are zeros.
    pub stored: u64,
}

/// A file is no snapshot, or none that can be used here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum HeaderError {
    #[error("it is no snapshot: make one with `zapscope snapshot --out FILE`")]
    Magic,
    #[error(
        "it is a snapshot of version {0}, and this program reads version {VERSION}: make it again with this program"
    )]
    Version(u32),
    #[error(
        "its header is damaged: the checksum is {found:#010x}, not {expected:#010x}; make the snapshot again"
    )]
    Checksum { expected: u32, found: u32 },
    #[error("its header says {what}, which no guest has: it was not written by this program")]
    Nonsense { what: String },
    #[error("it has {found} where its header says {expected}: it was cut short, or is not copied yet",
        found = units::bytes(*.found), expected = units::bytes(*.expected))]
    Length { expected: u64, found: u64 },
}

/// The parts of a snapshot: byte ranges of the file, each from a page boundary on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The vCPUs' states.
    pub state: Range<u64>,
    /// The stored pages.
    pub data: Range<u64>,
    /// The index of the stored pages, with their checksums. It ends the file.
    pub index: Range<u64>,
}

impl Header {
    /// Bytes of low memory.
    pub fn low(&self) -> u64 {
        low_memory(self.vcpus)
    }

    /// Pages of memory: low memory's, then the arena's.
    pub fn pages(&self) -> u64 {
        (self.low() + self.arena) / PAGE_SIZE
    }

    /// Bytes of the index: a bit for each page, then a checksum for each that is stored.
    pub fn index_bytes(&self) -> u64 {
        self.pages() / 8 + 4 * self.stored
    }

    /// The parts of the file. The header's fields are within their bounds, so nothing overflows.
    pub fn layout(&self) -> Layout {
        let state = PAGE_SIZE..PAGE_SIZE + self.state.0;
        let data = state.end.next_multiple_of(PAGE_SIZE);
        let data = data..data + self.stored * PAGE_SIZE;
        Layout { index: data.end..data.end + self.index_bytes(), state, data }
    }

    /// The header's page.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut name = [0; NAME_BYTES];
        let text = self.backing.to_string();
        name[..text.len()].copy_from_slice(text.as_bytes());
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend(MAGIC);
        [VERSION, PAGE_SIZE as u32, self.vcpus].iter().for_each(|word| bytes.extend(word.to_le_bytes()));
        bytes.extend(name);
        for word in [self.arena, self.filled, self.generation, self.stored, self.state.0] {
            bytes.extend(word.to_le_bytes());
        }
        [self.state.1, self.index_crc].iter().for_each(|word| bytes.extend(word.to_le_bytes()));
        let mut page = [0; HEADER_BYTES];
        page[..bytes.len()].copy_from_slice(&bytes);
        let crc = crc32fast::hash(&page[..CRC_AT]);
        page[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        page
    }

    /// Reads a header of a file of `file_len` bytes.
    pub fn decode(page: &[u8; HEADER_BYTES], file_len: u64) -> Result<Self, HeaderError> {
        let mut fields = Fields(page);
        if fields.take() != MAGIC {
            return Err(HeaderError::Magic);
        }
        match fields.word32() {
            VERSION => {}
            other => return Err(HeaderError::Version(other)),
        }
        let [expected, found] =
            [u32::from_le_bytes(Fields(&page[CRC_AT..]).take()), crc32fast::hash(&page[..CRC_AT])];
        if expected != found {
            return Err(HeaderError::Checksum { expected, found });
        }
        let nonsense = |what: String| HeaderError::Nonsense { what };
        let (page_size, vcpus) = (fields.word32(), fields.word32());
        let name: [u8; NAME_BYTES] = fields.take();
        let name = String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned();
        let backing = name.parse().map_err(|_| nonsense(format!("memory backed by `{name}`")))?;
        let [arena, filled, generation, stored, state_len] = std::array::from_fn(|_| fields.word64());
        let (state_crc, index_crc) = (fields.word32(), fields.word32());
        let header = Self {
            vcpus,
            backing,
            arena,
            filled,
            generation,
            state: (state_len, state_crc),
            index_crc,
            stored,
        };
        if u64::from(page_size) != PAGE_SIZE {
            return Err(nonsense(format!("pages of {page_size} bytes")));
        }
        header.check().map_err(nonsense)?;
        let expected = header.layout().index.end;
        if expected != file_len {
            return Err(HeaderError::Length { expected, found: file_len });
        }
        Ok(header)
    }

    fn check(&self) -> Result<(), String> {
        let Self { vcpus, arena, filled, stored, state: (state, _), .. } = *self;
        if !(1..=MAX_VCPUS).contains(&vcpus) {
            return Err(format!("{vcpus} vCPUs"));
        }
        if arena == 0 || arena > ARENA_MAX || !arena.is_multiple_of(PMD_SIZE) {
            return Err(format!("{arena} bytes of memory"));
        }
        if filled > arena || !filled.is_multiple_of(PAGE_SIZE) {
            return Err(format!("{filled} of {arena} bytes filled"));
        }
        if stored > self.pages() {
            return Err(format!("{stored} pages stored of {}", self.pages()));
        }
        if state == 0 || state > VCPU_BYTES * u64::from(vcpus) {
            return Err(format!("{state} bytes of state for {vcpus} vCPUs"));
        }
        Ok(())
    }
}

/// The rest of a header that is being read.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk().expect("a header is longer than its fields");
        self.0 = rest;
        *field
    }
    fn word32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }
    fn word64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers() -> impl Strategy<Value = Header> {
        let backing =
            prop_oneof![Just("4k"), Just("thp"), Just("memfd"), Just("mthp:64k"), Just("hugetlb:2m")];
        (
            1u32..=MAX_VCPUS,
            backing,
            1..=ARENA_MAX / PMD_SIZE,
            any::<[u64; 3]>(),
            any::<[u32; 2]>(),
            1..VCPU_BYTES,
        )
            .prop_map(
                |(vcpus, backing, blocks, [filled, generation, stored], [state, index_crc], state_len)| {
                    let arena = blocks * PMD_SIZE;
                    let filled = filled % (arena / PAGE_SIZE + 1) * PAGE_SIZE;
                    let stored = stored % ((low_memory(vcpus) + arena) / PAGE_SIZE + 1);
                    let (backing, state) = (backing.parse().unwrap(), (state_len, state));
                    Header { vcpus, backing, arena, filled, generation, state, index_crc, stored }
                },
            )
    }

    proptest! {
        #[test]
        fn a_header_reads_back(header in headers()) {
            let (page, layout) = (header.encode(), header.layout());
            let len = layout.index.end;
            prop_assert_eq!(Header::decode(&page, len), Ok(header));
            prop_assert!(layout.state.end <= layout.data.start && layout.data.end == layout.index.start);
            prop_assert!(layout.data.start.is_multiple_of(PAGE_SIZE));
            for other in [0, len - 1, len + 1, u64::MAX] {
                let wrong = HeaderError::Length { expected: len, found: other };
                prop_assert_eq!(Header::decode(&page, other), Err(wrong));
            }
        }

        #[test]
        fn no_flipped_bit_passes(header in headers(), bit in 0..HEADER_BYTES * 8) {
            let (mut page, len) = (header.encode(), header.layout().index.end);
            page[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Header::decode(&page, len).is_err());
        }

        /// Under a checksum that is right: a header is refused, or means something and overflows nowhere.
        #[test]
        fn hostile_fields_are_refused_or_sound(
            header in headers(), at in 12usize..100, bytes in any::<[u8; 8]>(), len in any::<u64>(),
        ) {
            let mut page = header.encode();
            page[at..at + 8].copy_from_slice(&bytes);
            let crc = crc32fast::hash(&page[..CRC_AT]);
            page[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
            for len in [len, header.layout().index.end] {
                if let Ok(read) = Header::decode(&page, len) {
                    prop_assert_eq!(read.layout().index.end, len);
                    prop_assert!(read.stored <= read.pages() && read.filled <= read.arena);
                    prop_assert!(read.index_bytes() <= len);
                }
            }
        }

        #[test]
        fn noise_is_refused(bytes in prop::collection::vec(any::<u8>(), HEADER_BYTES), version in any::<bool>()) {
            let mut page: [u8; HEADER_BYTES] = bytes.try_into().unwrap();
            if version {
                page[..8].copy_from_slice(&MAGIC);
                page[8..12].copy_from_slice(&VERSION.to_le_bytes());
            }
            prop_assert!(Header::decode(&page, u64::MAX).is_err());
        }
    }

    #[test]
    fn another_version_is_named_before_its_checksum_is_looked_at() {
        let header = Header {
            vcpus: 1,
            backing: Backing::Base4k,
            arena: PMD_SIZE,
            filled: 0,
            generation: 1,
            state: (1, 0),
            index_crc: 0,
            stored: 0,
        };
        let mut page = header.encode();
        page[8] = 9;
        let error = Header::decode(&page, header.layout().index.end).unwrap_err();
        assert_eq!(error, HeaderError::Version(9));
        assert!(error.to_string().contains("make it again"));
    }
}
