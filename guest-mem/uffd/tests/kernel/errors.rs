//! Each errno that a handler must tell apart, made by the kernel itself.

use std::thread::scope;

use guest_mem::{Address, HvaRange, PAGE_SIZE, Region};
use uffd::{Event, Features, MapAs, Modes, OpenError, RegisterError, ResolveKind, Userfault, Wake, probe};

use super::calls::discard;
use super::{MISSING, PROTECTED, Reader, content, memory, open, page, word};

test_memory::tests! {
    a_partial_copy_counts_what_it_did: [Userfault],
    nothing_is_done_while_a_mapping_changes_and_all_of_it_after: [Feature(Features::EVENT_REMOVE | Features::PAGEFAULT_FLAG_WP)],
    what_is_not_registered_is_no_mapping: [Feature(Features::PAGEFAULT_FLAG_WP)],
    ranges_that_are_none_are_invalid: [Userfault],
    a_protected_page_that_is_missing_exists_for_zeroes_and_not_for_a_copy: [Feature(Features::WP_UNPOPULATED)],
    registering_says_what_is_in_the_way: [Userfault],
    a_feature_that_is_not_there_is_named: [Userfault],
}

fn a_partial_copy_counts_what_it_did() {
    let region = memory();
    let start = region.range().start();
    let userfault = open(Features::empty());
    userfault.register(&region, region.range(), MISSING).unwrap();
    userfault.zero(test_memory::pages(&region, 2, 2), Wake::Yes).unwrap();
    // EAGAIN with two pages, then what it was.
    let error = userfault.copy(start, &content(8), MapAs::Writable, Wake::Yes).unwrap_err();
    assert_eq!((error.kind, error.done), (ResolveKind::Stopped, 2 * PAGE_SIZE));
    let rest = page(&region, 2).start();
    let error = userfault.copy(rest, &content(6), MapAs::Writable, Wake::Yes).unwrap_err();
    assert_eq!((error.kind, error.done), (ResolveKind::Exists, 0));
    userfault.copy(page(&region, 4).start(), &content(4), MapAs::Writable, Wake::Yes).unwrap();
    let words: Vec<_> = (0..8).map(|at| region.read_u64(page(&region, at).start()).unwrap()).collect();
    assert_eq!(words, [word(0), word(1), 0, 0, word(0), word(1), word(2), word(3)]);
}

fn nothing_is_done_while_a_mapping_changes_and_all_of_it_after() {
    let region = memory();
    scope(|threads| {
        let features = Features::EVENT_REMOVE | Features::PAGEFAULT_FLAG_WP;
        let userfault = open(features);
        userfault.register(&region, region.range(), PROTECTED).unwrap();
        let victim = page(&region, 100);
        userfault.zero(victim, Wake::Yes).unwrap();
        let discarding = threads.spawn(move || discard(victim));
        let mut reader = Reader::of(&userfault);
        reader.wait();

        let (four, source) = (test_memory::pages(&region, 0, 4), content(4));
        let again = (ResolveKind::Changing, 0);
        let error = userfault.copy(four.start(), &source, MapAs::Writable, Wake::Yes).unwrap_err();
        assert_eq!((error.kind, error.done), again);
        let error = userfault.zero(four, Wake::Yes).unwrap_err();
        assert_eq!((error.kind, error.done), again);
        let error = userfault.write_protect(victim).unwrap_err();
        assert_eq!((error.kind, error.done), again);

        let event = reader.next();
        assert!(matches!(event, Event::Remove(range) if range == victim), "{event:?}");
        discarding.join().unwrap();
        userfault.copy(four.start(), &source, MapAs::Writable, Wake::Yes).unwrap();
        assert_eq!(region.read_u64(page(&region, 3).start()).unwrap(), word(3));
    });
}

