//! `<linux/userfaultfd.h>` as of Linux 6.12: numbers, layouts and bits.
//!
//! The structures and what is a plain number are those of `linux-raw-sys`. The rest of the header is macros: each request
//! is built as the header builds it and then compared with the literal value that a C compiler gives, so that a wrong value
//! does not compile.

use std::mem::offset_of;

use linux_raw_sys::general;
// Both the structure of `UFFDIO_COPY` and that of `UFFDIO_MOVE`; its last member, like that of the one for
// `UFFDIO_ZEROPAGE`, is written by the kernel: bytes, or a negative errno, or nothing at all where the arguments were
// refused.
pub(crate) use linux_raw_sys::general::{
    uffd_msg, uffdio_api as UffdioApi, uffdio_copy as UffdioCopy, uffdio_range as UffdioRange,
    uffdio_register as UffdioRegister, uffdio_writeprotect as UffdioWriteprotect,
    uffdio_zeropage as UffdioFill,
};

/// The only version of the protocol there is.
pub(crate) const UFFD_API: u64 = general::UFFD_API as u64;
/// Flag of the system call: faults from user mode alone, which a guest's never are.
pub(crate) const UFFD_USER_MODE_ONLY: i32 = general::UFFD_USER_MODE_ONLY as i32;

const NONE: u64 = 0;
const READ: u64 = 2;
const READ_WRITE: u64 = 3;

/// `_IOC` of `<asm-generic/ioctl.h>`, of the type that is userfaultfd's.
const fn ioc(direction: u64, nr: u8, size: usize) -> u64 {
    (direction << 30) | ((size as u64) << 16) | ((general::UFFDIO as u64) << 8) | nr as u64
}

pub(crate) const USERFAULTFD_IOC_NEW: u64 = ioc(NONE, 0x00, 0);
pub(crate) const UFFDIO_API: u64 = ioc(READ_WRITE, general::_UFFDIO_API as u8, size_of::<UffdioApi>());
pub(crate) const UFFDIO_REGISTER: u64 = ioc(READ_WRITE, NR_REGISTER, size_of::<UffdioRegister>());
// The kernel reads these two, but the header has always said `_IOR`.
pub(crate) const UFFDIO_UNREGISTER: u64 = ioc(READ, NR_UNREGISTER, size_of::<UffdioRange>());
pub(crate) const UFFDIO_WAKE: u64 = ioc(READ, NR_WAKE, size_of::<UffdioRange>());
pub(crate) const UFFDIO_COPY: u64 = ioc(READ_WRITE, NR_COPY, size_of::<UffdioCopy>());
pub(crate) const UFFDIO_ZEROPAGE: u64 = ioc(READ_WRITE, NR_ZEROPAGE, size_of::<UffdioFill>());
pub(crate) const UFFDIO_MOVE: u64 = ioc(READ_WRITE, NR_MOVE, size_of::<UffdioCopy>());
pub(crate) const UFFDIO_WRITEPROTECT: u64 = ioc(READ_WRITE, NR_WRITEPROTECT, size_of::<UffdioWriteprotect>());
pub(crate) const UFFDIO_CONTINUE: u64 = ioc(READ_WRITE, NR_CONTINUE, size_of::<UffdioFill>());

// `_UFFDIO_*`.
const NR_REGISTER: u8 = general::_UFFDIO_REGISTER as u8;
const NR_UNREGISTER: u8 = general::_UFFDIO_UNREGISTER as u8;
const NR_WAKE: u8 = general::_UFFDIO_WAKE as u8;
const NR_COPY: u8 = general::_UFFDIO_COPY as u8;
const NR_ZEROPAGE: u8 = general::_UFFDIO_ZEROPAGE as u8;
const NR_MOVE: u8 = general::_UFFDIO_MOVE as u8;
const NR_WRITEPROTECT: u8 = general::_UFFDIO_WRITEPROTECT as u8;
const NR_CONTINUE: u8 = general::_UFFDIO_CONTINUE as u8;

pub(crate) const UFFDIO_REGISTER_MODE_MISSING: u64 = general::UFFDIO_REGISTER_MODE_MISSING as u64;
pub(crate) const UFFDIO_REGISTER_MODE_WP: u64 = general::UFFDIO_REGISTER_MODE_WP as u64;
pub(crate) const UFFDIO_REGISTER_MODE_MINOR: u64 = general::UFFDIO_REGISTER_MODE_MINOR as u64;

