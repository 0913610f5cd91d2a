//! A vCPU's state as bytes: sections of KVM's own structures, each with a tag and a length.
//!
//! ```text
//!   for each vCPU: number of sections │ tag, bytes, content │ tag, bytes, content │ …
//! ```
//!
//! The structures are KVM's ABI and do not change; that they are bytes without padding is proven by `zerocopy`'s derives.

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2, kvm_msr_entry};
use strum::EnumCount;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::state::VcpuState;

/// The content of a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::EnumCount, strum::FromRepr)]
#[repr(u32)]
enum Tag {
    Cpuid = 1,
    Msrs,
    Regs,
    Sregs,
    Xsave,
    Xcrs,
    Debugregs,
    Events,
    MpState,
}

/// More MSRs than any KVM lists.
const MOST_MSRS: usize = 4096;

/// Why bytes are no vCPU's state, under a checksum that is right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the state of vCPU {vcpu} in it {what}: it was not written by this program")]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub struct BadState {
    pub vcpu: u32,
    pub what: String,
}

/// Appends a vCPU's state.
pub fn encode(state: &VcpuState, out: &mut Vec<u8>) {
    let mut sections = vec![
        (Tag::Cpuid, state.cpuid.as_bytes()),
        (Tag::Msrs, state.msrs.as_bytes()),
        (Tag::Regs, state.regs.as_bytes()),
        (Tag::Sregs, state.sregs.as_bytes()),
        (Tag::Xsave, state.xsave.as_bytes()),
    ];
    sections.extend(state.xcrs.as_ref().map(|one| (Tag::Xcrs, one.as_bytes())));
    sections.extend(state.debugregs.as_ref().map(|one| (Tag::Debugregs, one.as_bytes())));
    sections.extend(state.events.as_ref().map(|one| (Tag::Events, one.as_bytes())));
    sections.extend(state.mp_state.as_ref().map(|one| (Tag::MpState, one.as_bytes())));
    out.extend((sections.len() as u32).to_le_bytes());
    for (tag, bytes) in sections {
        out.extend((tag as u32).to_le_bytes());
        out.extend((bytes.len() as u32).to_le_bytes());
        out.extend(bytes);
    }
}

/// Reads the states of `vcpus` vCPUs, and nothing else.
pub fn decode(bytes: &[u8], vcpus: u32) -> Result<Vec<VcpuState>, BadState> {
    let mut rest = bytes;
    let states = (0..vcpus)
        .map(|vcpu| one(&mut rest).map_err(|what| BadState { vcpu, what }))
        .collect::<Result<Vec<_>, _>>()?;
    match rest.len() {
        0 => Ok(states),
        len => Err(BadState { vcpu: vcpus - 1, what: format!("goes on for {len} bytes") }),
    }
}

fn one(rest: &mut &[u8]) -> Result<VcpuState, String> {
    let mut found: [Option<&[u8]>; Tag::COUNT] = Default::default();
    for _ in 0..word(rest)? {
        let (tag, len) = (word(rest)?, word(rest)? as usize);
        let (content, after) = rest.split_at_checked(len).ok_or("is cut short")?;
        *rest = after;
        let tag = Tag::from_repr(tag).ok_or_else(|| format!("has a section of kind {tag}"))?;
        if found[tag as usize - 1].replace(content).is_some() {
            return Err(format!("has two sections {tag:?}"));
        }
    }
    let get = |tag: Tag| found[tag as usize - 1];
    let needed = |tag: Tag| get(tag).ok_or_else(|| format!("lacks {tag:?}"));
    Ok(VcpuState {
        cpuid: list::<kvm_cpuid_entry2>(Tag::Cpuid, needed(Tag::Cpuid)?, KVM_MAX_CPUID_ENTRIES)?,
        msrs: list::<kvm_msr_entry>(Tag::Msrs, needed(Tag::Msrs)?, MOST_MSRS)?,
        regs: structure(Tag::Regs, needed(Tag::Regs)?)?,
        sregs: structure(Tag::Sregs, needed(Tag::Sregs)?)?,
        xsave: Box::new(structure(Tag::Xsave, needed(Tag::Xsave)?)?),
        xcrs: get(Tag::Xcrs).map(|bytes| structure(Tag::Xcrs, bytes)).transpose()?,
        debugregs: get(Tag::Debugregs).map(|bytes| structure(Tag::Debugregs, bytes)).transpose()?,
        events: get(Tag::Events).map(|bytes| structure(Tag::Events, bytes)).transpose()?,
        mp_state: get(Tag::MpState).map(|bytes| structure(Tag::MpState, bytes)).transpose()?,
    })
}

