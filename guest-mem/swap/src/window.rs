//! Fault-around: how many pages a fault brings back besides its own.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use guest_mem::{PAGE_SIZE, PAGES_PER_PMD};

/// How many pages one fault brings back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultAround {
    /// Always the aligned group of so many pages around it: a power of two, 1 to 512.
    Fixed(u32),
    /// One page, until faults come in sequence: then twice as many each time, from the fault on, up to the end of the
    /// 2 MiB block.
    Adaptive,
}

/// A text that names no fault-around.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown fault-around `{0}`: use adaptive, or a size from 4KiB to 2MiB that is a power of two")]
pub struct UnknownFaultAround(pub String);

impl FaultAround {
    /// A fixed window of so many bytes: a power of two, 4 KiB to 2 MiB.
    pub fn fixed_bytes(bytes: u64) -> Option<Self> {
        let pages = bytes / PAGE_SIZE;
        let fits = bytes.is_power_of_two() && (1..=PAGES_PER_PMD).contains(&pages);
        fits.then_some(Self::Fixed(pages as u32))
    }
}

impl fmt::Display for FaultAround {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Adaptive => f.write_str("adaptive"),
            Self::Fixed(512) => f.write_str("2MiB"),
            Self::Fixed(256) => f.write_str("1MiB"),
            Self::Fixed(pages) => write!(f, "{}KiB", pages * 4),
        }
    }
}

impl FromStr for FaultAround {
    type Err = UnknownFaultAround;

    fn from_str(text: &str) -> Result<Self, UnknownFaultAround> {
        if text == "adaptive" {
            return Ok(Self::Adaptive);
        }
        let bytes = match (text.strip_suffix("KiB"), text.strip_suffix("MiB")) {
            // `parse` takes a sign.
            _ if text.starts_with('+') => None,
            (Some(kib), _) => kib.parse::<u64>().ok().and_then(|kib| kib.checked_mul(1 << 10)),
            (_, Some(mib)) => mib.parse::<u64>().ok().and_then(|mib| mib.checked_mul(1 << 20)),
            _ => None,
        };
        bytes.and_then(Self::fixed_bytes).ok_or_else(|| UnknownFaultAround(text.to_owned()))
    }
}

/// Sequences of faults that go on at the same time: a vCPU that copies reads one and writes another.
const STREAMS: usize = 16;

/// Recent sequences of faults. All handlers share them, because the next fault of a sequence may go to any handler.
#[derive(Debug)]
pub(crate) struct Window {
    around: FaultAround,
    /// Most recent first.
    streams: Mutex<[Stream; STREAMS]>,
}

/// A sequence: the page after its last window, and how large that was. An empty one has no pages.
#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    next: u64,
    pages: u64,
}

impl Window {
    /// A window without history.
    pub fn new(around: FaultAround) -> Self {
        Self { around, streams: Mutex::new([Stream::default(); STREAMS]) }
    }

    /// The pages to bring back for a fault at `page`: `page` is among them, and all are in its block of 512.
    pub fn around(&self, page: u64) -> Range<u64> {
        match self.around {
            FaultAround::Fixed(pages) => {
                let start = page & !(u64::from(pages) - 1);
                start..start + u64::from(pages)
            }
            FaultAround::Adaptive => self.ahead(page),
        }
    }

    fn ahead(&self, page: u64) -> Range<u64> {
        // A panic in here leaves whole streams, some of them twice.
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let known = streams.iter().position(|stream| stream.pages > 0 && stream.next == page);
        let pages = known.map_or(1, |known| (2 * streams[known].pages).min(PAGES_PER_PMD));
        let block_end = (page / PAGES_PER_PMD + 1) * PAGES_PER_PMD;
        let end = (page + pages).min(block_end);
        // The place of the sequence it continues, or of the least recent one.
        streams[..=known.unwrap_or(STREAMS - 1)].rotate_right(1);
        streams[0] = Stream { next: end, pages };
        page..end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    #[test]
    fn names_read_back() {
        for text in ["adaptive", "4KiB", "64KiB", "1MiB", "2MiB"] {
            assert_eq!(text.parse::<FaultAround>().unwrap().to_string(), text);
        }
        for text in ["", "+4KiB", "0KiB", "3KiB", "12KiB", "4MiB", "4kib", "-4KiB", "18446744073709551615MiB"]
        {
            assert!(text.parse::<FaultAround>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_sequential_walk_takes_few_faults() {
        let window = Window::new(FaultAround::Adaptive);
        let (mut page, mut faults) = (0, 0);
        while page < 64 * 512 {
            page = window.around(page).end;
            faults += 1;
        }
        // Ten until the first block is done, then one a block.
        assert!(faults <= 64 + 10, "{faults}");
    }

    #[test]
    fn interleaved_sequences_do_not_disturb_each_other() {
        let window = Window::new(FaultAround::Adaptive);
        let mut at = [0, 10_240, 102_400];
        for _ in 0..6 {
            for page in &mut at {
                *page = window.around(*page).end;
            }
        }
        assert_eq!(at, [63, 10_240 + 63, 102_400 + 63]);
    }

    #[test]
    fn two_handlers_follow_one_sequence() {
        let window = Window::new(FaultAround::Adaptive);
        let page = std::sync::Mutex::new(0);
        let walk = || {
            let mut faults = 0;
            loop {
                let mut page = page.lock().unwrap();
                if *page >= 16 * 512 {
                    return faults;
                }
                *page = window.around(*page).end;
                faults += 1;
            }
        };
        let faults = std::thread::scope(|scope| {
            [scope.spawn(walk), scope.spawn(walk)].map(|walker| walker.join().unwrap()).iter().sum::<u32>()
        });
        assert!(faults <= 16 + 10, "{faults}");
    }

    proptest! {
        #[test]
        fn a_window_holds_its_page_and_stays_in_the_block(
            pages in proptest::collection::vec(0u64..4096, 1..200),
            around in prop_oneof![
                Just(FaultAround::Adaptive),
                (0u32..10).prop_map(|shift| FaultAround::Fixed(1 << shift)),
            ],
        ) {
            let window = Window::new(around);
            for page in pages {
                let found = window.around(page);
                prop_assert!(found.contains(&page));
                prop_assert_eq!(found.start / 512, (found.end - 1) / 512);
            }
        }

        #[test]
        fn random_faults_bring_one_page(pages in proptest::collection::vec(0u64..1 << 20, 1..50)) {
            let window = Window::new(FaultAround::Adaptive);
            let mut seen = Vec::new();
            for page in pages {
                let continues = seen.contains(&page);
                let found = window.around(page);
                if !continues {
                    prop_assert_eq!(found.end - found.start, 1);
                }
                seen.push(found.end);
            }
        }
    }
}
