//! `<linux/userfaultfd.h>` as of Linux 6.12: numbers, layouts and bits.
//!
//! Structures and numbers are those of `linux-raw-sys`, as a C compiler gives them. What it lacks is built as the
//! header builds it and then compared with the literal value, so that a wrong value does not compile.

use std::mem::offset_of;

use linux_raw_sys::general;
// The last member of the structures that fill pages is written by the kernel: bytes, or a negative errno, or nothing at
// all where the arguments were refused.
pub(crate) use linux_raw_sys::general::{
    UFFD_EVENT_PAGEFAULT, UFFD_EVENT_REMAP, UFFD_EVENT_REMOVE, UFFD_EVENT_UNMAP, UFFD_PAGEFAULT_FLAG_MINOR,
    UFFD_PAGEFAULT_FLAG_WP, UFFD_PAGEFAULT_FLAG_WRITE, UFFDIO_REGISTER_MODE_MINOR,
    UFFDIO_REGISTER_MODE_MISSING, UFFDIO_REGISTER_MODE_WP, uffd_msg, uffdio_api as UffdioApi,
    uffdio_continue as UffdioContinue, uffdio_copy as UffdioCopy, uffdio_move as UffdioMove,
    uffdio_range as UffdioRange, uffdio_register as UffdioRegister,
    uffdio_writeprotect as UffdioWriteprotect, uffdio_zeropage as UffdioZeropage,
};
pub(crate) use linux_raw_sys::ioctl::{
    UFFDIO_API, UFFDIO_CONTINUE, UFFDIO_COPY, UFFDIO_REGISTER, UFFDIO_UNREGISTER, UFFDIO_WAKE,
    UFFDIO_WRITEPROTECT, UFFDIO_ZEROPAGE,
};
use rustix::ioctl::{Opcode, opcode};
use rustix::mm::UserfaultfdFlags;

/// The only version of the protocol there is.
pub(crate) const UFFD_API: u64 = general::UFFD_API as u64;
/// Flag of the system call: faults from user mode alone, which a guest's never are.
pub(crate) const UFFD_USER_MODE_ONLY: UserfaultfdFlags =
    UserfaultfdFlags::from_bits_retain(general::UFFD_USER_MODE_ONLY);

pub(crate) const USERFAULTFD_IOC_NEW: Opcode = opcode::none(general::UFFDIO as u8, 0x00);
pub(crate) const UFFDIO_MOVE: Opcode =
    opcode::read_write::<UffdioMove>(general::UFFDIO as u8, general::_UFFDIO_MOVE as u8);
const _: () = assert!(USERFAULTFD_IOC_NEW == 0xaa00 && UFFDIO_MOVE == 0xc028_aa05);

/// `UFFDIO_{COPY,ZEROPAGE,CONTINUE,MOVE}_MODE_DONTWAKE`, all the same bit.
pub(crate) const UFFDIO_MODE_DONTWAKE: u64 = 1 << 0;
/// `UFFDIO_{COPY,CONTINUE}_MODE_WP`, both the same bit.
pub(crate) const UFFDIO_MODE_WP: u64 = 1 << 1;
pub(crate) const UFFDIO_WRITEPROTECT_MODE_WP: u64 = 1 << 0;
pub(crate) const UFFDIO_WRITEPROTECT_MODE_DONTWAKE: u64 = 1 << 1;

/// Bytes of `struct uffd_msg`.
pub(crate) const MESSAGE: usize = size_of::<uffd_msg>();

// Where the members of a message lie.
pub(crate) const AT_EVENT: usize = offset_of!(uffd_msg, event);
pub(crate) const AT_PAGEFAULT_FLAGS: usize = offset_of!(uffd_msg, arg.pagefault.flags);
pub(crate) const AT_PAGEFAULT_ADDRESS: usize = offset_of!(uffd_msg, arg.pagefault.address);
pub(crate) const AT_PAGEFAULT_PTID: usize = offset_of!(uffd_msg, arg.pagefault.feat.ptid);
pub(crate) const AT_REMAP_FROM: usize = offset_of!(uffd_msg, arg.remap.from);
pub(crate) const AT_REMAP_TO: usize = offset_of!(uffd_msg, arg.remap.to);
pub(crate) const AT_REMAP_LEN: usize = offset_of!(uffd_msg, arg.remap.len);
pub(crate) const AT_REMOVE_START: usize = offset_of!(uffd_msg, arg.remove.start);
pub(crate) const AT_REMOVE_END: usize = offset_of!(uffd_msg, arg.remove.end);
