//! The remedy for a system call that was refused: a function of the request and of the system's answer.
//!
//! An error that carries an errno says no remedy of its own; it puts [`after`] behind its sentence. An errno that is
//! not known here gets no advice, rather than one that does not fit. A limit of this process has one remedy for every
//! request ([`of_limit`]): [`with_causes`](crate::with_causes) puts it at the end of every error that comes from it.

use rustix::io::Errno;

/// The kind of request that the system refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Address space.
    AddressSpace,
    /// A change of a mapping, which may split it: mprotect, mremap, a userfaultfd's registration.
    Mapping,
    /// A kind of memory, or a use of it, that not every kernel has: memfd_create, madvise.
    Feature,
    /// Memory at once: MADV_POPULATE_WRITE.
    Populate,
    /// The content of guest memory, by process_vm_readv.
    Content,
    /// A descriptor: an eventfd, a timer, an epoll.
    Descriptor,
    /// A thread.
    Thread,
    /// A file in a directory that was named.
    FileIn,
    /// An ioctl of KVM's.
    Kvm,
    /// A memory cgroup to be made or set.
    Cgroup,
    /// A file system of the kernel's to be mounted.
    Mount,
    /// A file of procfs.
    Procfs,
    /// A place for results.
    Place,
    /// Room for results, at that place.
    Room,
}

/// The remedy for a limit whose errno means the same for every request.
pub fn of_limit(errno: Errno) -> Option<&'static str> {
    match errno {
        Errno::MFILE => Some("raise `ulimit -n`"),
        Errno::NFILE => Some("raise `sysctl fs.file-max`"),
        Errno::FBIG => Some("raise `ulimit -f`"),
        _ => None,
    }
}

/// The end of a sentence on a refusal: a colon and a remedy, or nothing where none is known.
pub fn after(asked: Asked, errno: Errno) -> &'static str {
    const MEMORY: &str = ": free memory on the host, or raise the limit of this cgroup";
    match (asked, errno) {
        (Asked::AddressSpace, Errno::NOMEM) => {
            ": lower the size, or raise `ulimit -v` or `sysctl vm.max_map_count`"
        }
        (Asked::AddressSpace, Errno::OVERFLOW | Errno::INVAL) => ": lower the size",
        (Asked::Mapping, Errno::NOMEM) => {
            ": the process has too many mappings, or too little memory: raise `sysctl vm.max_map_count`, or free memory"
        }
        (Asked::Feature, Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            ": this kernel may lack the feature; see `zapscope doctor`"
        }
        (Asked::Populate, Errno::INVAL) => ": it takes Linux 5.14",
        (Asked::Content, Errno::NOSYS) => {
            ": it takes process_vm_readv, of a kernel with CONFIG_CROSS_MEMORY_ATTACH"
        }
        (Asked::Content, Errno::FAULT) => ": the host has no memory for a page of it, or none there",
        (Asked::Thread, Errno::AGAIN) => ": raise `ulimit -u`, or `pids.max` of this cgroup",
        (Asked::FileIn, Errno::NOSPC | Errno::DQUOT) => {
            ": free room in its file system, or set a smaller limit"
        }
        (Asked::FileIn, Errno::FBIG) => ": set a smaller limit",
        (Asked::FileIn, Errno::NOENT | Errno::NOTDIR) => ": name a directory that is there",
        (Asked::FileIn, Errno::ACCESS | Errno::PERM | Errno::ROFS) => {
            ": name a directory that you may write to"
        }
        (Asked::FileIn, Errno::OPNOTSUPP | Errno::INVAL | Errno::ISDIR) => {
            ": name a directory of a disk's file system"
        }
        (Asked::Kvm, Errno::INVAL) => ": this KVM takes no such thing; see the kernel's log",
        (Asked::Cgroup, Errno::PERM | Errno::ACCESS) => {
            ": run as root, or under `systemd-run --user --scope -p Delegate=yes`"
        }
        (Asked::Cgroup, Errno::ROFS) => ": /sys/fs/cgroup is read-only here; run outside the container",
        (Asked::Cgroup, Errno::AGAIN | Errno::NOSPC) => {
            ": there are too many cgroups: see `cgroup.max.descendants` above it"
        }
        (Asked::Cgroup, Errno::BUSY) => ": a process is still in it, or its parent has some of its own",
        (Asked::Mount, Errno::PERM | Errno::ACCESS) => ": run as root",
        (Asked::Mount, Errno::NODEV) => ": this kernel has no such file system",
        (Asked::Procfs, Errno::NOENT | Errno::NOTDIR) => ": mount procfs at /proc",
        (
            Asked::Place,
            Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::NOENT | Errno::NAMETOOLONG | Errno::LOOP,
        ) => ": choose a place that can be written with `--out DIR`",
        (Asked::Place | Asked::Room, Errno::NOSPC | Errno::DQUOT) => ": free space there",
        (_, Errno::NOMEM) => MEMORY,
        // `with_causes` appends it.
        (_, Errno::MFILE | Errno::NFILE | Errno::FBIG) => "",
        (_, Errno::PERM | Errno::ACCESS | Errno::NOSYS) => ": a sandbox or the kernel's lockdown forbids it",
        _ => "",
    }
}

