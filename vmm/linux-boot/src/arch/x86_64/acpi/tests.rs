//! The tables, read back by a parser that knows offsets and nothing of how they were made.

use guest_mem::GpaRange;

use super::super::layout::{VIRTIO_BASE, arena_node, node0};
use super::*;
use crate::{MemoryNode, VirtioSlot};
use guest::GuestRam;

struct Tables {
    image: Vec<u8>,
}

impl Tables {
    fn of(platform: &Platform) -> Self {
        Self { image: tables(platform).unwrap() }
    }
    fn at(&self, address: u64, len: usize) -> &[u8] {
        let offset = (address - 0xe_0000) as usize;
        &self.image[offset..offset + len]
    }
    fn table(&self, address: u64) -> &[u8] {
        let table =
            self.at(address, u32::from_le_bytes(self.at(address + 4, 4).try_into().unwrap()) as usize);
        assert_eq!(sum(table), 0, "{}", String::from_utf8_lossy(&table[..4]));
        assert_eq!(address % 16, 0);
        table
    }
    fn rsdp(&self) -> &[u8] {
        self.at(0xe_0000, 36)
    }
    /// All tables of the XSDT, by signature.
    fn named(&self, signature: &[u8; 4]) -> Option<&[u8]> {
        let xsdt = self.table(long(self.rsdp(), 24));
        assert_eq!(&xsdt[..4], b"XSDT");
        let entries = xsdt[36..].chunks_exact(8).map(|entry| self.table(long(entry, 0)));
        entries.into_iter().find(|table| &table[..4] == signature)
    }
    fn dsdt(&self) -> &[u8] {
        let fadt = self.named(b"FACP").unwrap();
        let dsdt = self.table(long(fadt, 140));
        assert_eq!(&dsdt[..4], b"DSDT");
        dsdt
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}
fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}
fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}
fn has(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
/// The structures of a MADT or SRAT, which begin with type and length.
fn structures(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let (structure, rest) = bytes.split_at(bytes[1].into());
        found.push(structure);
        bytes = rest;
    }
    found
}

fn platform() -> Platform {
    let mut memory = node0(5 << 30).unwrap();
    memory.push(arena_node(&memory, 3 << 30, 1 << 30).unwrap());
    Platform { vcpus: 2, memory, virtio: (0..3).map(|index| VirtioSlot::nth(index).unwrap()).collect() }
}

#[test]
fn the_rsdp_is_where_firmware_puts_it_and_sums_to_zero() {
    let tables = Tables::of(&platform());
    let rsdp = tables.rsdp();
    assert_eq!(&rsdp[..8], b"RSD PTR ");
    assert_eq!((sum(&rsdp[..20]), sum(rsdp), rsdp[15]), (0, 0, 2));
}

#[test]
fn the_fadt_names_the_ports() {
    let tables = Tables::of(&platform());
    let fadt = tables.named(b"FACP").unwrap();
    assert_eq!((fadt[8], fadt.len()), (6, 276));
    let flags = word(fadt, 112);
    assert_eq!((flags >> 20 & 1, flags >> 10 & 1), (1, 1), "hardware-reduced, reset register");
    // I/O space, 8 bits wide, byte access, and the port.
    let register = |at: usize| (fadt[at], fadt[at + 1], fadt[at + 3], long(fadt, at + 4));
    assert_eq!(register(116), (1, 8, 1, 0x602));
    assert_eq!(fadt[128], 1, "reset value");
    assert_eq!(register(244), (1, 8, 1, 0x600));
    assert_eq!(register(256), (1, 8, 1, 0x601));
    assert_eq!(fadt[109] & 2, 0, "no keyboard controller to probe for");
}

#[test]
fn the_madt_lists_every_vcpu_and_the_io_apic() {
    for vcpus in [1, 2, 255] {
        let tables = Tables::of(&Platform { vcpus, ..platform() });
        let madt = tables.named(b"APIC").unwrap();
        assert_eq!(word(madt, 36), 0xfee0_0000);
        let (apics, others): (Vec<_>, Vec<_>) = structures(&madt[44..]).into_iter().partition(|s| s[0] == 0);
        assert_eq!(apics.len(), vcpus as usize);
        for (id, apic) in apics.iter().enumerate() {
            assert_eq!((usize::from(apic[2]), usize::from(apic[3]), word(apic, 4)), (id, id, 1));
        }
        assert_eq!(others.len(), 1);
        assert_eq!((others[0][0], word(others[0], 4), word(others[0], 8)), (1, 0xfec0_0000, 0));
    }
}

