//! The chain of listeners: one call in, every listener of the right kind told, in order of registration.
//!
//! The rules of a start that cannot wait are those of `mn_hlist_invalidate_range_start` in
//! `mm/mmu_notifier.c`: every listener is told **even after one refused**, the refusal is remembered, and
//! then those whose start succeeded get their end. A listener whose start failed gets none ("a start that
//! does EAGAIN can't also do end"). The kernel enforces the last rule by forbidding a listener that has an
//! end to fail; here the chain remembers who succeeded, and a listener may have both.
//!
//! Whoever panics, the others' brackets close: see [`OnDrop`].

use std::sync::Arc;

use guest_mem::HvaRange;

use crate::listener::{ShadowingMmu, SharingMmu, StartContext, WouldBlock, Zapped};

/// Every listener of a bridge.
#[derive(Default)]
pub(crate) struct Chain {
    pub(crate) shadowing: Vec<Arc<dyn ShadowingMmu>>,
    pub(crate) sharing: Vec<Arc<dyn SharingMmu>>,
}

impl Chain {
    /// Starts a bracket at every shadowing listener. Its other half is [`Chain::end`], unless it failed: then
    /// nothing is left open, and `zapped` still holds what was dropped on the way.
    pub(crate) fn start(
        &self,
        range: HvaRange,
        context: &StartContext,
        zapped: &mut Zapped,
    ) -> Result<(), WouldBlock> {
        start_each(&self.shadowing, range, context, zapped, Ok(()))
    }

    /// Ends a bracket at every shadowing listener. Its other half is [`Chain::start`].
    pub(crate) fn end(&self, range: HvaRange) {
        end_each(&self.shadowing, range);
    }

    /// Tells every listener of one page whose mapping has changed: `invalidate_page`, up to 4.12.
    pub(crate) fn page(&self, page: HvaRange, context: &StartContext) -> Zapped {
        let mut zapped = Zapped::NOTHING;
        for listener in &self.shadowing {
            zapped += listener.invalidate_page(page, context);
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

/// Starts the first of `listeners`, then the rest. On the way back each one that succeeded is ended if
/// anybody refused or panicked, so no list of who succeeded needs to be kept.
fn start_each(
    listeners: &[Arc<dyn ShadowingMmu>],
    range: HvaRange,
    context: &StartContext,
    zapped: &mut Zapped,
    so_far: Result<(), WouldBlock>,
) -> Result<(), WouldBlock> {
    let Some((listener, rest)) = listeners.split_first() else {
        return so_far;
    };
    let own = listener.invalidate_range_start(range, context);
    debug_assert!(own.is_ok() || !context.blockable, "a listener that may wait does not refuse");
    let undo = own.is_ok().then(|| OnDrop(Some(|| listener.invalidate_range_end(range))));
    if let Ok(dropped) = own {
        *zapped += dropped;
    }
    start_each(rest, range, context, zapped, so_far.and(own.map(drop)))?;
    if let Some(undo) = undo {
        undo.keep();
    }
    Ok(())
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
