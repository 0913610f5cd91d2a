use crate::Kvm;
use guest_mem::remedy::{self, Asked};
use guest_mem::{Gpa, Hva, HvaRange, PAGE_SIZE, SlotTableBuilder};
use rustix::io::Errno;

use super::*;
use crate::VmCore;
use crate::testing::{LEAST, Refusing};

/// A table of regions: guest physical address, host address, pages of one slot, slots.
fn table(regions: &[(u64, u64, u64, u64)]) -> SlotTable {
    let mut builder = SlotTableBuilder::new(64);
    for &(gpa, hva, granule, slots) in regions {
        let hva = HvaRange::with_len(Hva::new(hva << 20), slots * granule * PAGE_SIZE).unwrap();
        builder.add_region(Gpa::new(gpa << 20), hva, granule * PAGE_SIZE).unwrap();
    }
    builder.build().unwrap()
}

/// Memory before and under an arena of four slots: what comes before it stays, what comes after it changes its number.
fn before_and_after() -> (SlotTable, SlotTable) {
    let before = table(&[(0, 16, 64, 1), (1, 32, 128, 2)]);
    let after = table(&[(0, 16, 64, 1), (1, 32, 32, 1), (3, 64, 8, 4)]);
    (before, after)
}

fn installed(table: &SlotTable) -> Refusing<()> {
    let kvm = Refusing::default();
    replace(&kvm, &SlotTable::default(), table).unwrap();
    kvm
}

#[test]
fn slots_that_are_the_same_stay() {
    let (before, after) = before_and_after();
    let kvm = installed(&before);
    kvm.refuse(&[]);
    replace(&kvm, &before, &after).unwrap();
    // Two go, five come.
    assert_eq!((kvm.calls(), kvm.slots().len()), (7, 6));
    assert_eq!(kvm.slots(), installed(&after).slots());
}

/// Whichever call KVM refuses, the guest has what it had before.
#[test]
fn a_refusal_of_any_call_is_undone() {
    let (before, after) = before_and_after();
    for call in 1..=7 {
        let kvm = installed(&before);
        kvm.refuse(&[call]);
        let refused = replace(&kvm, &before, &after).unwrap_err();
        assert!(matches!(refused, Refused::Undone(VmError::Slot { .. })), "call {call}: {refused:?}");
        assert_eq!(kvm.slots(), installed(&before).slots(), "call {call}");
    }
}

/// Two slots go, then five come.
#[test]
fn a_refusal_says_what_was_tried() {
    let (before, after) = before_and_after();
    for (call, words) in [(1, "refuses to delete memslot 1 "), (3, "refuses to make memslot 1 ")] {
        let kvm = installed(&before);
        kvm.refuse(&[call]);
        let Err(Refused::Undone(error)) = replace(&kvm, &before, &after) else { panic!("call {call}") };
        let remedy = remedy::after(Asked::Kvm, Errno::NOMEM);
        let said = error.to_string();
        assert!(said.contains(words) && said.ends_with(remedy) && !remedy.is_empty(), "call {call}: {said}");
    }
}

#[test]
fn a_refusal_on_the_way_back_is_told_apart() {
    let (before, after) = before_and_after();
    for call in 2..=7 {
        for back in call + 1..2 * call {
            let kvm = installed(&before);
            kvm.refuse(&[call, back]);
            let refused = replace(&kvm, &before, &after).unwrap_err();
            assert!(matches!(refused, Refused::Torn(_)), "calls {call} and {back}: {refused:?}");
        }
    }
}

/// The file of a vCPU keeps the memory that the vCPU can reach: `VmCore` alone does not.
#[test]
#[ignore = "needs: Kvm"]
fn memory_stays_as_long_as_a_vcpu_can_run_on_it() {
    let kvm = Kvm::open().unwrap();
    let core = VmCore::new(&kvm, &LEAST).unwrap();
    let (arena, low) = (Arc::downgrade(core.arena()), Arc::downgrade(&core.low()[0]));
    let vcpu = core.create_vcpu(0).unwrap();
    drop(core);
    assert!(arena.upgrade().is_some() && low.upgrade().is_some());
    drop(vcpu);
    assert!(arena.upgrade().is_none() && low.upgrade().is_none());
}
