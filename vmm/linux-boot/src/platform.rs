//! What a machine is made of, as its guest is told.

use guest_mem::GpaRange;

/// A piece of RAM and the node that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryNode {
    /// Where it lies. Never empty, never where devices are.
    pub range: GpaRange,
    /// The NUMA node.
    pub node: u32,
    /// Flagged hot-pluggable: with `movable_node` on its command line Linux makes it `ZONE_MOVABLE`.
    pub movable: bool,
}

/// The place of a virtio-mmio device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioSlot {
    /// Its registers.
    pub range: GpaRange,
    /// Its interrupt, edge-triggered.
    pub gsi: u32,
}

/// A machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Platform {
    /// vCPUs, all in node 0, numbered from 0.
    pub vcpus: u32,
    /// RAM by ascending address; node 0 first.
    pub memory: Vec<MemoryNode>,
    /// virtio-mmio devices.
    pub virtio: Vec<VirtioSlot>,
}

impl Platform {
    /// The number of NUMA nodes.
    pub fn nodes(&self) -> u32 {
        self.memory.iter().map(|piece| piece.node.saturating_add(1)).max().unwrap_or(0)
    }
}
