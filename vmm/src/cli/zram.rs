//! A zram swap device for the length of a run.

use guest_mem::{ZramError, swap_on_device};

use crate::host::{ChangeError, HostChanges};

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

/// Adds a device to the host's changes, by which it goes again, and makes it swap of `bytes`.
///
/// # Errors
/// [`ZramSetupError`]. What was made by then is undone with the other changes.
pub fn add(changes: &mut HostChanges, bytes: u64) -> Result<(), ZramSetupError> {
    let device = changes.add_zram("swap for this run")?;
    Ok(swap_on_device(device.number, bytes, None)?)
}
