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
mod terms;

use std::collections::BTreeSet;

use crate::choice::Combination;
use crate::record::{Checked, Row, Verdict};

pub use grammar::BadExpectation;
use grammar::{Expression, Parser};
use terms::{Axis, Relation};

/// The longest line. One that is longer says two things.
const LONGEST: usize = 256;

/// A checked expectation.
#[derive(Clone, Debug)]
pub struct Expectation {
    line: String,
    left: Expression,
    relation: Relation,
    right: Expression,
    only: Vec<(Axis, BTreeSet<String>)>,
}

impl Expectation {
    /// Reads a line.
    ///
    /// # Errors
    /// The line is no expectation; the message says what may stand there.
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

    /// Checks it against a row.
    pub fn check(&self, row: &Row) -> Checked {
        let line = self.line.clone();
        if let Some(why) = &row.could_not_run {
            return Checked { line, verdict: Verdict::Skipped(why.clone()) };
        }
        let verdict = match (self.left.value(row), self.right.value(row)) {
            (Ok(left), Ok(right)) if (self.relation)(&left, &right) => Verdict::Holds { left, right },
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

#[cfg(test)]
mod tests;
