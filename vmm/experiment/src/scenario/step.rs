//! One step of a case: what is done, with what.

use std::time::Duration;

use guest_abi::order::{Access, Walk};
use guest_mem::{Backing, PAGE_SIZE, PMD_SIZE};
use notifier_bridge::UnknownName;

use super::vocabulary::{HotPages, Unit};
use crate::choice::ByteRange;

/// A step of a case.
#[derive(Clone, Debug, PartialEq, strum::EnumDiscriminants)]
#[strum_discriminants(
    name(Action),
    doc = "The kind of a step, as written.",
    derive(strum::Display, strum::EnumString, strum::VariantNames),
    strum(serialize_all = "lowercase", parse_err_ty = UnknownName, parse_err_fn = unknown)
)]
pub enum Step {
    /// Write the pattern to every page.
    Fill,
    /// Start a hot loop, which runs until [`Step::Stop`] or the end of the case.
    Hot(HotLoop),
    /// Measure the hot loops for so long, undisturbed.
    Baseline(Duration),
    /// Take the victims.
    Reclaim(ReclaimStep),
    /// Stop every hot loop.
    Stop,
    /// Touch every evicted page once, on this vCPU, counted and timed.
    Refault {
        /// The lowest vCPU that runs no hot loop.
        vcpu: u32,
    },
    /// Touch every page that no step has taken once, on this vCPU: the collateral faults the hot loops have
    /// not met.
    Sweep {
        /// The lowest vCPU that runs no hot loop.
        vcpu: u32,
    },
    /// Run a shell command in a Linux guest, to its end.
    #[strum_discriminants(strum(serialize = "sh"))]
    Shell(String),
    /// Have a Linux guest's balloon take so many bytes of the kernel's own memory.
    Inflate(u64),
    /// Have the balloon give back all it took.
    Deflate,
}

fn unknown(given: &str) -> UnknownName {
    UnknownName::of::<Action>("step", given)
}

impl Action {
    /// Whether only a guest with an operating system can do it.
    pub fn needs_linux(self) -> bool {
        matches!(self, Self::Shell | Self::Inflate | Self::Deflate)
    }
}

/// A loop that touches pages for as long as it runs.
#[derive(Clone, Debug, PartialEq)]
pub struct HotLoop {
    /// The pages and their order.
    pub walk: HotWalk,
    /// The kind of touch.
    pub access: Access,
    /// The vCPUs that run the loop: distinct, not empty, each below the scenario's number.
    pub vcpus: Vec<u32>,
}

/// The pages that a hot loop visits, and their order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HotWalk {
    /// A seeded list of distinct pages, over and over.
    List {
        /// The set it is drawn from.
        pages: HotPages,
        /// The number of pages; `None` for all of them.
        count: Option<u64>,
    },
    /// Every page of the arena, lowest first.
    Sequential,
    /// Every `stride`-th page of the arena, lowest first.
    Strided {
        /// Pages from one visit to the next.
        stride: u64,
    },
    /// Pages of the whole arena, drawn uniformly.
    Random {
        /// Visits in a pass.
        count: u64,
    },
    /// Pages of the whole arena, drawn by Zipf's law: the lowest page is the likeliest.
    Zipf {
        /// Visits in a pass.
        count: u64,
        /// Above 0: the larger, the hotter the hottest.
        exponent: f64,
    },
}

impl HotWalk {
    /// The walk as a vCPU is ordered to do it, over the whole arena. `listed` is the length of its list.
    pub fn order(self, seed: u64, listed: u64) -> Walk {
        match self {
            Self::List { .. } => Walk::List { count: listed },
            Self::Sequential => Walk::Sequential,
            Self::Strided { stride } => Walk::Strided { stride },
            Self::Random { count } => Walk::Random { seed, count },
            Self::Zipf { count, .. } => Walk::Zipf { seed, count },
        }
    }
}

/// Victims, and how they are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReclaimStep {
    /// The pages to take.
    pub victims: VictimChoice,
    /// The memory that one operation takes.
    pub unit: Unit,
    /// The pause from one operation to the next.
    pub pace: Duration,
}

/// The choice of victims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VictimChoice {
    /// So many distinct units, at seeded places. Never with [`Unit::Range`].
    Sparse {
        /// The number of units.
        count: u64,
    },
    /// All of these bytes of the arena, lowest first.
    Range(ByteRange),
    /// Units that are not used. Never with [`Unit::Range`].
    Idle(Idle),
}

/// The choice of idle units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Idle {
    /// As many as leave at most so many bytes in memory.
    pub target: u64,
    /// Those that were not used for so long.
    pub after: Duration,
}

impl ReclaimStep {
    /// Bytes that one operation takes from an arena with this backing.
    pub fn unit_bytes(&self, backing: Backing) -> u64 {
        match (self.unit, self.victims) {
            (Unit::Page, _) => PAGE_SIZE,
            (Unit::Folio, _) => backing.wanted_order().bytes(),
            (Unit::Range, VictimChoice::Range(range)) => range.end - range.start,
            (Unit::Block | Unit::Range, _) => PMD_SIZE,
        }
    }
}
