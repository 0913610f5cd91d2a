//! Control characters in text, made visible.
//!
//! Names of processes, a guest's panic, strings of a record or a file may contain escape sequences for the terminal. Characters
//! that Rust's `Debug` escapes (control characters, invisible and bidirectional formatting, combining marks, unassigned code
//! points) are written as escapes.

use std::borrow::Cow;
use std::fmt::Write;

use serde::{Deserialize, Deserializer};

/// Whether a terminal only displays it. A combining mark changes the character before it.
fn is_shown(character: char) -> bool {
    match character {
        ' '..='~' => true,
        _ if character.is_ascii() => false,
        _ => character.escape_debug().len() == 1,
    }
}

fn replace(text: &str, kept: impl Fn(char) -> bool, escape: impl Fn(&mut String, char)) -> Cow<'_, str> {
    let Some(first) = text.find(|character| !kept(character)) else { return Cow::Borrowed(text) };
    let mut shown = text[..first].to_owned();
    for character in text[first..].chars() {
        match kept(character) {
            true => shown.push(character),
            false => escape(&mut shown, character),
        }
    }
    Cow::Owned(shown)
}

fn escape(shown: &mut String, character: char) {
    shown.extend(character.escape_unicode());
}

/// One line: line ends and control characters are escaped.
pub fn line(text: &str) -> Cow<'_, str> {
    replace(text, is_shown, escape)
}

/// Several lines: newlines and tabs stay.
pub fn lines(text: &str) -> Cow<'_, str> {
    replace(text, |character| matches!(character, '\n' | '\t') || is_shown(character), escape)
}

/// An item of a text: its further lines are indented, so that they cannot pass for other items.
pub fn item(text: &str) -> Cow<'_, str> {
    match text.contains('\n') {
        true => Cow::Owned(text.replace('\n', "\n  ")),
        false => Cow::Borrowed(text),
    }
}

/// Text of another program, in lines that are marked as quoted.
pub fn quoted(text: &str) -> String {
    text.lines().flat_map(|quoted| ["\n  | ".into(), line(quoted)]).collect()
}

/// Deserialises a name of another program as one line.
pub fn read_line<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    String::deserialize(from).map(|text| line(&text).into_owned())
}

/// Equivalent JSON without control characters: they occur in strings only, where JSON can escape them.
pub fn json(text: &str) -> Cow<'_, str> {
    let kept = |character| matches!(character, '\n' | '\t' | '\r') || is_shown(character);
    replace(text, kept, |shown, character| {
        for unit in character.encode_utf16(&mut [0; 2]) {
            // Writing to a string does not fail.
            let _ = write!(shown, "\\u{unit:04x}");
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Characters that must not reach a terminal, by their effect and not by a table.
    fn is_harmful(character: char) -> bool {
        let bidirectional = matches!(character, '\u{61c}' | '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        let ends_a_line = matches!(character, '\u{2028}' | '\u{2029}');
        let invisible = matches!(character, '\u{ad}' | '\u{200b}'..='\u{200d}' | '\u{2060}' | '\u{feff}' | '\u{e0001}'..='\u{e007f}');
        character.is_control() || bidirectional || ends_a_line || invisible
    }

    fn foreign() -> impl Strategy<Value = String> {
        let character = prop_oneof![
            2 => any::<char>(),
            2 => (0u32..0xa0).prop_filter_map("a character", char::from_u32),
            1 => (0x2000u32..0x2070).prop_filter_map("a character", char::from_u32),
            1 => prop::sample::select("\u{1b}\u{9b}\u{7}\r\n\t\u{202e}\u{feff}\u{e0041}é\u{301}µ─".chars().collect::<Vec<_>>()),
        ];
        prop::collection::vec(character, 0..40).prop_map(|characters| characters.into_iter().collect())
    }

    proptest! {
        #[test]
        fn a_line_is_one_line_and_harmless(text in foreign()) {
            prop_assert!(!line(&text).chars().any(is_harmful));
        }

        #[test]
        fn lines_have_newlines_and_tabs_and_nothing_else_that_acts(text in foreign()) {
            let shown = lines(&text);
            prop_assert!(!shown.replace(['\n', '\t'], "").chars().any(is_harmful));
            prop_assert_eq!(shown.matches('\n').count(), text.matches('\n').count());
        }

        #[test]
        fn json_is_equivalent(text in foreign(), key in foreign()) {
            let value = serde_json::json!({ key: [text] });
            for written in [serde_json::to_string(&value).unwrap(), serde_json::to_string_pretty(&value).unwrap()] {
                let shown = json(&written);
                prop_assert!(!shown.replace('\n', "").chars().any(is_harmful));
                prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value.clone());
            }
        }

        #[test]
        fn escaped_text_is_not_escaped_again(text in foreign()) {
            let shown = lines(&text).into_owned();
            prop_assert!(matches!(lines(&shown), Cow::Borrowed(same) if same == shown));
        }
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(line("\u{1b}[2J\u{9b}m\u{7}"), "\\u{1b}[2J\\u{9b}m\\u{7}");
        assert_eq!(line("a\nok 1 b\r"), "a\\u{a}ok 1 b\\u{d}");
        assert_eq!(lines("a\n\tb\u{202e}"), "a\n\tb\\u{202e}");
        assert_eq!(json("\"\u{9b}\u{e0041}\""), "\"\\u009b\\udb40\\udc41\"");
    }

    #[test]
    fn lines_of_an_item_or_a_quotation_are_indented() {
        let foreign = "a\nzapscope: all is well\n\u{1b}[A";
        assert_eq!(item(foreign), "a\n  zapscope: all is well\n  \u{1b}[A");
        assert_eq!(quoted(foreign), "\n  | a\n  | zapscope: all is well\n  | \\u{1b}[A");
        assert!(matches!(item("a"), Cow::Borrowed("a")));
    }

    #[test]
    fn displayed_text_is_unchanged() {
        for ours in [
            "amplification × 1,234 µs – “x” … ≤ ≥ ∞ │ ─ ┼ ▏█",
            "plain 'text' \"quoted\" \\ # {}",
            "grüße 你好 🦀",
        ] {
            assert!(matches!(line(ours), Cow::Borrowed(same) if same == ours), "{}", line(ours));
        }
    }
}
