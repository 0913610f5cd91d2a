//! Numbers as text: three significant digits and a unit.

/// The characters that a report may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Charset {
    /// All of Unicode.
    #[default]
    Utf8,
    /// ASCII alone.
    Ascii,
}

impl Charset {
    /// By the first of `LC_ALL`, `LC_CTYPE` and `LANG` that is set and not empty. `read` reads a variable.
    pub fn of_locale(read: impl Fn(&str) -> Option<String>) -> Self {
        let locale =
            ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().filter_map(read).find(|value| !value.is_empty());
        let locale = locale.unwrap_or_default().to_lowercase();
        if locale.contains("utf-8") || locale.contains("utf8") { Self::Utf8 } else { Self::Ascii }
    }

    /// The sign for an unknown value.
    pub const fn missing(self) -> &'static str {
        match self {
            Self::Utf8 => "–",
            Self::Ascii => "-",
        }
    }

    const fn microseconds(self) -> &'static str {
        match self {
            Self::Utf8 => "µs",
            Self::Ascii => "us",
        }
    }
}

/// `16,384`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 page`, `16,384 pages`: a count and its noun, with a plural s.
pub fn counted(number: u64, noun: &str) -> String {
    let ending = if number == 1 { "" } else { "s" };
    format!("{} {noun}{ending}", count(number))
}

/// `4 KiB`, `1.05 MiB`: exact for a whole number of units, else three digits.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut exponent = if bytes == 0 { 0 } else { bytes.ilog2() as usize / 10 };
    let whole = 1u64 << (10 * exponent);
    if bytes.is_multiple_of(whole) {
        return format!("{} {}", bytes / whole, UNITS[exponent]);
    }
    let mut value = bytes as f64 / whole as f64;
    // 1023.9 KiB is 1 MiB to three digits.
    if value >= 1023.5 {
        (value, exponent) = (1.0, exponent + 1);
    }
    format!("{} {}", three_digits(value), UNITS[exponent])
}

/// `870 ns`, `24.8 µs`, `3 ms`.
pub fn nanoseconds(nanoseconds: f64, charset: Charset) -> String {
    let units = [("ns", 1.0), (charset.microseconds(), 1e3), ("ms", 1e6), ("s", 1e9)];
    // 999.9 µs is 1 ms to three digits.
    let (unit, size) =
        units.into_iter().rev().find(|(_, size)| nanoseconds / size >= 0.9995).unwrap_or(units[0]);
    format!("{} {unit}", trimmed(&three_digits(nanoseconds / size)))
}

/// A quotient: `1.0`, `1.53`, `257`, `16,384`; very large ones as a power of ten.
pub fn times(quotient: f64) -> String {
    const COUNTABLE: f64 = 1e15;
    if quotient.abs() >= COUNTABLE {
        return format!("{quotient:.2e}");
    }
    let text = three_digits(quotient);
    match text.split_once('.') {
        // One decimal stays, which distinguishes a quotient from a count.
        Some((_, decimals)) if decimals.len() == 2 => {
            text.strip_suffix('0').map(str::to_owned).unwrap_or(text)
        }
        Some(_) => text,
        None => count(quotient.round() as u64),
    }
}

/// A part of a whole: `43 %`, `0.4 %`.
pub fn percent(part: f64) -> String {
    if part.abs() >= 1e13 {
        return format!("{part:.2e} times");
    }
    let percent = 100.0 * part;
    let digits =
        if percent > 0.0 && percent < 9.95 { format!("{percent:.1}") } else { format!("{percent:.0}") };
    format!("{} %", trimmed(&digits))
}

/// A backing, with the part of the memory that has it if not all has: `thp`, `thp (62 %)`. The part is `None` if it is not
/// known.
pub fn label(backing: &str, earned: Option<f64>) -> String {
    match earned {
        Some(part) if part < 0.995 => format!("{backing} ({})", percent(part)),
        Some(_) => backing.to_owned(),
        None => format!("{backing} (how much of it, is not known)"),
    }
}

