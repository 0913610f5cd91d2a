//! PVH's start info: what a kernel entered the PVH way finds by EBX. (Linux makes its zero page from it.)

use guest_mem::{Gpa, GpaRange};
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::GuestAddress;

use super::layout::{CMDLINE, MODULE_LIST, PVH_MEMORY_MAP, START_INFO};
use super::memory_map::Entry;
use guest::GuestRam;

/// `XEN_HVM_START_MAGIC_VALUE`.
const MAGIC: u32 = 0x336e_c578;

/// Writes the start info, its memory map and its module list (the initrd) to their places.
pub fn write(
    memory: &GuestRam,
    map: &[Entry],
    initrd: Option<GpaRange>,
    rsdp: Gpa,
) -> Result<(), linux_loader::configurator::Error> {
    let entries: Vec<_> = map
        .iter()
        .map(|entry| hvm_memmap_table_entry {
            addr: entry.range.start().get(),
            size: entry.range.len(),
            type_: entry.kind as u32,
            reserved: 0,
        })
        .collect();
    let modules: Vec<_> = initrd
        .iter()
        .map(|range| hvm_modlist_entry {
            paddr: range.start().get(),
            size: range.len(),
            ..Default::default()
        })
        .collect();
    let info = hvm_start_info {
        magic: MAGIC,
        version: 1,
        nr_modules: modules.len() as u32,
        modlist_paddr: if modules.is_empty() { 0 } else { MODULE_LIST.get() },
        cmdline_paddr: CMDLINE.get(),
        rsdp_paddr: rsdp.get(),
        memmap_paddr: PVH_MEMORY_MAP.get(),
        memmap_entries: entries.len() as u32,
        ..hvm_start_info::default()
    };
    let mut params = BootParams::new(&info, GuestAddress(START_INFO.get()));
    params.set_sections(&entries, GuestAddress(PVH_MEMORY_MAP.get()));
    if !modules.is_empty() {
        params.set_modules(&modules, GuestAddress(MODULE_LIST.get()));
    }
    PvhBootConfigurator::write_bootparams(&params, memory)
}
