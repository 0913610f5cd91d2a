//! A zram swap device for the length of a run.

use guest_mem::{check_swap_size, swap_on_device};

use host::{Capability, HostChanges, Rights};
use program::exit::Failure;
use program::output;

/// Makes a swap device of `bytes`, as a change to the host. Without the capability it prints a message and the run goes on:
/// rows that need swap then report why they could not run.
///
/// # Errors
/// A wrong size, or no device. The device is removed then.
pub fn add_if_allowed(changes: &HostChanges, bytes: u64) -> Result<(), Failure> {
    check_swap_size(bytes)?;
    // Making the device needs less: root of a user namespace would have a device that it cannot swap to.
    if let Some(lacking) = Rights::read().lacks(Capability::SysAdmin) {
        output::message(format_args!("--zram: {lacking}; going on without a swap device of our own"));
        return Ok(());
    }
    let device = changes.add_zram("swap for this run")?;
    swap_on_device(device.number, bytes).map_err(|error| {
        // A failure is reported, and the undo is tried again at the end.
        let _ = changes.undo(device.change);
        error.into()
    })
}
