//! Enums whose members are written as one word, and read back from it.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use guest_mem::{Backing, DuringCall, Operation};
use notifier_bridge::{Policy, UnknownName};
use serde::Serializer;
use serde::de::{self, Deserialize, Deserializer, Visitor};

/// Declares an enum whose members are written as their names in kebab case. Any other word is refused as no `$what`.
macro_rules! vocabulary_of {
    ($(#[$doc:meta])* $name:ident ($what:literal) { $($members:tt)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[derive(strum::Display, strum::EnumString, strum::VariantNames)]
        #[strum(serialize_all = "kebab-case", parse_err_ty = notifier_bridge::UnknownName)]
        #[strum(parse_err_fn = $name::unknown)]
        pub enum $name {
            $($members)*
        }

        impl $name {
            fn unknown(given: &str) -> notifier_bridge::UnknownName {
                notifier_bridge::UnknownName::of::<Self>($what, given)
            }
        }
    };
}
pub(crate) use vocabulary_of as vocabulary;

vocabulary! {
    /// How the listener zaps a range, as written.
    ZapChoice ("way to zap") {
        /// [`Zap::Protect`] for policies that follow the victim, [`Zap::Memslot`] for `slot` and `vm`.
        Auto,
        /// Delete and re-create the memslots that the range touches.
        Memslot,
        /// `mprotect` the range to read-only and back.
        Protect,
        /// `munmap` the range and map it again. Loses nothing only where a file keeps the content.
        Unmap,
    }
}

vocabulary! {
    /// How the listener zaps a range.
    Zap ("way to zap") {
        /// Not at all: the kernel's own zap is the only one.
        #[strum(serialize = "none")]
        Nothing,
        /// Delete and re-create the memslots that the range touches.
        Memslot,
        /// `mprotect` the range to read-only and back: exactly the range.
        Protect,
        /// `munmap` the range and map it again.
        Unmap,
    }
}

vocabulary! {
    /// The listener to the announcements of a row.
    Listener ("listener") {
        /// The kernel's own notifier of KVM, and no listener beside it.
        Kernel,
        /// A listener of ours that zaps KVM's memory slots.
        KvmSlots,
        /// The software MMU, in a row without a guest.
        SoftMmu,
        /// None: the row is a replay's, and did not run.
        Replay,
    }
}

impl Listener {
    /// The listener of a row under `policy`, with a guest under KVM or without one.
    pub const fn of(policy: PolicyChoice, guest: bool) -> Self {
        match (guest, policy) {
            (false, _) => Self::SoftMmu,
            (true, PolicyChoice::Kernel) => Self::Kernel,
            (true, PolicyChoice::Announced(_)) => Self::KvmSlots,
        }
    }

    /// Whether it is a listener of this program, whose zaps are timed and counted.
    pub const fn is_ours(self) -> bool {
        match self {
            Self::KvmSlots | Self::SoftMmu => true,
            Self::Kernel | Self::Replay => false,
        }
    }

    /// Whether a guest used the memory, or would have in a replay.
    pub const fn has_guest(self) -> bool {
        match self {
            Self::Kernel | Self::KvmSlots | Self::Replay => true,
            Self::SoftMmu => false,
        }
    }

    /// What stands above a table with such rows, before anything else: that they are not of a guest that ran.
    pub const fn notice(self) -> Option<&'static str> {
        match self {
            Self::Kernel | Self::KvmSlots => None,
            Self::SoftMmu => Some("NO GUEST RAN, worker threads used the memory through the software MMU"),
            Self::Replay => Some("NO ROW RAN, all is predicted by a replay"),
        }
    }
}

/// The source of the announced range: the kernel alone, or a policy that widens it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PolicyChoice {
    /// The kernel's own zap, and nothing beside it.
    Kernel,
    /// A range policy, whose range a listener zaps before the operation.
    Announced(Policy),
}

impl PolicyChoice {
    /// The policy to announce by, or `None` for the kernel's own zap alone.
    pub const fn announced(self) -> Option<Policy> {
        match self {
            Self::Kernel => None,
            Self::Announced(policy) => Some(policy),
        }
    }

    /// The word of each.
    pub(crate) fn names() -> impl Iterator<Item = &'static str> {
        ["kernel"].into_iter().chain(Policy::ALL.iter().map(|policy| policy.name()))
    }
}

impl fmt::Display for PolicyChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel => f.pad("kernel"),
            Self::Announced(policy) => policy.fmt(f),
        }
    }
}

impl FromStr for PolicyChoice {
    type Err = UnknownName;

    fn from_str(given: &str) -> Result<Self, UnknownName> {
        if given == "kernel" {
            return Ok(Self::Kernel);
        }
        given.parse().map(Self::Announced).map_err(|_| UnknownName::new("range policy", given, Self::names()))
    }
}

/// How memory is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reclaim {
    /// By address: an operation on the victims.
    By(Operation),
    /// By the memory cgroup's own reclaim: as many bytes as the victims have, of the kernel's choice.
    Cgroup,
    /// By this process: to a store of its own, and back through userfaultfd.
    Uffd,
}

impl Reclaim {
    /// Whether it is meant to take every byte that is asked for.
    pub const fn evicts(self) -> bool {
        match self {
            Self::By(operation) => operation.evicts(),
            Self::Cgroup | Self::Uffd => true,
        }
    }

