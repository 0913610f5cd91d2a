//! The terms of an expectation: relations, axes, and the keys of a row.

use strum::VariantNames;

use crate::choice::{Combination, PolicyChoice, Reclaim, Zap};
use crate::record::{KeyKind, Row};

/// Whether a relation holds between its left and its right side.
pub(super) type Relation = fn(&f64, &f64) -> bool;

/// The relation that is written so.
pub(super) fn relation(text: &str) -> Option<Relation> {
    Some(match text {
        "<" => f64::lt,
        "<=" => f64::le,
        "==" => f64::eq,
        "!=" => f64::ne,
        ">=" => f64::ge,
        ">" => f64::gt,
        _ => return None,
    })
}

/// An axis that a line can be limited by.
#[derive(Clone, Copy, Debug, strum::EnumString)]
#[strum(serialize_all = "lowercase")]
pub(super) enum Axis {
    Backing,
    Policy,
    Reclaim,
    Zap,
}

impl Axis {
    /// The word as a row has it; `None` if the axis has no such word.
    pub(super) fn canonical(self, word: &str) -> Option<String> {
        Some(match self {
            Self::Backing => word.parse::<guest_mem::Backing>().ok()?.to_string(),
            Self::Policy => word.parse::<PolicyChoice>().ok()?.to_string(),
            Self::Reclaim => word.parse::<Reclaim>().ok()?.to_string(),
            Self::Zap => word.parse::<Zap>().ok()?.to_string(),
        })
    }

    pub(super) fn words(self) -> String {
        match self {
            Self::Backing => "4k, mthp:SIZE, thp, hugetlb:2m, memfd, memfd:thp".to_owned(),
            Self::Policy => PolicyChoice::names().collect::<Vec<_>>().join(", "),
            Self::Reclaim => "those of the axis `reclaim`".to_owned(),
            Self::Zap => Zap::VARIANTS.join(", "),
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
