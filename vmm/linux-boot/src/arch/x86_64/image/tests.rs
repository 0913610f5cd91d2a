use proptest::prelude::*;

use super::super::fixture::{self, PACKED, VERSION, bzimage, kernel, payload};
use super::*;

fn refusal(file: &[u8]) -> String {
    match Kernel::identify(file) {
        Ok(_) => panic!("taken for a kernel"),
        Err(refusal) => refusal.to_string(),
    }
}

/// A small valid bzImage.
fn small() -> Vec<u8> {
    bzimage(&payload(Compression::Zstd, b"\x7fELF, or so"), 0x10_0000)
}

fn patched(mut file: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    file[at..at + bytes.len()].copy_from_slice(bytes);
    file
}

#[test]
fn a_bzimage_of_every_compression_is_known_and_unpacks() {
    let kernel = kernel();
    for compression in PACKED {
        let file = bzimage(&payload(compression, &kernel), 8 << 20);
        let identified = Kernel::identify(&file).unwrap();
        assert_eq!((identified.version(), identified.release()), (Some(VERSION), Some("6.1.0-test")));
        let Kernel::BzImage(image) = identified else { panic!("not a bzImage") };
        assert!(image.unpack(u64::MAX).unwrap() == kernel, "{compression}");
        assert_eq!((image.preferred_address(), image.init_size()), (fixture::KERNEL_AT, 8 << 20));
        // A signature behind it is no part of it.
        let signed = [&file[..], &[0xaa; 1500]].concat();
        let Ok(Kernel::BzImage(image)) = Kernel::identify(&signed) else { panic!("not a bzImage") };
        assert!(image.image() == file && image.unpack(u64::MAX).unwrap() == kernel);
    }
}

#[test]
fn a_payload_larger_than_its_memory_is_refused_before_it_is_unpacked() {
    let file = bzimage(&payload(Compression::Zstd, &vec![0; 1 << 20]), 0xf_ffff);
    let Ok(Kernel::BzImage(image)) = Kernel::identify(&file) else { panic!("not a bzImage") };
    assert!(image.unpack(u64::MAX).unwrap_err().to_string().contains("claims to unpack to 1048576"));
}

#[test]
fn an_elf_kernel_is_known() {
    assert!(matches!(Kernel::identify(&kernel()), Ok(Kernel::Elf(_))));
}

#[test]
fn what_is_no_kernel_is_refused_by_name() {
    let pe = |machine: [u8; 2]| {
        let mut file = vec![0; 256];
        file[..2].copy_from_slice(b"MZ");
        file[0x3c] = 0x80;
        file[0x80..0x84].copy_from_slice(b"PE\0\0");
        file[0x84..0x86].copy_from_slice(&machine);
        file
    };
    let blank = |at: usize, magic: &[u8]| patched(vec![0; 1024], at, magic);
    let zboot = patched(pe([0x64, 0xaa]), 4, b"zimg");
    let cases: [(Vec<u8>, &[&str]); 22] = [
        (Vec::new(), &["empty"]),
        (b"#!/bin/sh\n".to_vec(), &["no kernel", "begins with"]),
        (vec![0], &["no kernel"]),
        (pe([0x64, 0x86]), &["EFI application", "x86-64", "objcopy"]),
        (pe([0x64, 0xaa]), &["EFI application", "AArch64"]),
        (pe([0x34, 0x12]), &["EFI application", "0x1234"]),
        (b"MZ".to_vec(), &["EFI application", "unknown machine"]),
        (zboot, &["zboot", "AArch64"]),
        (blank(0x38, b"ARM\x64"), &["AArch64"]),
        (patched(pe([0x64, 0xaa]), 0x38, b"ARM\x64"), &["kernel image for AArch64"]),
        (blank(0x38, b"RSC\x05"), &["RISC-V"]),
        (patched(kernel(), 4, &[1]), &["32-bit ELF"]),
        (patched(kernel(), 18, &[183, 0]), &["AArch64", "x86-64 ELF"]),
        (patched(kernel(), 18, &[40, 0]), &["machine 40"]),
        (patched(kernel(), 16, &[1, 0]), &["object file"]),
        (kernel()[..40].to_vec(), &["40 bytes"]),
        (fixture::stream(Compression::Gzip, &kernel()), &["gzip", "gzip -d", "--initrd"]),
        (fixture::stream(Compression::Xz, &kernel()), &["xz -d"]),
        (b"BZh91AY&SY".to_vec(), &["bzip2"]),
        (b"070701000000".to_vec(), &["cpio", "--initrd"]),
        (vec![0x27, 0x05, 0x19, 0x56], &["U-Boot"]),
        (blank(0x1fe, &[0x55, 0xaa]), &["boot sector", "--disk"]),
    ];
    for (file, words) in cases {
        let message = refusal(&file);
        assert!(words.iter().all(|word| message.contains(word)), "{message}, wanted {words:?}");
    }
}

#[test]
fn each_field_of_the_setup_header_is_checked() {
    let cases: [(usize, &[u8], &str); 15] = [
        (0x1fe, &[0, 0], "boot_flag"),
        (0x206, &[0x07, 0x02], "2.07"),
        (0x206, &[0, 0], "0.00"),
        (0x211, &[0], "zImage"),
        (0x236, &[0x7e, 0], "32-bit kernel"),
        (0x1f1, &[255], "syssize"),
        (0x1f4, &[0xff; 4], "syssize"),
        (0x1f4, &[0; 4], "payload_offset"),
        (0x22c, &[0; 4], "initrd_addr_max"),
        (0x230, &[3, 0, 0, 0], "kernel_alignment"),
        (0x238, &[0; 4], "cmdline_size"),
        (0x248, &[0xff; 4], "payload_offset"),
        (0x24c, &[0; 4], "payload_length"),
        (0x24c, &[0xff; 4], "payload_offset"),
        (0x258, &[1], "pref_address"),
    ];
    for (at, bytes, word) in cases {
        let message = refusal(&patched(small(), at, bytes));
        assert!(message.contains(word), "{at:#x}: {message}");
    }
    assert!(refusal(&patched(small(), 0x260, &[0; 4])).contains("init_size"));
}

#[test]
fn every_truncation_is_refused() {
    let file = small();
    for cut in 0..file.len() {
        let message = refusal(&file[..cut]);
        assert!(cut < 0x206 || message.contains("truncated"), "cut at {cut}: {message}");
    }
}

#[test]
fn a_version_that_is_none_is_none() {
    let version = |at: usize, bytes: &[u8]| {
        let file = patched(small(), at, bytes);
        let Ok(Kernel::BzImage(image)) = Kernel::identify(&file) else { panic!("not a bzImage") };
        image.version().map(str::to_owned)
    };
    assert_eq!(version(0x20e, &[0, 0]), None, "no string");
    assert_eq!(version(0x20e, &[0xff, 0xff]), None, "outside of the setup part");
    assert_eq!(version(0x300, &[0xff; 8]), None, "no text");
    assert_eq!(version(0x300, b"\x1b[31m"), None, "control characters");
    assert_eq!(version(0x300, &[b'x'; 256]), None, "no end");
}

proptest! {
    #[test]
    fn no_bytes_anywhere_in_the_header_do_harm(at in 0_usize..0x280, bytes in prop::collection::vec(any::<u8>(), 1..16)) {
        let file = patched(small(), at, &bytes);
        if let Ok(Kernel::BzImage(image)) = Kernel::identify(&file) {
            let _ = (image.version(), image.payload(), image.image(), image.unpack(1 << 20));
        }
    }
}
