//! Where pages go and what makes them go: zram swap devices and memory cgroups, on a real kernel.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use guest_mem::{Backing, CgroupVersion, PMD_SIZE, PageScanner, Region, SwapInfo};
use test_memory::{OwnCgroup, alone, assert_intact, counts, fill, filled, page_out, swap};

test_memory::tests! {
    a_zram_device_is_swapped_to_before_any_other: [Swap],
    squeezing_the_cgroup_evicts: [Swap, Cgroup],
    a_squeeze_of_memory_that_grows_kills_nobody: [Cgroup],
    a_dropped_group_is_left: [Cgroup],
}

fn a_zram_device_is_swapped_to_before_any_other() {
    let _alone = alone();
    let device = swap();
    let swaps = SwapInfo::read();
    let area = swaps.find(&device.path()).expect("it is a swap area").clone();
    assert!(swaps.areas.iter().all(|other| *other == area || other.priority < area.priority));
    assert_eq!(area.size, (512 << 20) - 4096, "all but the header");

    let region = filled(16 * PMD_SIZE, Backing::Base4k);
    let mut scanner = PageScanner::new().unwrap();
    assert_eq!(page_out(&mut scanner, &region, region.range()).resident(), 0);
    // The page with the swap header is stored as well.
    assert_eq!(device.stored_bytes(), region.range().len() + 4096);
    // swapoff brings everything back.
    let path = device.path();
    drop(device);
    assert!(SwapInfo::read().find(&path).is_none());
    assert_eq!(counts(&mut scanner, &region, region.range()).swapped, 0);
    assert_intact(&region, region.range());
}

fn squeezing_the_cgroup_evicts() {
    let _alone = alone();
    let _swap = swap();
    let group = OwnCgroup::enter(&format!("guest-mem-test-{}", std::process::id())).unwrap();
    let path = group.path().to_owned();
    let region = Region::map(32 * PMD_SIZE, Backing::Base4k).unwrap();
    fill(&region, region.range());
    assert!(group.usage().unwrap() >= region.range().len(), "the memory is charged to the group");
    let wanted = 32 << 20;
    let squeezed = group.squeeze(wanted).unwrap();
    assert!(squeezed.got_bytes() >= wanted / 2, "{squeezed:?}");
    let mut scanner = PageScanner::new().unwrap();
    let after = counts(&mut scanner, &region, region.range());
    assert!(after.swapped * 4096 >= wanted / 2, "{after:?}");
    assert_intact(&region, region.range());
    drop(group);
    assert!(!path.exists());
    let home = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    assert!(!home.contains("guest-mem-test"), "{home}");
}

/// Set for the process that is squeezed.
const SQUEEZED: &str = "GUEST_MEM_TEST_SQUEEZED";

/// While page cache is squeezed out of a group, a thread in it goes on asking for pages, and nothing else can be reclaimed:
/// what it asks for while the limit is low finds no room. In a process of its own, for the killer takes all of it.
fn a_squeeze_of_memory_that_grows_kills_nobody() {
    if std::env::var_os(SQUEEZED).is_some() {
        return squeeze_while_it_grows();
    }
    let _alone = alone();
    let name = "pressure::a_squeeze_of_memory_that_grows_kills_nobody";
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", name]).env(SQUEEZED, "1");
    let _waiting = harness::waiting("the end of the process that is squeezed");
    let output = child.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.signal(), None, "it was killed; it said: {said}");
    assert!(output.status.success(), "{said}");
}

fn squeeze_while_it_grows() {
    const CACHE: usize = 8 << 20;
    let group = OwnCgroup::enter(&format!("guest-mem-grow-{}", std::process::id())).unwrap();
    if group.version() == CgroupVersion::V1 {
        std::fs::write(group.path().join("memory.swappiness"), "0").unwrap();
    }
    // The killer came once in some hundred rounds, where a limit stayed low.
    for _ in 0..500 {
        let file = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
        std::fs::write(file.path(), vec![1; CACHE]).unwrap();
        file.as_file().sync_all().unwrap();
        let region = Region::map(256 * PMD_SIZE, Backing::Base4k).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for page in region.range().pages().take_while(|_| !done.load(Ordering::Relaxed)) {
                    fill(&region, page);
                }
            });
            let squeezed = group.squeeze(group.usage().unwrap());
            done.store(true, Ordering::Relaxed);
            squeezed.unwrap();
        });
    }
}

fn a_dropped_group_is_left() {
    let _alone = alone();
    let name = format!("guest-mem-drop-{}", std::process::id());
    let group = OwnCgroup::enter(&name).unwrap();
    let path = group.path().to_owned();
    assert!(std::fs::read_to_string("/proc/self/cgroup").unwrap().contains(&name));
    // The same name again is a group below it (v1) or refused (v2); either way this one stays as it is.
    match OwnCgroup::enter(&name) {
        Ok(inner) => assert_eq!((group.version(), inner.path()), (CgroupVersion::V1, &*path.join(&name))),
        Err(error) => assert_eq!(group.version(), CgroupVersion::V2, "{error}"),
    }
    let inside = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    assert!(inside.lines().any(|line| line.ends_with(&name)), "{inside}");
    drop(group);
    assert!(!path.exists());
}
