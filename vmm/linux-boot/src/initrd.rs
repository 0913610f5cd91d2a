//! The initrd: as high as kernel and memory allow, read from its file into guest memory and nowhere else.

use program::exit::{Class, Classified};
use program::input::Input;
use std::fs::File;
use std::io::Seek;

use guest_mem::{Address, Gpa, GpaRange};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use guest::GuestRam;

/// What Linux calls a page.
const PAGE: u64 = guest_mem::PAGE_SIZE;

/// Where an initrd comes from.
#[derive(Clone, Copy, Debug)]
pub enum Initrd<'a> {
    /// Made by this process.
    Bytes(&'a [u8]),
    /// A file, `len` bytes from its start.
    File {
        /// The file, open for reading.
        file: &'a File,
        /// Its bytes.
        len: u64,
    },
}

/// What ends the room for an initrd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoomEnd {
    /// The guest's memory.
    Memory,
    /// The gap below 4 GiB, where there never is memory.
    Gap,
    /// The kernel: it looks for an initrd no higher.
    Kernel,
}

impl RoomEnd {
    fn name(self) -> &'static str {
        match self {
            Self::Memory => "the end of the guest's memory",
            Self::Gap => "the gap for devices",
            Self::Kernel => "the kernel's initrd_addr_max",
        }
    }

    fn remedy(self) -> &'static str {
        match self {
            Self::Memory => "give the guest more memory",
            Self::Gap => "no guest has more there: make the initrd smaller",
            Self::Kernel => {
                "more memory would not help: make the initrd smaller, or take a kernel that allows more"
            }
        }
    }
}

/// Why an initrd cannot be had.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum InitrdError {
    #[error("the initrd is empty: leave --initrd out, or name a cpio archive")]
    Empty,
    #[error(
        "the initrd has {len} bytes, and between the kernel's end at {} and {}, {}, there are {}: {}",
        .room.start(), .room.end(), .end.name(), .room.len(), .end.remedy()
    )]
    TooLarge { len: u64, room: GpaRange, end: RoomEnd },
    #[error("the initrd's {len} bytes cannot be read into the guest's memory at {at}")]
    Read { len: u64, at: Gpa, source: GuestMemoryError },
}

impl Classified for InitrdError {
    fn class(&self) -> Class {
        match self {
            Self::Empty | Self::TooLarge { .. } => Class::Mistake,
            Self::Read { .. } => Class::Fault,
        }
    }
}

impl<'a> Initrd<'a> {
    /// All of a file.
    pub fn of_input(input: &'a Input) -> Result<Self, InitrdError> {
        match input.len() {
            0 => Err(InitrdError::Empty),
            len => Ok(Self::File { file: input.file(), len }),
        }
    }

    /// Reads it into guest memory as high in `room`, which ends for that reason, as it fits, and says where.
    pub fn place(&self, memory: &GuestRam, room: GpaRange, end: RoomEnd) -> Result<GpaRange, InitrdError> {
        let len = match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { len, .. } => *len,
        };
        if len == 0 {
            return Err(InitrdError::Empty);
        }
        let range = highest(room, len).ok_or(InitrdError::TooLarge { len, room, end })?;
        let start = GuestAddress(range.start().get());
        let read = match self {
            Self::Bytes(bytes) => memory.write_slice(bytes, start),
            Self::File { file, .. } => {
                let mut file = *file;
                file.rewind()
                    .map_err(GuestMemoryError::IOError)
                    .and_then(|()| memory.read_exact_volatile_from(start, &mut file, len as usize))
            }
        };
        read.map_err(|source| InitrdError::Read { len, at: range.start(), source })?;
        Ok(range)
    }
}

/// The highest page-aligned place for `len` bytes in `room`.
fn highest(room: GpaRange, len: u64) -> Option<GpaRange> {
    let start = Gpa::from_raw(room.end().raw().checked_sub(len)?).align_down(PAGE);
    GpaRange::with_len(start, len).filter(|range| room.covers(*range))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;
    use program::input::FileKind;

    proptest! {
        #[test]
        fn the_highest_place_is_the_highest(start in 0u64..40_000, len in 0u64..60_000, size in 1u64..50_000) {
            let room = GpaRange::with_len(Gpa::new(start), len).unwrap();
            let naive = (0..40).rev().map(|page| page * PAGE).find(|at| *at >= start && at + size <= start + len);
            prop_assert_eq!(highest(room, size).map(|range| range.start().get()), naive);
        }
    }

    fn memory() -> GuestRam {
        GuestRam::mapped(&[(0, 1 << 20)])
    }

    fn room(start: u64, end: u64) -> GpaRange {
        GpaRange::new(Gpa::new(start), Gpa::new(end)).unwrap()
    }

    #[test]
    fn a_file_goes_into_memory_from_its_start() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..10_001_u32).map(|at| at as u8).collect();
        file.as_file().write_all(&bytes).unwrap();
        let input = Input::open(FileKind::Initrd, file.path()).unwrap();
        let initrd = Initrd::of_input(&input).unwrap();
        let memory = memory();
        let range = initrd.place(&memory, room(0x8000, 0x8_0000), RoomEnd::Memory).unwrap();
        assert_eq!((range.start().get(), range.len()), (0x7_d000, 10_001));
        let mut read = vec![0; bytes.len()];
        memory.read_slice(&mut read, GuestAddress(range.start().get())).unwrap();
        assert_eq!(read, bytes);
    }

    #[test]
    fn what_is_no_initrd_is_refused_by_name() {
        let memory = memory();
        let place = |initrd: Initrd<'_>, end| {
            initrd.place(&memory, room(0x8000, 0x9000), end).unwrap_err().to_string()
        };
        assert!(place(Initrd::Bytes(&[]), RoomEnd::Memory).contains("empty"));
        let large = Initrd::Bytes(&[0; 0x1001]);
        assert!(place(large, RoomEnd::Memory).contains("give the guest more memory"));
        assert!(
            place(large, RoomEnd::Kernel)
                .contains("initrd_addr_max, there are 4096: more memory would not help")
        );
        assert!(place(large, RoomEnd::Gap).contains("the gap for devices"));
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(
            Initrd::of_input(&Input::open(FileKind::Initrd, file.path()).unwrap()),
            Err(InitrdError::Empty)
        ));
        file.as_file().set_len(100).unwrap();
        // The file is shorter than it was: another process truncated it.
        let shorter = Initrd::File { file: file.as_file(), len: 200 };
        assert!(place(shorter, RoomEnd::Memory).contains("cannot be read"));
    }
}
