use std::io::Write;

use linux_loader::loader::bootparam::boot_params;

use super::super::fixture::{self, KERNEL_AT, Load, PACKED, bzimage, payload};
use super::super::layout::{arena_node, node0};
use super::super::testing::load_alone;
use super::*;
use crate::compression::Compression;
use guest::GuestRam;
use program::input::{FileKind, Input};

const MIB: u64 = 1 << 20;
const INIT_SIZE: u32 = 8 << 20;

fn machine(size: u64) -> (GuestRam, Platform) {
    let mut memory = node0(size).unwrap();
    memory.push(arena_node(&memory, 64 * MIB, 1).unwrap());
    let ranges: Vec<_> =
        memory.iter().map(|piece| (piece.range.start().get(), piece.range.len() as usize)).collect();
    (GuestRam::mapped(&ranges), Platform { vcpus: 1, memory, virtio: Vec::new() })
}

fn packed() -> Vec<u8> {
    bzimage(&payload(Compression::Zstd, &fixture::kernel()), INIT_SIZE)
}

/// Boots `file` on a machine of `size` bytes, with this initrd and command line.
fn start(
    file: &[u8],
    size: u64,
    initrd: Option<&[u8]>,
    cmdline: &str,
    in_guest: bool,
) -> Result<Started, LoadError> {
    let (memory, platform) = machine(size);
    let kernel = Kernel::identify(file).unwrap();
    let boot = Boot {
        kernel: &kernel,
        initrd: initrd.map(Initrd::Bytes),
        cmdline,
        in_guest_decompression: in_guest,
    };
    load(&memory, &platform, &boot).map(|start| Started { memory, start })
}

#[derive(Debug)]
struct Started {
    memory: GuestRam,
    start: Start,
}

impl Started {
    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }
    fn long(&self, at: u64) -> u64 {
        self.memory.read_obj(GuestAddress(at)).unwrap()
    }
    fn word(&self, at: u64) -> u32 {
        self.memory.read_obj(GuestAddress(at)).unwrap()
    }
    fn string(&self, at: u64) -> String {
        let bytes = self.bytes(at, 4096);
        String::from_utf8(bytes.split(|&byte| byte == 0).next().unwrap().to_vec()).unwrap()
    }
    /// The E820 table, read by its offsets: address, size, type.
    fn e820(&self, page: u64) -> Vec<(u64, u64, u32)> {
        let count: u8 = self.memory.read_obj(GuestAddress(page + 0x1e8)).unwrap();
        let entries = (0..u64::from(count)).map(|index| page + 0x2d0 + 20 * index);
        entries.map(|at| (self.long(at), self.long(at + 8), self.word(at + 16))).collect()
    }
}

const MAP_OF_256_MIB: [(u64, u64, u32); 4] =
    [(0, 0xa_0000, 1), (0xe_0000, 0x2_0000, 2), (MIB, 255 * MIB, 1), (1 << 32, 64 * MIB, 1)];

#[test]
fn an_unpacked_bzimage_begins_at_its_elf_entry() {
    for compression in PACKED {
        let file = bzimage(&payload(compression, &fixture::kernel()), INIT_SIZE);
        let initrd = vec![0x11; 5000];
        let started = start(&file, 256 * MIB, Some(&initrd), "console=ttyS0 quiet", false).unwrap();
        assert_eq!(
            started.start,
            Start::Linux64 { entry: Gpa::new(KERNEL_AT + 0x20), boot_params: Gpa::new(0x7000) }
        );
        assert_eq!(started.e820(0x7000), MAP_OF_256_MIB);
        assert_eq!(started.long(0x7070), 0xe_0000, "acpi_rsdp_addr");
        assert_eq!(started.bytes(0x7202, 4), b"HdrS");
        assert_eq!(started.bytes(0x7210, 1), [0xff], "type_of_loader");
        assert_eq!(started.string(started.word(0x7228).into()), "console=ttyS0 quiet");
        let (at, len) = (started.word(0x7218), started.word(0x721c));
        assert_eq!((at, len), (0x0fff_e000, 5000), "the highest pages below 256 MiB");
        assert_eq!(started.bytes(at.into(), 5000), initrd);
        assert_eq!(started.bytes(KERNEL_AT, 6), [0xe8, 0, 0, 0, 0, 0x90]);
    }
}

