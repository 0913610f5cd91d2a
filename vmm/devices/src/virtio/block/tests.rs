//! The block device, driven by an honest driver and by hostile ones.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::bus::BusDevice;
use crate::virtio::testing::driver::{ALL, DATA, PLAIN, interrupt};
use crate::virtio::testing::hostile::{cheat, run_cheat, run_vandal, vandal};
use crate::virtio::testing::{Descriptor, Driver, memory, readable, writable};

const SECTORS: u64 = 64;
const OK: u8 = VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;
const UNSUPP: u8 = VIRTIO_BLK_S_UNSUPP as u8;
const IN: u32 = VIRTIO_BLK_T_IN;
const OUT: u32 = VIRTIO_BLK_T_OUT;
/// Where a request's parts lie.
const HEADER_AT: u64 = DATA;
const STATUS_AT: u64 = DATA + 0x100;
const DATA_AT: u64 = DATA + 0x1000;
const NEVER: u8 = 0xee;

/// A file that takes holes, whatever file system the host has for its temporary ones.
struct Image(File);

impl Image {
    fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }
    fn as_file(&self) -> &File {
        &self.0
    }
}

/// An image whose bytes say where they are.
fn image() -> Image {
    let memfd = rustix::fs::memfd_create("image", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let mut file = File::from(memfd);
    file.write_all(&content(0, SECTORS)).unwrap();
    Image(file)
}

fn content(sector: u64, sectors: u64) -> Vec<u8> {
    (sector..sector + sectors).flat_map(|sector| (0..SECTOR).map(move |at| (sector * 7 + at) as u8)).collect()
}

fn device(file: &Image, read_only: bool) -> Driver {
    let disk = Disk::open(&file.path(), read_only, "a serial number that is too long").unwrap();
    let mut driver = Driver::new(Box::new(Block::new(disk)), memory(), interrupt());
    driver.set_up(ALL);
    driver
}

fn header(driver: &Driver, kind: u32, sector: u64) -> Descriptor {
    let [a, b]: [&[u8]; 2] = [&u64::from(kind).to_le_bytes(), &sector.to_le_bytes()];
    driver.put(HEADER_AT, &[a, b].concat());
    driver.put(STATUS_AT, &[NEVER]);
    readable(HEADER_AT, 16)
}

/// One request with one buffer of data; returns the status.
fn request(driver: &mut Driver, kind: u32, sector: u64, data: Descriptor) -> u8 {
    let header = header(driver, kind, sector);
    driver.transact(0, &[header, data, writable(STATUS_AT, 1)]);
    driver.get(STATUS_AT, 1)[0]
}

fn bytes_of(file: &Image) -> Vec<u8> {
    fs::read(file.path()).unwrap()
}

fn config<const N: usize>(driver: &mut Driver, at: u64) -> [u8; N] {
    let mut bytes = [0; N];
    driver.mmio.read(0x100 + at, &mut bytes);
    bytes
}

#[test]
fn it_says_how_large_it_is_and_what_it_can_do() {
    let file = image();
    for read_only in [false, true] {
        let mut driver = device(&file, read_only);
        assert_eq!(u64::from_le_bytes(config(&mut driver, 0)), SECTORS);
        assert_eq!(u32::from_le_bytes(config(&mut driver, 8)), SEGMENT_SIZE);
        assert_eq!(u32::from_le_bytes(config(&mut driver, 12)), SEGMENTS);
        let offered = driver.offered();
        let has = |bit: u32| offered >> bit & 1 == 1;
        assert_eq!(has(VIRTIO_BLK_F_RO), read_only);
        assert_eq!(has(VIRTIO_BLK_F_DISCARD), !read_only);
        assert!(has(VIRTIO_BLK_F_FLUSH));
    }
}

#[test]
fn sectors_are_read_and_written() {
    let file = image();
    let mut driver = device(&file, false);
    assert_eq!(request(&mut driver, IN, 5, writable(DATA_AT, 1024)), OK);
    assert_eq!(driver.get(DATA_AT, 1024), content(5, 2));
    driver.put(DATA_AT, &[0xab; 512]);
    assert_eq!(request(&mut driver, OUT, 63, readable(DATA_AT, 512)), OK);
    let header = header(&driver, VIRTIO_BLK_T_FLUSH, 0);
    driver.transact(0, &[header, writable(STATUS_AT, 1)]);
    assert_eq!(driver.get(STATUS_AT, 1), [OK]);
    let mut expected = content(0, 63);
    expected.extend([0xab; 512]);
    assert_eq!(bytes_of(&file), expected);
}

#[test]
fn the_serial_number_is_the_first_20_bytes() {
    let file = image();
    let mut driver = device(&file, true);
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_GET_ID, 0, writable(DATA_AT, 20)), OK);
    assert_eq!(driver.get(DATA_AT, 20), b"a serial number that");
}

