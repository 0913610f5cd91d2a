//! Daemons and threads that take memory from processes.

use serde::Serialize;

use super::root::Root;
use program::output::visible;

/// A thread or daemon that takes memory from processes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reclaimer {
    /// Its name.
    pub name: String,
    /// Its process id.
    pub pid: u32,
}

impl Reclaimer {
    /// Finds them among the running processes.
    pub(crate) fn find(root: &Root) -> Vec<Self> {
        let named = |pid: u32| Some((pid, root.text(&format!("/proc/{pid}/comm"))?));
        let pids = root.names("/proc").into_iter().filter_map(|name| name.parse::<u32>().ok());
        pids.filter_map(named)
            .filter(|(_, name)| what_it_does(name).is_some())
            .map(|(pid, name)| Self { name: visible::line(&name).into_owned(), pid })
            .collect()
    }
}

/// The effect of a process of this name on the memory of others.
pub(crate) fn what_it_does(name: &str) -> Option<&'static str> {
    match name {
        "senpai" | "oomd" => Some("reclaims from cgroups proactively"),
        "systemd-oomd" | "earlyoom" | "nohang" => Some("kills processes under memory pressure"),
        // A thread for each DAMON context.
        name if name.starts_with("kdamond") => Some("reclaims or moves pages by DAMON's schemes"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reclaimers_are_found_by_name() {
        let dir = tempfile::tempdir().unwrap();
        for (pid, name) in [("12", "kdamond.3\n"), ("13", "bash\n"), ("14", "systemd-oomd\n")] {
            std::fs::create_dir_all(dir.path().join("proc").join(pid)).unwrap();
            std::fs::write(dir.path().join("proc").join(pid).join("comm"), name).unwrap();
        }
        let found = Reclaimer::find(&Root::at(dir.path()));
        let names: Vec<_> = found.iter().map(|one| (one.name.as_str(), one.pid)).collect();
        assert_eq!(names, [("kdamond.3", 12), ("systemd-oomd", 14)]);
    }
}
