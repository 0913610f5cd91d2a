//! Another observer agrees: an instance of tracefs, read as the text that the kernel makes for people, has the same
//! ranges as the tap by a BPF program and by perf.

use guest_abi::layout::PAGE_SIZE;
use guest_abi::order::{Task, Walk};
use guest_mem::{Address, Backing, Hva, HvaRange, Operation, perform, toggle_protection};
use host::Tracefs;
use tap::{Bpf, Call, Interest, KvmEvent, Layout, Record, Source, Tap, Via, What, Work};
use tests::kernel::{Instance, ranges};
use tests::machine::{Bare, config};

crate::tests! {
    the_tap_sees_what_the_kernel_prints: [Kvm, Tap],
    a_program_sees_what_the_kernel_prints: [Kvm, Tap, Bpf],
    a_program_that_is_not_read_counts_what_it_loses: [Kvm, Bpf],
    the_tap_sees_no_other_addresses: [Kvm, Tap],
    calls_stand_around_their_ranges_and_faults_are_counted: [Kvm, Tap],
}

/// `… kvm_unmap_hva_range: mmu notifier unmap range: 0x00007f… -- 0x00007f…`
fn printed(line: &str) -> Option<HvaRange> {
    let (start, end) = line.split_once("unmap range: ")?.1.split_once(" -- ")?;
    let hex = |text: &str| u64::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok().map(Hva::from_raw);
    HvaRange::new(hex(start)?, hex(end)?)
}

/// Ranges without their order: two CPUs may announce at the same microsecond.
fn sorted(ranges: impl Iterator<Item = HvaRange>) -> Vec<(u64, u64)> {
    let mut all: Vec<_> = ranges.map(|range| (range.start().get(), range.end().get())).collect();
    all.sort_unstable();
    all
}

fn the_tap_sees_what_the_kernel_prints() {
    agree_with_the_text(&[("perf", Via::Perf)]);
}

/// Two of them at once, and perf beside them: none takes anything from another.
fn a_program_sees_what_the_kernel_prints() {
    agree_with_the_text(&[("a program", Via::Bpf), ("perf", Via::Perf), ("another program", Via::Bpf)]);
}

fn agree_with_the_text(vias: &[(&str, Via)]) {
    let bare = Bare::start(config(1, 16, Backing::Base4k));
    let arena = bare.machine.core().arena();
    let watched = [arena.range()];
    let observer = Instance::make("text").unwrap();
    let interest = Interest { causes: true, ..Interest::default() };
    let taps: Vec<_> = vias
        .iter()
        .map(|(name, via)| (name, Tap::open(*via, interest, &watched, 1 << 16).unwrap()))
        .collect();
    observer.write("buffer_size_kb", "8192");
    observer.write("events/kvm/kvm_unmap_hva_range/enable", "1");
    // The guest works on meanwhile, on its own CPU.
    bare.fill(1);
    bare.submit(
        0,
        &bare.order(
            Walk::Sequential,
            Task::Touch { access: guest_abi::order::Access::Read, passes: None, stall_cycles: u64::MAX },
        ),
    );
    for page in (0..arena.range().page_count()).step_by(3) {
        let range = bare.pages(page, 1);
        if page % 2 == 0 {
            toggle_protection(arena, range).unwrap();
        } else {
            perform(arena, Operation::DontNeed, range).unwrap();
        }
    }
    bare.machine.vcpus()[0].mailbox().area().request_stop();
    bare.wait(0);
    observer.write("events/kvm/kvm_unmap_hva_range/enable", "0");
    let text = observer.read("trace");
    let seen = sorted(text.lines().filter_map(printed).filter(|range| range.overlaps(arena.range())));
    assert!(seen.len() as u64 >= arena.range().len() / PAGE_SIZE / 3, "{} ranges were printed", seen.len());
    for (name, tap) in taps {
        let heard = sorted(ranges(&tap).into_iter().map(|(_, range)| range));
        assert_eq!(heard.len(), seen.len(), "by {name}");
        assert_eq!(heard, seen, "by {name}");
    }
}

fn the_tap_sees_no_other_addresses() {
    let bare = Bare::start(config(1, 4, Backing::Base4k));
    let arena = bare.machine.core().arena();
    let watched = bare.pages(100, 10);
    let tap = tests::kernel::listen(&[watched]).unwrap();
    bare.fill(1);
    for page in [50, 99, 100, 105, 109, 110, 600] {
        perform(arena, Operation::DontNeed, bare.pages(page, 1)).unwrap();
    }
    perform(arena, Operation::DontNeed, bare.pages(90, 40)).unwrap();
    let heard: Vec<_> =
        ranges(&tap).into_iter().map(|(_, range)| tests::kernel::in_pages(arena, range)).collect();
    assert_eq!(heard, [(100, 1), (105, 1), (109, 1), (90, 40)]);
    let mine = ranges(&tap);
    assert!(mine.is_empty(), "what was taken is not taken again");
    // The guest finds zeros where it had written: its end is the test's, too.
    drop(bare);
}

