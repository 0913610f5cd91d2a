//! The chain of listeners: each call goes to every listener of its kind, in order of registration.
//!
//! If a listener panics, the brackets of the others are closed: see [`OnDrop`].

use std::sync::Arc;

use guest_mem::HvaRange;

use crate::listener::{ShadowingMmu, SharingMmu, Zapped};

/// Every listener of a bridge.
#[derive(Default)]
pub(crate) struct Chain {
    pub(crate) shadowing: Vec<Arc<dyn ShadowingMmu>>,
    pub(crate) sharing: Vec<Arc<dyn SharingMmu>>,
}

impl Chain {
    /// Starts a bracket at every shadowing listener, and adds what they drop to `zapped`. Its other half is
    /// [`Chain::end`].
    pub(crate) fn start(&self, range: HvaRange, zapped: &mut Zapped) {
        start_each(&self.shadowing, range, zapped);
    }

    /// Ends a bracket at every shadowing listener. Its other half is [`Chain::start`].
    pub(crate) fn end(&self, range: HvaRange) {
        end_each(&self.shadowing, range);
    }

    /// Tells every listener of one page whose mapping has changed: `invalidate_page`, up to 4.12.
    pub(crate) fn page(&self, page: HvaRange) -> Zapped {
        let mut zapped = Zapped::NOTHING;
        for listener in &self.shadowing {
            zapped += listener.invalidate_page(page);
        }
        self.flush(page);
        zapped
    }

    /// Tells every sharing listener.
    pub(crate) fn flush(&self, range: HvaRange) {
        for listener in &self.sharing {
            listener.invalidate_secondary_tlbs(range);
        }
    }
}

/// Starts the first of `listeners`, then the rest. If one of the rest panics, the first is ended on the way back, so no
/// list of started listeners needs to be kept.
fn start_each(listeners: &[Arc<dyn ShadowingMmu>], range: HvaRange, zapped: &mut Zapped) {
    let Some((listener, rest)) = listeners.split_first() else { return };
    *zapped += listener.invalidate_range_start(range);
    let undo = OnDrop(Some(|| listener.invalidate_range_end(range)));
    start_each(rest, range, zapped);
    undo.keep();
}

/// Ends the first of `listeners`, then the rest, even if the first panics.
fn end_each(listeners: &[Arc<dyn ShadowingMmu>], range: HvaRange) {
    let Some((listener, rest)) = listeners.split_first() else {
        return;
    };
    let _then = OnDrop(Some(|| end_each(rest, range)));
    listener.invalidate_range_end(range);
}

/// Runs its function on every way out of the scope, a panic included, unless told to [`keep`](Self::keep).
struct OnDrop<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> OnDrop<F> {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl<F: FnOnce()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        if let Some(run) = self.0.take() {
            run();
        }
    }
}
