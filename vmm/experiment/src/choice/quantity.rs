//! Sizes and durations as a scenario writes them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A number of bytes, written with a binary unit: `4k`, `64KiB`, `1.5 GiB` and `65536` are sizes, and 1 MB is 1 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// The error in the text of a quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum BadNumber {
    #[error("no number")]
    Digits,
    #[error("unknown unit")]
    Unit,
    #[error("not a whole number of {0}")]
    Broken(&'static str),
    #[error("too large")]
    Large,
}

/// A text that is no quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is no {what} ({why}): write {example}")]
pub struct BadQuantity {
    given: String,
    what: &'static str,
    why: BadNumber,
    example: &'static str,
}

impl FromStr for Size {
    type Err = BadQuantity;

    fn from_str(text: &str) -> Result<Self, BadQuantity> {
        let example = "for example \"64MiB\", \"4k\" or \"1g\"";
        let bad = |why| BadQuantity { given: text.to_owned(), what: "size", why, example };
        quantity(text, "bytes", byte_unit).map(Self).map_err(bad)
    }
}

/// Reads `DIGITS[.DIGITS][ ][UNIT]`, whose value is a whole number of the smallest unit.
fn quantity(
    text: &str,
    smallest: &'static str,
    unit: impl FnOnce(&str) -> Option<u64>,
) -> Result<u64, BadNumber> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, rest) = text.split_at(end);
    let unit = unit(rest.strip_prefix(' ').unwrap_or(rest)).ok_or(BadNumber::Unit)?;
    let (whole, part) = match number.split_once('.') {
        Some((_, "")) => return Err(BadNumber::Digits),
        Some((whole, part)) => (whole, part),
        None => (number, ""),
    };
    if whole.is_empty() || part.contains('.') {
        return Err(BadNumber::Digits);
    }
    let whole: u64 = whole.parse().map_err(|_| BadNumber::Large)?;
    let whole = whole.checked_mul(unit).ok_or(BadNumber::Large)?;
    whole.checked_add(part_of(part, unit, smallest)?).ok_or(BadNumber::Large)
}

/// The value of the digits after a point, where one before it has the value `unit`.
fn part_of(digits: &str, unit: u64, smallest: &'static str) -> Result<u64, BadNumber> {
    let digits = digits.trim_end_matches('0');
    if digits.is_empty() {
        return Ok(0);
    }
    // No whole number needs more digits than these, and more would not fit below.
    let number: Option<u128> = digits.parse().ok().filter(|_| digits.len() <= 18);
    let number = number.ok_or(BadNumber::Broken(smallest))? * u128::from(unit);
    let scale = 10_u128.pow(digits.len() as u32);
    match number.is_multiple_of(scale) {
        // Less than a unit.
        true => Ok((number / scale) as u64),
        false => Err(BadNumber::Broken(smallest)),
    }
}

