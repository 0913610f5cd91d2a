//! The error of a name that no member of an enum carries.

use strum::VariantNames;

/// A name that no member of the enum carries.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is no {what}: choose one of {known}")]
pub struct UnknownName {
    what: &'static str,
    given: String,
    known: String,
}

impl UnknownName {
    /// `given` stands in the place of a `what`, which is one of `known`.
    pub fn new<'a>(what: &'static str, given: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        Self { what, given: given.to_owned(), known: known.into_iter().collect::<Vec<_>>().join(", ") }
    }

    /// `given` names no member of `T`, which is a `what`.
    pub fn of<T: VariantNames>(what: &'static str, given: &str) -> Self {
        Self::new(what, given, T::VARIANTS.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use crate::{By, Cause, Policy};

    #[test]
    fn every_name_finds_its_member_again() {
        assert!(Policy::ALL.iter().all(|p| p.to_string() == p.name() && p.name().parse() == Ok(*p)));
        let causes = <Cause as strum::VariantArray>::VARIANTS;
        assert!(causes.iter().all(|c| c.to_string() == c.name() && c.name().parse() == Ok(*c)));
        assert!(By::ALL.iter().all(|by| by.to_string() == by.name() && by.name().parse() == Ok(*by)));
        assert!(causes.iter().enumerate().all(|(index, c)| *c as usize == index));
    }

    /// They stand in recorded runs and in scenarios.
    #[test]
    fn the_names_are_these() {
        let names = |names: &[&str]| names.join(" ");
        assert_eq!(names(<Policy as strum::VariantNames>::VARIANTS), "page pmd folio modern slot vm");
        assert_eq!(
            names(<Cause as strum::VariantNames>::VARIANTS),
            "page-out pmd-split folio-split dont-need free cold punch-hole collapse protect watch remap unmap \
             cgroup-reclaim balloon free-page-report copy-on-write unknown"
        );
        assert_eq!(
            names(<By as strum::VariantNames>::VARIANTS),
            "step zap guest-fault userfaultfd device own-thread kswapd khugepaged kcompactd ksmd kdamond kernel-thread \
             direct-reclaim memcg-reclaim compaction migration another-process unattributed holder"
        );
    }

    #[test]
    fn an_unknown_name_is_refused_and_the_known_ones_are_listed() {
        let refused = "Folio".parse::<Policy>().unwrap_err().to_string();
        assert_eq!(refused, "`Folio` is no range policy: choose one of page, pmd, folio, modern, slot, vm");
    }
}