fn word(rest: &mut &[u8]) -> Result<u32, String> {
    let (word, after) = rest.split_first_chunk().ok_or("is cut short")?;
    *rest = after;
    Ok(u32::from_le_bytes(*word))
}

fn structure<T: FromBytes>(tag: Tag, bytes: &[u8]) -> Result<T, String> {
    T::read_from_bytes(bytes)
        .map_err(|_| format!("has {} bytes of {tag:?}, not {}", bytes.len(), size_of::<T>()))
}

fn list<T: FromBytes + IntoBytes + Immutable + Clone>(
    tag: Tag,
    bytes: &[u8],
    most: usize,
) -> Result<Vec<T>, String> {
    let chunks = bytes.chunks_exact(size_of::<T>());
    if !chunks.remainder().is_empty() || chunks.len() > most {
        return Err(format!("has {} bytes of {tag:?}", bytes.len()));
    }
    chunks.map(|bytes| structure(tag, bytes)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn state(seed: u8, full: bool) -> VcpuState {
        let filled = |len: usize| vec![seed; len];
        fn of<T: FromBytes>(bytes: &[u8]) -> T {
            T::read_from_bytes(&bytes[..size_of::<T>()]).unwrap()
        }
        let bytes = filled(4096);
        VcpuState {
            cpuid: vec![of(&bytes); 3],
            msrs: vec![of(&bytes); 5],
            regs: of(&bytes),
            sregs: of(&bytes),
            xsave: Box::new(of(&bytes)),
            xcrs: full.then(|| of(&bytes)),
            debugregs: full.then(|| of(&bytes)),
            events: full.then(|| of(&bytes)),
            mp_state: full.then(|| of(&bytes)),
        }
    }

    fn encoded(states: &[VcpuState]) -> Vec<u8> {
        let mut bytes = Vec::new();
        states.iter().for_each(|state| encode(state, &mut bytes));
        bytes
    }

    #[test]
    fn states_read_back() {
        let bytes = encoded(&[state(1, true), state(2, false)]);
        let read = decode(&bytes, 2).unwrap();
        assert_eq!(encoded(&read), bytes);
        assert!(read[0].xcrs.is_some() && read[1].xcrs.is_none());
        assert_eq!((read[0].regs.rip, read[1].msrs.len()), (0x0101_0101_0101_0101, 5));
    }

    #[test]
    fn what_is_missing_cut_or_doubled_is_named() {
        let bytes = encoded(&[state(1, true)]);
        let said = |bytes: &[u8], vcpus| decode(bytes, vcpus).unwrap_err().to_string();
        for cut in (0..bytes.len()).step_by(31) {
            assert!(said(&bytes[..cut], 1).contains("cut short"), "cut at {cut}");
        }
        assert!(said(&bytes, 2).contains("vCPU 1"));
        assert!(said(&[&bytes[..], &[0]].concat(), 1).contains("goes on"));
        let section = |tag: u32, bytes: &[u8]| {
            [&tag.to_le_bytes(), &(bytes.len() as u32).to_le_bytes(), bytes].concat()
        };
        let with =
            |sections: &[Vec<u8>]| [&(sections.len() as u32).to_le_bytes()[..], &sections.concat()].concat();
        for (sections, word) in [
            (vec![], "lacks Cpuid"),
            (vec![section(77, &[])], "kind 77"),
            (vec![section(1, &[]), section(1, &[])], "two sections Cpuid"),
            (vec![section(1, &[]), section(2, &[]), section(3, &[7; 9])], "9 bytes of Regs"),
            (vec![section(1, &[7; 41])], "lacks"),
            (
                vec![section(1, &[7; 41]), section(2, &[]), section(3, &[0; 144]), section(4, &[0; 312])],
                "lacks Xsave",
            ),
        ] {
            let said = said(&with(&sections), 1);
            assert!(said.contains(word) || said.contains("bytes of Cpuid"), "{word}: {said}");
        }
    }

    proptest! {
        #[test]
        fn noise_does_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), vcpus in 1u32..4) {
            prop_assert!(decode(&bytes, vcpus).is_err());
        }

        #[test]
        fn a_flipped_byte_is_refused_or_another_state(at: usize, with in 1u8..) {
            let mut bytes = encoded(&[state(3, true)]);
            let at = at % bytes.len();
            bytes[at] ^= with;
            if let Ok(read) = decode(&bytes, 1) {
                prop_assert_eq!(encoded(&read), bytes);
            }
        }
    }
}
