//! The DSDT: how to switch off, the serial port, the virtio-mmio devices.

use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path, ResourceTemplate,
};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};

use super::super::layout::MMIO_GAP_END;
use super::{AcpiError, OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::{Platform, VirtioSlot};
use guest::ports::{COM1, COM1_GSI, SLEEP_TYPE_S5};

/// Bytes of a table's header.
const HEADER_LEN: u32 = 36;

pub(super) fn dsdt(platform: &Platform) -> Result<Sdt, AcpiError> {
    let mut body = Vec::new();
    Name::new(Path::new("\\_S5_"), &Package::new(vec![&SLEEP_TYPE_S5])).to_aml_bytes(&mut body);
    serial_port(&mut body);
    for (index, slot) in platform.virtio.iter().enumerate() {
        virtio(index, slot, &mut body)?;
    }
    // Revision 2: integers have 64 bits.
    let mut table = Sdt::new(*b"DSDT", HEADER_LEN, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(&body);
    Ok(table)
}

/// An edge-triggered interrupt, active high, not shared.
fn edge(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

fn serial_port(body: &mut dyn AmlSink) {
    let ports = IO::new(COM1.start, COM1.start, 1, COM1.len() as u8);
    let interrupt = edge(COM1_GSI);
    Device::new(
        Path::new("\\_SB_.COM1"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
            &Name::new(Path::new("_UID"), &0_u8),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&ports, &interrupt])),
        ],
    )
    .to_aml_bytes(body);
}

/// One virtio-mmio device, by the name that Linux's driver knows.
fn virtio(index: usize, slot: &VirtioSlot, body: &mut dyn AmlSink) -> Result<(), AcpiError> {
    let range = slot.range;
    let base =
        u32::try_from(range.start().get()).ok().filter(|_| range.end() <= MMIO_GAP_END && !range.is_empty());
    let base = base.ok_or(AcpiError::Device(range.start()))?;
    let registers = Memory32Fixed::new(true, base, range.len() as u32);
    let interrupt = edge(slot.gsi);
    Device::new(
        // At most eight devices have pins; names would last for 256.
        Path::new(&format!("\\_SB_.VR{:02X}", index as u8)),
        vec![
            &Name::new(Path::new("_HID"), &"LNRO0005"),
            &Name::new(Path::new("_UID"), &index),
            // The device sees what the processors' caches hold.
            &Name::new(Path::new("_CCA"), &1_u8),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&registers, &interrupt])),
        ],
    )
    .to_aml_bytes(body);
    Ok(())
}