#[test]
fn a_range_is_discarded_or_zeroed_and_others_are_not() {
    let file = image();
    let mut driver = device(&file, false);
    let range = |sector: u64, sectors: u32, flags: u32| {
        let [a, b, c]: [&[u8]; 3] = [&sector.to_le_bytes(), &sectors.to_le_bytes(), &flags.to_le_bytes()];
        [a, b, c].concat()
    };
    let before = fs::metadata(file.path()).unwrap().blocks();
    // Two ranges of which each covers a page, in a buffer that is cut in the middle of one.
    driver.put(DATA_AT, &[range(8, 8, 0), range(24, 8, 0)].concat());
    let head = header(&driver, VIRTIO_BLK_T_DISCARD, 0);
    driver.transact(0, &[head, readable(DATA_AT, 21), readable(DATA_AT + 21, 11), writable(STATUS_AT, 1)]);
    let status = driver.get(STATUS_AT, 1)[0];
    assert_eq!(status, OK);
    assert!(fs::metadata(file.path()).unwrap().blocks() < before, "blocks are given back");
    let mut expected = content(0, SECTORS);
    expected[8 * 512..16 * 512].fill(0);
    expected[24 * 512..32 * 512].fill(0);
    assert_eq!(bytes_of(&file), expected);
    // Write zeroes with and without leave to unmap: without, a file system may lack the means.
    for (sector, flags) in [(40u64, 1), (50, 0)] {
        driver.put(DATA_AT, &range(sector, 3, flags));
        let status = request(&mut driver, VIRTIO_BLK_T_WRITE_ZEROES, 0, readable(DATA_AT, 16));
        assert!(status == OK || flags == 0 && status == UNSUPP, "{status}");
        if status == OK {
            expected[sector as usize * 512..][..3 * 512].fill(0);
        }
        assert_eq!(bytes_of(&file), expected);
    }
    // A range outside, an unknown flag, a flag where there is none, half a range, none: nothing changes.
    for (kind, bytes, expected_status) in [
        (VIRTIO_BLK_T_DISCARD, [range(0, 1, 0), range(60, 5, 0)].concat(), IOERR),
        (VIRTIO_BLK_T_DISCARD, range(u64::MAX, 1, 0), IOERR),
        (VIRTIO_BLK_T_DISCARD, range(0, u32::MAX, 0), IOERR),
        (VIRTIO_BLK_T_DISCARD, range(0, 1, 1), UNSUPP),
        (VIRTIO_BLK_T_WRITE_ZEROES, range(0, 1, 2), UNSUPP),
        (VIRTIO_BLK_T_WRITE_ZEROES, range(0, 1, 0)[..15].to_vec(), IOERR),
        (VIRTIO_BLK_T_WRITE_ZEROES, vec![], IOERR),
        (VIRTIO_BLK_T_WRITE_ZEROES, range(0, 1, 0).repeat(33), IOERR),
    ] {
        driver.put(DATA_AT, &bytes);
        assert_eq!(request(&mut driver, kind, 0, readable(DATA_AT, bytes.len() as u32)), expected_status);
        assert_eq!(bytes_of(&file), expected);
    }
}

