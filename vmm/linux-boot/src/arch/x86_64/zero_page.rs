//! The zero page, `struct boot_params`: what the 64-bit boot protocol hands to the kernel in RSI.

use guest_mem::{Gpa, GpaRange};
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::GuestAddress;

use super::layout::{CMDLINE, ZERO_PAGE};
use super::memory_map::Entry;
use guest::GuestRam;

/// `type_of_loader` of a boot loader without a number of its own.
const UNDEFINED_LOADER: u8 = 0xff;

/// What goes into the zero page.
#[derive(Clone, Copy, Debug)]
pub struct Contents<'a> {
    /// The kernel's own setup header, where it has one.
    pub header: Option<setup_header>,
    /// Where a bzImage's protected-mode part was loaded, if it was.
    pub protected_mode: Option<Gpa>,
    /// The memory map.
    pub map: &'a [Entry],
    /// Where the initrd lies, below 4 GiB.
    pub initrd: Option<GpaRange>,
    /// Where the RSDP lies.
    pub rsdp: Gpa,
}

/// The zero page, or `None` where the map has more entries than it holds.
pub fn zero_page(contents: &Contents<'_>) -> Option<boot_params> {
    let mut page = boot_params { hdr: contents.header.unwrap_or_else(bare_header), ..boot_params::default() };
    let mut table = page.e820_table;
    page.e820_entries = u8::try_from(contents.map.len()).ok()?;
    for (index, entry) in contents.map.iter().enumerate() {
        *table.get_mut(index)? = boot_e820_entry {
            addr: entry.range.start().get(),
            size: entry.range.len(),
            r#type: entry.kind as u32,
        };
    }
    page.e820_table = table;
    page.acpi_rsdp_addr = contents.rsdp.get();
    page.hdr.type_of_loader = UNDEFINED_LOADER;
    page.hdr.cmd_line_ptr = CMDLINE.get() as u32;
    page.hdr.setup_data = 0;
    let initrd = contents.initrd.unwrap_or(GpaRange::empty(Gpa::new(0)));
    page.hdr.ramdisk_image = u32::try_from(initrd.start().get()).ok()?;
    page.hdr.ramdisk_size = u32::try_from(initrd.len()).ok()?;
    if let Some(at) = contents.protected_mode {
        page.hdr.code32_start = u32::try_from(at.get()).ok()?;
    }
    Some(page)
}

/// The header of a kernel that came without one.
fn bare_header() -> setup_header {
    setup_header { boot_flag: 0xaa55, header: 0x5372_6448, version: 0x020c, ..setup_header::default() }
}

/// Writes the zero page to its place.
pub fn write(memory: &GuestRam, page: &boot_params) -> Result<(), linux_loader::configurator::Error> {
    let params = BootParams::new(page, GuestAddress(ZERO_PAGE.get()));
    LinuxBootConfigurator::write_bootparams(&params, memory)
}
