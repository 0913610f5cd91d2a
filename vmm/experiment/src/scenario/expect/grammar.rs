//! From a line to an expression: words first, then what they mean together.

use super::terms::{Axis, Relation, kind_of, numeric_keys, relation};
use crate::record::{KeyKind, Row};
use std::collections::BTreeSet;

/// The reason why a line is no expectation.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum BadExpectation {
    #[error("the expectation is longer than {0} bytes: say it in two")]
    TooLong(usize),
    #[error(
        "`{0}` cannot stand in an expectation: use keys, numbers, + - * / ( ) and one of < <= == != >= >"
    )]
    Character(char),
    #[error("`{0}` is no number: write 1, 2.5 or 4KiB")]
    Number(String),
    #[error("a row has no key `{key}`: use one of {known}")]
    UnknownKey { key: String, known: String },
    #[error("`{0}` is no number: use its {1}")]
    NoNumber(String, &'static str),
    #[error("the times `{key}` have no `{field}`: use count, min, p50, p90, p99, p999, max or sum")]
    Field { key: String, field: String },
    #[error("there is nothing where {wanted} should be")]
    Missing { wanted: &'static str },
    #[error("`{found}` where {wanted} should be")]
    Unexpected { found: String, wanted: &'static str },
    #[error("an expectation of constants says nothing about a row: name a key")]
    Constant,
    #[error("`{0}` is nothing that an expectation can be limited by: use backing, policy, reclaim or zap")]
    Axis(String),
    #[error("`{word}` is no word of the axis `{axis}`: use {known}")]
    Word { axis: String, word: String, known: String },
    #[error("parentheses more than {0} deep: say it in a simpler way")]
    Deep(u32),
}

/// Something with a value in each row.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Expression {
    Number(f64),
    Key { key: String, field: Option<String> },
    Both(Box<Expression>, char, Box<Expression>),
}

impl Expression {
    pub(super) fn is_constant(&self) -> bool {
        match self {
            Self::Number(_) => true,
            Self::Key { .. } => false,
            Self::Both(left, _, right) => left.is_constant() && right.is_constant(),
        }
    }

    /// The value in a row, or why there is none.
    pub(super) fn value(&self, row: &Row) -> Result<f64, String> {
        match self {
            Self::Number(number) => Ok(*number),
            Self::Key { key, field } => {
                let why =
                    || row.warnings.about(key).map_or("nothing says why", |warning| warning.text.as_str());
                // An expected value is not a measurement, and proves nothing of the row.
                if row.is_expected() && Row::ANNOUNCED.contains(&key.as_str()) {
                    return Err(format!("{key} is {}", why()));
                }
                row.number(key, field.as_deref()).ok_or_else(|| format!("{key} is null: {}", why()))
            }
            Self::Both(left, operator, right) => {
                let (left, right) = (left.value(row)?, right.value(row)?);
                let value = match operator {
                    '+' => left + right,
                    '-' => left - right,
                    '*' => left * right,
                    _ => left / right,
                };
                if value.is_finite() {
                    Ok(value)
                } else {
                    Err(format!("{left} {operator} {right} has no value"))
                }
            }
        }
    }
}

/// Parentheses in parentheses.
const DEEPEST: u32 = 16;

/// Reads a line word by word.
pub(super) struct Parser<'l> {
    words: std::iter::Peekable<std::vec::IntoIter<&'l str>>,
    depth: u32,
}

impl<'l> Parser<'l> {
    pub(super) fn new(line: &'l str) -> Result<Self, BadExpectation> {
        Ok(Self { words: words(line)?.into_iter().peekable(), depth: 0 })
    }