/// `UFFDIO_{COPY,ZEROPAGE,CONTINUE,MOVE}_MODE_DONTWAKE`, all the same bit.
pub(crate) const UFFDIO_MODE_DONTWAKE: u64 = 1 << 0;
/// `UFFDIO_{COPY,CONTINUE}_MODE_WP`, both the same bit.
pub(crate) const UFFDIO_MODE_WP: u64 = 1 << 1;
pub(crate) const UFFDIO_WRITEPROTECT_MODE_WP: u64 = 1 << 0;
pub(crate) const UFFDIO_WRITEPROTECT_MODE_DONTWAKE: u64 = 1 << 1;

/// Bytes of `struct uffd_msg`.
pub(crate) const MESSAGE: usize = size_of::<uffd_msg>();

pub(crate) const UFFD_EVENT_PAGEFAULT: u8 = general::UFFD_EVENT_PAGEFAULT as u8;
pub(crate) const UFFD_EVENT_REMAP: u8 = general::UFFD_EVENT_REMAP as u8;
pub(crate) const UFFD_EVENT_REMOVE: u8 = general::UFFD_EVENT_REMOVE as u8;
pub(crate) const UFFD_EVENT_UNMAP: u8 = general::UFFD_EVENT_UNMAP as u8;

pub(crate) const UFFD_PAGEFAULT_FLAG_WRITE: u64 = general::UFFD_PAGEFAULT_FLAG_WRITE as u64;
pub(crate) const UFFD_PAGEFAULT_FLAG_WP: u64 = general::UFFD_PAGEFAULT_FLAG_WP as u64;
pub(crate) const UFFD_PAGEFAULT_FLAG_MINOR: u64 = general::UFFD_PAGEFAULT_FLAG_MINOR as u64;

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

/// The values of a C compiler for the kernel's header.
mod asserted {
    use super::*;

    const _: () = assert!(USERFAULTFD_IOC_NEW == 0xaa00);
    const _: () = assert!(UFFDIO_API == 0xc018_aa3f);
    const _: () = assert!(UFFDIO_REGISTER == 0xc020_aa00);
    const _: () = assert!(UFFDIO_UNREGISTER == 0x8010_aa01);
    const _: () = assert!(UFFDIO_WAKE == 0x8010_aa02);
    const _: () = assert!(UFFDIO_COPY == 0xc028_aa03);
    const _: () = assert!(UFFDIO_ZEROPAGE == 0xc020_aa04);
    const _: () = assert!(UFFDIO_MOVE == 0xc028_aa05);
    const _: () = assert!(UFFDIO_WRITEPROTECT == 0xc018_aa06);
    const _: () = assert!(UFFDIO_CONTINUE == 0xc020_aa07);

    // One structure stands for several requests: they are laid out the same.
    const _: () = assert!(size_of::<UffdioCopy>() == size_of::<general::uffdio_move>());
    const _: () = assert!(offset_of!(UffdioCopy, dst) == offset_of!(general::uffdio_move, dst));
    const _: () = assert!(offset_of!(UffdioCopy, src) == offset_of!(general::uffdio_move, src));
    const _: () = assert!(offset_of!(UffdioCopy, len) == offset_of!(general::uffdio_move, len));
    const _: () = assert!(offset_of!(UffdioCopy, mode) == offset_of!(general::uffdio_move, mode));
    const _: () = assert!(offset_of!(UffdioCopy, copy) == offset_of!(general::uffdio_move, move_));

    const _: () = assert!(size_of::<UffdioFill>() == size_of::<general::uffdio_continue>());
    const _: () = assert!(offset_of!(UffdioFill, mode) == offset_of!(general::uffdio_continue, mode));
    const _: () = assert!(offset_of!(UffdioFill, zeropage) == offset_of!(general::uffdio_continue, mapped));

    const _: () = assert!(MESSAGE == 32);
    const _: () = assert!(AT_EVENT == 0);
    const _: () = assert!(AT_PAGEFAULT_FLAGS == 8 && AT_PAGEFAULT_ADDRESS == 16 && AT_PAGEFAULT_PTID == 24);
    const _: () = assert!(AT_REMAP_FROM == 8 && AT_REMAP_TO == 16 && AT_REMAP_LEN == 24);
    const _: () = assert!(AT_REMOVE_START == 8 && AT_REMOVE_END == 16);
}
