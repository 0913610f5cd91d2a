//! The limits that keep a process from pages of the 2 MiB hugetlb pool.
//!
//! A page of the pool is given in two steps, and each has limits of its own:
//!
//! | step | when | refused by | how a refusal shows |
//! | --- | --- | --- | --- |
//! | [`Step::Reserve`] | `mmap` | the pool; `rsvd.max` of a cgroup | `ENOMEM` |
//! | [`Step::Take`] | the first touch | the pool, once a reservation is spent; `max` of a cgroup | `SIGBUS`; `EFAULT` from a system call or from `KVM_RUN` |
//!
//! So a reservation is no promise: the cgroup is charged at the touch, and the reservation of a page that was dropped may
//! be gone once the pool is lowered. Neither errno tells the limit; it is read from the pool and the cgroups afterwards.

use std::fs;
use std::path::{Path, PathBuf};

use crate::backing::Backing;
use crate::cgroup_mounts::{ControllerMount, Version, find_controller};
use crate::switches::Unavailable;
use crate::thp::{HostThp, HugetlbPool};

/// The two steps in which the kernel gives a page of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Address space is mapped, and pages are set aside for it.
    Reserve,
    /// A page is touched for the first time.
    Take,
}

/// A limit that a cgroup sets, and how much of it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
struct GroupLimit {
    file: PathBuf,
    max: u64,
    used: u64,
}

/// The limit that refuses hugetlb pages, and its remedy: both are in its text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum HugetlbLimit {
    #[error(transparent)]
    Pool(Unavailable),
    /// A cgroup's limit is too low. `max`, `used` and `bytes` are bytes.
    #[error(
        "{} MiB of hugetlb pages are wanted, and the cgroup's limit is {} MiB, with {} in use; `echo {} > {}`",
        bytes >> 20, max >> 20, used >> 20, used + bytes, file.display()
    )]
    Group { file: PathBuf, max: u64, used: u64, bytes: u64 },
    #[error(
        "the pool has {available} hugetlb pages of 2 MiB to give, and no cgroup that is visible here forbids them; look \
         for hugetlb.2MB.max further up, for memory.max, and into the kernel's log"
    )]
    Elsewhere { available: u64 },
}

impl HugetlbLimit {
    /// The limit that keeps this process from `bytes` more at `step`.
    pub fn find(step: Step, bytes: u64) -> Self {
        judge(bytes, HugetlbPool::read(), &group_limits(step))
    }
}

/// The pure part of [`HugetlbLimit::find`]. The group comes first, as in the kernel; the tightest of several counts.
fn judge(bytes: u64, pool: Option<HugetlbPool>, groups: &[GroupLimit]) -> HugetlbLimit {
    let room = |group: &GroupLimit| group.max.saturating_sub(group.used);
    if let Some(group) = groups.iter().min_by_key(|group| room(group)).filter(|group| room(group) < bytes) {
        let GroupLimit { file, max, used } = group.clone();
        return HugetlbLimit::Group { file, max, used, bytes };
    }
    match Backing::Hugetlb2m.unavailable(bytes, &HostThp { hugetlb_2m: pool, ..HostThp::default() }) {
        Some(pool) => HugetlbLimit::Pool(pool),
        None => HugetlbLimit::Elsewhere { available: pool.map_or(0, |pool| pool.available()) },
    }
}

/// The limits of every cgroup this process is in, up to the visible root. A file that cannot be read is left out.
fn group_limits(step: Step) -> Vec<GroupLimit> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let Some(mount) = find_controller("hugetlb", &read("/proc/self/mountinfo"), &read("/proc/self/cgroup"))
    else {
        return Vec::new();
    };
    limits_below(&mount, step)
}

fn limits_below(mount: &ControllerMount, step: Step) -> Vec<GroupLimit> {
    let (max, used) = match (mount.version, step) {
        (Version::V1, Step::Reserve) => ("rsvd.limit_in_bytes", "rsvd.usage_in_bytes"),
        (Version::V1, Step::Take) => ("limit_in_bytes", "usage_in_bytes"),
        (Version::V2, Step::Reserve) => ("rsvd.max", "rsvd.current"),
        (Version::V2, Step::Take) => ("max", "current"),
    };
    let groups = mount.home.ancestors().take_while(|group| group.starts_with(&mount.root));
    let limit = |group: &Path| {
        let file = |name: &str| group.join(format!("hugetlb.2MB.{name}"));
        // `max` is no number, and no limit.
        let number = |path: &Path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
        Some(GroupLimit { max: number(&file(max))?, used: number(&file(used))?, file: file(max) })
    };
    groups.filter_map(limit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::PMD_SIZE;

    fn pool(total: u64, free: u64, reserved: u64) -> Option<HugetlbPool> {
        Some(HugetlbPool { total, free, reserved, ..HugetlbPool::default() })
    }

    fn group(name: &str, max: u64, used: u64) -> GroupLimit {
        GroupLimit { file: name.into(), max: max * PMD_SIZE, used: used * PMD_SIZE }
    }

    /// The same need has the same remedy, before memory is mapped and after the kernel has refused.
    #[test]
    fn a_full_pool_grows_by_what_is_missing() {
        let host = HostThp { hugetlb_2m: pool(128, 10, 6), ..HostThp::default() };
        let before = Backing::Hugetlb2m.unavailable(32 << 20, &host).unwrap();
        let after = judge(32 << 20, host.hugetlb_2m, &[]);
        assert_eq!(after.to_string(), before.to_string());
        assert!(after.to_string().contains("`echo 140 > "), "{after}");
        assert!(judge(1, None, &[]).to_string().contains("CONFIG_HUGETLBFS"));
    }

    #[test]
    fn a_group_that_forbids_is_named_in_place_of_a_pool_that_has_enough() {
        let groups = [group("/cg/a/max", 64, 0), group("/cg/max", 10, 8)];
        let text = judge(32 << 20, pool(128, 128, 0), &groups).to_string();
        assert!(!text.contains("nr_hugepages"), "{text}");
        let enough = 24 * PMD_SIZE;
        assert!(text.ends_with(&format!("`echo {enough} > /cg/max`")), "{text}");
        // With room in every group it is the pool, or a limit that cannot be seen.
        assert!(matches!(judge(4 << 20, pool(1, 1, 0), &groups), HugetlbLimit::Pool(_)));
        assert_eq!(judge(4 << 20, pool(9, 9, 0), &groups), HugetlbLimit::Elsewhere { available: 9 });
    }

    #[test]
    fn limits_are_read_of_every_group_up_to_the_root() {
        let root = tempfile::tempdir().unwrap();
        let home = root.path().join("a/b");
        fs::create_dir_all(&home).unwrap();
        let write = |group: &str, name: &str, text: &str| {
            fs::write(root.path().join(group).join(format!("hugetlb.2MB.{name}")), text).unwrap();
        };
        for (group, max, used) in [("a/b", "max\n", "4096\n"), ("a", "8388608\n", "2097152\n")] {
            write(group, "max", max);
            write(group, "current", used);
            write(group, "rsvd.max", "0\n");
            write(group, "rsvd.current", "0\n");
        }
        let mount =
            ControllerMount { version: Version::V2, home: home.clone(), root: root.path().to_owned() };
        let file = root.path().join("a/hugetlb.2MB.max");
        assert_eq!(limits_below(&mount, Step::Take), [GroupLimit { file, max: 8 << 20, used: 2 << 20 }]);
        assert_eq!(limits_below(&mount, Step::Reserve).len(), 2);
        assert!(limits_below(&ControllerMount { version: Version::V1, ..mount }, Step::Take).is_empty());
    }
}