    fn next(&mut self, wanted: &'static str) -> Result<&'l str, BadExpectation> {
        self.words.next().ok_or(BadExpectation::Missing { wanted })
    }

    pub(super) fn sum(&mut self) -> Result<Expression, BadExpectation> {
        self.chain(&["+", "-"], Self::product)
    }

    fn product(&mut self) -> Result<Expression, BadExpectation> {
        self.chain(&["*", "/"], Self::value)
    }

    fn chain(
        &mut self,
        operators: &[&str],
        mut part: impl FnMut(&mut Self) -> Result<Expression, BadExpectation>,
    ) -> Result<Expression, BadExpectation> {
        let mut all = part(self)?;
        while let Some(operator) = self.words.next_if(|word| operators.contains(word)) {
            let operator = operator.chars().next().unwrap_or('+');
            all = Expression::Both(Box::new(all), operator, Box::new(part(self)?));
        }
        Ok(all)
    }

    fn value(&mut self) -> Result<Expression, BadExpectation> {
        let wanted = "a key or a number";
        let word = self.next(wanted)?;
        match word.chars().next() {
            Some('(') => {
                self.depth += 1;
                if self.depth > DEEPEST {
                    return Err(BadExpectation::Deep(DEEPEST));
                }
                let inner = self.sum()?;
                self.depth -= 1;
                let wanted = "a closing parenthesis";
                match self.next(wanted)? {
                    ")" => Ok(inner),
                    found => Err(unexpected(found, wanted)),
                }
            }
            Some(first) if first.is_ascii_digit() => number(word).map(Expression::Number),
            Some(first) if first.is_ascii_alphabetic() => key(word),
            _ => Err(unexpected(word, wanted)),
        }
    }

    pub(super) fn relation(&mut self) -> Result<Relation, BadExpectation> {
        let wanted = "one of < <= == != >= >";
        let found = self.next(wanted)?;
        relation(found).ok_or_else(|| unexpected(found, wanted))
    }

    /// Reads the limits after the comparison.
    pub(super) fn limits(&mut self) -> Result<Vec<(Axis, BTreeSet<String>)>, BadExpectation> {
        let mut only = Vec::new();
        while let Some(word) = self.words.next() {
            if word != "for" {
                return Err(unexpected(word, "`for` or the end of the line"));
            }
            let name = self.next("backing, policy, reclaim or zap")?;
            let axis = name.parse::<Axis>().map_err(|_| BadExpectation::Axis(name.to_owned()))?;
            let mut of_axis = BTreeSet::new();
            while let Some(word) = self.words.next_if(|word| *word != "for") {
                let known = axis.canonical(word).ok_or_else(|| BadExpectation::Word {
                    axis: name.to_owned(),
                    word: word.to_owned(),
                    known: axis.words(),
                })?;
                of_axis.insert(known);
            }
            if of_axis.is_empty() {
                return Err(BadExpectation::Missing { wanted: "a word of the axis" });
            }
            only.push((axis, of_axis));
        }
        Ok(only)
    }
}

fn unexpected(found: &str, wanted: &'static str) -> BadExpectation {
    BadExpectation::Unexpected { found: found.to_owned(), wanted }
}

/// A number, perhaps of binary bytes.
fn number(word: &str) -> Result<f64, BadExpectation> {
    let bad = || BadExpectation::Number(word.to_owned());
    let split = word.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(word.len());
    let (digits, unit) = word.split_at(split);
    let factor = match unit {
        "" => 1.0,
        "KiB" => 1024.0,
        "MiB" => 1_048_576.0,
        "GiB" => 1_073_741_824.0,
        _ => return Err(bad()),
    };
    digits
        .parse::<f64>()
        .ok()
        .map(|number| number * factor)
        .filter(|number| number.is_finite())
        .ok_or_else(bad)
}

fn key(word: &str) -> Result<Expression, BadExpectation> {
    let (name, field) = match word.split_once('.') {
        Some((name, field)) => (name, Some(field)),
        None => (word, None),
    };
    let key = name.to_owned();
    let unknown = || BadExpectation::UnknownKey { key: word.to_owned(), known: numeric_keys() };
    match (kind_of(name).ok_or_else(unknown)?, field) {
        (KeyKind::Number, None) => Ok(Expression::Key { key, field: None }),
        (KeyKind::Number, Some(_)) => Err(unknown()),
        (KeyKind::Other, _) => Err(BadExpectation::NoNumber(key, "parts in run.json; an expectation cannot")),
        (KeyKind::Times, None) => {
            Err(BadExpectation::NoNumber(key, "count, min, p50, p90, p99, p999, max or sum"))
        }
        (KeyKind::Times, Some(field)) => match program::distribution::Distribution::FIELDS.contains(&field) {
            true => Ok(Expression::Key { key, field: Some(field.to_owned()) }),
            false => Err(BadExpectation::Field { key, field: field.to_owned() }),
        },
    }
}

/// The words of a line: names, numbers, and signs of one or two characters.
fn words(line: &str) -> Result<Vec<&str>, BadExpectation> {
    let mut found = Vec::new();
    let mut rest = line.trim_start();
    while let Some(first) = rest.chars().next() {
        let in_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | ':');
        let len = match first {
            _ if in_name(first) => rest.find(|c| !in_name(c)).unwrap_or(rest.len()),
            '<' | '>' | '=' | '!' if rest[1..].starts_with('=') => 2,
            '<' | '>' | '+' | '-' | '*' | '/' | '(' | ')' => 1,
            other => return Err(BadExpectation::Character(other)),
        };
        let (word, after) = rest.split_at(len);
        found.push(word);
        rest = after.trim_start();
    }
    Ok(found)
}
