//! A value that may be missing, and the reason that then must be given.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A value that was measured, or null for a reason that stands among the warnings. Serde reads a missing key as null.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Measured<T>(Option<T>);

impl<T> Measured<T> {
    /// It was measured.
    pub const fn of(value: T) -> Self {
        Self(Some(value))
    }

    /// The value if there is one; the reason for the null is given when the row is made.
    pub(crate) const fn known(value: Option<T>) -> Self {
        Self(value)
    }

    /// The value if there is one; else null, with the reason noted under `key`.
    pub fn or_why(value: Option<T>, warnings: &mut Warnings, key: &str, why: impl Into<String>) -> Self {
        match value {
            Some(value) => Self::of(value),
            None => warnings.not_measured(key, why),
        }
    }

    /// The value, if it was measured.
    pub fn get(&self) -> Option<T>
    where
        T: Copy,
    {
        self.0
    }

    /// The value by reference, if it was measured.
    pub const fn as_ref(&self) -> Option<&T> {
        self.0.as_ref()
    }

    /// Whether it is null.
    pub const fn is_null(&self) -> bool {
        self.0.is_none()
    }

    /// Null where something else explains it: the row could not run at all, or the record is of a version that
    /// did not know the key.
    pub const fn absent() -> Self {
        Self(None)
    }
}

/// A saturating sum: the numbers in a record are untrusted.
pub fn saturating_sum(values: impl IntoIterator<Item = u64>) -> u64 {
    values.into_iter().fold(0, u64::saturating_add)
}

/// One warning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// The keys that are null, or doubtful, for this reason. Empty if it is about the whole.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<String>,
    /// The reason, and the remedy where there is one.
    pub text: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.keys.is_empty() {
            return f.write_str(&self.text);
        }
        write!(f, "{}: {}", self.keys.join(", "), self.text)
    }
}

/// The warnings of a run or of a row, in the order they came up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Warnings(Vec<Warning>);

impl Warnings {
    /// Null for `key`, and why.
    pub fn not_measured<T>(&mut self, key: &str, why: impl Into<String>) -> Measured<T> {
        self.note(key, why);
        Measured(None)
    }

    /// Says something about `key`, whose value stays. Several keys with one reason make one warning.
    pub fn note(&mut self, key: &str, why: impl Into<String>) {
        let text = why.into();
        match self.0.iter_mut().find(|warning| warning.text == text && !warning.keys.is_empty()) {
            Some(warning) if warning.keys.iter().any(|known| known == key) => {}
            Some(warning) => warning.keys.push(key.to_owned()),
            None => self.0.push(Warning { keys: vec![key.to_owned()], text }),
        }
    }

    /// Says something about the whole, once.
    pub fn say(&mut self, text: impl Into<String>) {
        let warning = Warning { keys: Vec::new(), text: text.into() };
        if !self.0.contains(&warning) {
            self.0.push(warning);
        }
    }

    /// The first warning about `key`.
    pub fn about(&self, key: &str) -> Option<&Warning> {
        self.0.iter().find(|warning| warning.keys.iter().any(|known| known == key))
    }

    /// Whether some warning is about `key`.
    pub fn explains(&self, key: &str) -> bool {
        self.about(key).is_some()
    }

    /// The warnings, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Warning> {
        self.0.iter()
    }

    /// Whether there is nothing to warn of.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_comes_with_its_reason_and_zero_is_not_null() {
        let mut warnings = Warnings::default();
        let missing: Measured<u64> = warnings.not_measured("lost_events", "the kernel tap was off");
        assert_eq!(serde_json::to_string(&missing).unwrap(), "null");
        assert_eq!(serde_json::to_string(&Measured::of(0)).unwrap(), "0");
        assert!(warnings.explains("lost_events") && !warnings.explains("zap_ns"));
        assert_eq!(Measured::or_why(Some(3), &mut warnings, "zap_ns", "never said").get(), Some(3));
        assert!(!warnings.explains("zap_ns"));
    }

    #[test]
    fn keys_with_one_reason_share_a_warning() {
        let mut warnings = Warnings::default();
        for key in ["kernel_ranges", "kernel_bytes", "kernel_ranges"] {
            warnings.note(key, "the kernel tap was off");
        }
        warnings.say("the host swapped on its own");
        warnings.say("the host swapped on its own");
        let texts: Vec<String> = warnings.iter().map(Warning::to_string).collect();
        assert_eq!(
            texts,
            ["kernel_ranges, kernel_bytes: the kernel tap was off", "the host swapped on its own"]
        );
    }
}