fn byte_unit(unit: &str) -> Option<u64> {
    let unit = unit.to_ascii_lowercase();
    let letter = unit.strip_suffix("ib").or(unit.strip_suffix('b')).unwrap_or(&unit);
    let shift = match letter {
        "" if unit != "ib" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        "e" => 60,
        _ => return None,
    };
    Some(1 << shift)
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
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum BadRange {
    #[error("`{0}` is no range: write START..END, for example \"0..16MiB\"")]
    Shape(String),
    #[error("in the range `{given}`: {why}")]
    Size { given: String, why: BadQuantity },
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

/// A duration, written as a number and a unit: `50us`, `100ms`, `1.5s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimeSpan(pub Duration);

impl FromStr for TimeSpan {
    type Err = BadQuantity;

    fn from_str(text: &str) -> Result<Self, BadQuantity> {
        let unit = |unit: &str| match unit {
            "ns" => Some(1),
            "us" | "µs" => Some(1_000),
            "ms" => Some(1_000_000),
            "s" => Some(1_000_000_000),
            _ => None,
        };
        let example = "a number and ns, us, ms or s, for example \"100ms\"";
        let bad = |why| BadQuantity { given: text.to_owned(), what: "duration", why, example };
        quantity(text, "nanoseconds", unit).map(|ns| Self(Duration::from_nanos(ns))).map_err(bad)
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
            ("5B", 5),
            ("1.5GiB", 3 << 29),
            ("0.5 k", 512),
            ("2.50MB", 5 << 19),
            ("2.0", 2),
            ("8EiB", 1 << 63),
            ("0", 0),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_its_reason_and_an_example() {
        for (text, why) in [
            ("", "no number"),
            ("k", "no number"),
            ("four", "unknown unit"),
            ("-4k", "unknown unit"),
            ("+4k", "unknown unit"),
            ("16EiB", "too large"),
            ("18446744073709551616", "too large"),
            ("4q", "unknown unit"),
            ("4ib", "unknown unit"),
            ("6 4MiB", "unknown unit"),
            ("64__MiB", "unknown unit"),
            ("6_4MiB", "unknown unit"),
            ("64  MiB", "unknown unit"),
            (" 64MiB", "unknown unit"),
            ("64MiB ", "unknown unit"),
            ("5.GiB", "no number"),
            (".5GiB", "no number"),
            ("1.5.0GiB", "no number"),
            ("1e3", "unknown unit"),
            ("0x10", "unknown unit"),
            ("0.0000001k", "not a whole number of bytes"),
            ("1.3", "not a whole number of bytes"),
            ("0.1k", "not a whole number of bytes"),
            ("0.00000000000000000001EiB", "not a whole number of bytes"),
            ("\u{0664}k", "unknown unit"),
        ] {
            let said = text.parse::<Size>().unwrap_err().to_string();
            assert!(said.contains(&format!("`{text}`")) && said.contains("64MiB"), "{said}");
            assert!(said.contains(why), "{said}, not {why}");
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
        assert_eq!("1.5ms".parse(), Ok(TimeSpan(Duration::from_micros(1500))));
        for text in [
            "",
            "5",
            "ms",
            "-1s",
            "1.s",
            ".5s",
            "1.5ns",
            "2  s",
            "1_0s",
            "1 0s",
            "1h",
            "1S",
            "99999999999999999999s",
            "18446744073709551615s",
        ] {
            let said = text.parse::<TimeSpan>().unwrap_err().to_string();
            assert!(said.contains(&format!("`{text}`")) && said.contains("100ms"), "{said}");
        }
    }

    /// The same in decimal fractions of units, by multiplication of the digits alone.
    fn naive(text: &str) -> Option<u128> {
        let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic())?);
        let unit = 1_u128 << (10 * ("bkmgtpe".find(unit.chars().next()?.to_ascii_lowercase())?));
        let (whole, part) = number.trim_end().split_once('.').unwrap_or((number.trim_end(), ""));
        let digits: u128 = format!("{whole}{part}").parse().ok()?;
        let total = digits * unit;
        let scale = 10_u128.pow(part.len() as u32);
        total.is_multiple_of(scale).then_some(total / scale)
    }

    proptest! {
        #[test]
        fn a_printed_size_reads_back_as_itself(bytes: u64, zeros in 0u32..64) {
            let size = Size(bytes << zeros);
            let text = size.to_string().replace(" bytes", "");
            prop_assert_eq!(text.parse(), Ok(size));
        }

        #[test]
        fn a_written_size_is_what_its_digits_say_or_none(text in "[0-9]{1,6}(\\.[0-9]{1,12})?( )?[bkmgtpe](iB|B)?") {
            // "bB" and "biB" are no units.
            prop_assume!(!text.contains("bB") && !text.contains("biB"));
            let read = text.parse::<Size>().ok().map(|Size(bytes)| u128::from(bytes));
            prop_assert_eq!(read, naive(&text).filter(|bytes| u64::try_from(*bytes).is_ok()));
        }

        #[test]
        fn whatever_is_read_is_of_the_grammar(text in "[0-9. _+kKMGiBe-]{0,8}") {
            if text.parse::<Size>().is_ok() {
                let space = text.matches(' ').count();
                prop_assert!(text.starts_with(|c: char| c.is_ascii_digit()) && space <= 1, "{text:?}");
                prop_assert!(!text.contains(['_', '+', '-']) && !text.contains(". ") && !text.ends_with('.'));
            }
        }

        #[test]
        fn a_duration_is_exact(nanoseconds in 0..u64::MAX / 1_000_000_000) {
            let seconds = format!("{}.{:09}s", nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000);
            prop_assert_eq!(seconds.parse(), Ok(TimeSpan(Duration::from_nanos(nanoseconds))));
        }
    }
}
