//! Decoding against an encoder of its own, and against noise.

use proptest::prelude::*;

use super::*;

/// Bytes as the kernel would write them: everything else is zero.
pub(crate) fn encode(event: Event) -> Message {
    let mut message = [0; abi::MESSAGE];
    let mut put = |at: usize, bytes: &[u8]| message[at..at + bytes.len()].copy_from_slice(bytes);
    match event {
        Event::Fault(fault) => {
            let kind = match fault.kind {
                FaultKind::Missing => 0u64,
                FaultKind::WriteProtect => 2,
                FaultKind::Minor => 4,
            };
            put(0, &[0x12]);
            put(8, &(kind | u64::from(fault.write)).to_ne_bytes());
            put(16, &fault.address.get().to_ne_bytes());
            put(24, &fault.thread.unwrap_or(0).to_ne_bytes());
        }
        Event::Remap { from, to } => {
            put(0, &[0x14]);
            put(8, &from.start().get().to_ne_bytes());
            put(16, &to.get().to_ne_bytes());
            put(24, &from.len().to_ne_bytes());
        }
        Event::Remove(range) | Event::Unmap(range) => {
            put(0, &[if matches!(event, Event::Remove(_)) { 0x15 } else { 0x16 }]);
            put(8, &range.start().get().to_ne_bytes());
            put(16, &range.end().get().to_ne_bytes());
        }
    }
    message
}

/// Pages anywhere, at both ends of the address space with some weight.
fn ranges() -> impl Strategy<Value = HvaRange> {
    const LAST: u64 = u64::MAX / PAGE_SIZE;
    let start = prop_oneof![0..=LAST, 0..8u64, LAST - 8..=LAST];
    (start, prop_oneof![0..=LAST, 0..8u64]).prop_map(|(start, pages)| {
        let pages = pages.min(LAST - start);
        HvaRange::with_len(Hva::new(start * PAGE_SIZE), pages * PAGE_SIZE).unwrap()
    })
}

fn events() -> impl Strategy<Value = Event> {
    let kinds = prop_oneof![Just(FaultKind::Missing), Just(FaultKind::Minor), Just(FaultKind::WriteProtect)];
    let faults = (any::<u64>(), kinds, any::<bool>(), proptest::option::of(1u32..)).prop_map(
        |(address, kind, write, thread)| {
            Event::Fault(PageFault { address: Hva::new(address), kind, write, thread })
        },
    );
    let remaps = (ranges(), ranges()).prop_map(|(from, to)| {
        let len = from.len().min(to.len());
        Event::Remap { from: HvaRange::with_len(from.start(), len).unwrap(), to: to.start() }
    });
    prop_oneof![faults, remaps, ranges().prop_map(Event::Remove), ranges().prop_map(Event::Unmap),]
}

/// Noise that gets past the first byte, past the flags and past the alignment often enough.
fn noise() -> impl Strategy<Value = Message> {
    let word = prop_oneof![any::<u64>(), 0..9u64, (0..9u64).prop_map(|page| page * PAGE_SIZE)];
    (any::<Message>(), 0x11..0x18u8, proptest::array::uniform3(word), 0..3u8).prop_map(
        |(mut message, event, words, how)| {
            if how > 0 {
                message[0] = event;
            }
            if how > 1 {
                for (at, word) in [8, 16, 24].into_iter().zip(words) {
                    message[at..at + 8].copy_from_slice(&word.to_ne_bytes());
                }
            }
            message
        },
    )
}

proptest! {
    #[test]
    fn what_was_encoded_is_decoded(event in events()) {
        prop_assert_eq!(Event::decode(&encode(event)), Ok(event));
    }

    /// Any bytes are a value or an error; a value keeps its promises, and its bytes are those it came from.
    #[test]
    fn any_bytes_decode_or_are_refused(message in noise()) {
        let Ok(event) = Event::decode(&message) else { return Ok(()) };
        let aligned = |range: HvaRange| {
            range.start() <= range.end() && range.start().is_aligned(PAGE_SIZE) && range.end().is_aligned(PAGE_SIZE)
        };
        let (kept, used) = match event {
            Event::Fault(fault) => (fault.page().is_aligned(PAGE_SIZE) && fault.thread != Some(0), 8..28),
            Event::Remap { from, to } => (aligned(from) && HvaRange::with_len(to, from.len()).is_some_and(aligned), 8..32),
            Event::Remove(range) | Event::Unmap(range) => (aligned(range), 8..24),
        };
        prop_assert!(kept, "{:?}", event);
        let again = encode(event);
        prop_assert_eq!((again[0], &again[used.clone()]), (message[0], &message[used]));
    }

    #[test]
    fn a_range_inside_a_page_is_refused(range in ranges(), off in 1..PAGE_SIZE, event in 0x15..0x17u8) {
        prop_assume!(!range.is_empty());
        let mut message = encode(Event::Remove(range));
        message[0] = event;
        message[16..24].copy_from_slice(&(range.end().get() - off).to_ne_bytes());
        let refused = Event::decode(&message);
        prop_assert!(matches!(refused, Err(DecodeError::Unaligned { .. })), "{:?}", refused);
    }
}

#[test]
fn contradictions_and_the_unknown_have_names() {
    let fault = PageFault { address: Hva::new(0x1234), kind: FaultKind::Minor, write: true, thread: None };
    let mut message = encode(Event::Fault(fault));
    message[8] |= 2;
    assert_eq!(Event::decode(&message), Err(DecodeError::Contradictory { address: fault.address }));
    message[8] = 8;
    assert_eq!(Event::decode(&message), Err(DecodeError::Flags { flags: 8, address: fault.address }));
    // A fork, which nothing asks for, and a number that no kernel uses.
    for event in [0x13, 0x17] {
        message[0] = event;
        assert_eq!(Event::decode(&message), Err(DecodeError::Event(event)));
    }
}

#[test]
fn backwards_and_wrapping_ranges_are_refused() {
    let page = |n: u64| Hva::new(n * PAGE_SIZE);
    let mut message = encode(Event::Unmap(HvaRange::new(page(1), page(2)).unwrap()));
    message[8..16].copy_from_slice(&page(3).get().to_ne_bytes());
    let backwards =
        DecodeError::Wrapping { event: "unmap", start: 3 * PAGE_SIZE, len: PAGE_SIZE.wrapping_neg() };
    assert_eq!(Event::decode(&message), Err(backwards));

    // The source fits, the destination does not.
    let from = HvaRange::new(page(1), page(3)).unwrap();
    let to = Hva::new(u64::MAX - PAGE_SIZE + 1);
    let wraps = DecodeError::Wrapping { event: "remap", start: to.get(), len: 2 * PAGE_SIZE };
    assert_eq!(Event::decode(&encode(Event::Remap { from, to })), Err(wraps));
}