#[test]
fn a_bzimage_may_unpack_itself() {
    let file = packed();
    let started = start(&file, 256 * MIB, None, "", true).unwrap();
    let entry = Gpa::new(KERNEL_AT + 0x200);
    assert_eq!(started.start, Start::Linux64 { entry, boot_params: Gpa::new(0x7000) });
    assert_eq!(started.word(0x7214), KERNEL_AT as u32, "code32_start");
    assert_eq!((started.word(0x7218), started.word(0x721c)), (0, 0), "no initrd");
    assert_eq!(started.bytes(KERNEL_AT, file.len() - 1024), file[1024..]);
    let mut old = file;
    old[0x206] = 0x0b;
    assert!(matches!(start(&old, 256 * MIB, None, "", true), Err(LoadError::NoEntry64)));
    assert!(start(&old, 256 * MIB, None, "", false).is_ok());
}

#[test]
fn an_elf_kernel_with_a_pvh_note_begins_there() {
    let text = Load { at: KERNEL_AT, bytes: vec![0xf4; 4096], memory: 0x3000 };
    let file = fixture::elf(KERNEL_AT, &[text], Some(KERNEL_AT as u32 + 0x80));
    let started = start(&file, 256 * MIB, Some(b"initrd"), "panic=-1", false).unwrap();
    assert_eq!(started.start, Start::Pvh { entry: Gpa::new(KERNEL_AT + 0x80), start_info: Gpa::new(0x6000) });
    assert_eq!((started.word(0x6000), started.word(0x6004), started.word(0x600c)), (0x336e_c578, 1, 1));
    let modules = started.long(0x6010);
    assert_eq!((started.long(modules), started.long(modules + 8)), (0x0fff_f000, 6));
    assert_eq!(started.bytes(0x0fff_f000, 6), b"initrd");
    assert_eq!(started.string(started.long(0x6018)), "panic=-1");
    assert_eq!(started.long(0x6020), 0xe_0000, "rsdp");
    let map: Vec<_> = (0..u64::from(started.word(0x6030)))
        .map(|index| started.long(0x6028) + 24 * index)
        .map(|at| (started.long(at), started.long(at + 8), started.word(at + 16)))
        .collect();
    assert_eq!(map, MAP_OF_256_MIB);
}

#[test]
fn an_elf_kernel_without_one_begins_in_long_mode() {
    let started = start(&fixture::kernel(), 256 * MIB, None, "x", false).unwrap();
    assert!(matches!(started.start, Start::Linux64 { .. }));
    assert_eq!((started.bytes(0x7202, 4), started.bytes(0x71fe, 2)), (b"HdrS".to_vec(), vec![0x55, 0xaa]));
}

