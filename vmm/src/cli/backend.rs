//! Choosing who accesses the memory, and saying so.

use kvm_ioctls::Kvm;

use super::args::BackendChoice;
use crate::exit::{Class, Classified};
use crate::run::Backend;

/// KVM was asked for and cannot be had.
#[derive(Debug, thiserror::Error)]
#[error(
    "/dev/kvm cannot be opened: load a KVM module, join the group that owns the file, or use `--backend soft`"
)]
pub struct NoKvm(#[source] kvm_ioctls::Error);

impl Classified for NoKvm {
    fn class(&self) -> Class {
        Class::Host
    }
}

/// The backend, and a sentence about the choice where one is due.
///
/// # Errors
/// [`NoKvm`] if KVM was asked for by name.
pub fn choose(choice: BackendChoice) -> Result<(Backend, Option<String>), NoKvm> {
    match (choice, Kvm::new()) {
        (BackendChoice::Soft, _) => Ok((Backend::Soft, Some(plain("asked for by --backend soft")))),
        (_, Ok(kvm)) => Ok((Backend::Kvm(kvm), None)),
        (BackendChoice::Kvm, Err(error)) => Err(NoKvm(error)),
        (BackendChoice::Auto, Err(error)) => {
            Ok((Backend::Soft, Some(plain(&format!("/dev/kvm cannot be opened: {error}")))))
        }
    }
}

fn plain(why: &str) -> String {
    format!("no guest runs ({why}): worker threads access the memory through the software MMU")
}
