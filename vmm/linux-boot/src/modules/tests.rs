use std::fs;

use proptest::prelude::*;

use super::*;
use crate::fixture::{PACKED, stream};

/// For all modules of a test.
const ROOM: u64 = 64 << 20;

/// A module object with this `.modinfo`: an ELF header, the section's bytes, the names, three section headers.
fn object(modinfo: &[u8]) -> Vec<u8> {
    const NAMES: &[u8] = b"\0.modinfo\0.shstrtab\0";
    let (info_at, names_at) = (64, 64 + modinfo.len());
    let sections_at = (names_at + NAMES.len()).next_multiple_of(8);
    let mut image = b"\x7fELF\x02\x01\x01".to_vec();
    image.resize(16, 0);
    image.extend([1_u16, 62].map(u16::to_le_bytes).concat());
    image.extend(1_u32.to_le_bytes());
    image.extend([0, 0, sections_at as u64].map(u64::to_le_bytes).concat());
    image.extend(0_u32.to_le_bytes());
    image.extend([64_u16, 0, 0, 64, 3, 2].map(u16::to_le_bytes).concat());
    image.extend(modinfo);
    image.extend(NAMES);
    image.resize(sections_at, 0);
    let mut section = |name: u32, kind: u32, at: usize, len: usize| {
        image.extend([name, kind].map(u32::to_le_bytes).concat());
        image.extend([0, 0, at as u64, len as u64].map(u64::to_le_bytes).concat());
        image.extend([0_u32, 0].map(u32::to_le_bytes).concat());
        image.extend([1_u64, 0].map(u64::to_le_bytes).concat());
    };
    section(0, 0, 0, 0);
    section(1, 1, info_at, modinfo.len());
    section(10, 3, names_at, NAMES.len());
    image
}

fn needs(depends: &str) -> Vec<u8> {
    object(format!("license=GPL\0depends={depends}\0name=x\0").as_bytes())
}

/// A modules directory with these files.
fn directory(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (path, bytes) in files {
        let path = directory.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    directory
}

fn names(modules: &[Module]) -> Vec<&str> {
    modules.iter().map(|module| module.name.as_str()).collect()
}

fn chain() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("kernel/drivers/virtio/virtio-mmio.ko", needs("virtio_ring,virtio")),
        ("kernel/drivers/virtio/virtio_ring.ko", needs("virtio")),
        ("kernel/drivers/virtio/virtio.ko", needs("")),
        ("kernel/drivers/block/virtio_blk.ko", needs("virtio,virtio_ring,core")),
        ("modules.builtin", b"kernel/core.ko\n".to_vec()),
    ]
}