#[test]
fn memory_and_vcpus_belong_to_their_nodes() {
    let platform = platform();
    let tables = Tables::of(&platform);
    let srat = tables.named(b"SRAT").unwrap();
    let (vcpus, memory): (Vec<_>, Vec<_>) = structures(&srat[48..]).into_iter().partition(|s| s[0] == 0);
    assert!(
        vcpus
            .iter()
            .enumerate()
            .all(|(id, s)| s.len() == 16 && s[2] == 0 && usize::from(s[3]) == id && s[4] == 1)
    );
    assert_eq!(vcpus.len(), 2);
    let told: Vec<_> = memory
        .iter()
        .map(|s| MemoryNode {
            range: GpaRange::with_len(Gpa::new(long(s, 8)), long(s, 16)).unwrap(),
            node: word(s, 2),
            movable: word(s, 28) == 3,
        })
        .collect();
    assert!(memory.iter().all(|s| s[0] == 1 && s.len() == 40 && word(s, 28) & 1 == 1));
    assert_eq!(told, platform.memory);
    let slit = tables.named(b"SLIT").unwrap();
    assert_eq!((long(slit, 36), &slit[44..]), (2, &[10, 20, 20, 10][..]));
}

#[test]
fn one_node_needs_no_numa_tables() {
    let tables = Tables::of(&Platform { memory: node0(1 << 30).unwrap(), ..platform() });
    assert!(tables.named(b"SRAT").is_none() && tables.named(b"SLIT").is_none());
    assert!(tables.named(b"APIC").is_some());
}

#[test]
fn the_dsdt_describes_each_device_with_its_window_and_interrupt() {
    let tables = Tables::of(&platform());
    let dsdt = tables.dsdt();
    // Name (_S5, Package (1) { 5 })
    assert!(has(dsdt, b"\x08\\_S5_\x12\x04\x01\x0a\x05"));
    // IO (Decode16, 0x3f8, 0x3f8, 1, 8), Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { 4 }
    assert!(has(dsdt, b"\x47\x01\xf8\x03\xf8\x03\x01\x08\x89\x06\x00\x03\x01\x04\x00\x00\x00"));
    assert_eq!(dsdt.windows(8).filter(|window| window == b"LNRO0005").count(), 3);
    for slot in platform().virtio {
        let mut window = b"\x86\x09\x00\x01".to_vec();
        window.extend((slot.range.start().get() as u32).to_le_bytes());
        window.extend(0x1000_u32.to_le_bytes());
        window.extend(b"\x89\x06\x00\x03\x01");
        window.extend(slot.gsi.to_le_bytes());
        assert!(has(dsdt, &window));
    }
}

#[test]
fn what_cannot_be_told_is_refused() {
    for vcpus in [0, 256, u32::MAX] {
        assert!(matches!(tables(&Platform { vcpus, ..platform() }), Err(AcpiError::Vcpus(_))));
    }
    for base in [1 << 32, 0xffff_f001, u64::MAX - 0xfff] {
        let range = GpaRange::with_len(Gpa::new(base), 0x1000).unwrap_or(GpaRange::empty(Gpa::new(base)));
        let virtio = vec![VirtioSlot { range, gsi: 16 }];
        assert!(matches!(tables(&Platform { virtio, ..platform() }), Err(AcpiError::Device(_))));
    }
    let range = GpaRange::with_len(Gpa::new(0), 4096).unwrap();
    for node in [64, u32::MAX] {
        let memory = vec![MemoryNode { range, node, movable: false }];
        assert!(matches!(tables(&Platform { memory, ..platform() }), Err(AcpiError::Nodes(_))));
    }
    let crowd = vec![VirtioSlot { range: GpaRange::with_len(VIRTIO_BASE, 0x1000).unwrap(), gsi: 16 }; 3000];
    assert!(matches!(tables(&Platform { virtio: crowd, ..platform() }), Err(AcpiError::TooLarge { .. })));
    let small = GuestRam::mapped(&[(0, 0xe_0100)]);
    assert!(matches!(write(&small, &platform()), Err(AcpiError::Memory(_))));
}
