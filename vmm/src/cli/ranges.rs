//! Ranges on the command line: of a guest's memory, and of a process's addresses.

use guest_mem::{Hva, HvaRange, PAGE_SIZE};

use experiment::choice::{BadRange, ByteRange};

/// The text is not a range of whole pages.
#[derive(Debug, thiserror::Error)]
pub enum BadPages {
    #[error(transparent)]
    Range(#[from] BadRange),
    #[error("`{given}` is not made of whole pages of 4 KiB: {start}..{end} is, around it")]
    Part { given: String, start: u64, end: u64 },
}

/// `0..64MiB`, in whole pages.
pub fn pages(text: &str) -> Result<ByteRange, BadPages> {
    let range: ByteRange = text.parse()?;
    let end = range.end.checked_next_multiple_of(PAGE_SIZE).unwrap_or(range.end);
    let whole = ByteRange { start: range.start / PAGE_SIZE * PAGE_SIZE, end };
    if whole == range && end.is_multiple_of(PAGE_SIZE) {
        return Ok(range);
    }
    Err(BadPages::Part { given: text.to_owned(), start: whole.start, end: whole.end })
}

/// The text is not a range of addresses.
#[derive(Clone, Debug, thiserror::Error)]
#[error("`{0}` is no range of addresses: write START-END in hexadecimal, as in /proc/PID/maps, whole pages")]
pub struct BadAddresses(String);

/// `7f0000000000-7f0010000000`.
pub fn addresses(text: &str) -> Result<HvaRange, BadAddresses> {
    let bad = || BadAddresses(text.to_owned());
    let address = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).map_err(|_| bad());
    let (start, end) = text.split_once('-').ok_or_else(bad)?;
    let (start, end) = (address(start)?, address(end)?);
    let whole = start.is_multiple_of(PAGE_SIZE) && end.is_multiple_of(PAGE_SIZE) && start < end;
    HvaRange::new(Hva::new(start), Hva::new(end)).filter(|_| whole).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_whole_pages_in_hexadecimal() {
        let range = addresses("7f0000000000-0x7f0000200000").unwrap();
        assert_eq!((range.start().get(), range.len()), (0x7f00_0000_0000, 2 << 20));
        for bad in ["", "1000", "2000-1000", "1000-1000", "1-1000", "g-h", "-1000"] {
            assert!(addresses(bad).unwrap_err().to_string().contains("START-END"), "{bad}");
        }
    }

    #[test]
    fn a_range_to_page_out_has_whole_pages() {
        assert_eq!(pages("4KiB..8MiB").unwrap(), ByteRange { start: 4096, end: 8 << 20 });
        assert!(pages("1..8192").unwrap_err().to_string().contains("0..8192 is"));
        assert!(pages("0..4097").unwrap_err().to_string().contains("0..8192 is"));
        assert!(pages("0..18446744073709551615").is_err());
        assert!(matches!(pages("8k..4k"), Err(BadPages::Range(_))));
    }
}
