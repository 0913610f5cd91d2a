//! Snapshots that are not what was written: refused with the reason, or the guest stopped at the page that is wrong.

use std::fs::File;
use std::os::unix::fs::FileExt;

use guest_abi::layout::{ARENA_GPA, PAGE_SIZE};
use guest_mem::Backing;
use machine::snapshot::file::Snapshot;
use machine::snapshot::header::{HEADER_BYTES, Header};
use machine::snapshot::index::Entry;
use machine::state::VcpuState;
use machine::state_bytes;
use tests::place::{Ended, Place};
use tests::{program, xz};

use crate::restore::snapshot;

crate::tests! {
    a_damaged_page_stops_the_guest_by_name: [Kvm, Userfault],
    files_that_are_no_snapshot_are_refused: [],
    a_damaged_or_cut_snapshot_is_refused: [Kvm],
    a_header_that_does_not_fit_is_refused: [Kvm],
    a_guest_of_another_processor_is_refused: [Kvm],
    an_invalid_vcpu_state_is_an_error_and_nothing_worse: [Kvm, Userfault],
    bad_command_lines_are_refused: [],
}

/// A directory with a sound snapshot `s`.
struct Snapshots(Place);

impl Snapshots {
    fn new(memory: &str, more: &[&str]) -> Self {
        let place = Place::new();
        snapshot(&place, "s", &[&["--memory", memory], more].concat());
        Self(place)
    }

    fn sound(&self) -> Snapshot {
        Snapshot::open(&self.0.file("s")).unwrap()
    }

    /// A copy of the snapshot with something changed.
    fn changed(&self, change: impl FnOnce(&File)) {
        std::fs::copy(self.0.file("s"), self.0.file("changed")).unwrap();
        let file = File::options().read(true).write(true).open(self.0.file("changed")).unwrap();
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

    /// A copy with another header, under a checksum that is right.
    fn with_header(&self, change: impl FnOnce(&mut Header)) {
        let mut header = self.sound().header;
        change(&mut header);
        self.changed(|file| file.write_all_at(&header.encode(), 0).unwrap());
    }

    /// A copy with other vCPUs, under checksums that are right.
    fn with_states(&self, change: impl FnOnce(&mut Vec<VcpuState>)) {
        let Snapshot { mut vcpus, mut header, .. } = self.sound();
        change(&mut vcpus);
        let mut bytes = Vec::new();
        vcpus.iter().for_each(|state| state_bytes::encode(state, &mut bytes));
        assert_eq!(bytes.len() as u64, header.state.0, "sections have the lengths they had");
        header.state.1 = xz::crc32(&bytes);
        self.changed(|file| {
            file.write_all_at(&bytes, header.layout().state.start).unwrap();
            file.write_all_at(&header.encode(), 0).unwrap();
        });
    }

    /// `boot --restore` of the changed copy is refused, as of a file that is not what it should be.
    #[track_caller]
    fn refused(&self, more: &[&str], words: &[&str]) {
        refused(&self.0, &[2], "changed", more, words);
    }
}

fn restore(place: &Place, name: &str, more: &[&str]) -> Ended {
    let arguments = [&["boot", "--restore", name], more].concat();
    program::end_of_group(program::grouped(place.path(), &arguments).spawn().unwrap()).into()
}

/// `boot --restore` of a file ends with one of these exit codes and these words, and nothing came of it.
#[track_caller]
fn refused(place: &Place, codes: &[i32], name: &str, more: &[&str], words: &[&str]) -> Ended {
    let ended = restore(place, name, more);
    let code = ended.status.code().expect("it ends by itself");
    assert!(codes.contains(&code), "{name} {more:?}: {code}, {}", ended.said);
    assert!(ended.out.is_empty(), "{name} {more:?}: {}", ended.said);
    ended.says(words).never_says(&["panicked"])
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
    let place = Snapshots::new("4MiB", &["--vcpus", "2"]);
    let sound = place.sound();
    let tables = sound.vcpus[0].sregs.cr3 & !0xfff;
    for gpa in [ARENA_GPA, ARENA_GPA + 777 * PAGE_SIZE, 0x10_1000, tables] {
        place.flip(place_of(&sound, gpa) + 1234);
        let address = format!("{gpa:#x}");
        for how in
            [&["--fault-around", "4KiB"][..], &["--fault-around", "adaptive"], &["--fault-around", "2MiB"]]
        {
            let said = restore(&place.0, "changed", how).said;
            if gpa == 0x10_1000 && !said.contains(&address) {
                // The guest has no exception, so it never looks at its vectors.
                assert!(said.is_empty(), "{how:?}: {said}");
                continue;
            }
            refused(&place.0, &[1], "changed", how, &["needs the page", &address, "checksum"]);
        }
        let words = [&address, "checksum", "make the snapshot again"];
        refused(&place.0, &[1], "changed", &["--eager"], &words);
    }
}

fn files_that_are_no_snapshot_are_refused() {
    let place = Place::new();
    place.put("empty", "");
    place.put("text", "no snapshot");
    place.put("long", vec![0x5a; 100_000]);
    std::fs::create_dir(place.file("directory")).unwrap();
    let fifo = (rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o600));
    rustix::fs::mknodat(rustix::fs::CWD, place.file("pipe"), fifo.0, fifo.1, 0).unwrap();
    for name in ["empty", "text", "long"] {
        refused(&place, &[2], name, &[], &[name, "no snapshot", "zapscope snapshot"]);
    }
    for name in ["directory", "pipe", "/dev/zero"] {
        refused(&place, &[2], name, &[], &[name, "no regular file"]);
    }
    refused(&place, &[2], "missing", &[], &["missing", "No such file"]);
}

