//! A cgroup of the hugetlb controller, to run a child in, and the pool as it is.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::program::BE_ZAPSCOPE;

/// The size of the pool of 2 MiB pages; a write sets it.
pub const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

/// A group of a test's own. Removed when dropped, with what its parent was told for it.
#[derive(Debug)]
pub struct Group {
    path: PathBuf,
    v2: bool,
    /// Where the controller was switched on for it.
    delegated: Option<PathBuf>,
}

impl Group {
    /// Makes one.
    pub fn make() -> Result<Self, String> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(|error| error.to_string())?;
        let mount = |kind: &str, option: &str| {
            mounts.lines().find_map(|line| {
                let (left, right) = line.split_once(" - ")?;
                let fits = right.starts_with(&format!("{kind} ")) && right.contains(option);
                fits.then(|| PathBuf::from(left.split(' ').nth(4).unwrap_or_default()))
            })
        };
        let (root, v2) = match (mount("cgroup", "hugetlb"), mount("cgroup2", "")) {
            (Some(root), _) => (root, false),
            (None, Some(root)) => (root, true),
            (None, None) => return Err("no cgroup hierarchy is mounted".to_owned()),
        };
        let delegated = if v2 { delegate(&root)? } else { None };
        let path = root.join(format!("zapscope-test-{}", std::process::id()));
        let mut group = Self { path, v2, delegated };
        if let Err(error) = fs::create_dir(&group.path) {
            let path = std::mem::take(&mut group.path);
            return Err(format!("making the cgroup {}: {error}; run as root", path.display()));
        }
        if !group.limit("max").exists() {
            return Err("the hugetlb controller is not to be had for a cgroup here".to_owned());
        }
        Ok(group)
    }

    /// The file of a limit: `max`, what may be used, or `rsvd.max`, what may be set aside.
    pub fn limit(&self, what: &str) -> PathBuf {
        let name = if self.v2 { what.to_owned() } else { what.replace("max", "limit_in_bytes") };
        self.path.join(format!("hugetlb.2MB.{name}"))
    }

    /// A command line of zapscope, run inside.
    pub fn zapscope<S: AsRef<OsStr>>(&self, directory: &Path, arguments: &[S]) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(self.path.join("cgroup.procs"));
        command.arg(std::env::current_exe().expect("a running program has a file")).arg(BE_ZAPSCOPE);
        command.args(arguments).current_dir(directory).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its last process has ended: the test that started it has waited for it.
        if !self.path.as_os_str().is_empty() {
            let _ = fs::remove_dir(&self.path);
        }
        if let Some(root) = &self.delegated {
            let _ = fs::write(root.join("cgroup.subtree_control"), "-hugetlb");
        }
    }
}

/// Switches the controller on for the groups below `root`. Gives `root` if it was off.
fn delegate(root: &Path) -> Result<Option<PathBuf>, String> {
    let file = root.join("cgroup.subtree_control");
    let has = |name: &str| {
        fs::read_to_string(root.join(name)).is_ok_and(|text| text.split_whitespace().any(|w| w == "hugetlb"))
    };
    match (has("cgroup.controllers"), has("cgroup.subtree_control")) {
        (false, _) => Err("this host has no hugetlb controller for cgroups".to_owned()),
        (true, true) => Ok(None),
        (true, false) => match fs::write(&file, "+hugetlb") {
            Ok(()) => Ok(Some(root.to_owned())),
            Err(error) => Err(format!("writing +hugetlb to {}: {error}; run as root", file.display())),
        },
    }
}
