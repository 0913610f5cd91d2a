//! x86-64.

mod counter;
pub mod elf;
pub mod ports;
mod registers;

pub use counter::tsc;
pub(crate) use registers::Exception;
pub use registers::Registers;
