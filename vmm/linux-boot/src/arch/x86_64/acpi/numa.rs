//! SRAT and SLIT: which processors and which memory belong to which node, and how far apart the nodes are.

use acpi_tables::Aml;
use acpi_tables::sdt::Sdt;
use acpi_tables::slit::SLIT;
use acpi_tables::srat::MemoryAffinity;

use super::{AcpiError, OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::Platform;

/// Nodes at most.
pub(super) const MAX_NODES: u32 = 64;
/// From one node to another; to itself it is 10.
const REMOTE: u8 = 20;
/// Revision 3 has proximity domains of 32 bits.
const SRAT_REVISION: u8 = 3;
/// The header, and twelve bytes more.
const SRAT_HEADER_LEN: u32 = 48;
/// The node all vCPUs are in.
const VCPU_NODE: u32 = 0;

pub(super) fn srat(platform: &Platform) -> Sdt {
    let mut body = Vec::new();
    for id in 0..platform.vcpus as u8 {
        body.extend(local_apic_affinity(id));
    }
    for piece in &platform.memory {
        let affinity =
            MemoryAffinity::new(piece.node, piece.range.start().get(), piece.range.len()).enabled();
        // What Linux may hold for movable pages (`movable_node`) is what could be unplugged.
        let affinity = if piece.movable { affinity.hotpluggable() } else { affinity };
        affinity.to_aml_bytes(&mut body);
    }
    let mut table = Sdt::new(*b"SRAT", SRAT_HEADER_LEN, SRAT_REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.write_u32(36, 1); // Reserved, and 1 all the same.
    table.append_slice(&body);
    table
}

/// A Processor Local APIC Affinity structure, which acpi_tables lacks.
fn local_apic_affinity(id: u8) -> [u8; 16] {
    let node = VCPU_NODE.to_le_bytes();
    let enabled = 1_u32.to_le_bytes();
    let mut bytes = [0; 16];
    (bytes[0], bytes[1], bytes[2], bytes[3]) = (0, 16, node[0], id);
    bytes[4..8].copy_from_slice(&enabled);
    bytes[9..12].copy_from_slice(&node[1..]);
    bytes
}

pub(super) fn slit(nodes: u32) -> Result<SLIT, AcpiError> {
    if nodes > MAX_NODES {
        return Err(AcpiError::Nodes(nodes));
    }
    let mut slit = SLIT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, nodes);
    for first in 0..nodes as usize {
        for second in 0..first {
            slit.set_distance(first, second, REMOTE);
        }
    }
    Ok(slit)
}