fn borrowed<'a>(files: &'a [(&'static str, Vec<u8>)]) -> Vec<(&'a str, &'a [u8])> {
    files.iter().map(|(path, bytes)| (*path, &bytes[..])).collect()
}

#[test]
fn without_depmod_each_module_says_what_it_needs() {
    let directory = directory(&borrowed(&chain()));
    let order = load_order(directory.path(), &["virtio_mmio", "virtio-blk", "virtio"], ROOM).unwrap();
    assert_eq!(names(&order), ["virtio", "virtio_ring", "virtio_mmio", "virtio_blk"]);
    assert!(order[0].image == needs(""));
}

#[test]
fn modules_dep_has_the_first_word() {
    let mut files = chain();
    // Against what the file itself says: depmod resolves what modinfo does not know.
    files.push((
        "modules.dep",
        b"kernel/drivers/block/virtio_blk.ko: kernel/drivers/virtio/virtio-mmio.ko\n\
          kernel/drivers/virtio/virtio-mmio.ko:\n"
            .to_vec(),
    ));
    let directory = directory(&borrowed(&files));
    assert_eq!(
        names(&load_order(directory.path(), &["virtio_blk"], ROOM).unwrap()),
        ["virtio_mmio", "virtio_blk"]
    );
    let error = load_order(directory.path(), &["virtio"], ROOM).err().unwrap();
    assert!(matches!(error, ModuleError::Missing { .. }), "it is in no line: {error}");
}

#[test]
fn packed_modules_are_unpacked() {
    let object = needs("");
    for compression in PACKED {
        let suffix = compression.tool().split(' ').next().unwrap();
        let suffix = suffix.replace("gzip", "gz").replace("zstd", "zst");
        let path = format!("kernel/zram.ko.{suffix}");
        let packed = stream(compression, &object);
        let directory = directory(&[(&path, &packed)]);
        match load_order(directory.path(), &["zram"], ROOM) {
            Ok(order) => assert!(order[0].image == object, "{compression}"),
            Err(error) => assert!(suffix == "lz4" && matches!(error, ModuleError::Missing { .. }), "{error}"),
        }
    }
}

#[test]
fn one_that_unpacks_to_far_more_than_its_size_is_unpacked_all_the_same() {
    let object = [needs(""), vec![0; 5 << 20]].concat();
    let directory = directory(&[("kernel/zeroes.ko.xz", &stream(Compression::Xz, &object))]);
    assert!(load_order(directory.path(), &["zeroes"], ROOM).unwrap()[0].image == object);
}

#[test]
fn all_of_them_together_have_a_bound() {
    // Each unpacks to 8 MiB from a few KiB, and the first seven need one another.
    let zeroes = [needs(""), vec![0; (8 << 20) - 500]].concat();
    let packed: Vec<_> = PACKED.iter().map(|&compression| stream(compression, &zeroes)).collect();
    let files: Vec<_> = (0..8).map(|number| format!("kernel/m{number}.ko.xz")).collect();
    let with = |packed: &[u8]| {
        let files: Vec<_> = files.iter().map(|path| (path.as_str(), packed)).collect();
        directory(&files)
    };
    let wanted = ["m0", "m1", "m2", "m3", "m4", "m5", "m6", "m7"];
    for packed in packed.iter().chain([&zeroes]) {
        let directory = with(packed);
        assert_eq!(load_order(directory.path(), &wanted, ROOM).unwrap().len(), 8);
        let error = load_order(directory.path(), &wanted, ROOM - (8 << 20)).err().unwrap().to_string();
        assert!(error.contains("m7.ko") && error.contains("56 MiB") && error.contains("memory"), "{error}");
        let error = load_order(directory.path(), &wanted, 1 << 20).err().unwrap().to_string();
        assert!(error.contains("m0.ko") && error.contains("1 MiB"), "{error}");
    }
}

#[test]
fn what_is_no_file_is_refused_at_once() {
    let directory = directory(&[("modules.dep", b"kernel/pipe.ko:\nkernel/zero.ko.xz:\nkernel/d.ko:\n")]);
    let at = |name: &str| directory.path().join("kernel").join(name);
    fs::create_dir_all(at("d.ko")).unwrap();
    let fifo = (rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o600));
    rustix::fs::mknodat(rustix::fs::CWD, at("pipe.ko"), fifo.0, fifo.1, 0).unwrap();
    std::os::unix::fs::symlink("/dev/zero", at("zero.ko.xz")).unwrap();
    for (name, kind) in [("pipe", "a pipe"), ("zero", "a character device"), ("d", "a directory")] {
        let error = load_order(directory.path(), &[name], ROOM).err().unwrap().to_string();
        assert!(error.contains(kind) && error.contains(name), "{error}");
    }
    fs::remove_file(directory.path().join("modules.dep")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, directory.path().join("modules.dep"), fifo.0, fifo.1, 0).unwrap();
    let error = load_order(directory.path(), &["pipe"], ROOM).err().unwrap().to_string();
    assert!(error.contains("modules.dep is a pipe, and no regular file"), "{error}");
}