#[test]
fn a_read_only_disk_is_not_written() {
    let file = image();
    let mut driver = device(&file, true);
    assert_eq!(request(&mut driver, IN, 0, writable(DATA_AT, 512)), OK);
    driver.put(DATA_AT, &[0; 512]);
    for kind in [OUT, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        assert_eq!(
            request(
                &mut driver,
                kind,
                0,
                readable(DATA_AT, 16 * u32::from(kind != OUT) + 512 * u32::from(kind == OUT))
            ),
            IOERR
        );
    }
    assert_eq!(bytes_of(&file), content(0, SECTORS));
}

#[test]
fn what_is_asked_wrongly_is_an_io_error_and_moves_nothing() {
    let file = image();
    let mut driver = device(&file, false);
    let cases = [
        (IN, 63, writable(DATA_AT, 1024), "past the end"),
        (IN, SECTORS, writable(DATA_AT, 512), "at the end"),
        (IN, u64::MAX, writable(DATA_AT, 512), "a sector that overflows"),
        (IN, u64::MAX / 512, writable(DATA_AT, 512), "an offset that overflows"),
        (IN, 0, writable(DATA_AT, 511), "no whole sector"),
        (IN, 0, writable(DATA_AT, u32::MAX - 1023), "more than a request may move"),
        (IN, 0, writable(0x10_0000, 512), "into the hole"),
        (IN, 0, writable(0x0f_ff00, 512), "over the edge of RAM"),
        (OUT, 63, readable(DATA_AT, 1024), "past the end"),
        (OUT, 0, readable(DATA_AT, 100), "no whole sector"),
        (OUT, 0, readable(1 << 40, 512), "from outside of RAM"),
    ];
    for (kind, sector, data, what) in cases {
        assert_eq!(request(&mut driver, kind, sector, data), IOERR, "{what}");
        assert_eq!(bytes_of(&file), content(0, SECTORS), "{what}");
        assert!(!driver.mmio.interrupt().needs_reset(), "{what}");
    }
    assert_eq!(request(&mut driver, 99, 0, writable(DATA_AT, 512)), UNSUPP);
    // A header that is too short, or not there.
    for short in [readable(HEADER_AT, 15), readable(0x10_0000, 16)] {
        driver.put(STATUS_AT, &[NEVER]);
        driver.transact(0, &[short, writable(STATUS_AT, 1)]);
        assert_eq!(driver.get(STATUS_AT, 1), [IOERR]);
    }
    assert_eq!(request(&mut driver, IN, 0, writable(DATA_AT, 512)), OK);
}

#[test]
fn without_room_for_a_status_there_is_no_answer_but_a_fault() {
    for (status, expected) in [
        (None, "has no room for a status"),
        (Some(writable(DATA, 0)), "has no room for a status"),
        (Some(writable(0x10_0000, 1)), "has its status outside of RAM"),
    ] {
        let file = image();
        let mut driver = device(&file, false);
        let header = header(&driver, IN, 0);
        let chain: Vec<_> = [header].into_iter().chain(status).collect();
        driver.add(0, &chain);
        driver.kick(0);
        let fault = driver.mmio.interrupt().last_fault().unwrap();
        assert!(fault.ends_with(expected), "{fault}");
        driver.set_up(ALL);
        assert_eq!(request(&mut driver, IN, 0, writable(DATA_AT, 512)), OK);
    }
}

#[test]
fn a_file_cut_short_while_it_is_in_use_is_an_io_error() {
    let file = image();
    let mut driver = device(&file, false);
    file.as_file().set_len(10 * 512).unwrap();
    assert_eq!(request(&mut driver, IN, 9, writable(DATA_AT, 512)), OK);
    assert_eq!(request(&mut driver, IN, 9, writable(DATA_AT, 1024)), IOERR);
    assert_eq!(request(&mut driver, IN, 20, writable(DATA_AT, 512)), IOERR);
}

