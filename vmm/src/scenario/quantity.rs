//! Sizes and durations as a scenario writes them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use parse_size::Config;

/// A number of bytes, written with a binary unit: `4k`, `64KiB` and `65536` are sizes, and 1 MB is 1 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// A text that is no size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is no size ({why}): write for example \"64MiB\", \"4k\" or \"1g\"")]
pub struct BadSize {
    given: String,
    why: String,
}

impl FromStr for Size {
    type Err = BadSize;

    fn from_str(text: &str) -> Result<Self, BadSize> {
        let parsed = Config::new().with_binary().parse_size(text);
        parsed.map(Self).map_err(|why| BadSize { given: text.to_owned(), why: why.to_string() })
    }
}

impl fmt::Display for Size {
    /// Exact: in the largest unit that divides it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let exponent = if self.0 == 0 { 0 } else { self.0.trailing_zeros() / 10 };
        write!(f, "{} {}", self.0 >> (10 * exponent), units[exponent as usize])
    }
}

/// `START..END`, both of them sizes: bytes of the arena from its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    /// The first byte.
    pub start: u64,
    /// The first byte after the range, above `start`.
    pub end: u64,
}

/// A text that is no range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRange {
    /// No `..` in it.
    #[error("`{0}` is no range: write START..END, for example \"0..16MiB\"")]
    Shape(String),
    /// One end is no size.
    #[error("in the range `{given}`: {why}")]
    Size {
        /// The whole range.
        given: String,
        /// What is wrong with the end.
        why: BadSize,
    },
    /// Empty, or running backwards.
    #[error("the range `{0}` is empty: its end must lie above its start")]
    Empty(String),
}

impl FromStr for ByteRange {
    type Err = BadRange;

    fn from_str(text: &str) -> Result<Self, BadRange> {
        let (start, end) = text.split_once("..").ok_or_else(|| BadRange::Shape(text.to_owned()))?;
        let size = |end: &str| {
            end.trim().parse::<Size>().map_err(|why| BadRange::Size { given: text.to_owned(), why })
        };
        let (Size(start), Size(end)) = (size(start)?, size(end)?);
        if start >= end {
            return Err(BadRange::Empty(text.to_owned()));
        }
        Ok(Self { start, end })
    }
}

/// A duration, written as a whole number and a unit: `50us`, `100ms`, `2s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimeSpan(pub Duration);

/// A text that is no duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no duration: write a whole number and ns, us, ms or s, for example \"100ms\"")]
pub struct BadTimeSpan(pub String);

impl FromStr for TimeSpan {
    type Err = BadTimeSpan;

    fn from_str(text: &str) -> Result<Self, BadTimeSpan> {
        let bad = || BadTimeSpan(text.to_owned());
        let unit_at = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let (number, unit) = text.split_at(unit_at);
        let number: u64 = number.parse().map_err(|_| bad())?;
        let nanoseconds: u64 = match unit.trim_start() {
            "ns" => 1,
            "us" | "µs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            _ => return Err(bad()),
        };
        number.checked_mul(nanoseconds).map(|total| Self(Duration::from_nanos(total))).ok_or_else(bad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_binary_however_they_are_written() {
        for (text, bytes) in [
            ("4k", 4096),
            ("4K", 4096),
            ("64KiB", 65_536),
            ("64kb", 65_536),
            ("2 MiB", 2 << 20),
            ("1g", 1 << 30),
            ("3", 3),
            ("8EiB", 1 << 63),
            ("0", 0),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_an_example() {
        for text in ["", "k", "four", "-4k", "16EiB", "4q"] {
            let why = text.parse::<Size>().unwrap_err().to_string();
            assert!(why.contains(&format!("`{text}`")) && why.contains("64MiB"), "{why}");
        }
    }

    #[test]
    fn ranges_are_half_open_and_not_empty() {
        assert_eq!("0..16MiB".parse(), Ok(ByteRange { start: 0, end: 16 << 20 }));
        assert_eq!("4k .. 8k".parse(), Ok(ByteRange { start: 4096, end: 8192 }));
        assert!(matches!("16MiB".parse::<ByteRange>(), Err(BadRange::Shape(_))));
        assert!(matches!("0..x".parse::<ByteRange>(), Err(BadRange::Size { .. })));
        assert!(matches!("8k..8k".parse::<ByteRange>(), Err(BadRange::Empty(_))));
        assert!(matches!("8k..4k".parse::<ByteRange>(), Err(BadRange::Empty(_))));
    }

    #[test]
    fn durations_need_a_unit_and_must_fit() {
        assert_eq!("50us".parse(), Ok(TimeSpan(Duration::from_micros(50))));
        assert_eq!("0us".parse(), Ok(TimeSpan(Duration::ZERO)));
        assert_eq!("2 s".parse(), Ok(TimeSpan(Duration::from_secs(2))));
        for text in ["", "5", "ms", "-1s", "1.5s", "1h", "99999999999999999999s", "18446744073709551615s"] {
            assert_eq!(text.parse::<TimeSpan>(), Err(BadTimeSpan(text.to_owned())));
        }
    }

    proptest! {
        #[test]
        fn a_printed_size_reads_back_as_itself(bytes: u64, zeros in 0u32..64) {
            let size = Size(bytes << zeros);
            let text = size.to_string().replace(" bytes", "");
            prop_assert_eq!(text.parse(), Ok(size));
        }
    }
}
