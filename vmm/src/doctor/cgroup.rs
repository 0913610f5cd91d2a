//! Reclaim from a memory cgroup: which version this host has, and what of it is ours to write.

use std::path::{Path, PathBuf};

use guest_mem::CgroupPlace;
use rustix::fs::{Access, access};

use super::finding::Finding;
use host::HostFacts;
use host::facts::CgroupVersion;

/// What the host says about the memory controller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct MemoryCgroup {
    version: Option<CgroupVersion>,
    /// The directory of the cgroup below which a run makes its own.
    path: Option<PathBuf>,
    /// Whether one can be made there.
    writable: bool,
    /// `memory.reclaim` there: absent, or whether we may write it.
    reclaim: Option<bool>,
}

pub(super) fn probe(host: &HostFacts) -> MemoryCgroup {
    // The name is of no matter: nothing is made.
    let place = CgroupPlace::find("doctor").ok();
    let path = place.and_then(|place| place.path().parent().map(Path::to_owned));
    let may_write = |path: &Path| access(path, Access::WRITE_OK).is_ok();
    let reclaim = path.as_ref().map(|path| path.join("memory.reclaim")).filter(|file| file.exists());
    MemoryCgroup {
        version: host.memory_cgroup,
        writable: path.as_deref().is_some_and(may_write),
        path,
        reclaim: reclaim.map(|file| may_write(&file)),
    }
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