/// The same of the standard library's error.
pub fn after_io(asked: Asked, error: &std::io::Error) -> &'static str {
    Errno::from_io_error(error).map_or("", |errno| after(asked, errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Asked; 14] = [
        Asked::AddressSpace,
        Asked::Mapping,
        Asked::Feature,
        Asked::Populate,
        Asked::Content,
        Asked::Descriptor,
        Asked::Thread,
        Asked::FileIn,
        Asked::Kvm,
        Asked::Cgroup,
        Asked::Mount,
        Asked::Procfs,
        Asked::Place,
        Asked::Room,
    ];

    #[test]
    fn each_answer_has_its_own_remedy() {
        for (asked, errno, words) in [
            (Asked::AddressSpace, Errno::NOMEM, "ulimit -v"),
            (Asked::Mapping, Errno::NOMEM, "vm.max_map_count"),
            (Asked::Feature, Errno::INVAL, "doctor"),
            (Asked::Feature, Errno::NOMEM, "free memory"),
            (Asked::Populate, Errno::INVAL, "5.14"),
            (Asked::Populate, Errno::NOMEM, "cgroup"),
            (Asked::Content, Errno::NOSYS, "CONFIG_CROSS_MEMORY_ATTACH"),
            (Asked::Content, Errno::PERM, "sandbox"),
            (Asked::Content, Errno::FAULT, "no memory for a page"),
            (Asked::Thread, Errno::AGAIN, "ulimit -u"),
            (Asked::FileIn, Errno::NOSPC, "free room"),
            (Asked::FileIn, Errno::ACCESS, "may write to"),
            (Asked::Kvm, Errno::NOMEM, "free memory"),
            (Asked::Cgroup, Errno::ACCESS, "Delegate"),
            (Asked::Cgroup, Errno::ROFS, "container"),
            (Asked::Mount, Errno::NODEV, "no such file system"),
            (Asked::Procfs, Errno::NOENT, "mount procfs"),
            (Asked::Place, Errno::ROFS, "--out DIR"),
            (Asked::Room, Errno::NOSPC, "free space"),
        ] {
            let said = after(asked, errno);
            assert!(said.starts_with(": ") && said.contains(words), "{asked:?}, {errno}: {said:?}");
        }
    }

    /// One sentence for all answers would advise memory where none is missing, and name limits that were not reached.
    #[test]
    fn no_remedy_is_said_of_another_answer() {
        for asked in ALL {
            for errno in [Errno::INVAL, Errno::PERM, Errno::BUSY, Errno::IO, Errno::NOSYS, Errno::MFILE] {
                let said = after(asked, errno);
                assert!(
                    !said.contains("free memory") && !said.contains("max_map_count"),
                    "{asked:?}, {errno}"
                );
                assert!(!said.contains("ulimit"), "{asked:?}, {errno}");
                assert!(!said.contains("root") || errno == Errno::PERM, "{asked:?}, {errno}");
            }
            assert_eq!(after(asked, Errno::IO), "", "{asked:?}: nothing is known");
        }
    }
}
