//! The words of a scenario: enums whose members are written as one word, and read back from it.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use guest_mem::{Backing, Operation};
use notifier_bridge::Policy;
use serde::de::{self, Deserialize, Deserializer, Visitor};

/// A word that is none of those that may stand in its place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is no {what}: choose one of {known}")]
pub struct UnknownWord {
    what: &'static str,
    given: String,
    known: String,
}

/// Declares an enum with its words, so that the list in an error cannot fall out of step with the members.
macro_rules! vocabulary {
    (
        $(#[$doc:meta])*
        $name:ident ($what:literal) { $( $(#[$member_doc:meta])* $member:ident = $word:literal, )+ }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $( $(#[$member_doc])* $member, )+
        }

        impl $name {
            /// Every member, in order of declaration.
            pub const ALL: &'static [Self] = &[$( Self::$member, )+];

            /// The word for it.
            pub const fn word(self) -> &'static str {
                match self { $( Self::$member => $word, )+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.word())
            }
        }

        impl FromStr for $name {
            type Err = UnknownWord;

            fn from_str(given: &str) -> Result<Self, UnknownWord> {
                Self::ALL.iter().copied().find(|member| member.word() == given).ok_or_else(|| UnknownWord {
                    what: $what,
                    given: given.to_owned(),
                    known: list(Self::ALL.iter().map(|member| member.word())),
                })
            }
        }
    };
}

fn list<'a>(words: impl Iterator<Item = &'a str>) -> String {
    words.collect::<Vec<_>>().join(", ")
}

vocabulary! {
    /// How the listener zaps a range, as written.
    ZapChoice ("way to zap") {
        /// [`Zap::Protect`] for policies that follow the victim, [`Zap::Memslot`] for `slot` and `vm`.
        Auto = "auto",
        /// Delete and re-create the memslots that the range touches.
        Memslot = "memslot",
        /// `mprotect` the range to read-only and back.
        Protect = "protect",
        /// `munmap` the range and map it again. Loses nothing only where a file keeps the content.
        Unmap = "unmap",
    }
}

vocabulary! {
    /// How the listener zaps a range.
    Zap ("way to zap") {
        /// Not at all: the kernel's own zap is the only one.
        Nothing = "none",
        /// Delete and re-create the memslots that the range touches.
        Memslot = "memslot",
        /// `mprotect` the range to read-only and back: exactly the range.
        Protect = "protect",
        /// `munmap` the range and map it again.
        Unmap = "unmap",
    }
}

vocabulary! {
    /// What a step does.
    Action ("step") {
        /// Write the pattern to every page.
        Fill = "fill",
        /// Start a hot loop.
        Hot = "hot",
        /// Measure the hot loop undisturbed.
        Baseline = "baseline",
        /// Take the victims.
        Reclaim = "reclaim",
        /// Stop every hot loop.
        Stop = "stop",
        /// Touch every evicted page once.
        Refault = "refault",
        /// Touch every other page once.
        Sweep = "sweep",
        /// Run a command in a Linux guest.
        Shell = "sh",
        /// Have a Linux guest's balloon take memory from it.
        Inflate = "inflate",
        /// Have the balloon give it all back.
        Deflate = "deflate",
    }
}

vocabulary! {
    /// Where `reclaim = ["uffd"]` puts pages.
    UffdStore ("store") {
        /// Memory of this process, compressed by LZ4.
        Lz4 = "lz4",
        /// Memory of this process, compressed by zstd.
        Zstd = "zstd",
        /// A file without a name in the directory for temporary files.
        File = "file",
    }
}

vocabulary! {
    /// How victims are named.
    VictimKind ("choice of victims") {
        /// Distinct units at seeded places.
        Sparse = "sparse",
        /// All units of a range, lowest first.
        Range = "range",
        /// Units that nobody uses.
        Idle = "idle",
    }
}

vocabulary! {
    /// In which order a hot loop visits its pages, as written.
    WalkKind ("walk") {
        /// A seeded list of pages, over and over.
        List = "list",
        /// Every page, lowest first.
        Sequential = "sequential",
        /// Every `stride`-th page, lowest first.
        Strided = "strided",
        /// Pages drawn uniformly.
        Random = "random",
        /// Pages drawn by Zipf's law.
        Zipf = "zipf",
    }
}

vocabulary! {
    /// Which pages a hot loop visits.
    HotPages ("set of hot pages") {
        /// A sample of those that no step of the case takes.
        Others = "others",
        /// Any page of the arena, victims too.
        All = "all",
    }
}

vocabulary! {
    /// How a hot loop touches a page, as written.
    AccessKind ("access") {
        /// A load.
        Read = "read",
        /// A load and a store.
        Write = "write",
        /// A `lock add`.
        LockedAdd = "locked-add",
    }
}

vocabulary! {
    /// What runs in the machine.
    Guest ("guest") {
        /// The built-in test guest, or another image that speaks its protocol.
        Bare = "bare",
        /// A Linux kernel, with an agent that carries out the same work orders.
        Linux = "linux",
    }
}

vocabulary! {
    /// What a Linux guest maps the memory under test with.
    GuestPages ("guest page size") {
        /// Transparent huge pages.
        Huge = "huge",
        /// 4 KiB pages.
        Small = "small",
    }
}

/// Whose range is announced: the kernel's alone, or one widened by a policy.
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
    type Err = UnknownWord;

    fn from_str(given: &str) -> Result<Self, UnknownWord> {
        if given == "kernel" {
            return Ok(Self::Kernel);
        }
        given.parse().map(Self::Announced).map_err(|_| UnknownWord {
            what: "range policy",
            given: given.to_owned(),
            known: list(["kernel"].into_iter().chain(Policy::ALL.iter().map(|policy| policy.name()))),
        })
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
    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::By(operation) => operation.name(),
            Self::Cgroup => "cgroup",
            Self::Uffd => "uffd",
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
        f.pad(self.word())
    }
}

impl FromStr for Reclaim {
    type Err = UnknownWord;

    /// `punch-hole` is another way to write `remove`.
    fn from_str(given: &str) -> Result<Self, UnknownWord> {
        match given {
            "cgroup" => Ok(Self::Cgroup),
            "uffd" => Ok(Self::Uffd),
            "punch-hole" => Ok(Self::By(Operation::PunchHole)),
            _ => given.parse().map(Self::By).map_err(|_| UnknownWord {
                what: "way to reclaim",
                given: given.to_owned(),
                known: list(
                    Operation::ALL.iter().map(|operation| operation.name()).chain(["cgroup", "uffd"]),
                ),
            }),
        }
    }
}

/// Anything that is written as a string and read by `FromStr`, so that its own error reaches the user with
/// the line that serde knows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Word<T>(pub T);

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_finds_its_member_again() {
        for reclaim in Operation::ALL.into_iter().map(Reclaim::By).chain([Reclaim::Cgroup, Reclaim::Uffd]) {
            assert_eq!(reclaim.to_string().parse(), Ok(reclaim));
        }
        assert_eq!("punch-hole".parse(), Ok(Reclaim::By(Operation::PunchHole)));
        assert!(Zap::ALL.iter().all(|&member| member.to_string().parse() == Ok(member)));
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
