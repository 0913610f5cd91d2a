use proptest::prelude::*;
use vm_memory::Bytes;

use super::super::fixture::{KERNEL_AT, Load, elf, kernel};
use super::*;
use guest::GuestRam;

const END: u64 = 32 << 20;

fn memory() -> GuestRam {
    GuestRam::mapped(&[(0, END as usize)])
}
fn room() -> GpaRange {
    GpaRange::new(Gpa::new(1 << 20), Gpa::new(END)).unwrap()
}
fn at(image: &[u8]) -> Result<Placed, VmlinuxError> {
    place(&memory(), room(), image)
}
fn load(at: u64, bytes: usize, memory: u64) -> Load {
    Load { at, bytes: vec![0xcc; bytes], memory }
}

#[test]
fn segments_go_to_where_they_are_linked() {
    let (memory, image) = (memory(), kernel());
    let placed = place(&memory, room(), &image).unwrap();
    assert_eq!(placed.entry, Gpa::new(KERNEL_AT + 0x20));
    assert_eq!(placed.extent, GpaRange::new(Gpa::new(KERNEL_AT), Gpa::new(KERNEL_AT + 0x12_0000)).unwrap());
    assert_eq!(placed.pvh_entry, None);
    let text: [u8; 10] = memory.read_obj(GuestAddress(KERNEL_AT + 10)).unwrap();
    assert_eq!(text, [0xe8, 37, 0, 0, 0, 0x90, 0x90, 0x90, 0x90, 0x90]);
    let data: [u8; 2] = memory.read_obj(GuestAddress(KERNEL_AT + 0x10_0fff)).unwrap();
    assert_eq!(data, [0x5a, 0]);
}

#[test]
fn the_pvh_note_is_found() {
    let image = elf(KERNEL_AT, &[load(KERNEL_AT, 0x100, 0x100)], Some(KERNEL_AT as u32 + 0x40));
    assert_eq!(at(&image).unwrap().pvh_entry, Some(Gpa::new(KERNEL_AT + 0x40)));
    let image = elf(KERNEL_AT, &[load(KERNEL_AT, 0x100, 0x100)], Some(0x7000));
    assert!(matches!(at(&image), Err(VmlinuxError::WildEntry { kind: "PVH", .. })));
}

#[test]
fn what_cannot_be_placed_is_refused_by_name() {
    let one = |load: Load| elf(KERNEL_AT, &[load], None);
    let cases = [
        (elf(KERNEL_AT, &[], None), "nothing to load"),
        (one(load(0, 0x1000, 0x1000)), "does not fit"),
        (one(load(0x7000, 0x1000, 0x1000)), "does not fit"),
        (one(load(KERNEL_AT, 0x1000, 64 << 20)), "more memory"),
        (one(load(0xd000_0000, 0x1000, 0x1000)), "does not fit"),
        (one(load(u64::MAX - 10, 0x1000, 0x1000)), "makes no sense"),
        (one(load(KERNEL_AT, 0x1000, 0xfff)), "makes no sense"),
        (elf(KERNEL_AT, &[load(KERNEL_AT, 1, 0x2000), load(KERNEL_AT + 0x1fff, 1, 1)], None), "overlap"),
        (elf(KERNEL_AT - 1, &[load(KERNEL_AT, 16, 16)], None), "64-bit entry"),
        (elf(KERNEL_AT + 16, &[load(KERNEL_AT, 16, 16)], None), "64-bit entry"),
        (elf(KERNEL_AT, &vec![load(KERNEL_AT, 1, 1); 65], None), "65 program headers"),
    ];
    for (image, words) in cases {
        let message = at(&image).unwrap_err().to_string();
        assert!(message.contains(words), "{message}, wanted {words:?}");
    }
}

#[test]
fn every_truncation_is_refused() {
    let image = elf(KERNEL_AT, &[load(KERNEL_AT, 300, 300), load(KERNEL_AT + 4096, 200, 300)], None);
    assert!(at(&image).is_ok());
    let (memory, room) = (memory(), room());
    for cut in 0..image.len() {
        assert!(place(&memory, room, &image[..cut]).is_err(), "cut at {cut}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn hostile_headers_are_errors_and_nothing_worse(
        field in 0_usize..(64 + 3 * 56) / 4,
        lie in prop_oneof![
            Just(u64::MAX), Just(1 << 63), Just(0), Just(1), Just(0x7fff_ffff_ffff_f000), Just(END), any::<u64>()
        ],
    ) {
        let loads = [load(KERNEL_AT, 300, 300), load(KERNEL_AT + 4096, 200, 300)];
        let mut image = elf(KERNEL_AT, &loads, Some(KERNEL_AT as u32));
        let end = (field * 4 + 8).min(image.len());
        image[field * 4..end].copy_from_slice(&lie.to_le_bytes()[..end - field * 4]);
        if let Ok(placed) = at(&image) {
            prop_assert!(room().covers(placed.extent) && placed.extent.contains(placed.entry));
        }
    }
}
