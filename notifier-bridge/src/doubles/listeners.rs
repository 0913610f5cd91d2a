//! Listeners that write down what they are told, and one that panics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use guest_mem::HvaRange;

use crate::listener::{Listener, Shadowing, ShadowingMmu, Sharing, SharingMmu, Zapped};

/// An entry of a journal, with the listener's name, since listeners can share a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Start(&'static str, HvaRange),
    End(&'static str, HvaRange),
    Page(&'static str, HvaRange),
    Flush(&'static str, HvaRange),
    Operation,
}

/// The entries of all listeners that share it, in order.
#[derive(Clone, Default)]
pub(crate) struct Journal(Arc<Mutex<Vec<Told>>>);

impl Journal {
    pub(crate) fn write(&self, told: Told) {
        self.0.lock().unwrap().push(told);
    }
    /// The entries since the last call.
    pub(crate) fn take(&self) -> Vec<Told> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
    pub(crate) fn shadowing(&self, name: &'static str) -> Recording<Shadowing> {
        Recording { name, journal: self.clone(), kind: std::marker::PhantomData }
    }
    pub(crate) fn sharing(&self, name: &'static str) -> Arc<Recording<Sharing>> {
        Arc::new(Recording { name, journal: self.clone(), kind: std::marker::PhantomData })
    }
}

/// Writes down what it is told. Claims to have dropped one slot and as many bytes as it was told.
pub(crate) struct Recording<K> {
    name: &'static str,
    journal: Journal,
    kind: std::marker::PhantomData<fn() -> K>,
}

impl<K: crate::listener::ListenerKind> Listener for Recording<K> {
    type Kind = K;
}

impl ShadowingMmu for Recording<Shadowing> {
    fn invalidate_range_start(&self, range: HvaRange) -> Zapped {
        self.journal.write(Told::Start(self.name, range));
        Zapped { slots: 1, bytes: range.len(), ..Zapped::NOTHING }
    }
    fn invalidate_range_end(&self, range: HvaRange) {
        self.journal.write(Told::End(self.name, range));
    }
    fn invalidate_page(&self, page: HvaRange) -> Zapped {
        self.journal.write(Told::Page(self.name, page));
        Zapped { slots: 1, bytes: page.len(), ..Zapped::NOTHING }
    }
}

impl SharingMmu for Recording<Sharing> {
    fn invalidate_secondary_tlbs(&self, range: HvaRange) {
        self.journal.write(Told::Flush(self.name, range));
    }
}

/// Decorates a real listener: its start number `panics_at`, from 0, panics.
pub(crate) struct PanicsOnce<L> {
    inner: L,
    panics_at: u64,
    starts: AtomicU64,
}

impl<L> PanicsOnce<L> {
    pub(crate) fn new(inner: L, panics_at: u64) -> Self {
        Self { inner, panics_at, starts: AtomicU64::new(0) }
    }
}

impl<L: ShadowingMmu> Listener for PanicsOnce<L> {
    type Kind = Shadowing;
}

impl<L: ShadowingMmu> ShadowingMmu for PanicsOnce<L> {
    fn invalidate_range_start(&self, range: HvaRange) -> Zapped {
        assert_ne!(self.starts.fetch_add(1, Ordering::Relaxed), self.panics_at, "injected");
        self.inner.invalidate_range_start(range)
    }
    fn invalidate_range_end(&self, range: HvaRange) {
        self.inner.invalidate_range_end(range);
    }
}