    /// Whether pages go to the kernel's swap.
    pub const fn uses_swap(self) -> bool {
        match self {
            Self::By(operation) => operation.is_reclaim(),
            Self::Cgroup => true,
            Self::Uffd => false,
        }
    }

    /// What a running vCPU finds in the memory meanwhile. Where a cgroup's limit is low, `KVM_RUN` finds no page and fails, as
    /// where memory cannot be written.
    pub const fn during_call(self) -> DuringCall {
        match self {
            Self::By(operation) => operation.during_call(),
            Self::Cgroup => DuringCall::ReadOnly,
            Self::Uffd => DuringCall::Usable,
        }
    }

    /// Why pages stay that were to leave; `None` where that is no rule.
    pub const fn why_stayed(self) -> Option<&'static str> {
        match self {
            Self::By(Operation::PageOut) => {
                Some("pinned, locked, shared, or no room left in the swap device")
            }
            Self::By(_) => None,
            Self::Uffd => Some("pages that were written to on their way out"),
            Self::Cgroup => Some(
                "the kernel chooses for itself, and passes over pages that KVM reports as used; some KVMs report all",
            ),
        }
    }

    /// What is done to the pages, at the beginning of a sentence: `Swapping out`.
    pub const fn verb(self) -> &'static str {
        match self {
            Self::By(operation) => operation.verb(),
            Self::Cgroup => "Having a cgroup squeezed by",
            Self::Uffd => "Swapping out in user space",
        }
    }

    /// Why it does nothing, or fails, on this backing; with the remedy. `None` if it works.
    pub const fn refused_on(self, backing: Backing) -> Option<&'static str> {
        match (self, backing) {
            (Self::By(operation), _) => operation.refused_on(backing),
            (Self::Cgroup, Backing::Hugetlb2m) => Some("hugetlb pages cannot be paged out; use thp"),
            (Self::Uffd, Backing::Hugetlb2m) => {
                Some("userfaultfd brings hugetlb pages back whole only; use thp")
            }
            (Self::Cgroup | Self::Uffd, _) => None,
        }
    }
}

impl fmt::Display for Reclaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::By(operation) => operation.fmt(f),
            Self::Cgroup => f.pad("cgroup"),
            Self::Uffd => f.pad("uffd"),
        }
    }
}

impl FromStr for Reclaim {
    type Err = UnknownName;

    /// `punch-hole` is another way to write `remove`.
    fn from_str(given: &str) -> Result<Self, UnknownName> {
        match given {
            "cgroup" => Ok(Self::Cgroup),
            "uffd" => Ok(Self::Uffd),
            "punch-hole" => Ok(Self::By(Operation::PunchHole)),
            _ => given.parse().map(Self::By).map_err(|_| {
                let known = Operation::ALL.iter().map(|operation| operation.name());
                UnknownName::new("way to reclaim", given, known.chain(["cgroup", "uffd"]))
            }),
        }
    }
}

/// Anything that is written as a string and read by `FromStr`, so that its own error reaches the user with
/// the line that serde knows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Word<T>(pub T);

impl<'de, T> Deserialize<'de> for Word<T>
where
    T: FromStr,
    T::Err: fmt::Display,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader<T>(PhantomData<T>);

        impl<T> Visitor<'_> for Reader<T>
        where
            T: FromStr,
            T::Err: fmt::Display,
        {
            type Value = Word<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string in quotes")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Word<T>, E> {
                text.parse().map(Word).map_err(E::custom)
            }
        }

        deserializer.deserialize_str(Reader(PhantomData))
    }
}

/// A value of a record by its word: `#[serde(with = "word")]`.
pub(crate) mod word {
    use super::*;

    /// Writes the word.
    pub(crate) fn serialize<T: fmt::Display, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    /// Reads it.
    pub(crate) fn deserialize<'de, T, D: Deserializer<'de>>(from: D) -> Result<T, D::Error>
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        Word::deserialize(from).map(|Word(value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_finds_its_member_again() {
        for reclaim in Operation::ALL
            .iter()
            .map(|&operation| Reclaim::By(operation))
            .chain([Reclaim::Cgroup, Reclaim::Uffd])
        {
            assert_eq!(reclaim.to_string().parse(), Ok(reclaim));
        }
        assert_eq!("punch-hole".parse(), Ok(Reclaim::By(Operation::PunchHole)));
        for word in <Zap as strum::VariantNames>::VARIANTS {
            assert_eq!(word.parse::<Zap>().unwrap().to_string(), *word);
        }
        for choice in
            [PolicyChoice::Kernel].into_iter().chain(Policy::ALL.iter().map(|&p| PolicyChoice::Announced(p)))
        {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
    }

    #[test]
    fn an_unknown_word_is_answered_with_the_known_ones() {
        let why = "folios".parse::<PolicyChoice>().unwrap_err().to_string();
        assert!(why.contains("`folios`") && why.contains("kernel, page, pmd, folio"), "{why}");
        let why = "Pageout".parse::<Reclaim>().unwrap_err().to_string();
        assert!(why.contains("pageout, dontneed"), "{why}");
    }
}