#[test]
fn a_disk_that_is_none_is_refused_by_name_and_reason() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::write(path("empty"), "").unwrap();
    fs::write(path("cut"), [0; 1000]).unwrap();
    fs::write(path("whole"), [0; 1024]).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, path("pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let refused = |name: &str| {
        let error = Disk::open(&path(name), true, "").unwrap_err().to_string();
        error.replace(&directory.path().display().to_string(), "")
    };
    assert_eq!(refused("none"), "cannot open the disk /none: name a raw image or a block device");
    assert_eq!(
        refused(""),
        "the disk / is a directory, and neither a regular file nor a block device: name a raw image or a block device"
    );
    assert_eq!(
        refused("pipe"),
        "the disk /pipe is a pipe, and neither a regular file nor a block device: name a raw image or a block device"
    );
    assert_eq!(
        refused("empty"),
        "the disk /empty is empty: a raw image has at least one sector of 512 bytes"
    );
    assert_eq!(
        refused("cut"),
        "the disk /cut has 1000 bytes, not a multiple of 512: it is no raw image, or was cut short"
    );
    assert_eq!(Disk::open(&path("whole"), false, "").unwrap().sectors(), 2);
}

#[test]
fn a_disk_that_may_not_be_written_is_read_only_or_refused() {
    /// The id of the user `nobody`, which owns none of the files.
    const NOBODY: u32 = 65_534;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("whole");
    fs::write(&path, [0; 1024]).unwrap();
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o444)).unwrap();
    // Root may write to any file; a thread with the file system uid of another user may not.
    let attempt = || {
        // SAFETY: takes a number, and concerns this thread alone.
        unsafe { libc::setfsuid(NOBODY) };
        [true, false].map(|read_only| Disk::open(&path, read_only, "").map(|disk| disk.sectors()))
    };
    let [read_only, writable] = std::thread::scope(|scope| scope.spawn(attempt).join().unwrap());
    assert_eq!(read_only.unwrap(), 2);
    assert!(matches!(writable, Err(DiskError::NotWritable { .. })), "{writable:?}");
}

/// A layout: where the readable and the writable bytes of a request are cut, and whether through an indirect table.
#[derive(Clone, Debug)]
struct Layout {
    cuts: Vec<u32>,
    indirect: bool,
    features: u64,
}

fn sector() -> impl Strategy<Value = u64> {
    let edges = [SECTORS, SECTORS + 1, u64::MAX, u64::MAX / 512, u64::MAX / 512 + 1, 1 << 55, 1 << 32];
    prop_oneof![4 => 0..SECTORS, 2 => SECTORS - 6..SECTORS + 3, 1 => prop::sample::select(edges.to_vec())]
}

fn layout() -> impl Strategy<Value = Layout> {
    let cuts = prop::collection::vec(prop_oneof![0u32..20, 0u32..1600], 0..12);
    let features = prop::sample::select(&[ALL, PLAIN][..]);
    (cuts, any::<bool>(), features).prop_map(|(cuts, indirect, features)| Layout { cuts, indirect, features })
}

/// Cuts `len` bytes at `at` into descriptors, none of them next to another in memory. Returns them with the places.
fn cut(layout: &Layout, len: u32, flags: u16, region: u64) -> Vec<Descriptor> {
    let mut cuts: Vec<u32> = layout.cuts.iter().map(|&cut| cut.min(len)).chain([0, len]).collect();
    cuts.sort_unstable();
    cuts.windows(2)
        .zip((region..).step_by(0x1000))
        .map(|(pair, at)| Descriptor(at, pair[1] - pair[0], flags))
        .collect()
}

fn scatter(driver: &Driver, pieces: &[Descriptor], bytes: &[u8]) {
    let mut done = 0;
    for &Descriptor(at, len, _) in pieces {
        driver.put(at, &bytes[done..done + len as usize]);
        done += len as usize;
    }
}

