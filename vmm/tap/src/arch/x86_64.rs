//! x86-64.

/// The operation code and the immediate operand of the BPF instruction that stores 64 bits behind all earlier stores, and may
/// change its source register: here a plain store, since stores are in order.
pub(crate) const STORE_RELEASE: (u8, i32) = (0x7b, 0);
