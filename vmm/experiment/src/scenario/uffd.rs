//! The table `[uffd]` of a scenario: swap in user space, for `reclaim = ["uffd"]`.

use serde::Deserialize;
use swap::FaultAround;

use super::error::{At, Checked, Problem, fault};
use super::vocabulary::UffdStore;
use crate::choice::{Size, Word};

/// Room in the store, unless the scenario says otherwise.
const LIMIT: u64 = 1 << 30;

/// Swap in user space: where pages go, and how they come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uffd {
    /// The store of evicted pages.
    pub store: UffdStore,
    /// The most bytes the store holds.
    pub limit: u64,
    /// The pages that one fault brings back.
    pub fault_around: FaultAround,
    /// The number of threads that serve faults; `None` is one for each vCPU.
    pub handlers: Option<u32>,
    /// Whether the kernel reports what others do to the mapping.
    pub events: bool,
}

impl Default for Uffd {
    fn default() -> Self {
        Self {
            store: UffdStore::Lz4,
            limit: LIMIT,
            fault_around: FaultAround::Fixed(1),
            handlers: None,
            events: false,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct UffdText {
    /// Where evicted pages go; default `lz4`.
    store: Option<Word<UffdStore>>,
    /// The most that the store may hold; default 1 GiB.
    limit: Option<At<Word<Size>>>,
    /// What one fault brings back: a power of two up to 2 MiB, or `adaptive`; default 4 KiB.
    fault_around: Option<Word<FaultAround>>,
    /// Threads that serve faults, 1 to 16; default one for each vCPU.
    handlers: Option<At<u32>>,
    /// Whether the kernel reports what others do to the mapping; default false.
    events: bool,
}

pub(super) fn check(text: &UffdText) -> Checked<Uffd> {
    /// As many as a swapper takes.
    const MOST_HANDLERS: u32 = 16;
    let default = Uffd::default();
    let limit = match &text.limit {
        Some(at) if at.get_ref().0.0 == 0 => return Err(fault(at, Problem::Zero { key: "limit" })),
        Some(at) => at.get_ref().0.0,
        None => default.limit,
    };
    let handlers = match &text.handlers {
        Some(at) if !(1..=MOST_HANDLERS).contains(at.get_ref()) => {
            return Err(fault(at, Problem::Handlers(*at.get_ref())));
        }
        at => at.as_ref().map(|at| *at.get_ref()),
    };
    Ok(Uffd {
        store: text.store.map_or(default.store, |Word(store)| store),
        limit,
        fault_around: text.fault_around.map_or(default.fault_around, |Word(around)| around),
        handlers,
        events: text.events,
    })
}
