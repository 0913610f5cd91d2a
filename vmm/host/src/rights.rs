//! The capabilities of this process, which the kernel checks in the initial user namespace. The user ID does not tell them:
//! root of a container may lack some, root of a user namespace has all of them in that namespace only.

use super::root::Root;

/// `PROC_USER_INIT_INO`, the same on every kernel.
const INITIAL: &str = "user:[4026531837]";

/// A capability, by its number in `<linux/capability.h>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display)]
#[strum(serialize_all = "SCREAMING_SNAKE_CASE", prefix = "CAP_")]
#[repr(u8)]
pub enum Capability {
    /// Access to other users' processes.
    SysPtrace = 19,
    /// swapon, swapoff, mount, and most switches of the host.
    SysAdmin = 21,
    /// process_madvise on other processes.
    SysNice = 23,
    /// perf events of the kernel and of all processes.
    Perfmon = 38,
}

/// A capability that the process lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum Lacking {
    #[error("{0} is missing: be root, or root with that capability")]
    Capability(Capability),
    #[error(
        "{0} counts in the initial user namespace only, and this process is in another: run outside of it"
    )]
    Namespace(Capability),
}

/// The effective capabilities of this process, and whether they are those of the initial user namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    effective: u64,
    initial_user_namespace: bool,
}

impl Rights {
    /// Those of this process.
    pub fn read() -> Self {
        Self::read_from(&Root::default())
    }

    /// Those in the files of a host.
    pub fn read_from(root: &Root) -> Self {
        let effective = root.text("/proc/self/status").as_deref().and_then(parse_effective).unwrap_or(0);
        // A kernel without user namespaces has no such link.
        let namespace = std::fs::read_link(root.path("/proc/self/ns/user"));
        let initial_user_namespace = namespace.map_or(true, |link| link.as_os_str() == INITIAL);
        Self { effective, initial_user_namespace }
    }

    /// Whether the process has this capability in the initial user namespace.
    pub fn has(&self, capability: Capability) -> bool {
        self.lacks(capability).is_none()
    }

    /// Why the process lacks this capability; `None` if it has it.
    pub fn lacks(&self, capability: Capability) -> Option<Lacking> {
        let effective = self.effective >> capability as u8 & 1 == 1;
        match (effective, self.initial_user_namespace) {
            (true, true) => None,
            (true, false) => Some(Lacking::Namespace(capability)),
            (false, _) => Some(Lacking::Capability(capability)),
        }
    }

    /// Capabilities by their bits, as in `CapEff`, in the initial user namespace.
    #[cfg(any(test, feature = "fixture"))]
    pub fn of_bits(effective: u64) -> Self {
        Self { effective, initial_user_namespace: true }
    }
}

fn parse_effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = "Name:\tx\nCapPrm:\t0\nCapEff:\t000001ffffffffff\n";
    const NOBODY: &str = "CapPrm:\t000001ffffffffff\nCapEff:\t0000000000000000\n";

    fn rights(status: &str, namespace: Option<&str>) -> Rights {
        let tree = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(tree.path().join("proc/self/ns")).unwrap();
        std::fs::write(tree.path().join("proc/self/status"), status).unwrap();
        if let Some(namespace) = namespace {
            std::os::unix::fs::symlink(namespace, tree.path().join("proc/self/ns/user")).unwrap();
        }
        Rights::read_from(&Root::at(tree.path()))
    }

    #[test]
    fn effective_capabilities_count_in_the_initial_namespace() {
        let root = rights(ROOT, Some(INITIAL));
        assert!(root.has(Capability::SysAdmin) && root.has(Capability::Perfmon));
        assert!(rights(ROOT, None).has(Capability::SysAdmin), "there are no user namespaces");
        let nobody = rights(NOBODY, Some(INITIAL));
        assert_eq!(nobody.lacks(Capability::SysNice), Some(Lacking::Capability(Capability::SysNice)));
    }

    #[test]
    fn root_of_a_user_namespace_has_no_capability_of_the_host() {
        let contained = rights(ROOT, Some("user:[4026532201]"));
        let why = contained.lacks(Capability::SysAdmin).unwrap();
        assert_eq!(why, Lacking::Namespace(Capability::SysAdmin));
        assert!(why.to_string().contains("CAP_SYS_ADMIN counts in the initial user namespace"), "{why}");
    }

    #[test]
    fn without_files_there_is_no_capability() {
        assert!(!Rights::read_from(&Root::at("/nonexistent")).has(Capability::SysAdmin));
        assert_eq!(parse_effective("CapEff: none\n"), None);
    }
}
