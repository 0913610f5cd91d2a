//! A zram swap device for the length of a run.

use guest_mem::{ZramError, check_swap_size, swap_on_device};

use host::{Capability, ChangeError, HostChanges, Rights};
use program::exit::{Class, Classified};
use program::output;

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

/// Adds a device to the host's changes, by which it goes again, and makes it swap of `bytes`. Without the right to swap it
/// says so and the run goes on: what needs swap then says why it could not run, and the rest runs.
///
/// # Errors
/// [`ZramSetupError`]: a size that is none, or the right and yet no device. What was made by then is undone.
pub fn add_if_allowed(changes: &HostChanges, bytes: u64) -> Result<(), ZramSetupError> {
    check_swap_size(bytes)?;
    // Making the device takes less: root of a user namespace would be left with one that it cannot swap to.
    if let Some(lacking) = Rights::read().lacks(Capability::SysAdmin) {
        output::message(format_args!("--zram: {lacking}; going on without a swap device of our own"));
        return Ok(());
    }
    let device = changes.add_zram("swap for this run")?;
    swap_on_device(device.number, bytes).map_err(|error| {
        // What cannot be undone is said there, and tried again at the end.
        let _ = changes.undo(device.change);
        error.into()
    })
}
