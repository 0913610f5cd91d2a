//! The terms of an expectation: relations, axes, and the keys of a row.

use notifier_bridge::Policy;

use crate::choice::{Combination, PolicyChoice, Reclaim, Zap};
use crate::record::{KeyKind, Row};

/// A relation between two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relation {
    Less,
    AtMost,
    Equal,
    Unequal,
    AtLeast,
    More,
}

impl Relation {
    pub(super) fn of(text: &str) -> Option<Self> {
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

    pub(super) fn holds(self, left: f64, right: f64) -> bool {
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

/// An axis that a line can be limited by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Axis {
    Backing,
    Policy,
    Reclaim,
    Zap,
}

impl Axis {
    pub(super) fn of(word: &str) -> Option<Self> {
        Some(match word {
            "backing" => Self::Backing,
            "policy" => Self::Policy,
            "reclaim" => Self::Reclaim,
            "zap" => Self::Zap,
            _ => return None,
        })
    }

    /// The word as a row has it; `None` if the axis has no such word.
    pub(super) fn canonical(self, word: &str) -> Option<String> {
        Some(match self {
            Self::Backing => word.parse::<guest_mem::Backing>().ok()?.to_string(),
            Self::Policy => word.parse::<PolicyChoice>().ok()?.to_string(),
            Self::Reclaim => word.parse::<Reclaim>().ok()?.to_string(),
            Self::Zap => Zap::ALL.iter().find(|zap| zap.to_string() == word)?.to_string(),
        })
    }

    pub(super) fn words(self) -> String {
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

    pub(super) fn named(self, tried: &Combination) -> String {
        match self {
            Self::Backing => tried.backing.to_string(),
            Self::Policy => tried.policy.to_string(),
            Self::Reclaim => tried.reclaim.to_string(),
            Self::Zap => tried.zap.to_string(),
        }
    }
}

/// The kind of a row's key, if it is one.
pub(super) fn kind_of(key: &str) -> Option<KeyKind> {
    Row::KEYS.iter().find(|(known, _)| *known == key).map(|(_, kind)| *kind)
}

/// Every key that is a number, for the message about a name that is none of them.
pub(super) fn numeric_keys() -> String {
    let keys = Row::KEYS.iter().filter_map(|(key, kind)| match kind {
        KeyKind::Number => Some((*key).to_owned()),
        KeyKind::Times => Some(format!("{key}.p50")),
        KeyKind::Other => None,
    });
    keys.collect::<Vec<_>>().join(", ")
}
