//! Snapshots that are not what was written: refused with the reason, or the guest stopped at the page that is wrong.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use guest_abi::layout::{ARENA_GPA, PAGE_SIZE};
use guest_mem::Backing;
use machine::snapshot::file::Snapshot;
use machine::snapshot::header::{HEADER_BYTES, Header};
use machine::snapshot::index::Entry;
use machine::snapshot::vcpu;
use machine::state::VcpuState;
use tests::program;

use crate::restore::snapshot;

crate::tests! {
    a_damaged_page_stops_the_guest_by_name: [Kvm, Userfault],
    files_that_are_no_snapshot_are_refused: [],
    a_damaged_or_cut_snapshot_is_refused: [Kvm],
    a_lying_header_is_refused: [Kvm],
    a_guest_of_another_processor_is_refused: [Kvm],
    a_lying_vcpu_state_is_an_error_and_nothing_worse: [Kvm, Userfault],
    bad_command_lines_are_refused: [],
}

/// A directory with a sound snapshot `s`.
struct Place(tempfile::TempDir);

impl Place {
    fn new(memory: &str, more: &[&str]) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        snapshot(place.path(), "s", &[&["--memory", memory], more].concat());
        place
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// A copy of the snapshot with something changed.
    fn changed(&self, change: impl FnOnce(&File)) {
        std::fs::copy(self.file("s"), self.file("changed")).unwrap();
        let file = File::options().read(true).write(true).open(self.file("changed")).unwrap();
        change(&file);
    }

    fn flip(&self, at: u64) {
        self.changed(|file| {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            byte[0] ^= 0x10;
            file.write_all_at(&byte, at).unwrap();
        });
    }

    fn header(&self) -> Header {
        Snapshot::open(&self.file("s")).unwrap().header
    }

    /// A copy with another header, under a checksum that is right.
    fn with_header(&self, change: impl FnOnce(&mut Header)) {
        let mut header = self.header();
        change(&mut header);
        self.changed(|file| file.write_all_at(&header.encode(), 0).unwrap());
    }

    /// A copy with other vCPUs, under checksums that are right.
    fn with_states(&self, change: impl FnOnce(&mut Vec<VcpuState>)) {
        let Snapshot { mut vcpus, mut header, .. } = Snapshot::open(&self.file("s")).unwrap();
        change(&mut vcpus);
        let mut bytes = Vec::new();
        vcpus.iter().for_each(|state| vcpu::encode(state, &mut bytes));
        assert_eq!(bytes.len() as u64, header.state.0, "sections have the lengths they had");
        header.state.1 = crc(&bytes);
        self.changed(|file| {
            file.write_all_at(&bytes, header.layout().state.start).unwrap();
            file.write_all_at(&header.encode(), 0).unwrap();
        });
    }

    fn restore(&self, name: &str, more: &[&str]) -> Output {
        let arguments = [&["boot", "--restore", name], more].concat();
        program::end_of_group(program::grouped(self.path(), &arguments).spawn().unwrap())
    }

    /// `boot --restore` of a file says these words, as of a file that is not what it should be, and nothing came of it.
    fn refuses(&self, name: &str, more: &[&str], words: &[&str]) -> String {
        self.ends_with(&[2], name, more, words)
    }

    /// The same, with one of these exit codes.
    fn ends_with(&self, codes: &[i32], name: &str, more: &[&str], words: &[&str]) -> String {
        let output = self.restore(name, more);
        let said = program::stderr(&output);
        let code = output.status.code().expect("it ends by itself");
        assert!(codes.contains(&code), "{name} {more:?}: {code}, {said}");
        for word in words {
            assert!(said.contains(word), "{name} {more:?} does not say {word:?}: {said}");
        }
        assert!(!said.contains("panicked") && output.stdout.is_empty(), "{name} {more:?}: {said}");
        said
    }
}

