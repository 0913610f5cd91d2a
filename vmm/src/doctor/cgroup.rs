//! Reclaim from a memory cgroup: which version this host has, and what of it is ours to write.

use std::path::PathBuf;

use super::access::may_write;
use super::finding::Finding;
use host::facts::CgroupVersion;
use host::{HostFacts, Root};

/// What the host says about the memory controller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct MemoryCgroup {
    version: Option<CgroupVersion>,
    /// Our own cgroup's directory.
    path: Option<PathBuf>,
    /// Whether a cgroup can be made below it.
    writable: bool,
    /// `memory.reclaim` there: absent, or whether we may write it.
    reclaim: Option<bool>,
}

pub(super) fn probe(host: &HostFacts) -> MemoryCgroup {
    let root = Root::default();
    let text = |path: &str| root.text(path).unwrap_or_default();
    let path = host.memory_cgroup.and_then(|version| {
        own_directory(version, &text("/proc/self/mountinfo"), &text("/proc/self/cgroup"))
    });
    let within = |name: &str| path.as_ref().map(|path| path.join(name).to_string_lossy().into_owned());
    let reclaim = within("memory.reclaim").filter(|file| root.exists(file)).map(|file| may_write(&file));
    let writable = within("").is_some_and(|directory| may_write(&directory));
    MemoryCgroup { version: host.memory_cgroup, path, writable, reclaim }
}

/// Where our own cgroup is mounted.
fn own_directory(version: CgroupVersion, mountinfo: &str, membership: &str) -> Option<PathBuf> {
    let is_ours = |line: &str| match version {
        CgroupVersion::V1 => line.split(':').nth(1)?.split(',').any(|name| name == "memory").then_some(()),
        CgroupVersion::V2 => line.starts_with("0::").then_some(()),
    };
    let inside = membership.lines().find(|line| is_ours(line).is_some())?.splitn(3, ':').nth(2)?;
    let (mount_root, mount) = mountinfo.lines().find_map(|line| {
        let (front, end) = line.split_once(" - ")?;
        let mut words = end.split(' ');
        let kind = words.next()?;
        let wanted = match version {
            CgroupVersion::V1 => kind == "cgroup" && words.nth(1)?.split(',').any(|one| one == "memory"),
            CgroupVersion::V2 => kind == "cgroup2",
        };
        let mut front = front.split(' ').skip(3);
        wanted.then_some((front.next()?, front.next()?))
    })?;
    // In a container the mount may show only a part of the hierarchy.
    let inside = inside.strip_prefix(mount_root.trim_end_matches('/')).unwrap_or(inside);
    Some(PathBuf::from(mount).join(inside.trim_start_matches('/')))
}

pub(super) fn judge(memory: &MemoryCgroup) -> Vec<Finding> {
    const SUBJECT: &str = "cgroup reclaim";
    let place = memory.path.as_ref().map_or_else(|| "?".to_owned(), |path| path.display().to_string());
    let finding = match (memory.version, memory.reclaim, memory.writable) {
        (None, ..) => Finding::cannot(SUBJECT, "no memory controller in any cgroup hierarchy")
            .remedy("`mount -t cgroup2 none /sys/fs/cgroup`; without cgroup_disable=memory on the host kernel's command line"),
        (Some(CgroupVersion::V2), Some(_), true) => {
            Finding::can(SUBJECT, format!("cgroup v2, memory.reclaim, {place} is ours to write"))
        }
        (Some(CgroupVersion::V2), None, true) => Finding::limited(
            SUBJECT,
            format!("cgroup v2 without memory.reclaim at {place}: memory.high has to squeeze instead"),
        )
        .remedy("a host kernel of 5.19 or later, with the memory controller enabled for this cgroup"),
        (Some(CgroupVersion::V2), _, false) => {
            Finding::cannot(SUBJECT, format!("cgroup v2, but {place} is not ours to write"))
                .remedy("`systemd-run --user --scope -p Delegate=yes zapscope run`; or root")
        }
        (Some(CgroupVersion::V1), _, true) => Finding::limited(
            SUBJECT,
            format!("cgroup v1 at {place}: no memory.reclaim, the limit is lowered and raised instead"),
        )
        .remedy("boot the host with systemd.unified_cgroup_hierarchy=1"),
        (Some(CgroupVersion::V1), _, false) => {
            Finding::cannot(SUBJECT, format!("cgroup v1, and {place} is not ours to write"))
                .remedy("`sudo zapscope run`")
        }
    };
    vec![finding]
}

/// One finding of each kind that has a remedy.
#[cfg(test)]
pub(super) fn samples() -> Vec<Finding> {
    use CgroupVersion::{V1, V2};
    let of = |(version, reclaim, writable)| judge(&MemoryCgroup { version, path: None, writable, reclaim });
    let kinds = [
        (None, None, false),
        (Some(V2), None, true),
        (Some(V2), None, false),
        (Some(V1), None, true),
        (Some(V1), None, false),
    ];
    kinds.into_iter().flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    const BOTH: &str = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:3 - cgroup2 cgroup2 rw\n";
    const MEMBER: &str = "9:name=systemd:/\n4:memory:/agent/7\n0::/user.slice\n";

    #[test]
    fn our_own_directory_is_the_mount_and_the_membership() {
        let v1 = own_directory(CgroupVersion::V1, BOTH, MEMBER);
        assert_eq!(v1, Some(PathBuf::from("/sys/fs/cgroup/memory/agent/7")));
        let v2 = own_directory(CgroupVersion::V2, BOTH, MEMBER);
        assert_eq!(v2, Some(PathBuf::from("/sys/fs/cgroup/unified/user.slice")));
        let part = BOTH.replace(" / /sys/fs/cgroup/memory", " /agent /sys/fs/cgroup/memory");
        let v1 = own_directory(CgroupVersion::V1, &part, MEMBER);
        assert_eq!(v1, Some(PathBuf::from("/sys/fs/cgroup/memory/7")));
        assert_eq!(own_directory(CgroupVersion::V2, "", MEMBER), None);
        assert_eq!(own_directory(CgroupVersion::V1, BOTH, "0::/\n"), None);
    }

    fn verdict(version: Option<CgroupVersion>, reclaim: Option<bool>, writable: bool) -> Verdict {
        judge(&MemoryCgroup { version, path: None, writable, reclaim })[0].verdict
    }

    #[test]
    fn version_and_permission_decide() {
        assert_eq!(verdict(Some(CgroupVersion::V2), Some(true), true), Verdict::Can);
        assert_eq!(verdict(Some(CgroupVersion::V2), None, true), Verdict::Limited);
        assert_eq!(verdict(Some(CgroupVersion::V2), Some(false), false), Verdict::Cannot);
        assert_eq!(verdict(Some(CgroupVersion::V1), None, true), Verdict::Limited);
        assert_eq!(verdict(Some(CgroupVersion::V1), None, false), Verdict::Cannot);
        assert_eq!(verdict(None, None, true), Verdict::Cannot);
    }
}
