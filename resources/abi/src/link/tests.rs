//! Every message there and back, through any splits; every lie by its name.

extern crate std;

use proptest::prelude::*;
use std::string::String;
use std::vec::Vec;

use super::*;
use crate::layout::MAX_VCPUS;
use crate::order::RawOrder;

/// The owned form of a message, as a strategy can make it.
#[derive(Clone, Debug)]
enum Sent {
    To { kind: u8, words: [u64; RawOrder::WORDS], vcpu: u16, text: String },
    From { kind: u8, words: [u64; 3], gpas: Vec<u64>, vcpu: u16, text: String },
}

impl Sent {
    fn frame(&self) -> Vec<u8> {
        let mut buffer = [0; HEADER_BYTES + MAX_PAYLOAD];
        let bytes = match self {
            Self::To { .. } => self.to_agent().encode(&mut buffer),
            Self::From { .. } => self.as_from_agent().encode(&mut buffer),
        };
        bytes.unwrap().to_vec()
    }

    fn to_agent(&self) -> ToAgent<'_> {
        let Self::To { kind, words, vcpu, text } = self else { panic!("goes the other way") };
        match kind {
            0 => ToAgent::MapArena { bytes: words[0], pages: Pages::Small },
            1 => ToAgent::MapArena { bytes: words[0], pages: Pages::Huge },
            2 => ToAgent::Order { vcpu: *vcpu, order: RawOrder::from_words(*words) },
            3 => ToAgent::Shell { command: text },
            _ => ToAgent::Counters,
        }
    }

    fn as_from_agent(&self) -> FromAgent<'_> {
        let Self::From { kind, words, gpas, vcpu, text } = self else { panic!("goes the other way") };
        match kind {
            0 => FromAgent::Hello { abi: words[0] as u32, vcpus: words[1] as u16, release: text },
            1 => {
                let mut area_gpas = AreaGpas::default();
                assert!(gpas.iter().all(|&gpa| area_gpas.push(gpa)));
                FromAgent::Mapped(Mapped { arena_gpa: words[0], huge_bytes: words[1], area_gpas })
            }
            2 => FromAgent::Done { vcpu: *vcpu },
            3 => FromAgent::ShellOutput { bytes: text.as_bytes() },
            4 => FromAgent::ShellExited { status: words[0] as i32 },
            5 => FromAgent::CountersAre { moved_pages: words[0], huge_bytes: words[1], text },
            6 => FromAgent::Log { text },
            7 => {
                let requests = [Request::MapArena, Request::Shell, Request::Counters];
                FromAgent::Refused { request: requests[words[0] as usize % 3], what: text }
            }
            _ => FromAgent::Failed { what: text },
        }
    }

    fn check(&self, frame: Frame<'_>) {
        match self {
            Self::To { .. } => assert_eq!(ToAgent::decode(frame), Ok(self.to_agent())),
            Self::From { .. } => assert_eq!(FromAgent::decode(frame), Ok(self.as_from_agent())),
        }
    }
}

fn sent() -> impl Strategy<Value = Sent> {
    let vcpu = 0..MAX_VCPUS as u16;
    let gpas = proptest::collection::vec(any::<u64>(), 0..=MAX_VCPUS as usize);
    prop_oneof![
        (0..6_u8, any::<[u64; RawOrder::WORDS]>(), vcpu.clone(), ".{0,300}")
            .prop_map(|(kind, words, vcpu, text)| Sent::To { kind, words, vcpu, text }),
        (0..9_u8, any::<[u64; 3]>(), gpas, vcpu, ".{0,300}")
            .prop_map(|(kind, words, gpas, vcpu, text)| Sent::From { kind, words, gpas, vcpu, text }),
    ]
}

proptest! {
    #[test]
    fn messages_arrive_as_sent_however_the_stream_is_split(
        messages in proptest::collection::vec(sent(), 1..8),
        splits in proptest::collection::vec(1..700_usize, 1..40),
    ) {
        let stream: Vec<u8> = messages.iter().flat_map(Sent::frame).collect();
        let (mut decoder, mut rest) = (Decoder::new(), &stream[..]);
        let (mut arrived, mut splits) = (0, splits.into_iter().cycle());
        while !rest.is_empty() {
            let (mut piece, after) = rest.split_at(splits.next().unwrap().min(rest.len()));
            rest = after;
            while let Some(frame) = decoder.next(&mut piece).unwrap() {
                messages[arrived].check(frame);
                arrived += 1;
            }
            prop_assert!(piece.is_empty());
        }
        prop_assert_eq!(arrived, messages.len());
    }

    #[test]
    fn no_bytes_whatever_make_it_panic(stream in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut rest = &stream[..];
        let mut decoder = Decoder::new();
        while let Ok(Some(frame)) = decoder.next(&mut rest) {
            let _ = (ToAgent::decode(frame), FromAgent::decode(frame));
        }
    }

    #[test]
    fn no_payload_whatever_makes_it_panic_or_comes_back_different(
        kind in prop_oneof![0..8_u16, 0x80..0x8b_u16],
        vcpu in 0..MAX_VCPUS as u16,
        payload in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let frame = Frame { kind, vcpu, payload: &payload };
        let mut buffer = [0; HEADER_BYTES + MAX_PAYLOAD];
        if let Ok(message) = ToAgent::decode(frame) {
            prop_assert_eq!(&message.encode(&mut buffer).unwrap()[HEADER_BYTES..], &payload);
        }
        if let Ok(message) = FromAgent::decode(frame) {
            prop_assert_eq!(&message.encode(&mut buffer).unwrap()[HEADER_BYTES..], &payload);
        }
    }

    #[test]
    fn a_cut_text_is_a_beginning_and_no_longer(text in ".{0,40}", bytes in 0..60_usize) {
        let short = cut(&text, bytes);
        prop_assert!(text.starts_with(short) && short.len() <= bytes);
        prop_assert!(short.len() + 3 >= bytes.min(text.len()), "no more is lost than one character");
    }
}