fn calls_stand_around_their_ranges_and_faults_are_counted() {
    let bare = Bare::start(config(1, 4, Backing::Base4k));
    let arena = bare.machine.core().arena();
    let interest = Interest { causes: true, calls: true, kvm: true };
    let tap = Tap::open(Via::Perf, interest, &[arena.range()], 1 << 16).unwrap();
    bare.fill(1);
    let mut events = Vec::new();
    let filled = tap.take(&mut events).unwrap();
    // Every page is touched for the first time. Which of KVM's events tells it depends on the MMU: under kvm_pvm none is
    // a page fault, and the TDP MMU has one of its own for an SPTE.
    let mapped = [KvmEvent::KvmPageFaults, KvmEvent::SptesSet, KvmEvent::TdpSptesChanged]
        .map(|event| filled.kvm[event as usize]);
    assert!(mapped.iter().sum::<u64>() > 0, "{filled:?}, without {:?}", tap.missing());
    let ours = tap.kvm_events_of(std::process::id());
    let answered =
        ours.iter().find(|(event, _)| *event == KvmEvent::SptesRequested).map_or(0, |(_, count)| *count);
    assert!(answered >= 1024, "a fault for each page, whatever the MMU: {ours:?}");
    assert!(
        tap.kvm_events_of(1).iter().all(|(_, count)| *count == 0),
        "whoever else there is did nothing for us"
    );
    let page = bare.pages(7, 1);
    perform(arena, Operation::DontNeed, page).unwrap();
    toggle_protection(arena, page).unwrap();
    events.clear();
    tap.take(&mut events).unwrap();
    let mine = rustix::thread::gettid().as_raw_nonzero().get() as u32;
    let heard: Vec<What> = events.iter().filter(|event| event.tid == mine).map(|event| event.what).collect();
    let advice = libc::MADV_DONTNEED as u32;
    let discarded = [
        What::Begin(Work::Call(Call::Madvise(advice))),
        What::Range(page),
        What::End(Work::Call(Call::Madvise(0))),
    ];
    let protected =
        [What::Begin(Work::Call(Call::Mprotect)), What::Range(page), What::End(Work::Call(Call::Mprotect))];
    for bracket in [discarded, protected] {
        assert!(heard.windows(3).any(|window| window == bracket), "{bracket:?} in {heard:?}");
    }
}

/// More ranges than there are slots: what is read and what is counted as lost are all of them.
fn a_program_that_is_not_read_counts_what_it_loses() {
    let bare = Bare::start(config(1, 4, Backing::Base4k));
    let arena = bare.machine.core().arena();
    let mine = rustix::thread::sched_getcpu();
    let mut one = rustix::thread::CpuSet::new();
    one.set(mine);
    let all = rustix::thread::sched_getaffinity(None).unwrap();
    // Of the part of one CPU.
    rustix::thread::sched_setaffinity(None, &one).unwrap();
    let layout = Layout::read(&Tracefs::open().unwrap(), Interest::default()).unwrap();
    let mut program = Bpf::open(&layout, &[arena.range()]).unwrap();
    let drain = |program: &mut Bpf| {
        let mut taken = 0;
        program.drain(&mut |what| taken += u64::from(matches!(what, Record::Event(_)))).unwrap();
        taken
    };
    let page = bare.pages(7, 1);
    toggle_protection(arena, page).unwrap();
    drain(&mut program);
    toggle_protection(arena, page).unwrap();
    let each = drain(&mut program);
    assert!(each > 0, "a toggle announces");
    assert_eq!(program.lost(), 0);
    let mut toggles = 0;
    while program.lost() == 0 {
        (0..1000).for_each(|_| toggle_protection(arena, page).unwrap());
        toggles += 1000;
        assert!(toggles < 1 << 20, "nothing is ever lost");
    }
    let (taken, lost) = (drain(&mut program), program.lost());
    assert_eq!(taken + lost, toggles * each);
    assert!(lost < 1000 * each, "{lost} lost while there was room");
    toggle_protection(arena, page).unwrap();
    assert_eq!((drain(&mut program), program.lost()), (each, lost), "there is room again");
    rustix::thread::sched_setaffinity(None, &all).unwrap();
}
