//! `<linux/userfaultfd.h>` as of Linux 6.12, by hand: numbers, layouts and bits, and nothing that decides.
//!
//! The crates that carry these bindings stop at the features of older kernels (no MOVE, no POISON). Each number
//! is built as the header builds it and then compared with the literal value a C compiler gives, each layout
//! offset by offset, so that a slip here does not compile.

use std::mem::offset_of;

/// The only version of the protocol there is.
pub(crate) const UFFD_API: u64 = 0xaa;
/// Flag of the system call: faults from user mode alone, which a guest's never are.
pub(crate) const UFFD_USER_MODE_ONLY: i32 = 1;

/// `struct uffdio_api`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct UffdioApi {
    pub(crate) api: u64,
    pub(crate) features: u64,
    pub(crate) ioctls: u64,
}

/// `struct uffdio_range`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct UffdioRange {
    pub(crate) start: u64,
    pub(crate) len: u64,
}

/// `struct uffdio_register`. `ioctls` is written by the kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct UffdioRegister {
    pub(crate) range: UffdioRange,
    pub(crate) mode: u64,
    pub(crate) ioctls: u64,
}

/// `struct uffdio_copy`, and `struct uffdio_move`, which is laid out the same. `done` is written by the kernel:
/// bytes, or a negative errno, or nothing at all where the arguments were refused.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct UffdioCopy {
    pub(crate) dst: u64,
    pub(crate) src: u64,
    pub(crate) len: u64,
    pub(crate) mode: u64,
    pub(crate) done: i64,
}

/// `struct uffdio_zeropage`, and `struct uffdio_continue` and `struct uffdio_poison`, which are laid out the
/// same. `done` as in [`UffdioCopy`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct UffdioFill {
    pub(crate) range: UffdioRange,
    pub(crate) mode: u64,
    pub(crate) done: i64,
}

/// `struct uffdio_writeprotect`: the one that resolves faults and has no count.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct UffdioWriteprotect {
    pub(crate) range: UffdioRange,
    pub(crate) mode: u64,
}

const NONE: u64 = 0;
const READ: u64 = 2;
const READ_WRITE: u64 = 3;

/// `_IOC` of `<asm-generic/ioctl.h>`, of type 0xAA.
const fn ioc(direction: u64, nr: u8, size: usize) -> u64 {
    (direction << 30) | ((size as u64) << 16) | (0xaa << 8) | nr as u64
}

pub(crate) const USERFAULTFD_IOC_NEW: u64 = ioc(NONE, 0x00, 0);
pub(crate) const UFFDIO_API: u64 = ioc(READ_WRITE, 0x3f, size_of::<UffdioApi>());
pub(crate) const UFFDIO_REGISTER: u64 = ioc(READ_WRITE, NR_REGISTER, size_of::<UffdioRegister>());
// The kernel reads these two, but the header has always said `_IOR`.
pub(crate) const UFFDIO_UNREGISTER: u64 = ioc(READ, NR_UNREGISTER, size_of::<UffdioRange>());
pub(crate) const UFFDIO_WAKE: u64 = ioc(READ, NR_WAKE, size_of::<UffdioRange>());
pub(crate) const UFFDIO_COPY: u64 = ioc(READ_WRITE, NR_COPY, size_of::<UffdioCopy>());
pub(crate) const UFFDIO_ZEROPAGE: u64 = ioc(READ_WRITE, NR_ZEROPAGE, size_of::<UffdioFill>());
pub(crate) const UFFDIO_MOVE: u64 = ioc(READ_WRITE, NR_MOVE, size_of::<UffdioCopy>());
pub(crate) const UFFDIO_WRITEPROTECT: u64 = ioc(READ_WRITE, NR_WRITEPROTECT, size_of::<UffdioWriteprotect>());
pub(crate) const UFFDIO_CONTINUE: u64 = ioc(READ_WRITE, NR_CONTINUE, size_of::<UffdioFill>());
pub(crate) const UFFDIO_POISON: u64 = ioc(READ_WRITE, NR_POISON, size_of::<UffdioFill>());

// `_UFFDIO_*`: numbers, and bits of the masks of ioctls that `UFFDIO_API` and `UFFDIO_REGISTER` answer with.
pub(crate) const NR_REGISTER: u8 = 0x00;
pub(crate) const NR_UNREGISTER: u8 = 0x01;
pub(crate) const NR_WAKE: u8 = 0x02;
pub(crate) const NR_COPY: u8 = 0x03;
pub(crate) const NR_ZEROPAGE: u8 = 0x04;
pub(crate) const NR_MOVE: u8 = 0x05;
pub(crate) const NR_WRITEPROTECT: u8 = 0x06;
pub(crate) const NR_CONTINUE: u8 = 0x07;
pub(crate) const NR_POISON: u8 = 0x08;

pub(crate) const UFFDIO_REGISTER_MODE_MISSING: u64 = 1 << 0;
pub(crate) const UFFDIO_REGISTER_MODE_WP: u64 = 1 << 1;
pub(crate) const UFFDIO_REGISTER_MODE_MINOR: u64 = 1 << 2;

/// `UFFDIO_{COPY,ZEROPAGE,CONTINUE,POISON,MOVE}_MODE_DONTWAKE`, all the same bit.
pub(crate) const UFFDIO_MODE_DONTWAKE: u64 = 1 << 0;
/// `UFFDIO_{COPY,CONTINUE}_MODE_WP`, both the same bit.
pub(crate) const UFFDIO_MODE_WP: u64 = 1 << 1;
pub(crate) const UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES: u64 = 1 << 1;
pub(crate) const UFFDIO_WRITEPROTECT_MODE_WP: u64 = 1 << 0;
pub(crate) const UFFDIO_WRITEPROTECT_MODE_DONTWAKE: u64 = 1 << 1;

