//! The choice of the backend, which accesses the memory.

use super::args::BackendChoice;
use guest_mem::with_causes;
use lab::Backend;
use machine::{Kvm, NoKvm};
use program::exit::{Class, Classified};

/// KVM was asked for and cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("no guest runs here (`--backend soft` has worker threads access the memory)")]
pub struct NoGuest(#[source] NoKvm);

impl Classified for NoGuest {
    fn class(&self) -> Class {
        self.0.class()
    }
}

/// The backend, and a message if it is the software MMU.
///
/// # Errors
/// [`NoGuest`] if KVM was asked for.
pub fn choose(choice: BackendChoice) -> Result<(Backend, Option<String>), NoGuest> {
    let soft = |why: &str| {
        let what = "worker threads access the memory through the software MMU";
        Ok((Backend::Soft, Some(format!("no guest runs ({why}): {what}"))))
    };
    if choice == BackendChoice::Soft {
        return soft("asked for by --backend soft");
    }
    match (choice, Kvm::open()) {
        (_, Ok(kvm)) => Ok((Backend::Kvm(kvm), None)),
        (BackendChoice::Auto, Err(error)) => soft(&with_causes(&error)),
        (_, Err(error)) => Err(NoGuest(error)),
    }
}
