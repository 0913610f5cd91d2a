//! The bare guest: it boots, works on every walk, and boots elsewhere too.

use std::process::{Command, Stdio};

use guest_abi::layout::PAGE_SIZE;
use guest_abi::order::{Access, Task, Walk};
use guest_mem::Backing;
use tests::machine::{Bare, config};

crate::tests! {
    every_vcpu_works_and_counts: [Kvm, SlotZap],
    every_walk_reaches_its_pages: [Kvm, SlotZap],
    an_arena_beyond_4_gib_is_reached: [Kvm, SlotZap],
    boots_under_another_vmm: [Qemu],
}

fn every_vcpu_works_and_counts() {
    let bare = Bare::start(config(3, 8, Backing::Base4k));
    bare.fill(7);
    let pages = bare.config.arena / PAGE_SIZE;
    let touch = |access| Task::Touch { access, passes: Some(3), stall_cycles: u64::MAX };
    for vcpu in 0..3 {
        bare.submit(vcpu, &bare.order(Walk::Sequential, touch(Access::LockedAdd)));
    }
    for vcpu in 0..3 {
        assert_eq!(bare.wait(vcpu).visits, 3 * pages);
    }
    bare.run(1, Walk::Sequential, touch(Access::Write));
    let found = bare.verify(7);
    assert_eq!((found.visits, found.wrong_pages), (pages, 0));
    assert_eq!(found.locked_sum, 9 * pages);
    assert_eq!((found.lane_sums[0], found.lane_sums[1]), (0, 3 * pages));
    let wrong = bare.verify(8);
    assert_eq!(wrong.wrong_pages, pages, "another generation is another pattern");
}

fn every_walk_reaches_its_pages() {
    let bare = Bare::start(config(1, 4, Backing::Base4k));
    bare.fill(1);
    let mut written = 0;
    let pages = bare.config.arena / PAGE_SIZE;
    let area = bare.machine.vcpus()[0].mailbox().area();
    for (walk, visits) in [
        (Walk::Sequential, pages),
        (Walk::Strided { stride: 3 }, pages.div_ceil(3)),
        (Walk::Random { seed: 5, count: 100 }, 100),
        (Walk::Zipf { seed: 6, count: 200 }, 200),
        (Walk::List { count: 50 }, 50),
    ] {
        for index in 0..pages {
            let entry = if matches!(walk, Walk::Zipf { .. }) { u32::MAX } else { index as u32 };
            area.set_table(index, entry);
        }
        let task = Task::Touch { access: Access::Write, passes: Some(1), stall_cycles: u64::MAX };
        assert_eq!(bare.run(0, walk, task).visits, visits, "{walk:?}");
        written += visits;
    }
    assert_eq!(bare.verify(1).lane_sums[0], written);
}

fn an_arena_beyond_4_gib_is_reached() {
    let bare = Bare::start(config(1, 5 << 10, Backing::Base4k));
    // One page each 64 MiB: the mapping is wide, the memory used is not.
    let walk = Walk::Strided { stride: (64 << 20) / PAGE_SIZE };
    assert_eq!(bare.run(0, walk, Task::Fill { generation: 2 }).visits, 80);
    assert_eq!(bare.run(0, walk, Task::Verify { generation: 2 }).wrong_pages, 0);
}

fn boots_under_another_vmm() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("guest.elf");
    std::fs::write(&image, resources::GUEST).unwrap();
    let output = Command::new("qemu-system-x86_64")
        .args(["-accel", "tcg", "-m", "64", "-nographic", "-no-reboot", "-monitor", "none", "-net", "none"])
        .args(["-serial", "stdio", "-kernel"])
        .arg(&image)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("pages filled and verified") && text.contains(", 0 wrong"), "{text}");
}
