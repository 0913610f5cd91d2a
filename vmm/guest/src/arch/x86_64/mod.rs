//! x86-64.

pub mod elf;
pub mod ports;
mod registers;

pub(crate) use registers::Exception;
pub use registers::Registers;
