//! The stand-in mmu_notifier chain: invalidations, range policies, listeners, the sequence protocol, the ledger.
