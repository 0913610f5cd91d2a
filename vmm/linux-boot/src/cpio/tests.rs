use proptest::prelude::*;

use super::*;

/// What the naive reader finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) name: String,
    pub(crate) mode: u32,
    device: (u32, u32),
    pub(crate) data: Vec<u8>,
}

/// Reads an archive field by field, and checks what every reader relies on.
pub(crate) fn read(archive: &[u8]) -> Vec<Found> {
    assert_eq!(archive.len() % 512, 0);
    let (mut at, mut found, mut inodes) = (0, Vec::new(), Vec::new());
    loop {
        assert_eq!(at % 4, 0);
        assert_eq!(&archive[at..at + 6], b"070701");
        let field = |index: usize| {
            let start = at + 6 + 8 * index;
            u32::from_str_radix(std::str::from_utf8(&archive[start..start + 8]).unwrap(), 16).unwrap()
        };
        let (inode, mode, device) = (field(0), field(1), (field(9), field(10)));
        let (len, name_len) = (field(6) as usize, field(11) as usize);
        let name = &archive[at + 110..at + 110 + name_len];
        assert_eq!((name[name_len - 1], field(12)), (0, 0));
        let name = String::from_utf8(name[..name_len - 1].to_vec()).unwrap();
        let data_at = (at + 110 + name_len).next_multiple_of(4);
        let data = archive[data_at..data_at + len].to_vec();
        at = (data_at + len).next_multiple_of(4);
        if name == "TRAILER!!!" {
            assert!(archive[at..].iter().all(|&byte| byte == 0) && archive.len() - at < 512);
            return found;
        }
        assert!(!inodes.contains(&inode), "an inode number twice is a hard link");
        inodes.push(inode);
        found.push(Found { name, mode, device, data });
    }
}

fn entry() -> impl Strategy<Value = Found> {
    let name = "[a-z]{1,9}(/[a-z.]{3,60}){0,4}";
    let data = prop::collection::vec(any::<u8>(), 0..300);
    let kind = prop_oneof![Just(0o100_000_u32), Just(0o040_000), Just(0o120_000), Just(0o020_000)];
    (name, 0_u32..0o10000, kind, data, any::<(u32, u32)>()).prop_map(|(name, mode, kind, data, device)| {
        let is_node = kind == 0o020_000;
        let data = match kind {
            0o100_000 => data,
            0o120_000 => b"../somewhere/else".to_vec(),
            _ => Vec::new(),
        };
        let mode = if kind == 0o120_000 { 0o777 } else { mode };
        Found { name, mode: kind | mode, device: if is_node { device } else { (0, 0) }, data }
    })
}

fn write(entries: &[Found]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for Found { name, mode, device, data } in entries {
        match mode & 0o170_000 {
            0o040_000 => writer.directory(name, mode & 0o7777),
            0o100_000 => writer.file(name, mode & 0o7777, data.len() as u64, &mut &data[..]),
            0o120_000 => writer.symlink(name, std::str::from_utf8(data).unwrap()),
            _ => writer.character_device(name, mode & 0o7777, *device),
        }
        .unwrap();
    }
    writer.finish().unwrap()
}

proptest! {
    #[test]
    fn what_is_written_is_read(entries in prop::collection::vec(entry(), 0..20)) {
        prop_assert_eq!(read(&write(&entries)), entries);
    }
}

#[test]
fn names_that_linux_would_not_take_are_refused() {
    let long = "x".repeat(4096);
    for name in ["", "/init", "a//b", "a/", "../init", "a/../b", "a\0b", "TRAILER!!!", &long] {
        let mut writer = Writer::new(Vec::new());
        assert!(matches!(writer.directory(name, 0o755), Err(CpioError::Name { .. })), "{name:?}");
        assert_eq!(read(&writer.finish().unwrap()), [], "nothing of it was written");
    }
    let mut writer = Writer::new(Vec::new());
    for target in ["", "a\0b", &long] {
        assert!(matches!(writer.symlink("link", target), Err(CpioError::Name { .. })));
    }
}

#[test]
fn a_source_that_ends_early_or_is_too_large_is_an_error() {
    let mut writer = Writer::new(Vec::new());
    let error = writer.file("init", 0o755, 10, &mut &b"short"[..]).unwrap_err();
    assert!(error.to_string().contains("10 bytes and ended after 5"), "{error}");
    let error = Writer::new(io::sink()).file("huge", 0o644, 1 << 32, &mut io::repeat(0)).unwrap_err();
    assert!(matches!(error, CpioError::TooLarge { .. }));
    // A source with more than announced gives what was announced.
    let mut writer = Writer::new(Vec::new());
    writer.file("init", 0o755, 3, &mut io::repeat(7)).unwrap();
    assert_eq!(read(&writer.finish().unwrap())[0].data, [7, 7, 7]);
}

#[test]
fn a_sink_that_is_full_is_an_error() {
    let mut room = [0; 200];
    let mut writer = Writer::new(&mut room[..]);
    let error = writer.file("init", 0o755, 500, &mut io::repeat(0)).unwrap_err();
    assert!(matches!(error, CpioError::Io { .. }));
}