fn gather(driver: &Driver, pieces: &[Descriptor]) -> Vec<u8> {
    pieces.iter().flat_map(|&Descriptor(at, len, _)| driver.get(at, len as usize)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// VERSION_1 promises nothing about framing: header, data and status may be cut anywhere.
    #[test]
    fn a_request_may_be_cut_into_descriptors_in_any_way(layout in layout(), sector in 0..SECTORS - 2, write in any::<bool>()) {
        let file = image();
        let mut driver = device(&file, false);
        driver.set_up(layout.features);
        let data: Vec<u8> = (0..1024u32).map(|at| (at * 13) as u8).collect();
        let [kind, place]: [&[u8]; 2] = [&u64::from(if write { OUT } else { IN }).to_le_bytes(), &sector.to_le_bytes()];
        let out = [kind, place, if write { &data } else { &[] }].concat();
        let readable = cut(&layout, out.len() as u32, 0, DATA);
        scatter(&driver, &readable, &out);
        let writable = cut(&layout, if write { 1 } else { 1025 }, 2, DATA + 0x20000);
        let chain = [&readable[..], &writable].concat();
        let head = if layout.indirect { driver.add_indirect(0, &chain) } else { driver.add(0, &chain) };
        driver.kick(0);
        prop_assert_eq!(driver.used(0), [(u32::from(head), if write { 1 } else { 1025 })]);
        let answer = gather(&driver, &writable);
        prop_assert_eq!(answer.last(), Some(&OK));
        let mut expected = content(0, SECTORS);
        if write {
            expected[sector as usize * 512..][..1024].copy_from_slice(&data);
        } else {
            prop_assert_eq!(&answer[..1024], &content(sector, 2)[..]);
        }
        prop_assert_eq!(bytes_of(&file), expected);
    }

    /// Against a copy of the image in memory, and the rule in the fewest words: whole sectors, all of them on the disk.
    #[test]
    fn requests_agree_with_a_model(
        requests in prop::collection::vec((any::<bool>(), sector(), prop_oneof![(0u32..8).prop_map(|n| n * 512), 0u32..3000], any::<u8>()), 1..20),
    ) {
        let file = image();
        let mut driver = device(&file, false);
        let mut model = content(0, SECTORS);
        for (write, sector, len, byte) in requests {
            let start = u128::from(sector) * 512;
            let ok = len % 512 == 0 && start + u128::from(len) <= model.len() as u128;
            driver.put(DATA_AT, &vec![byte; len as usize]);
            let data = if write { readable(DATA_AT, len) } else { writable(DATA_AT, len) };
            let status = request(&mut driver, if write { OUT } else { IN }, sector, data);
            prop_assert_eq!(status, if ok { OK } else { IOERR });
            if !ok {
                prop_assert_eq!(&bytes_of(&file), &model);
                continue;
            }
            let on_disk = start as usize..start as usize + len as usize;
            if write {
                model[on_disk].fill(byte);
            } else {
                prop_assert_eq!(&driver.get(DATA_AT, len as usize), &model[on_disk]);
            }
            prop_assert_eq!(&bytes_of(&file), &model);
        }
    }

    #[test]
    fn a_cheat_gets_no_more_than_the_disk(attack in cheat(1), read_only in any::<bool>()) {
        hostile(read_only, |driver| run_cheat(driver, &attack));
    }

    #[test]
    fn a_vandal_breaks_nothing(attack in vandal(1), read_only in any::<bool>()) {
        hostile(read_only, |driver| run_vandal(driver, &attack));
    }
}

/// After the attack the file is as long as before, a read-only one unchanged, and the device works.
fn hostile(read_only: bool, attack: impl FnOnce(&mut Driver)) {
    let file = image();
    let mut driver = device(&file, read_only);
    attack(&mut driver);
    assert_eq!(bytes_of(&file).len() as u64, SECTORS * SECTOR);
    if read_only {
        assert_eq!(bytes_of(&file), content(0, SECTORS));
    }
    driver.set_up(PLAIN);
    file.as_file().write_all_at(&content(3, 1), 7 * 512).unwrap();
    assert_eq!(request(&mut driver, IN, 7, writable(DATA_AT, 512)), OK);
    assert_eq!(driver.get(DATA_AT, 512), content(3, 1));
}