/// `frame` with one field of its header changed.
fn with(offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut buffer = [0; HEADER_BYTES + MAX_PAYLOAD];
    let mut frame = FromAgent::Done { vcpu: 1 }.encode(&mut buffer).unwrap().to_vec();
    frame[offset..offset + bytes.len()].copy_from_slice(bytes);
    frame
}

#[test]
fn a_header_that_lies_is_refused_by_name_and_for_good() {
    let longest = MAX_PAYLOAD as u32;
    for (frame, error) in [
        (with(0, b"ZLNK"), LinkError::Magic(u32::from_le_bytes(*b"ZLNK"))),
        (with(4, &9_u16.to_le_bytes()), LinkError::Version(9)),
        (with(8, &32_u16.to_le_bytes()), LinkError::Vcpu { kind: 0x83, vcpu: 32 }),
        (with(10, &(longest + 1).to_le_bytes()), LinkError::TooLong(u64::from(longest) + 1)),
        (with(10, &u32::MAX.to_le_bytes()), LinkError::TooLong(u32::MAX.into())),
    ] {
        let mut decoder = Decoder::new();
        assert_eq!(decoder.next(&mut &frame[..]), Err(error));
        assert_eq!(decoder.next(&mut &with(0, &[])[..]), Err(error), "the stream is lost");
    }
    let (mut decoder, frame) = (Decoder::new(), with(10, &longest.to_le_bytes()));
    assert_eq!(decoder.next(&mut &frame[..]), Ok(None), "the longest payload may still come");
}

#[test]
fn a_payload_that_lies_is_refused_by_name() {
    let length = |kind, len| LinkError::Length { kind, len };
    let areas = [0; 16 + 8 * (MAX_VCPUS as usize + 1)];
    for (kind, vcpu, payload, error) in [
        (0x01, 0, &[0; 9][..], length(0x01, 9)),
        (0x01, 0, &[2; 10][..], LinkError::Value { kind: 0x01, value: 0x0202 }),
        (0x02, 0, &[0; 79], length(0x02, 79)),
        (0x02, 0, &[0; 81], length(0x02, 81)),
        (0x03, 0, b"\xff", LinkError::Text(0x03)),
        (0x03, 1, b"true", LinkError::Vcpu { kind: 0x03, vcpu: 1 }),
        (0x04, 0, &[0], length(0x04, 1)),
        (0x83, 0, &[], LinkError::Kind(0x83)),
    ] {
        assert_eq!(ToAgent::decode(Frame { kind, vcpu, payload }), Err(error));
    }
    for (kind, vcpu, payload, error) in [
        (0x81, 0, &[0; 5][..], length(0x81, 5)),
        (0x82, 0, &[0; 17][..], length(0x82, 17)),
        (0x82, 0, &areas[..], length(0x82, areas.len())),
        (0x83, 1, &[0], length(0x83, 1)),
        (0x85, 0, &[0; 3], length(0x85, 3)),
        (0x86, 0, &[0xff; 17], LinkError::Text(0x86)),
        (0x87, 2, b"hm", LinkError::Vcpu { kind: 0x87, vcpu: 2 }),
        (0x88, 0, &[5, 0], LinkError::Value { kind: 0x88, value: 5 }),
        (0x02, 0, &[0; 80], LinkError::Kind(0x02)),
    ] {
        assert_eq!(FromAgent::decode(Frame { kind, vcpu, payload }), Err(error));
    }
}

#[test]
fn what_does_not_fit_into_a_frame_is_not_sent() {
    let mut buffer = [0; HEADER_BYTES + MAX_PAYLOAD];
    let longest = "x".repeat(MAX_PAYLOAD);
    assert_eq!(ToAgent::Shell { command: &longest }.encode(&mut buffer).unwrap().len(), buffer.len());
    let longer = "x".repeat(MAX_PAYLOAD + 1);
    let error = LinkError::TooLong(MAX_PAYLOAD as u64 + 1);
    assert_eq!(ToAgent::Shell { command: &longer }.encode(&mut buffer), Err(error));
    assert!(std::format!("{error}").contains("8193"));
}