/// Bytes of `struct uffd_msg`.
pub(crate) const MESSAGE: usize = 32;

pub(crate) const UFFD_EVENT_PAGEFAULT: u8 = 0x12;
pub(crate) const UFFD_EVENT_FORK: u8 = 0x13;
pub(crate) const UFFD_EVENT_REMAP: u8 = 0x14;
pub(crate) const UFFD_EVENT_REMOVE: u8 = 0x15;
pub(crate) const UFFD_EVENT_UNMAP: u8 = 0x16;

pub(crate) const UFFD_PAGEFAULT_FLAG_WRITE: u64 = 1 << 0;
pub(crate) const UFFD_PAGEFAULT_FLAG_WP: u64 = 1 << 1;
pub(crate) const UFFD_PAGEFAULT_FLAG_MINOR: u64 = 1 << 2;

// Where a message's members lie. The structure is packed and its union aligned by hand: 8 bytes of header, then
// the argument.
pub(crate) const AT_EVENT: usize = 0;
pub(crate) const AT_PAGEFAULT_FLAGS: usize = 8;
pub(crate) const AT_PAGEFAULT_ADDRESS: usize = 16;
pub(crate) const AT_PAGEFAULT_PTID: usize = 24;
pub(crate) const AT_FORK_UFD: usize = 8;
pub(crate) const AT_REMAP_FROM: usize = 8;
pub(crate) const AT_REMAP_TO: usize = 16;
pub(crate) const AT_REMAP_LEN: usize = 24;
pub(crate) const AT_REMOVE_START: usize = 8;
pub(crate) const AT_REMOVE_END: usize = 16;

/// What the C compiler says of the kernel's header.
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
    const _: () = assert!(UFFDIO_POISON == 0xc020_aa08);

    const _: () = assert!(size_of::<UffdioApi>() == 24);
    const _: () = assert!(offset_of!(UffdioApi, api) == 0);
    const _: () = assert!(offset_of!(UffdioApi, features) == 8);
    const _: () = assert!(offset_of!(UffdioApi, ioctls) == 16);

    const _: () = assert!(size_of::<UffdioRange>() == 16);
    const _: () = assert!(offset_of!(UffdioRange, start) == 0);
    const _: () = assert!(offset_of!(UffdioRange, len) == 8);

    const _: () = assert!(size_of::<UffdioRegister>() == 32);
    const _: () = assert!(offset_of!(UffdioRegister, range) == 0);
    const _: () = assert!(offset_of!(UffdioRegister, mode) == 16);
    const _: () = assert!(offset_of!(UffdioRegister, ioctls) == 24);

    const _: () = assert!(size_of::<UffdioCopy>() == 40);
    const _: () = assert!(offset_of!(UffdioCopy, dst) == 0);
    const _: () = assert!(offset_of!(UffdioCopy, src) == 8);
    const _: () = assert!(offset_of!(UffdioCopy, len) == 16);
    const _: () = assert!(offset_of!(UffdioCopy, mode) == 24);
    const _: () = assert!(offset_of!(UffdioCopy, done) == 32);

    const _: () = assert!(size_of::<UffdioFill>() == 32);
    const _: () = assert!(offset_of!(UffdioFill, range) == 0);
    const _: () = assert!(offset_of!(UffdioFill, mode) == 16);
    const _: () = assert!(offset_of!(UffdioFill, done) == 24);

    const _: () = assert!(size_of::<UffdioWriteprotect>() == 24);
    const _: () = assert!(offset_of!(UffdioWriteprotect, range) == 0);
    const _: () = assert!(offset_of!(UffdioWriteprotect, mode) == 16);

    /// `struct uffd_msg` as C lays it out, one structure for each member of its union.
    #[repr(C, packed)]
    struct Header {
        event: u8,
        reserved1: u8,
        reserved2: u16,
        reserved3: u32,
    }
    #[repr(C, packed)]
    struct Pagefault {
        header: Header,
        flags: u64,
        address: u64,
        ptid: u32,
    }
    #[repr(C, packed)]
    struct Fork {
        header: Header,
        ufd: u32,
    }
    #[repr(C, packed)]
    struct Remap {
        header: Header,
        from: u64,
        to: u64,
        len: u64,
    }
    #[repr(C, packed)]
    struct Remove {
        header: Header,
        start: u64,
        end: u64,
    }

    const _: () = assert!(size_of::<Remap>() == MESSAGE, "its largest member");
    const _: () = assert!(offset_of!(Header, event) == AT_EVENT);
    const _: () = assert!(offset_of!(Pagefault, flags) == AT_PAGEFAULT_FLAGS);
    const _: () = assert!(offset_of!(Pagefault, address) == AT_PAGEFAULT_ADDRESS);
    const _: () = assert!(offset_of!(Pagefault, ptid) == AT_PAGEFAULT_PTID);
    const _: () = assert!(offset_of!(Fork, ufd) == AT_FORK_UFD);
    const _: () = assert!(offset_of!(Remap, from) == AT_REMAP_FROM);
    const _: () = assert!(offset_of!(Remap, to) == AT_REMAP_TO);
    const _: () = assert!(offset_of!(Remap, len) == AT_REMAP_LEN);
    const _: () = assert!(offset_of!(Remove, start) == AT_REMOVE_START);
    const _: () = assert!(offset_of!(Remove, end) == AT_REMOVE_END);
}
