//! tracefs: the mounted one, or a detached mount of this process, which is gone when its descriptor is closed. Both show the
//! same files.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use crate::Root;

/// The limit on the length of a file, and the length of a read.
const LONGEST_FILE: usize = 1 << 18;
const CHUNK: usize = 1 << 14;

/// The root directory of tracefs.
#[derive(Debug)]
pub struct Tracefs(OwnedFd);

/// A file of tracefs that could not be read.
#[derive(Debug, thiserror::Error)]
#[error("{attempt} {path} of tracefs{}", remedy(source))]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub struct TracefsError {
    pub attempt: &'static str,
    pub path: String,
    #[source]
    pub source: Errno,
}

fn remedy(errno: &Errno) -> &'static str {
    match *errno {
        Errno::PERM | Errno::ACCESS => {
            " (be root; or mount -o remount,gid=GROUP,mode=750 /sys/kernel/tracing)"
        }
        Errno::NODEV => " (this kernel has none: CONFIG_TRACING is not set)",
        Errno::NOMEM => " (free memory on the host)",
        _ => "",
    }
}

impl Tracefs {
    /// The mounted one, or a detached one.
    pub fn open() -> Result<Self, TracefsError> {
        let opened = match Self::mounts().first() {
            Some(mount) => Self::mounted_at(mount),
            None => Self::detached(),
        };
        opened.map_err(|source| TracefsError { attempt: "opening", path: "the root".to_owned(), source })
    }

    /// Where tracefs is mounted. The one that debugfs mounts below itself at the first access is not asked for.
    pub fn mounts() -> Vec<String> {
        let text = Root::default().text("/proc/self/mountinfo");
        text.as_deref().map(parse_mounts).unwrap_or_default()
    }

    /// A detached mount. It does not change the host's mounts; it needs the right to mount.
    pub fn detached() -> Result<Self, Errno> {
        detached_mount(c"tracefs").map(Self)
    }

    /// The one mounted at `path`.
    pub fn mounted_at(path: &str) -> Result<Self, Errno> {
        rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map(Self)
    }

    /// A file's text.
    pub fn read(&self, path: &str) -> Result<String, TracefsError> {
        let failed = |source| TracefsError { attempt: "reading", path: path.to_owned(), source };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.0, path, flags, Mode::empty()).map_err(failed)?;
        let mut text = vec![0; CHUNK];
        let mut length = 0;
        loop {
            match rustix::io::read(&file, &mut text[length..]).map_err(failed)? {
                0 => break,
                read => length += read,
            }
            if length == LONGEST_FILE {
                return Err(failed(Errno::FBIG));
            }
            text.resize((length + CHUNK).min(LONGEST_FILE), 0);
        }
        text.truncate(length);
        String::from_utf8(text).map_err(|_| failed(Errno::ILSEQ))
    }

    /// The number of a tracepoint, as in `events/kvm/kvm_unmap_hva_range/id`.
    ///
    /// # Errors
    /// There is no such event, or its file may not be read.
    pub fn event_id(&self, event: &str) -> Result<u64, Errno> {
        let text = self.read(&format!("events/{event}/id")).map_err(|error| error.source)?;
        text.trim().parse().map_err(|_| Errno::INVAL)
    }
}

impl AsFd for Tracefs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A detached mount of a file system of the kernel.
pub fn detached_mount(kind: &CStr) -> Result<OwnedFd, Errno> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

fn parse_mounts(mountinfo: &str) -> Vec<String> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (front, end) = line.split_once(" - ")?;
        end.starts_with("tracefs ").then(|| front.split(' ').nth(4).map(str::to_owned))?
    });
    mounts.collect()
}

/// The error of this thread's last system call.
pub fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_answer_of_tracefs_has_its_own_remedy() {
        let said = |source| TracefsError { attempt: "reading", path: "x".into(), source }.to_string();
        for (errno, words) in [
            (Errno::PERM, "be root"),
            (Errno::ACCESS, "mount -o remount,gid=GROUP"),
            (Errno::NODEV, "CONFIG_TRACING"),
        ] {
            assert!(said(errno).contains(words), "{errno}: {}", said(errno));
        }
        assert_eq!(said(Errno::IO), "reading x of tracefs", "nothing is known");
    }

    #[test]
    fn mounts_are_found_by_type() {
        let mountinfo = "22 27 0:21 / /proc rw - proc proc rw\n\
            36 24 0:12 / /sys/kernel/tracing rw,nosuid shared:9 - tracefs tracefs rw\n";
        assert_eq!(parse_mounts(mountinfo), ["/sys/kernel/tracing"]);
        assert_eq!(parse_mounts("1 2 0:3 / /tracefs rw - tmpfs tracefs rw\n"), Vec::<String>::new());
    }
}
