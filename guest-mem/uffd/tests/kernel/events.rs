//! Events: that they come, when they come, and what is true at that moment.

use std::os::fd::OwnedFd;
use std::thread::scope;

use guest_mem::{PAGE_SIZE, PageScanner};
use uffd::{Event, EventBuffer, Features, MapAs, ResolveKind, Userfault, Wake};

use super::calls::{Mapping, discard, fork_a_child, forking_alone, wait_for};
use super::{MISSING, Reader, content, memory, open, word};

test_memory::tests! {
    remove_comes_before_the_zap_and_holds_it_up: [Feature(Features::EVENT_REMOVE)],
    unmap_tells_what_is_gone: [Feature(Features::EVENT_UNMAP)],
    remap_tells_where_and_the_registration_moves_along: [Feature(Features::EVENT_REMAP | Features::EVENT_UNMAP)],
    a_forks_descriptor_serves_the_child_until_it_is_gone: [Feature(Features::EVENT_FORK | Features::EVENT_REMOVE)],
    a_flood_of_forks_leaks_no_descriptor: [Feature(Features::EVENT_FORK | Features::SIGBUS | Features::THREAD_ID)],
    a_fork_without_its_event_leaves_the_child_ordinary_memory: [Userfault],
}

fn remove_comes_before_the_zap_and_holds_it_up() {
    let region = memory();
    let three = test_memory::pages(&region, 0, 3);
    scope(|threads| {
        let userfault = open(Features::EVENT_REMOVE);
        userfault.register(&region, region.range(), MISSING).unwrap();
        userfault.copy(three.start(), &content(3), MapAs::Writable, Wake::Yes).unwrap();
        let mut scanner = PageScanner::new().unwrap();
        let middle = test_memory::pages(&region, 1, 1);
        let discarding = threads.spawn(move || discard(middle));
        let mut reader = Reader::of(&userfault);
        reader.wait();
        // The event is there and unread: the page is, too.
        assert_eq!(region.read_u64(middle.start()).unwrap(), word(1));
        assert_eq!(test_memory::counts(&mut scanner, &region, three).present, 3);
        assert!(!discarding.is_finished());
        let event = reader.next();
        assert!(matches!(event, Event::Remove(range) if range == middle), "{event:?}");
        discarding.join().unwrap();
        assert_eq!(test_memory::counts(&mut scanner, &region, three).present, 2);
    });
}

fn registered(userfault: &Userfault, pages: u64) -> Mapping {
    let mapping = Mapping::new(pages * PAGE_SIZE);
    // SAFETY: memory of a test, into which there are no references.
    unsafe { userfault.register_mapping(mapping.range, MISSING) }.unwrap();
    mapping
}

fn unmap_tells_what_is_gone() {
    scope(|threads| {
        let userfault = open(Features::EVENT_UNMAP);
        let mut mapping = registered(&userfault, 4);
        let range = mapping.range;
        let unmapping = threads.spawn(move || mapping.unmap());
        let event = Reader::of(&userfault).next();
        assert!(matches!(event, Event::Unmap(gone) if gone == range), "{event:?}");
        unmapping.join().unwrap();
        let error = userfault.zero(range, Wake::Yes).unwrap_err();
        assert_eq!(error.kind, ResolveKind::NoMapping);
    });
}

fn remap_tells_where_and_the_registration_moves_along() {
    scope(|threads| {
        let features = Features::EVENT_REMAP | Features::EVENT_UNMAP;
        let userfault = open(features);
        let mut mapping = registered(&userfault, 4);
        let from = mapping.range;
        let moving = threads.spawn(move || {
            mapping.move_away();
            mapping
        });
        let mut reader = Reader::of(&userfault);
        let event = reader.next();
        let Event::Remap { from: seen, to } = event else { panic!("{event:?}") };
        assert_eq!(seen, from);
        // What lies at the old place no longer is a second event.
        let event = reader.next();
        assert!(matches!(event, Event::Unmap(gone) if gone == from), "{event:?}");
        let mapping = moving.join().unwrap();
        let there = userfault.zero(mapping.range, Wake::Yes);
        let no_longer = userfault.zero(from, Wake::Yes);
        // Before anything can fail: while registered, the last unmapping waits for a reader.
        userfault.unregister(mapping.range).unwrap();
        assert_eq!(mapping.range.start(), to);
        assert_eq!(there, Ok(()));
        assert_eq!(no_longer.unwrap_err().kind, ResolveKind::NoMapping);
    });
}

fn a_forks_descriptor_serves_the_child_until_it_is_gone() {
    let _alone = forking_alone();
    scope(|threads| {
        let features = Features::EVENT_FORK | Features::EVENT_REMOVE;
        let userfault = open(features);
        let mapping = registered(&userfault, 4);
        let forking = threads.spawn(|| wait_for(fork_a_child()));
        let event = Reader::of(&userfault).next();
        let Event::Fork(descriptor) = event else { panic!("{event:?}") };
        let child = Userfault::adopt(descriptor).unwrap();
        assert_eq!(child.features(), features);
        assert_eq!(forking.join().unwrap(), 0);
        let error = child.zero(mapping.range, Wake::Yes).unwrap_err();
        assert_eq!((error.kind, error.done), (ResolveKind::Dead, 0));
        // The parent's own is unharmed.
        userfault.zero(mapping.range, Wake::Yes).unwrap();
        userfault.unregister(mapping.range).unwrap();
    });
}

/// How many descriptors of this process are userfaultfds with just these features.
fn open_with(features: Features) -> usize {
    let mark = format!("API:\taa:{:x}:", features.bits() | 1 << 31);
    let infos = std::fs::read_dir("/proc/self/fdinfo").unwrap().flatten();
    infos.filter(|info| std::fs::read_to_string(info.path()).is_ok_and(|text| text.contains(&mark))).count()
}

fn a_flood_of_forks_leaks_no_descriptor() {
    const FORKS: usize = 40;
    // No other test has these.
    let features = Features::EVENT_FORK | Features::SIGBUS | Features::THREAD_ID;
    let _alone = forking_alone();
    scope(|threads| {
        let userfault = open(features);
        let mapping = registered(&userfault, 1);
        let forking = threads.spawn(|| (0..FORKS).map(|_| wait_for(fork_a_child())).max());
        let mut reader = Reader::of(&userfault);
        let mut last: Option<OwnedFd> = None;
        for fork in 0..FORKS {
            // Some are read and never looked at: their buffer goes.
            let mut unseen = EventBuffer::new(4);
            reader.wait();
            if fork % 2 == 0 {
                assert_eq!(userfault.read_events(&mut unseen).unwrap(), 1);
            } else {
                let Event::Fork(descriptor) = reader.next() else { panic!("a fork") };
                last = Some(descriptor);
            }
        }
        assert_eq!(forking.join().unwrap(), Some(0));
        assert_eq!(open_with(features), 2, "the parent's and the last child's");
        drop(last);
        assert_eq!(open_with(features), 1);
        userfault.unregister(mapping.range).unwrap();
    });
}

fn a_fork_without_its_event_leaves_the_child_ordinary_memory() {
    let _alone = forking_alone();
    let userfault = open(Features::empty());
    let mapping = registered(&userfault, 1);
    assert_eq!(wait_for(fork_a_child()), 0);
    let mut buffer = EventBuffer::new(1);
    assert_eq!(userfault.read_events(&mut buffer).unwrap(), 0);
    userfault.zero(mapping.range, Wake::Yes).unwrap();
}
