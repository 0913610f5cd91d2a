//! x86-64.

mod acpi;
mod bzimage;
#[cfg(any(test, feature = "fixture"))]
pub mod fixture;
pub mod image;
pub mod layout;
pub mod load;
mod long_mode;
pub mod memory_map;
pub mod payload;
mod registers;
mod reset_vector;
pub mod start_info;
#[cfg(test)]
mod testing;
mod vmlinux;
mod zero_page;

/// The beginning of every command line: the console is the serial port, and a panic resets at once.
pub const COMMAND_LINE: &str = "console=ttyS0 panic=-1";

pub use image::{Kernel, Refusal};
pub use load::{Boot, BootFile, LoadError, Start, load};
pub use registers::{RegistersError, set_registers};
