//! The mount of a cgroup controller and the group of this process: `/proc/self/mountinfo` and `/proc/self/cgroup`, parsed.

use std::path::{Path, PathBuf};

/// The two generations of cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// One hierarchy for each controller.
    V1,
    /// One hierarchy for all.
    V2,
}

/// A controller as this process sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ControllerMount {
    pub(crate) version: Version,
    /// The directory of the group this process is in.
    pub(crate) home: PathBuf,
    /// The topmost group that can be seen.
    pub(crate) root: PathBuf,
}

/// One line of mountinfo, as far as it matters.
struct Mount<'a> {
    /// Which part of the file system is mounted.
    root: &'a str,
    point: &'a str,
    kind: &'a str,
    options: &'a str,
}

/// Finds a controller: v1 where a hierarchy with it is mounted, else v2. Both can be mounted, each with controllers of
/// its own.
pub(crate) fn find_controller(controller: &str, mountinfo: &str, cgroup: &str) -> Option<ControllerMount> {
    let mounts = || mountinfo.lines().filter_map(parse_mount);
    let v1 = mounts().find(|mount| mount.kind == "cgroup" && has_word(mount.options, controller));
    let (version, mount, group) = match v1 {
        Some(mount) => {
            (Version::V1, mount, group_of(cgroup, |controllers| has_word(controllers, controller))?)
        }
        None => {
            let mount = mounts().find(|mount| mount.kind == "cgroup2")?;
            (Version::V2, mount, group_of(cgroup, str::is_empty)?)
        }
    };
    // In a container the mount may show only a part of the hierarchy, and the group's path starts there.
    let below = Path::new(group).strip_prefix(mount.root).or(Path::new(group).strip_prefix("/")).ok()?;
    let root = PathBuf::from(mount.point);
    Some(ControllerMount { version, home: root.join(below), root })
}

/// `36 25 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory`
fn parse_mount(line: &str) -> Option<Mount<'_>> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(3);
    let mut right = right.split(' ');
    Some(Mount {
        root: left.next()?,
        point: left.next()?,
        kind: right.next()?,
        options: right.nth(1).unwrap_or(""),
    })
}

/// The path of the group in the hierarchy whose controllers satisfy `wanted`: `4:memory:/user`.
fn group_of(cgroup: &str, wanted: impl Fn(&str) -> bool) -> Option<&str> {
    cgroup.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        wanted(controllers).then_some(path)
    })
}

fn has_word(list: &str, word: &str) -> bool {
    list.split(',').any(|each| each == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(mountinfo: &str, cgroup: &str) -> Option<(Version, String, String)> {
        let found = find_controller("memory", mountinfo, cgroup)?;
        Some((found.version, found.home.display().to_string(), found.root.display().to_string()))
    }

    const V1: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
36 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn v1_wins_where_it_has_the_controller() {
        let cgroup = "8:pids:/\n4:memory:/jobs/5e0d\n1:cpu:/\n0::/\n";
        let memory = "/sys/fs/cgroup/memory".to_owned();
        assert_eq!(found(V1, cgroup), Some((Version::V1, format!("{memory}/jobs/5e0d"), memory)));
        // Beside it another controller is in v2, where this process is in another group.
        let hugetlb = find_controller("hugetlb", V1, cgroup).unwrap();
        assert_eq!((hugetlb.version, hugetlb.home), (Version::V2, "/sys/fs/cgroup/unified".into()));
    }

    #[test]
    fn v2_has_one_group_for_all() {
        let mountinfo = "24 1 0:22 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let cgroup = "0::/user.slice/user-1000.slice/session-2.scope\n";
        let (version, home, root) = found(mountinfo, cgroup).unwrap();
        assert_eq!(version, Version::V2);
        assert_eq!(home, "/sys/fs/cgroup/user.slice/user-1000.slice/session-2.scope");
        assert_eq!(root, "/sys/fs/cgroup");
    }

    #[test]
    fn a_container_sees_its_part_of_the_hierarchy() {
        let mountinfo = "36 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        let (_, home, _) = found(mountinfo, "4:memory:/docker/abc/inner\n").unwrap();
        assert_eq!(home, "/sys/fs/cgroup/memory/inner");
    }

    #[test]
    fn controllers_share_a_hierarchy_and_names_are_whole_words() {
        let mountinfo = "36 31 0:32 / /cg rw - cgroup cgroup rw,cpu,memory\n";
        assert!(found(mountinfo, "4:cpu,memory:/a\n").is_some());
        assert_eq!(found("36 31 0:32 / /cg rw - cgroup cgroup rw,memoryless\n", "4:memoryless:/\n"), None);
        assert_eq!(found("", ""), None);
    }
}
