//! The guest's physical memory map.
//!
//! ```text
//! 0x0000_6000  start info, memory map   (written by the boot loader)
//! 0x0010_0000  the guest's image: code, page tables, stacks
//! 0x0040_0000  control areas, 2 MiB for each vCPU:
//!              +0x00_0000  the control block, its last bytes the ring 0 fault stack
//!              +0x00_1000  the table: page lists, Zipf thresholds
//!              +0x10_0000  the stall ring
//! 0x4000_0000  the arena: the memory under test, any multiple of 2 MiB
//! ```
//!
//! Everything below the arena is called *low memory*. No scenario takes it away, though a range policy as
//! wide as the whole machine zaps its translations like all others.

/// Bytes of a page.
pub const PAGE_SIZE: u64 = 4096;

/// Where the image is linked and loaded.
pub const IMAGE_GPA: u64 = 0x10_0000;
/// Where the control areas begin.
pub const CONTROL_GPA: u64 = 0x40_0000;
/// Bytes of one vCPU's control area.
pub const AREA_SIZE: u64 = 0x20_0000;
/// Where in a control area the table begins.
pub const TABLE_OFFSET: u64 = 0x1000;
/// 32-bit entries that the table holds.
pub const TABLE_ENTRIES: u64 = (STALLS_OFFSET - TABLE_OFFSET) / 4;
/// Where in a control area the stall ring begins.
pub const STALLS_OFFSET: u64 = 0x10_0000;
/// Where the arena begins.
pub const ARENA_GPA: u64 = 0x4000_0000;
/// The largest arena that the guest's own page tables reach: 62 GiB.
pub const ARENA_MAX: u64 = (64 << 30) - 2 * ARENA_GPA;
/// How many vCPUs the guest is built for: each has its own lane in every page's header.
pub const MAX_VCPUS: u32 = 32;

/// What a vCPU begins with in a register (x86-64: EDI, beside its index in ESI) if the VMM has prepared the
/// control areas. With any other value there the guest runs its self-test on the serial port, as under any other VMM.
pub const CONTROL_MAGIC: u32 = 0x7a61_7073;

/// What the byte written to the doorbell means.
pub mod doorbell {
    /// The vCPU is up and waits for its first order.
    pub const READY: u8 = 1;
    /// The order is done; the outcome stands in the control block.
    pub const DONE: u8 = 2;
    /// Ring 0 caught an exception; the fault frame stands on the fault stack.
    pub const FAULT: u8 = 3;
    /// The guest's Rust code panicked; the message stands in the control block.
    pub const PANIC: u8 = 4;
}

/// The guest physical address of a vCPU's control area.
pub const fn area_gpa(vcpu: u32) -> u64 {
    CONTROL_GPA + vcpu as u64 * AREA_SIZE
}

/// Bytes of low memory that a machine with this many vCPUs needs: a multiple of 2 MiB.
pub const fn low_memory(vcpus: u32) -> u64 {
    area_gpa(vcpus)
}

const _: () = assert!(low_memory(MAX_VCPUS) <= ARENA_GPA, "the control areas run into the arena");
const _: () = assert!(CONTROL_GPA.is_multiple_of(AREA_SIZE) && ARENA_GPA.is_multiple_of(AREA_SIZE));
