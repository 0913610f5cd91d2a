//! What the devices' tests share: an honest driver, and a hostile one.

pub(super) mod driver;
pub(super) mod hostile;

pub(super) use driver::{Descriptor, Driver, memory, readable, writable};
