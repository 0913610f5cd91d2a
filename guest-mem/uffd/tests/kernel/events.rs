//! Events: that they come, when they come, and what is true at that moment.

use std::thread::scope;

use guest_mem::PageScanner;
use uffd::{Event, EventBuffer, Features, MapAs, ResolveKind, Wake};

use super::calls::{discard, fork_a_child, forking_alone, move_away, wait_for};
use super::{MISSING, Reader, content, memory, open, word};

test_memory::tests! {
    remove_comes_before_the_zap_and_holds_it_up: [Feature(Features::EVENT_REMOVE)],
    unmap_tells_what_is_gone: [Feature(Features::EVENT_UNMAP)],
    remap_tells_where_and_the_registration_moves_along: [Feature(Features::EVENT_REMAP | Features::EVENT_UNMAP)],
    a_fork_leaves_the_child_ordinary_memory: [Userfault],
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

fn unmap_tells_what_is_gone() {
    scope(|threads| {
        let userfault = open(Features::EVENT_UNMAP);
        let region = memory();
        let range = region.range();
        userfault.register(&region, range, MISSING).unwrap();
        let unmapping = threads.spawn(move || drop(region));
        let event = Reader::of(&userfault).next();
        assert!(matches!(event, Event::Unmap(gone) if gone == range), "{event:?}");
        unmapping.join().unwrap();
        let error = userfault.zero(range, Wake::Yes).unwrap_err();
        assert_eq!(error.kind, ResolveKind::NoMapping);
    });
}

fn remap_tells_where_and_the_registration_moves_along() {
    scope(|threads| {
        let userfault = open(Features::EVENT_REMAP | Features::EVENT_UNMAP);
        let region = memory();
        let from = region.range();
        userfault.register(&region, from, MISSING).unwrap();
        // Its place is empty from now on: it must not be unmapped again.
        std::mem::forget(region);
        let moving = threads.spawn(move || move_away(from));
        let mut reader = Reader::of(&userfault);
        let event = reader.next();
        let Event::Remap { from: seen, to } = event else { panic!("{event:?}") };
        assert_eq!(seen, from);
        // What lies at the old place no longer is a second event.
        let event = reader.next();
        assert!(matches!(event, Event::Unmap(gone) if gone == from), "{event:?}");
        let range = moving.join().unwrap();
        let there = userfault.zero(range, Wake::Yes);
        let no_longer = userfault.zero(from, Wake::Yes);
        userfault.unregister(range).unwrap();
        assert_eq!(range.start(), to);
        assert_eq!(there, Ok(()));
        assert_eq!(no_longer.unwrap_err().kind, ResolveKind::NoMapping);
    });
}

fn a_fork_leaves_the_child_ordinary_memory() {
    let _alone = forking_alone();
    let userfault = open(Features::empty());
    let region = memory();
    userfault.register(&region, region.range(), MISSING).unwrap();
    assert_eq!(wait_for(fork_a_child()), 0);
    let mut buffer = EventBuffer::new(1);
    userfault.read_events(&mut buffer).unwrap();
    assert!(buffer.is_empty());
    userfault.zero(region.range(), Wake::Yes).unwrap();
}
