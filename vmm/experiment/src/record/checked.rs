//! An expectation, checked against a row.

use serde::{Deserialize, Serialize};

/// A line of a scenario's `expect`, and its verdict.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Checked {
    /// As it is written.
    pub line: String,
    /// The verdict.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// The verdict on an expectation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the fields are the values of the line's two sides")]
pub enum Verdict {
    Holds {
        left: f64,
        right: f64,
    },
    Fails {
        left: f64,
        right: f64,
    },
    /// A value is null, for this reason.
    Skipped(String),
}

impl std::fmt::Display for Checked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.verdict {
            Verdict::Holds { left, right } => write!(f, "{}: {left} against {right}", self.line),
            Verdict::Fails { left, right } => write!(f, "{} is not so: {left} against {right}", self.line),
            Verdict::Skipped(why) => write!(f, "{} was skipped: {why}", self.line),
        }
    }
}