fn a_damaged_or_cut_snapshot_is_refused() {
    let place = Snapshots::new("4MiB", &[]);
    let header = place.sound().header;
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
        place.refused(&[], &["changed", words]);
    }
    for cut in
        [10, 100, 4095, 4096, layout.data.start, inside(&layout.data), len - 1, len + 1, len + PAGE_SIZE]
    {
        place.changed(|file| file.set_len(cut).unwrap());
        place.refused(&[], &["changed", "its header says"]);
        place.refused(&["--eager"], &["changed", "its header says"]);
    }
    place.changed(|file| file.set_len(0).unwrap());
    place.refused(&[], &["no snapshot"]);
}

/// The checksums are right, and the values are those of no guest.
fn a_header_that_does_not_fit_is_refused() {
    let place = Snapshots::new("4MiB", &[]);
    type Change = fn(&mut Header);
    let changes: [(Change, &str); 10] = [
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
    for (change, words) in changes {
        place.with_header(change);
        place.refused(&[], &["changed", words]);
    }
    // Sizes that fit together, and another guest's.
    place.with_header(|header| header.vcpus = 2);
    place.refused(&[], &["its header says"]);
    place.with_header(|header| header.backing = Backing::Hugetlb2m);
    // On a host without such pages that is what is missing first.
    refused(&place.0, &[2, 3], "changed", &[], &["hugetlb:2m"]);
    // The file of another guest's size behind this one's header.
    snapshot(&place.0, "large", &["--memory", "8MiB"]);
    let header = std::fs::read(place.0.file("s")).unwrap()[..HEADER_BYTES].to_vec();
    let large = File::options().write(true).open(place.0.file("large")).unwrap();
    large.write_all_at(&header, 0).unwrap();
    refused(&place.0, &[2], "large", &[], &["its header says"]);
}

fn a_guest_of_another_processor_is_refused() {
    let place = Snapshots::new("2MiB", &[]);
    place.with_states(|vcpus| {
        let vendor = vcpus[0].cpuid.iter_mut().find(|leaf| leaf.function == 0).unwrap();
        (vendor.ebx, vendor.edx, vendor.ecx) = (0x756e_6547, 0x4965_6e69, 0x6c65_746e);
    });
    let said = restore(&place.0, "changed", &[]).said;
    if std::fs::read_to_string("/proc/cpuinfo").unwrap().contains("GenuineIntel") {
        assert!(said.is_empty(), "it is this very one: {said}");
    } else {
        refused(&place.0, &[3], "changed", &[], &["GenuineIntel", "make the snapshot on this host"]);
    }
    place.with_states(|vcpus| {
        vcpus[0]
            .cpuid
            .iter_mut()
            .filter(|leaf| leaf.function == 7 && leaf.index == 0)
            .for_each(|leaf| leaf.ecx = !0);
    });
    refused(&place.0, &[3], "changed", &[], &["CPUID leaf 0x7", "ECX"]);
}

/// Registers that no guest has: KVM refuses them, or the guest crashes at once and is reported. Nothing hangs.
fn an_invalid_vcpu_state_is_an_error_and_nothing_worse() {
    let place = Snapshots::new("2MiB", &[]);
    type Change = fn(&mut VcpuState);
    let changes: [Change; 5] = [
        |state| state.regs.rip = 0xdead_0000_0000,
        |state| state.sregs.cr3 = 0x7fff_ffff_f000,
        |state| state.sregs.cr0 = 0,
        |state| state.sregs.efer = 0,
        |state| state.regs.rip = 0,
    ];
    for (number, change) in changes.into_iter().enumerate() {
        place.with_states(|vcpus| change(&mut vcpus[0]));
        for how in [&[][..], &["--eager"]] {
            // The guest crashes, or KVM refuses the register.
            println!("    change {number}");
            refused(&place.0, &[1, 5], "changed", how, &["vCPU 0"]);
        }
    }
}

fn bad_command_lines_are_refused() {
    let place = Place::new();
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
        let said = place.run(arguments).with(2).says(&[word]).said;
        let needed = said.split("Usage").next().unwrap();
        assert!(word != "--restore <FILE>" || !needed.contains("--kernel"), "{arguments:?}: {said}");
    }
}
