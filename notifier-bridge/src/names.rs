//! Enums whose members have a name in reports, and are found again by it.

/// A name that no member of the enum carries.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is no {what}: choose one of {known}")]
pub struct UnknownName {
    pub(crate) what: &'static str,
    pub(crate) given: String,
    pub(crate) known: String,
}

/// Declares an enum with `ALL`, `name`, `index`, `Display` and `FromStr`, so that no table of names can
/// fall out of step with the members.
macro_rules! named_enum {
    (
        $(#[$doc:meta])*
        pub enum $name:ident ($what:literal) {
            $( $(#[$member_doc:meta])* $member:ident = $text:literal, )+
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $( $(#[$member_doc])* $member, )+
        }

        impl $name {
            /// Every member, in order of declaration.
            pub const ALL: &'static [Self] = &[$( Self::$member, )+];

            /// The name used in reports and on the command line.
            pub const fn name(self) -> &'static str {
                match self {
                    $( Self::$member => $text, )+
                }
            }

            /// The member's place in [`Self::ALL`].
            pub const fn index(self) -> usize {
                self as usize
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.name())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::names::UnknownName;

            fn from_str(given: &str) -> Result<Self, Self::Err> {
                Self::ALL.iter().copied().find(|member| member.name() == given).ok_or_else(|| {
                    let known: Vec<&str> = Self::ALL.iter().map(|member| member.name()).collect();
                    $crate::names::UnknownName {
                        what: $what,
                        given: given.to_owned(),
                        known: known.join(", "),
                    }
                })
            }
        }
    };
}
pub(crate) use named_enum;

#[cfg(test)]
mod tests {
    use crate::{Cause, Policy};

    #[test]
    fn every_name_finds_its_member_again() {
        assert!(Policy::ALL.iter().all(|p| p.to_string().parse() == Ok(*p)));
        assert!(Cause::ALL.iter().all(|c| c.to_string().parse() == Ok(*c)));
        assert!(Cause::ALL.iter().enumerate().all(|(index, c)| c.index() == index));
    }

    #[test]
    fn names_are_kebab_case_and_distinct() {
        let mut names: Vec<_> = Cause::ALL.iter().map(|c| c.name()).collect();
        assert!(names.iter().all(|n| n.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Cause::ALL.len());
    }

    #[test]
    fn an_unknown_name_is_refused_and_the_known_ones_are_listed() {
        let refused = "Folio".parse::<Policy>().unwrap_err().to_string();
        assert_eq!(refused, "`Folio` is no range policy: choose one of page, pmd, folio, modern, slot, vm");
    }
}