/// Three significant digits, more if the whole part has more: `1.05`, `24.8`, `870`, `16384`.
fn three_digits(value: f64) -> String {
    let decimals = if value < 9.995 {
        2
    } else if value < 99.95 {
        1
    } else {
        0
    };
    format!("{value:.decimals$}")
}

fn trimmed(digits: &str) -> &str {
    if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { digits }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bytes_are_exact_or_three_digits() {
        for (number, text) in [
            (0, "0 B"),
            (1, "1 B"),
            (1023, "1023 B"),
            (4096, "4 KiB"),
            (1 << 20, "1 MiB"),
            (1_097_728, "1.05 MiB"),
            (513 << 20, "513 MiB"),
            ((1 << 20) - 100, "1.00 MiB"),
            ((25 << 30) / 2, "12.5 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(number), text);
        }
    }

    #[test]
    fn a_noun_agrees_with_its_count() {
        let counted = [0, 1, 2, 1024].map(|number| counted(number, "row"));
        assert_eq!(counted, ["0 rows", "1 row", "2 rows", "1,024 rows"]);
    }

    #[test]
    fn a_label_has_the_part_of_the_memory() {
        let labels = [Some(1.0), Some(0.62), Some(0.0), None].map(|part| label("thp", part));
        assert_eq!(labels[..3], ["thp", "thp (62 %)", "thp (0 %)"]);
        assert!(labels[3].contains("not known"), "{labels:?}");
    }

    #[test]
    fn times_have_three_digits_and_a_unit() {
        for (number, text) in [
            (0.0, "0 ns"),
            (0.4, "0.4 ns"),
            (870.0, "870 ns"),
            (999.9, "1 µs"),
            (24_823.0, "24.8 µs"),
            (3_000_000.0, "3 ms"),
            (2.05e9, "2.05 s"),
            (3.6e12, "3600 s"),
        ] {
            assert_eq!(nanoseconds(number, Charset::Utf8), text);
        }
        assert_eq!(nanoseconds(24_823.0, Charset::Ascii), "24.8 us");
    }

    #[test]
    fn quotients_and_parts() {
        for (quotient, text) in [
            (1.0, "1.0"),
            (1.526, "1.53"),
            (12.04, "12.0"),
            (256.98, "257"),
            (16_384.0, "16,384"),
            (0.0, "0.0"),
            (1.5e300, "1.50e300"),
        ] {
            assert_eq!(times(quotient), text);
        }
        for (part, text) in
            [(0.43, "43 %"), (0.004, "0.4 %"), (1.0, "100 %"), (0.0, "0 %"), (0.09, "9 %"), (1.021, "102 %")]
        {
            assert_eq!(percent(part), text);
        }
    }

    #[test]
    fn the_locale_decides_the_characters() {
        let of = |set: &[(&str, &str)]| {
            Charset::of_locale(|name| {
                set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
            })
        };
        assert_eq!(of(&[("LANG", "en_GB.UTF-8")]), Charset::Utf8);
        assert_eq!(of(&[("LC_ALL", ""), ("LANG", "C.utf8")]), Charset::Utf8);
        assert_eq!(of(&[("LC_ALL", "C"), ("LANG", "en_GB.UTF-8")]), Charset::Ascii);
        assert_eq!(of(&[]), Charset::Ascii);
    }

    proptest! {
        #[test]
        fn separators_stand_before_every_third_digit(number: u64) {
            let text = count(number);
            prop_assert_eq!(text.replace(',', ""), number.to_string());
            let groups: Vec<&str> = text.split(',').collect();
            prop_assert!(groups[1..].iter().all(|group| group.len() == 3));
            prop_assert!((1..=3).contains(&groups[0].len()));
        }

        #[test]
        fn a_printed_size_is_right_to_half_a_percent(number: u64) {
            let text = bytes(number);
            let (value, unit) = text.split_once(' ').unwrap();
            let unit = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"].iter().position(|u| *u == unit).unwrap();
            let printed = value.parse::<f64>().unwrap() * (1u64 << (10 * unit)) as f64;
            prop_assert!((printed - number as f64).abs() <= 0.005 * number as f64);
        }
    }
}
