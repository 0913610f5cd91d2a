//! One line of the doctor's report.

use serde::Serialize;

/// Whether something can be measured here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, strum::IntoStaticStr)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Verdict {
    /// Yes.
    Can,
    /// In part, or with a disturbance.
    Limited,
    /// No.
    Cannot,
}

/// What the doctor found about one subject.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is about.
    pub subject: String,
    /// Whether it can be measured.
    pub verdict: Verdict,
    /// Why, with the value found.
    pub detail: String,
    /// What would change it. What stands in backticks is a command for a POSIX shell; words in capitals are the reader's to
    /// replace.
    pub remedy: Option<String>,
}

impl Finding {
    /// It works.
    pub fn can(subject: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(subject, Verdict::Can, detail)
    }

    /// It works in part.
    pub fn limited(subject: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(subject, Verdict::Limited, detail)
    }

    /// It does not work.
    pub fn cannot(subject: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(subject, Verdict::Cannot, detail)
    }

    /// With what would change it, see [`Finding::remedy`].
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    fn new(subject: impl Into<String>, verdict: Verdict, detail: impl Into<String>) -> Self {
        Self { subject: subject.into(), verdict, detail: detail.into(), remedy: None }
    }
}
