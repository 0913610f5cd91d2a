//! The ACPI tables: what a stock kernel is told of processors, interrupts, NUMA nodes, devices and power.
//!
//! ```text
//! RSDP ──> XSDT ──> FADT   hardware-reduced; sleep and reset registers   ──> DSDT: \_S5, COM1, virtio-mmio
//!              ├──> MADT   local APICs, the I/O APIC
//!              ├──> SRAT ┐ with more than one node: what belongs where,
//!              └──> SLIT ┘ and how far apart
//! ```

mod dsdt;
mod numa;

use acpi_tables::Aml;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use guest_mem::{Gpa, GpaRange};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::layout::{ACPI_START, IOAPIC, LAPIC, RESET_VECTOR};
use crate::Platform;
use guest::GuestRam;
use guest::ports::{RESET, RESET_VALUE, SLEEP_CONTROL, SLEEP_STATUS};

const OEM_ID: [u8; 6] = *b"ZAPSCP";
const OEM_TABLE_ID: [u8; 8] = *b"ZAPSCOPE";
const OEM_REVISION: u32 = 1;
/// A local APIC's ID has eight bits, and 255 means all of them.
pub const MAX_VCPUS: u32 = 255;
/// What tables are aligned to; ACPI asks for it in the RSDP's case.
const TABLE_ALIGNMENT: u64 = 16;

/// `IAPC_BOOT_ARCH`: no VGA, no MSI, no PCIe ASPM control, no CMOS clock. The 8042 flag stays clear: Linux would
/// probe for a keyboard and wait half a second for one, while its reset by the 8042 asks no flag.
const BOOT_ARCH: u16 = 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5;

/// Why the tables could not be made.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    #[error("{0} vCPUs cannot be told to a guest: 1 to {MAX_VCPUS} have APIC IDs")]
    Vcpus(u32),
    #[error("a virtio-mmio device at {0} cannot be told to a guest: below 4 GiB its window must lie")]
    Device(Gpa),
    #[error("{0} NUMA nodes are too many: a distance table holds up to {max}", max = numa::MAX_NODES)]
    Nodes(u32),
    #[error("the ACPI tables have {len} bytes, and their place {room} has less")]
    TooLarge { len: u64, room: GpaRange },
    #[error("the ACPI tables cannot be written to the guest's memory")]
    Memory(#[source] GuestMemoryError),
}

/// Writes the platform's tables to their place and returns where the RSDP lies.
pub fn write(memory: &GuestRam, platform: &Platform) -> Result<Gpa, AcpiError> {
    let image = tables(platform)?;
    memory.write_slice(&image, GuestAddress(ACPI_START.get())).map_err(AcpiError::Memory)?;
    Ok(ACPI_START)
}

/// The tables as they lie from [`ACPI_START`] on, the RSDP first.
pub fn tables(platform: &Platform) -> Result<Vec<u8>, AcpiError> {
    if !(1..=MAX_VCPUS).contains(&platform.vcpus) {
        return Err(AcpiError::Vcpus(platform.vcpus));
    }
    // The RSDP points to the XSDT, which is known last.
    let mut image = Image { bytes: vec![0; Rsdp::len()] };
    let dsdt = image.append(&dsdt::dsdt(platform)?);
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(image.append(&fadt(dsdt)));
    xsdt.add_entry(image.append(&madt(platform.vcpus)));
    if platform.nodes() > 1 {
        xsdt.add_entry(image.append(&numa::srat(platform)));
        xsdt.add_entry(image.append(&numa::slit(platform.nodes())?));
    }
    let xsdt = image.append(&xsdt);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut rsdp);
    image.bytes[..rsdp.len()].copy_from_slice(&rsdp);
    let len = image.bytes.len() as u64;
    let room = GpaRange::new(ACPI_START, RESET_VECTOR).unwrap_or(GpaRange::empty(ACPI_START));
    if len > room.len() {
        return Err(AcpiError::TooLarge { len, room });
    }
    Ok(image.bytes)
}

/// Tables one after the other, and where they will lie.
struct Image {
    bytes: Vec<u8>,
}

impl Image {
    fn append(&mut self, table: &dyn Aml) -> u64 {
        let offset = self.bytes.len().next_multiple_of(TABLE_ALIGNMENT as usize);
        self.bytes.resize(offset, 0);
        table.to_aml_bytes(&mut self.bytes);
        ACPI_START.get() + offset as u64
    }
}

fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    let port = |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into());
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        // No fixed buttons.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    fadt.reset_reg = port(RESET);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = port(SLEEP_CONTROL);
    fadt.sleep_status_reg = port(SLEEP_STATUS);
    fadt.finalize()
}

fn madt(vcpus: u32) -> MADT {
    let lapic = LocalInterruptController::Address(LAPIC.get() as u32);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, lapic);
    for id in 0..vcpus as u8 {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IOAPIC.get() as u32, 0));
    madt
}

#[cfg(test)]
mod tests;