#[test]
fn the_initrd_stays_below_what_the_kernel_says_and_off_the_kernel() {
    let mut file = packed();
    file[0x22c..0x230].copy_from_slice(&0x3fff_ffff_u32.to_le_bytes()); // initrd_addr_max: 1 GiB
    let started = start(&file, 2 << 30, Some(&[1; 4096]), "", false).unwrap();
    assert_eq!(started.word(0x7218), 0x3fff_f000);
    file[0x22c..0x230].copy_from_slice(&u32::MAX.to_le_bytes());
    let started = start(&file, 5 << 30, Some(&[1; 4096]), "", false).unwrap();
    assert_eq!(started.word(0x7218), 0xbfff_f000, "below the MMIO gap");
    // More memory is no remedy for what the kernel or the gap forbids.
    file[0x22c..0x230].copy_from_slice(&(17 * MIB as u32 - 1).to_le_bytes());
    let error = start(&file, 64 * MIB, Some(&[1; 2 << 20]), "", false).unwrap_err().to_string();
    assert!(error.contains("initrd_addr_max") && error.contains("would not help"), "{error}");
    file[0x22c..0x230].copy_from_slice(&u32::MAX.to_le_bytes());
    // 16 MiB below the kernel, 8 MiB of its own, 8 MiB left.
    assert!(start(&file, 32 * MIB, Some(&vec![1; 8 << 20]), "", false).is_ok());
    let error = start(&file, 32 * MIB, Some(&vec![1; (8 << 20) + 1]), "", false).unwrap_err().to_string();
    assert!(error.contains("initrd") && error.contains("more memory"), "{error}");
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let file = packed();
    let error = |file: &[u8], size: u64, cmdline: &str| {
        [false, true]
            .map(|in_guest| start(file, size, None, cmdline, in_guest).err().map(|error| error.to_string()))
    };
    let both = |errors: [Option<String>; 2], words: &str| {
        for error in errors {
            assert!(error.as_ref().is_some_and(|error| error.contains(words)), "{error:?}, wanted {words:?}");
        }
    };
    both(error(&file, 24 * MIB - 4096, ""), "give the guest more memory");
    both(error(&file, 4096, ""), "first MiB");
    both(error(&file, MIB, ""), "first MiB");
    both(error(&file, 64 * MIB, "a\0b"), "NUL at byte 1");
    both(error(&file, 64 * MIB, &"x".repeat(2048)), "2048 bytes, and this kernel takes 2047");
    assert_eq!(error(&file, 64 * MIB, &"x".repeat(2047)), [None, None]);
    let mut wide = file.clone();
    wide[0x238..0x23c].copy_from_slice(&u32::MAX.to_le_bytes());
    both(error(&wide, 64 * MIB, &"x".repeat(0x1_0000)), "takes 65535");
    let mut wild = file.clone();
    wild[0x258..0x260].copy_from_slice(&(u64::MAX - 0xfff).to_le_bytes());
    both(error(&wild, 64 * MIB, ""), "end of the address space");
    let mut low = file.clone();
    low[0x258..0x260].copy_from_slice(&0x7000_u64.to_le_bytes());
    both(error(&low, 64 * MIB, ""), "linked to lie above the first MiB");
}

#[test]
fn a_payload_that_is_no_kernel_is_refused() {
    let file = bzimage(&payload(Compression::Gzip, &[0; 4096]), INIT_SIZE);
    let error = start(&file, 64 * MIB, None, "", false).err().unwrap();
    assert!(matches!(error, LoadError::Packed(_)), "{error}");
}

#[test]
fn an_initrd_comes_from_its_file() {
    let (memory, platform) = machine(64 * MIB);
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().write_all(b"070701 and so on").unwrap();
    let input = Input::open(FileKind::Initrd, file.path()).unwrap();
    let bzimage = packed();
    let boot = Boot {
        kernel: &Kernel::identify(&bzimage).unwrap(),
        initrd: Some(Initrd::of_input(&input).unwrap()),
        cmdline: "",
        in_guest_decompression: false,
    };
    load(&memory, &platform, &boot).unwrap();
    let page: boot_params = memory.read_obj(GuestAddress(0x7000)).unwrap();
    let mut read = [0; 16];
    memory.read_slice(&mut read, GuestAddress(page.hdr.ramdisk_image.into())).unwrap();
    assert_eq!(&read, b"070701 and so on");
}

#[test]
fn a_map_of_too_many_pieces_is_refused() {
    let (memory, mut platform) = machine(64 * MIB);
    let last = platform.memory[1];
    platform.memory.extend(std::iter::repeat_n(last, 128));
    assert!(matches!(load_alone(&memory, &platform, &packed()), Err(LoadError::TooManyPieces(132))));
}

#[test]
fn memory_that_is_not_there_is_an_error() {
    let (_, platform) = machine(64 * MIB);
    let holes = [(1 << 20, 63 << 20)];
    let memory = GuestRam::mapped(&holes);
    assert!(load_alone(&memory, &platform, &packed()).is_err());
}
