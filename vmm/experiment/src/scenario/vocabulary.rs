//! The words of a scenario that are no axis: how a step is done, and in which guest.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, Visitor};

use crate::choice::vocabulary;

vocabulary! {
    /// The store of `reclaim = ["uffd"]`.
    UffdStore ("store") {
        /// Memory of this process, compressed by LZ4.
        Lz4,
        /// Memory of this process, compressed by zstd.
        Zstd,
        /// A file without a name in the directory for temporary files.
        File,
    }
}

vocabulary! {
    /// The part of a range that one reclaim operation takes.
    Unit ("unit") {
        /// 4 KiB each, whatever they are a part of.
        Page,
        /// Each folio whole, as far as the range has it.
        Folio,
        /// Each aligned 2 MiB.
        #[strum(serialize = "region")]
        Block,
        /// Everything at once.
        Range,
    }
}

vocabulary! {
    /// The choice of victims, as written.
    VictimKind ("choice of victims") {
        /// Distinct units at seeded places.
        Sparse,
        /// All units of a range, lowest first.
        Range,
        /// Units that are not used.
        Idle,
    }
}

vocabulary! {
    /// In which order a hot loop visits its pages, as written.
    WalkKind ("walk") {
        /// A seeded list of pages, over and over.
        List,
        /// Every page, lowest first.
        Sequential,
        /// Every `stride`-th page, lowest first.
        Strided,
        /// Pages drawn uniformly.
        Random,
        /// Pages drawn by Zipf's law.
        Zipf,
    }
}

vocabulary! {
    /// The set of pages that a hot loop visits.
    HotPages ("set of hot pages") {
        /// A sample of those that no step of the case takes.
        Others,
        /// Any page of the arena, victims too.
        All,
    }
}

vocabulary! {
    /// The kind of touch by a hot loop, as written.
    AccessKind ("access") {
        /// A load.
        Read,
        /// A load and a store.
        Write,
        /// A `lock add`.
        LockedAdd,
    }
}

vocabulary! {
    /// The device on the host's own page tables, which reads each victim before it is taken: `shared_tlb`.
    #[derive(Default)]
    DeviceTlb ("device") {
        /// No device.
        #[default]
        #[strum(serialize = "false")]
        Absent,
        /// Its TLB drops the range that it is told of.
        #[strum(serialize = "true")]
        Exact,
    }
}

impl<'de> Deserialize<'de> for DeviceTlb {
    /// `true` and `false` are booleans of TOML, the other words strings.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl Visitor<'_> for Reader {
            type Value = DeviceTlb;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false or a string in quotes")
            }
            fn visit_bool<E: de::Error>(self, present: bool) -> Result<DeviceTlb, E> {
                Ok(if present { DeviceTlb::Exact } else { DeviceTlb::Absent })
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<DeviceTlb, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_any(Reader)
    }
}

vocabulary! {
    /// The guest in the machine.
    Guest ("guest") {
        /// The built-in test guest, or another image that speaks its protocol.
        Bare,
        /// A Linux kernel, with an agent that carries out the same work orders.
        Linux,
    }
}

vocabulary! {
    /// The page size by which a Linux guest maps the memory under test.
    GuestPages ("guest page size") {
        /// Transparent huge pages.
        Huge,
        /// 4 KiB pages.
        Small,
    }
}
