//! Where everything lies in a Linux guest's physical address space, and what the machine is made of.
//!
//! ```text
//! 0x0000_0000  RAM of node 0
//!   0x0500       GDT of the boot vCPU
//!   0x6000       PVH start info, its module list and memory map
//!   0x7000       zero page (struct boot_params)
//!   0x9000       boot page tables: the first 4 GiB, identity
//!   0x2_0000     command line
//!   0xa_0000     hole up to 0xe_0000, as on a PC
//!   0xe_0000     ACPI tables, reserved in the memory map; in the last 16 bytes the reset vector
//!   0x10_0000    kernel, and the initrd as high as it may
//! 0xc000_0000  no RAM
//!   0xd000_0000  virtio-mmio, 4 KiB each
//!   0xfec0_0000  I/O APIC
//!   0xfee0_0000  local APICs
//! 0x1_0000_0000  the rest of node 0; above it, at a multiple of 1 GiB, the arena's node
//! ```

use guest_mem::{Address, Gpa, GpaRange};

use crate::platform::{MemoryNode, Platform, VirtioSlot};

/// Where RAM stops below 4 GiB, and devices begin.
pub const MMIO_GAP_START: Gpa = Gpa::new(0xc000_0000);
/// Where RAM goes on.
pub const MMIO_GAP_END: Gpa = Gpa::new(0x1_0000_0000);

/// The first virtio-mmio device's registers.
pub const VIRTIO_BASE: Gpa = Gpa::new(0xd000_0000);
/// Bytes from one virtio-mmio device to the next, and of each.
pub const VIRTIO_STRIDE: u64 = 0x1000;
/// The first virtio-mmio device's GSI; the others follow.
pub const FIRST_VIRTIO_GSI: u32 = 16;
/// Pins of the I/O APIC (KVM's).
pub const IOAPIC_PINS: u32 = 24;
/// virtio-mmio devices at most: the I/O APIC's pins from [`FIRST_VIRTIO_GSI`] on.
pub const MAX_VIRTIO: u32 = IOAPIC_PINS - FIRST_VIRTIO_GSI;
/// The I/O APIC's registers.
pub const IOAPIC: Gpa = Gpa::new(0xfec0_0000);
/// The local APICs' registers.
pub const LAPIC: Gpa = Gpa::new(0xfee0_0000);

/// The boot vCPU's GDT.
pub const GDT: Gpa = Gpa::new(0x500);
/// PVH's `hvm_start_info`.
pub const START_INFO: Gpa = Gpa::new(0x6000);
/// PVH's module list: one entry, the initrd.
pub const MODULE_LIST: Gpa = Gpa::new(0x6040);
/// PVH's memory map, up to [`ZERO_PAGE`].
pub const PVH_MEMORY_MAP: Gpa = Gpa::new(0x6080);
/// `struct boot_params`, one page.
pub const ZERO_PAGE: Gpa = Gpa::new(0x7000);
/// The boot stack's first byte after its end. Linux makes its own at once.
pub const BOOT_STACK_END: Gpa = Gpa::new(0x8ff0);
/// The boot page tables: PML4, PDPT, four page directories.
pub const PAGE_TABLES: Gpa = Gpa::new(0x9000);
/// The command line.
pub const CMDLINE: Gpa = Gpa::new(0x2_0000);
/// Bytes there are for the command line and its NUL.
pub const CMDLINE_ROOM: u64 = 0x1_0000;
/// Where the low RAM of a PC ends.
pub const LOW_RAM_END: Gpa = Gpa::new(0xa_0000);
/// The ACPI tables, the RSDP first. Firmware's place: Linux searches it for an RSDP if the boot protocol names none.
pub const ACPI_START: Gpa = Gpa::new(0xe_0000);
/// The first address a kernel may use.
pub const HIGH_RAM_START: Gpa = Gpa::new(0x10_0000);

/// Where a processor in real mode begins after a reset (f000:fff0), and where Linux jumps to in order to make one.
pub const RESET_VECTOR: Gpa = Gpa::new(0xf_fff0);

/// What nodes are aligned to: a memory block of Linux has at most 2 GiB, and only on machines with more than 64.
pub const NODE_ALIGNMENT: u64 = 1 << 30;
/// x86-64 processors in use translate to at least 39 bits, all that can hold 512 GiB to 46: nothing lies above.
pub const RAM_END_MAX: Gpa = Gpa::new(1 << 46);

impl VirtioSlot {
    /// The place of device `index`, or `None` past [`MAX_VIRTIO`].
    pub fn nth(index: u32) -> Option<Self> {
        let base = VIRTIO_BASE.checked_add(u64::from(index).checked_mul(VIRTIO_STRIDE)?)?;
        let range = GpaRange::with_len(base, VIRTIO_STRIDE)?;
        (index < MAX_VIRTIO).then(|| Self { range, gsi: FIRST_VIRTIO_GSI + index })
    }
}