/// The CRC-32 of zip and gzip, which the snapshot's is.
fn crc(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// Where in the file a page is, by its guest physical address.
fn place_of(snapshot: &Snapshot, gpa: u64) -> u64 {
    let low = snapshot.header.low();
    let page = if gpa < low { gpa } else { gpa - ARENA_GPA + low } / PAGE_SIZE;
    match snapshot.entries().nth(page as usize) {
        Some(Entry::Stored { rank, .. }) => snapshot.file_page(rank) * PAGE_SIZE,
        other => panic!("the page at {gpa:#x} is {other:?}"),
    }
}

/// A page of the arena; one that the guest's code is in; one that KVM itself reads, in the middle of an instruction, as
/// the guest's page tables.
fn a_damaged_page_stops_the_guest_by_name() {
    let place = Place::new("4MiB", &["--vcpus", "2"]);
    let sound = Snapshot::open(&place.file("s")).unwrap();
    let tables = sound.vcpus[0].sregs.cr3 & !0xfff;
    for gpa in [ARENA_GPA, ARENA_GPA + 777 * PAGE_SIZE, 0x10_1000, tables] {
        place.flip(place_of(&sound, gpa) + 1234);
        let address = format!("{gpa:#x}");
        for how in
            [&["--fault-around", "4KiB"][..], &["--fault-around", "adaptive"], &["--fault-around", "2MiB"]]
        {
            let said = program::stderr(&place.restore("changed", how));
            if gpa == 0x10_1000 && !said.contains(&address) {
                // The guest has no exception, so it never looks at its vectors.
                assert!(said.is_empty(), "{how:?}: {said}");
                continue;
            }
            place.ends_with(&[1], "changed", how, &["needs the page", &address, "checksum"]);
        }
        let words = [&address, "checksum", "make the snapshot again"];
        place.ends_with(&[1], "changed", &["--eager"], &words);
    }
}

fn files_that_are_no_snapshot_are_refused() {
    let place = Place(tempfile::tempdir().unwrap());
    std::fs::write(place.file("empty"), "").unwrap();
    std::fs::write(place.file("text"), "no snapshot").unwrap();
    std::fs::write(place.file("long"), vec![0x5a; 100_000]).unwrap();
    std::fs::create_dir(place.file("directory")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        place.file("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    for name in ["empty", "text", "long"] {
        place.refuses(name, &[], &[name, "no snapshot", "zapscope snapshot"]);
    }
    for name in ["directory", "pipe", "/dev/zero"] {
        place.refuses(name, &[], &[name, "no regular file"]);
    }
    place.refuses("missing", &[], &["missing", "No such file"]);
}

fn a_damaged_or_cut_snapshot_is_refused() {
    let place = Place::new("4MiB", &[]);
    let header = place.header();
    let (layout, len) = (header.layout(), header.layout().index.end);
    let inside = |range: &std::ops::Range<u64>| (range.start + range.end) / 2;
    for (at, words) in [
        (9, "version"),
        (50, "header is damaged"),
        (4000, "header is damaged"),
        (HEADER_BYTES as u64 - 1, "header is damaged"),
        (inside(&layout.state), "states are damaged"),
        (inside(&layout.index), "index is damaged"),
        (len - 1, "index is damaged"),
    ] {
        place.flip(at);
        place.refuses("changed", &[], &["changed", words]);
    }
    for cut in
        [10, 100, 4095, 4096, layout.data.start, inside(&layout.data), len - 1, len + 1, len + PAGE_SIZE]
    {
        place.changed(|file| file.set_len(cut).unwrap());
        place.refuses("changed", &[], &["changed", "its header says"]);
        place.refuses("changed", &["--eager"], &["changed", "its header says"]);
    }
    place.changed(|file| file.set_len(0).unwrap());
    place.refuses("changed", &[], &["no snapshot"]);
}

/// Checksums that are right, over what no guest has.
fn a_lying_header_is_refused() {
    let place = Place::new("4MiB", &[]);
    type Lie = fn(&mut Header);
    let lies: [(Lie, &str); 10] = [
        (|header| header.arena = 2 << 20, "its header says"),
        (|header| header.arena = 8 << 20, "its header says"),
        (|header| header.arena = u64::MAX << 21, "which no guest has"),
        (|header| header.arena = 3, "which no guest has"),
        (|header| header.vcpus = 0, "0 vCPUs"),
        (|header| header.vcpus = u32::MAX, "which no guest has"),
        (|header| header.filled = u64::MAX, "which no guest has"),
        (|header| header.stored = u64::MAX, "which no guest has"),
        (|header| header.state.0 = u64::MAX, "which no guest has"),
        (|header| header.stored -= 1, "its header says"),
    ];
    for (lie, words) in lies {
        place.with_header(lie);
        place.refuses("changed", &[], &["changed", words]);
    }
    // Sizes that fit together, and another guest's.
    place.with_header(|header| header.vcpus = 2);
    place.refuses("changed", &[], &["its header says"]);
    place.with_header(|header| header.backing = Backing::Hugetlb2m);
    // On a host without such pages that is what is missing first.
    place.ends_with(&[2, 3], "changed", &[], &["hugetlb:2m"]);
    // The file of another guest's size behind this one's header.
    snapshot(place.path(), "large", &["--memory", "8MiB"]);
    let header = std::fs::read(place.file("s")).unwrap()[..HEADER_BYTES].to_vec();
    let large = File::options().write(true).open(place.file("large")).unwrap();
    large.write_all_at(&header, 0).unwrap();
    place.refuses("large", &[], &["its header says"]);
}

fn a_guest_of_another_processor_is_refused() {
    let place = Place::new("2MiB", &[]);
    place.with_states(|vcpus| {
        let vendor = vcpus[0].cpuid.iter_mut().find(|leaf| leaf.function == 0).unwrap();
        (vendor.ebx, vendor.edx, vendor.ecx) = (0x756e_6547, 0x4965_6e69, 0x6c65_746e);
    });
    let said = program::stderr(&place.restore("changed", &[]));
    if std::fs::read_to_string("/proc/cpuinfo").unwrap().contains("GenuineIntel") {
        assert!(said.is_empty(), "it is this very one: {said}");
    } else {
        place.ends_with(&[3], "changed", &[], &["GenuineIntel", "make the snapshot on this host"]);
    }
    place.with_states(|vcpus| {
        vcpus[0]
            .cpuid
            .iter_mut()
            .filter(|leaf| leaf.function == 7 && leaf.index == 0)
            .for_each(|leaf| leaf.ecx = !0);
    });
    place.ends_with(&[3], "changed", &[], &["CPUID leaf 0x7", "ECX"]);
}

/// Registers of a liar: KVM refuses them, or the guest crashes at once and is reported. Nothing hangs.
fn a_lying_vcpu_state_is_an_error_and_nothing_worse() {
    let place = Place::new("2MiB", &[]);
    type Lie = fn(&mut VcpuState);
    let lies: [Lie; 5] = [
        |state| state.regs.rip = 0xdead_0000_0000,
        |state| state.sregs.cr3 = 0x7fff_ffff_f000,
        |state| state.sregs.cr0 = 0,
        |state| state.sregs.efer = 0,
        |state| state.regs.rip = 0,
    ];
    for (number, lie) in lies.into_iter().enumerate() {
        place.with_states(|vcpus| lie(&mut vcpus[0]));
        for how in [&[][..], &["--eager"]] {
            // The guest crashes, or KVM refuses the register.
            let said = place.ends_with(&[1, 5], "changed", how, &[]);
            assert!(said.contains("vCPU 0"), "lie {number}: {said}");
        }
    }
}

fn bad_command_lines_are_refused() {
    let place = Place(tempfile::tempdir().unwrap());
    for (arguments, word) in [
        (&["boot"][..], "--kernel"),
        (&["boot", "--restore", "s", "--kernel", "k"], "cannot be used with"),
        // What goes with a snapshot alone asks for that, and for nothing that would exclude it.
        (&["boot", "--eager"], "--restore <FILE>"),
        (&["boot", "--fault-around", "4KiB"], "--restore <FILE>"),
        (&["boot", "--handlers", "2"], "--restore <FILE>"),
        (&["boot", "--json"], "--restore <FILE>"),
        (&["boot", "--restore", "s", "--memory", "64MiB"], "cannot be used with"),
        (&["boot", "--restore", "s", "--vcpus", "2"], "cannot be used with"),
        (&["boot", "--kernel", "k", "--eager"], "cannot be used with"),
        (&["boot", "--kernel", "k", "--fault-around", "4KiB"], "cannot be used with"),
        (&["boot", "--restore", "s", "--eager", "--handlers", "2"], "cannot be used with"),
        (&["boot", "--restore", "s", "--fault-around", "5KiB"], "power of two"),
        (&["boot", "--restore", "s", "--handlers", "0"], "1..=16"),
        (&["snapshot"], "--out"),
    ] {
        let output = program::output(place.path(), arguments);
        let said = program::stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(word), "{arguments:?}: {said}");
        let needed = said.split("Usage").next().unwrap();
        assert!(word != "--restore <FILE>" || !needed.contains("--kernel"), "{arguments:?}: {said}");
    }
}