#[test]
fn what_is_missing_is_named_with_who_needs_it() {
    let directory = directory(&[("kernel/a.ko", &needs("b")), ("kernel/b.ko", &needs("ghost"))]);
    let error = load_order(directory.path(), &["a"], ROOM).err().unwrap().to_string();
    assert!(error.contains("\"ghost\"") && error.contains("needed by \"b\""), "{error}");
    let error = load_order(directory.path(), &["nothing"], ROOM).err().unwrap().to_string();
    assert!(error.contains("\"nothing\"") && !error.contains("needed"), "{error}");
    let error = load_order(&directory.path().join("6.1.0"), &["a"], ROOM).err().unwrap().to_string();
    assert!(error.contains("6.1.0 cannot be read: name one with `--modules`"), "{error}");
}

#[test]
fn modules_that_need_one_another_are_no_endless_loop() {
    let directory = directory(&[("kernel/a.ko", &needs("b")), ("kernel/b.ko", &needs("a"))]);
    let error = load_order(directory.path(), &["a"], ROOM).err().unwrap().to_string();
    assert!(error.contains("a, b"), "{error}");
}

#[test]
fn a_damaged_module_is_named() {
    let mut packed = stream(Compression::Zstd, &needs(""));
    packed.truncate(packed.len() - 3);
    let cases: [(&str, &[u8], &str); 4] = [
        ("kernel/a.ko", b"not an object", "no ELF file"),
        ("kernel/a.ko", &object(b"")[..80], "damaged"),
        ("kernel/a.ko.zst", &packed, "truncated"),
        ("kernel/a.ko.gz", b"\x1f\x8b\x08\x00garbage and more of it", "damaged"),
    ];
    for (path, bytes, words) in cases {
        let directory = directory(&[(path, bytes)]);
        let error = load_order(directory.path(), &["a"], ROOM).err().unwrap().to_string();
        assert!(error.contains(words) && error.contains("a.ko"), "{error}");
    }
    let bare = directory(&[("kernel/a.ko", &crate::fixture::kernel())]);
    assert!(load_order(bare.path(), &["a"], ROOM).err().unwrap().to_string().contains(".modinfo"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn a_hostile_object_is_an_error_and_nothing_worse(
        at in any::<prop::sample::Index>(),
        lie in prop_oneof![Just(u64::MAX), Just(1 << 63), Just(0), Just(0x7fff_ffff_ffff_fff8), any::<u64>()],
    ) {
        let mut object = needs("virtio");
        let at = at.index(object.len());
        let end = (at + 8).min(object.len());
        object[at..end].copy_from_slice(&lie.to_le_bytes()[..end - at]);
        if let Ok(depends) = modinfo::depends(&object) {
            prop_assert!(depends.iter().map(String::len).sum::<usize>() <= object.len());
        }
    }

    #[test]
    fn the_order_puts_every_module_after_what_it_needs(edges in prop::collection::vec((0_usize..12, 0_usize..12), 0..40)) {
        // From higher to lower numbers only: no cycles.
        let edges: Vec<_> = edges.into_iter().filter(|(from, to)| from > to).collect();
        let files: Vec<_> = (0..12)
            .map(|from| {
                let needed: Vec<_> =
                    edges.iter().filter(|edge| edge.0 == from).map(|edge| format!("m{}", edge.1)).collect();
                (format!("kernel/m{from}.ko"), needs(&needed.join(",")))
            })
            .collect();
        let files: Vec<_> = files.iter().map(|(path, bytes)| (path.as_str(), &bytes[..])).collect();
        let directory = directory(&files);
        let order = load_order(directory.path(), &["m11", "m5"], ROOM).unwrap();
        let place = |wanted: usize| order.iter().position(|module| module.name == format!("m{wanted}"));
        prop_assert!(place(11).is_some() && place(5).is_some());
        for (from, to) in edges {
            if let Some(from) = place(from) {
                prop_assert!(place(to).is_some_and(|to| to < from));
            }
        }
    }
}

#[test]
fn every_length_of_an_object_is_survived() {
    let object = needs("virtio,virtio_ring");
    assert_eq!(modinfo::depends(&object).unwrap(), ["virtio", "virtio_ring"]);
    for cut in 0..object.len() {
        assert!(modinfo::depends(&object[..cut]).is_err(), "cut at {cut}");
    }
}