/// The RAM from address 0 to the MMIO gap, where kernel and boot structures go. Empty if there is none.
pub fn low_memory(platform: &Platform) -> GpaRange {
    let zero = Gpa::new(0);
    let first = platform.memory.iter().map(|piece| piece.range).find(|range| range.start() == zero);
    first
        .and_then(|range| range.intersection(GpaRange::new(zero, MMIO_GAP_START)?))
        .unwrap_or(GpaRange::empty(zero))
}

/// Lays out `size` bytes of RAM as node 0, around the MMIO gap. `None` if the address space has no room.
pub fn node0(size: u64) -> Option<Vec<MemoryNode>> {
    let below = size.min(MMIO_GAP_START.get());
    let pieces = [(Gpa::new(0), below), (MMIO_GAP_END, size - below)];
    pieces
        .into_iter()
        .filter(|&(_, len)| len > 0)
        .map(|(start, len)| {
            let range = GpaRange::with_len(start, len).filter(|range| range.end() <= RAM_END_MAX)?;
            Some(MemoryNode { range, node: 0, movable: false })
        })
        .collect()
}

/// Places a further node of `size` bytes above all of `below`: no vCPUs, movable, aligned to `align` (a power of
/// two) and to [`NODE_ALIGNMENT`], at 4 GiB or above. `None` if the address space has no room.
pub fn arena_node(below: &[MemoryNode], size: u64, align: u64) -> Option<MemoryNode> {
    let highest = below.iter().map(|piece| piece.range.end()).fold(MMIO_GAP_END, Ord::max);
    let start = highest.checked_align_up(align.max(NODE_ALIGNMENT))?;
    let range = GpaRange::with_len(start, size).filter(|range| range.end() <= RAM_END_MAX)?;
    let node = below.iter().map(|piece| piece.node).max().map_or(0, |last| last.saturating_add(1));
    Some(MemoryNode { range, node, movable: true })
}

/// What to do about a kernel that wants `needed` and finds `room`.
pub fn kernel_remedy(needed: GpaRange, room: GpaRange) -> &'static str {
    if needed.start() < room.start() {
        "more memory would not help: take a kernel that is linked to lie above the first MiB"
    } else if needed.end() > MMIO_GAP_START {
        "no guest has memory there: take a kernel that lies lower, or needs less"
    } else {
        "give the guest more memory"
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GIB: u64 = 1 << 30;

    proptest! {
        #[test]
        fn node_0_has_its_size_and_leaves_the_gap(size in 1u64..(1 << 45)) {
            let pieces = node0(size).unwrap();
            prop_assert_eq!(pieces.iter().map(|piece| piece.range.len()).sum::<u64>(), size);
            let gap = GpaRange::new(MMIO_GAP_START, MMIO_GAP_END).unwrap();
            prop_assert!(pieces.iter().all(|piece| !piece.range.overlaps(gap) && !piece.range.is_empty()));
            prop_assert_eq!(pieces[0].range.start(), Gpa::new(0));
        }

        #[test]
        fn the_arena_lies_above_everything(size in 1u64..(1 << 40), arena in 1u64..(1 << 40), shift in 12u32..36) {
            let below = node0(size).unwrap();
            let node = arena_node(&below, arena, 1 << shift).unwrap();
            prop_assert!(below.iter().all(|piece| piece.range.end() <= node.range.start()));
            prop_assert!(node.range.start() >= MMIO_GAP_END && node.range.len() == arena);
            prop_assert!(node.range.start().is_aligned(NODE_ALIGNMENT.max(1 << shift)));
            prop_assert!(node.movable && node.node == 1);
        }
    }

    #[test]
    fn what_the_address_space_cannot_hold_is_refused() {
        assert_eq!(node0(u64::MAX), None);
        assert_eq!(node0(1 << 46), None);
        let below = node0(GIB).unwrap();
        assert_eq!(arena_node(&below, u64::MAX, GIB), None);
        assert_eq!(arena_node(&below, 1 << 46, GIB), None);
        assert_eq!(arena_node(&below, GIB, 1 << 63), None);
    }

    #[test]
    fn devices_end_with_the_pins() {
        let range = GpaRange::with_len(VIRTIO_BASE, 0x1000).unwrap();
        assert_eq!(VirtioSlot::nth(0), Some(VirtioSlot { range, gsi: 16 }));
        assert_eq!(VirtioSlot::nth(7).unwrap().gsi, 23);
        assert_eq!(VirtioSlot::nth(8), None);
        assert_eq!(VirtioSlot::nth(u32::MAX), None);
    }

    #[test]
    fn low_memory_ends_at_the_gap() {
        let platform = |size| Platform { memory: node0(size).unwrap(), ..Platform::default() };
        assert_eq!(super::low_memory(&platform(GIB)).len(), GIB);
        assert_eq!(super::low_memory(&platform(5 * GIB)).end(), MMIO_GAP_START);
        assert!(super::low_memory(&Platform::default()).is_empty());
    }
}
