//! Expectations: what must be true of each row of a case, `expect = ["amplification <= 1.0 for policy folio"]`.
//!
//! ```text
//!   line        sum (< | <= | == | != | >= | >) sum { for AXIS WORD ... }     AXIS: backing, policy, reclaim, zap
//!   sum         product { (+ | -) product }
//!   product     value { (* | /) value }
//!   value       NUMBER [KiB | MiB | GiB] | KEY | ( sum )                       KEY: one of a row, `zap_ns.p50`
//! ```
//!
//! `for` limits a line to rows whose axis has one of the words; several must all agree. A key that is null in a row says
//! nothing about it: the line is skipped there, with the reason the row gives.

mod grammar;

use std::collections::BTreeSet;

use notifier_bridge::Policy;

use crate::choice::{Combination, PolicyChoice, Reclaim, Zap};
use crate::record::{Checked, KeyKind, Row, Verdict};

pub use grammar::BadExpectation;
use grammar::{Expression, Parser};

/// The longest line. One that is longer says two things.
const LONGEST: usize = 256;

/// A checked expectation.
#[derive(Clone, Debug, PartialEq)]
pub struct Expectation {
    line: String,
    left: Expression,
    relation: Relation,
    right: Expression,
    only: Vec<(Axis, BTreeSet<String>)>,
}

/// How two sides must compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relation {
    Less,
    AtMost,
    Equal,
    Unequal,
    AtLeast,
    More,
}

impl Relation {
    fn of(text: &str) -> Option<Self> {
        Some(match text {
            "<" => Self::Less,
            "<=" => Self::AtMost,
            "==" => Self::Equal,
            "!=" => Self::Unequal,
            ">=" => Self::AtLeast,
            ">" => Self::More,
            _ => return None,
        })
    }

    fn holds(self, left: f64, right: f64) -> bool {
        match self {
            Self::Less => left < right,
            Self::AtMost => left <= right,
            Self::Equal => left == right,
            Self::Unequal => left != right,
            Self::AtLeast => left >= right,
            Self::More => left > right,
        }
    }
}

/// What a line can be limited by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Axis {
    Backing,
    Policy,
    Reclaim,
    Zap,
}

impl Axis {
    fn of(word: &str) -> Option<Self> {
        Some(match word {
            "backing" => Self::Backing,
            "policy" => Self::Policy,
            "reclaim" => Self::Reclaim,
            "zap" => Self::Zap,
            _ => return None,
        })
    }

    /// The word as a row has it; `None` if the axis has no such word.
    fn canonical(self, word: &str) -> Option<String> {
        Some(match self {
            Self::Backing => word.parse::<guest_mem::Backing>().ok()?.to_string(),
            Self::Policy => word.parse::<PolicyChoice>().ok()?.to_string(),
            Self::Reclaim => word.parse::<Reclaim>().ok()?.to_string(),
            Self::Zap => Zap::ALL.iter().find(|zap| zap.to_string() == word)?.to_string(),
        })
    }

    fn words(self) -> String {
        match self {
            Self::Backing => "4k, mthp:SIZE, thp, hugetlb:2m, memfd, memfd:thp".to_owned(),
            Self::Policy => {
                let known = Policy::ALL.iter().map(|policy| policy.name());
                ["kernel"].into_iter().chain(known).collect::<Vec<_>>().join(", ")
            }
            Self::Reclaim => "those of the axis `reclaim`".to_owned(),
            Self::Zap => Zap::ALL.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        }
    }

    fn named(self, tried: &Combination) -> String {
        match self {
            Self::Backing => tried.backing.to_string(),
            Self::Policy => tried.policy.to_string(),
            Self::Reclaim => tried.reclaim.to_string(),
            Self::Zap => tried.zap.to_string(),
        }
    }
}

impl Expectation {
    /// Reads a line.
    ///
    /// # Errors
    /// What is wrong with it, and what may stand there.
    pub fn parse(line: &str) -> Result<Self, BadExpectation> {
        if line.len() > LONGEST {
            return Err(BadExpectation::TooLong(LONGEST));
        }
        let mut parser = Parser::new(line)?;
        let left = parser.sum()?;
        let relation = parser.relation()?;
        let right = parser.sum()?;
        let only = parser.limits()?;
        if left.is_constant() && right.is_constant() {
            return Err(BadExpectation::Constant);
        }
        Ok(Self { line: line.trim().to_owned(), left, relation, right, only })
    }

    /// As it is written.
    pub fn line(&self) -> &str {
        &self.line
    }

    /// Whether it says anything about rows of this combination.
    pub fn concerns(&self, tried: &Combination) -> bool {
        self.only.iter().all(|(axis, words)| words.contains(&axis.named(tried)))
    }

    /// What it comes to in a row.
    pub fn check(&self, row: &Row) -> Checked {
        let line = self.line.clone();
        if let Some(why) = &row.could_not_run {
            return Checked { line, verdict: Verdict::Skipped(why.clone()) };
        }
        let verdict = match (self.left.value(row), self.right.value(row)) {
            (Ok(left), Ok(right)) if self.relation.holds(left, right) => Verdict::Holds { left, right },
            (Ok(left), Ok(right)) => Verdict::Fails { left, right },
            (Err(why), _) | (_, Err(why)) => Verdict::Skipped(why),
        };
        Checked { line, verdict }
    }
}

/// Checks a row against a case's expectations, as far as they concern it.
pub fn check_all(expectations: &[Expectation], row: &Row) -> Vec<Checked> {
    let concerning = expectations.iter().filter(|expectation| expectation.concerns(&row.label.tried));
    concerning.map(|expectation| expectation.check(row)).collect()
}

/// The kind of a row's key, if it is one.
fn kind_of(key: &str) -> Option<KeyKind> {
    Row::KEYS.iter().find(|(known, _)| *known == key).map(|(_, kind)| *kind)
}

/// Every key that is a number, for whoever named none of them.
fn numeric_keys() -> String {
    let keys = Row::KEYS.iter().filter_map(|(key, kind)| match kind {
        KeyKind::Number => Some((*key).to_owned()),
        KeyKind::Times => Some(format!("{key}.p50")),
        KeyKind::Other => None,
    });
    keys.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