fn what_is_not_registered_is_no_mapping() {
    let region = memory();
    let userfault = open(Features::PAGEFAULT_FLAG_WP);
    let (inside, beyond) = (test_memory::pages(&region, 0, 4), page(&region, 4));
    userfault.register(&region, inside, MISSING).unwrap();
    let kind = |at: HvaRange, pages| {
        let done = userfault.copy(at.start(), &content(pages), MapAs::Writable, Wake::Yes);
        done.map_err(|error| (error.kind, error.done))
    };
    assert_eq!(kind(beyond, 1), Err((ResolveKind::NoMapping, 0)));
    // A range that begins inside and ends outside does nothing at all.
    assert_eq!(kind(page(&region, 3), 2), Err((ResolveKind::NoMapping, 0)));
    // Registered, but not for that.
    assert_eq!(userfault.write_protect(inside).unwrap_err().kind, ResolveKind::NoMapping);
    // Two registered mappings side by side are not one: different modes keep them apart.
    userfault.register(&region, beyond, PROTECTED).unwrap();
    assert_eq!(kind(page(&region, 3), 2), Err((ResolveKind::NoMapping, 0)));
    assert_eq!(kind(beyond, 1), Ok(()));
    // And no mapping whatever.
    let gone = memory().range();
    assert_eq!(kind(gone, 1), Err((ResolveKind::NoMapping, 0)));
}

fn ranges_that_are_none_are_invalid() {
    let region = memory();
    let userfault = open(Features::empty());
    userfault.register(&region, region.range(), MISSING).unwrap();
    let odd = region.range().start().checked_add(1).unwrap();
    for (dst, len) in [(odd, PAGE_SIZE), (region.range().start(), PAGE_SIZE - 1), (region.range().start(), 0)]
    {
        let error = userfault.copy(dst, &vec![0; len as usize], MapAs::Writable, Wake::Yes).unwrap_err();
        assert_eq!((error.kind, error.done), (ResolveKind::Invalid, 0), "{len} at {dst}");
    }
    // Not registered for write protection.
    let error =
        userfault.copy(region.range().start(), &content(1), MapAs::WriteProtected, Wake::Yes).unwrap_err();
    assert_eq!(error.kind, ResolveKind::Invalid);
    let last = guest_mem::Hva::new(0u64.wrapping_sub(PAGE_SIZE));
    let error = userfault.copy(last, &content(2), MapAs::Writable, Wake::Yes).unwrap_err();
    assert_eq!((error.kind, error.done), (ResolveKind::Invalid, 0));
}

/// A missing page with a mark of write protection: a caller that takes "it exists" literally loops for ever.
fn a_protected_page_that_is_missing_exists_for_zeroes_and_not_for_a_copy() {
    let region = memory();
    let userfault = open(Features::WP_UNPOPULATED);
    userfault.register(&region, region.range(), PROTECTED).unwrap();
    let first = page(&region, 0);
    userfault.write_protect(first).unwrap();
    let error = userfault.zero(first, Wake::Yes).unwrap_err();
    assert_eq!((error.kind, error.done), (ResolveKind::Exists, 0));
    userfault.copy(first.start(), &content(1), MapAs::Writable, Wake::Yes).unwrap();
    assert_eq!(region.read_u64(first.start()).unwrap(), word(0));
}

fn registering_says_what_is_in_the_way() {
    let region = memory();
    let userfault = open(Features::empty());
    let other = Userfault::open(Features::empty()).unwrap();
    let register =
        |userfault: &Userfault, region: &Region, range, modes| userfault.register(region, range, modes);
    register(&userfault, &region, page(&region, 1), MISSING).unwrap();
    let taken = register(&other, &region, region.range(), MISSING);
    assert!(matches!(taken, Err(RegisterError::Taken { .. })), "{taken:?}");
    let minor = Modes { minor: true, ..Modes::default() };
    let private = register(&userfault, &region, page(&region, 9), minor);
    assert!(matches!(private, Err(RegisterError::Unsupported { .. })), "{private:?}");
    let none = register(&userfault, &region, page(&region, 9), Modes::default());
    assert!(matches!(none, Err(RegisterError::Unsupported { .. })), "{none:?}");
    let outside = register(&userfault, &memory(), page(&region, 9), MISSING);
    assert!(matches!(outside, Err(RegisterError::Range(_))), "{outside:?}");
}

fn a_feature_that_is_not_there_is_named() {
    let userfault = open(Features::empty());
    assert_eq!(userfault.features(), Features::empty());
    let future = Features::from_bits_retain(1 << 60);
    let error = Userfault::open(Features::EVENT_REMOVE | future).unwrap_err();
    assert!(error.to_string().contains("lacks bit 60 (it has "), "{error}");
    let OpenError::Lacks { missing, offered } = error else { panic!("{error}") };
    assert_eq!(missing, future);
    assert_eq!(probe().features, Some(offered));
}
