//! The words of a scenario that are no axis: what a step does, and how.

use crate::choice::vocabulary;

vocabulary! {
    /// The kind of a step.
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
    /// The store of `reclaim = ["uffd"]`.
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
    /// The part of a range that one reclaim operation takes.
    Unit ("unit") {
        /// 4 KiB each, whatever they are a part of.
        Page = "page",
        /// Each folio whole, as far as the range has it.
        Folio = "folio",
        /// Each aligned 2 MiB.
        Block = "region",
        /// Everything at once.
        Range = "range",
    }
}

vocabulary! {
    /// The choice of victims, as written.
    VictimKind ("choice of victims") {
        /// Distinct units at seeded places.
        Sparse = "sparse",
        /// All units of a range, lowest first.
        Range = "range",
        /// Units that are not used.
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
    /// The set of pages that a hot loop visits.
    HotPages ("set of hot pages") {
        /// A sample of those that no step of the case takes.
        Others = "others",
        /// Any page of the arena, victims too.
        All = "all",
    }
}

vocabulary! {
    /// The kind of touch by a hot loop, as written.
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
    /// The guest in the machine.
    Guest ("guest") {
        /// The built-in test guest, or another image that speaks its protocol.
        Bare = "bare",
        /// A Linux kernel, with an agent that carries out the same work orders.
        Linux = "linux",
    }
}

vocabulary! {
    /// The page size by which a Linux guest maps the memory under test.
    GuestPages ("guest page size") {
        /// Transparent huge pages.
        Huge = "huge",
        /// 4 KiB pages.
        Small = "small",
    }
}
