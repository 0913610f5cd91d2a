//! A zram swap device for the length of a run.

use guest_mem::{ZramError, check_swap_size, swap_on_device};

use crate::exit::{Class, Classified};
use crate::host::{ChangeError, HostChanges};
use crate::output;

/// The device could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ZramSetupError {
    /// The kernel gives none.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// It could not be made a swap device.
    #[error(transparent)]
    Zram(#[from] ZramError),
}

impl Classified for ZramSetupError {
    fn class(&self) -> Class {
        match self {
            Self::Change(error) => error.class(),
            Self::Zram(error) => error.class(),
        }
    }
}

/// Adds a device to the host's changes, by which it goes again, and makes it swap of `bytes`. Without root it says
/// so and the run goes on: what needs swap then says why it could not run, and the rest runs.
///
/// # Errors
/// [`ZramSetupError`]: a size that is none, or root and yet no device. What was made by then is undone with the
/// other changes.
pub fn add_if_allowed(changes: &mut HostChanges, bytes: u64) -> Result<(), ZramSetupError> {
    check_swap_size(bytes)?;
    if !rustix::process::geteuid().is_root() {
        output::message("--zram needs root: going on without a swap device of our own");
        return Ok(());
    }
    let device = changes.add_zram("swap for this run")?;
    Ok(swap_on_device(device.number, bytes, None)?)
}
