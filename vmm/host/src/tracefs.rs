//! tracefs: the one that is mounted, or one nobody else sees, mounted nowhere and gone when its descriptor is closed.
//! All of them show the same: an instance made in one is in the others.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::Root;

const FSOPEN_CLOEXEC: u32 = 1;
const FSCONFIG_CMD_CREATE: u32 = 6;
const FSMOUNT_CLOEXEC: u32 = 1;

/// The most that is read of one file, and of it at a time.
const LONGEST_FILE: usize = 1 << 18;
const CHUNK: usize = 1 << 14;

/// A directory of tracefs: its root, or an instance.
#[derive(Debug)]
pub struct Tracefs(OwnedFd);

/// A file of tracefs that could not be used.
#[derive(Debug, thiserror::Error)]
#[error("{attempt} {path} of tracefs{}", remedy(source))]
pub struct TracefsError {
    /// `reading`, `writing 1 to`.
    pub attempt: String,
    /// Which file.
    pub path: String,
    /// What the kernel said.
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
    /// The one that is mounted, or a detached one.
    ///
    /// # Errors
    /// There is none, or we may not mount or read it.
    pub fn open() -> Result<Self, TracefsError> {
        let opened = match Self::mounts().first() {
            Some(mount) => Self::mounted_at(mount),
            None => Self::detached(),
        };
        opened.map_err(|source| TracefsError {
            attempt: "opening".to_owned(),
            path: "the root".to_owned(),
            source,
        })
    }

    /// Where tracefs is mounted. debugfs mounts one below itself when somebody looks; that is not asked for.
    pub fn mounts() -> Vec<String> {
        let text = Root::default().text("/proc/self/mountinfo");
        text.as_deref().map(parse_mounts).unwrap_or_default()
    }

    /// Mounts one on nothing, which needs no change to the host's mounts, only the right to mount.
    ///
    /// # Errors
    /// The kernel refuses, or has none.
    pub fn detached() -> Result<Self, Errno> {
        mounted_nowhere(c"tracefs").map(Self)
    }

    /// The one mounted at `path`.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn mounted_at(path: &str) -> Result<Self, Errno> {
        rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map(Self)
    }

    /// A directory below this one.
    ///
    /// # Errors
    /// There is none, or it may not be opened.
    pub fn directory(&self, path: &str) -> Result<Self, TracefsError> {
        self.open_at(path, OFlags::PATH | OFlags::DIRECTORY, "opening").map(Self)
    }

    /// A file's text.
    ///
    /// # Errors
    /// There is none, it may not be read, or it is no text.
    pub fn read(&self, path: &str) -> Result<String, TracefsError> {
        let failed = |source| TracefsError { attempt: "reading".to_owned(), path: path.to_owned(), source };
        let file = self.open_at(path, OFlags::RDONLY, "reading")?;
        let mut text = vec![0; CHUNK];
        let mut length = 0;
        // In large pieces: some of these files (`events/header_page`) give a second reading nothing.
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

    /// Writes to a file, in one piece.
    ///
    /// # Errors
    /// There is none, or the kernel does not take it.
    pub fn write(&self, path: &str, text: &str) -> Result<(), TracefsError> {
        let attempt = || format!("writing {} to", text.trim_end());
        let file = self.open_at(path, OFlags::WRONLY | OFlags::TRUNC, &attempt())?;
        let written = rustix::io::write(&file, text.as_bytes());
        match written {
            Ok(length) if length == text.len() => Ok(()),
            Ok(_) => Err(Errno::IO),
            Err(errno) => Err(errno),
        }
        .map_err(|source| TracefsError { attempt: attempt(), path: path.to_owned(), source })
    }

    /// A file to read records from without waiting for them.
    ///
    /// # Errors
    /// There is none, or it may not be opened.
    pub fn stream(&self, path: &str) -> Result<OwnedFd, TracefsError> {
        self.open_at(path, OFlags::RDONLY | OFlags::NONBLOCK, "opening")
    }

    /// Makes an instance: buffers and switches of its own.
    ///
    /// # Errors
    /// It exists, or may not be made.
    pub fn make_instance(&self, name: &str) -> Result<(), TracefsError> {
        let path = instance(name);
        rustix::fs::mkdirat(self.as_fd(), &path, Mode::from_raw_mode(0o700)).map_err(|source| TracefsError {
            attempt: "making".to_owned(),
            path,
            source,
        })
    }

    /// Removes an instance. One that is not there is fine.
    ///
    /// # Errors
    /// Somebody has one of its files open, or we may not.
    pub fn remove_instance(&self, name: &str) -> Result<(), TracefsError> {
        let path = instance(name);
        match rustix::fs::unlinkat(self.as_fd(), &path, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(source) => Err(TracefsError { attempt: "removing".to_owned(), path, source }),
        }
    }

    /// The number of a tracepoint, as in `events/kvm/kvm_unmap_hva_range/id`.
    ///
    /// # Errors
    /// There is no such event, or we may not look.
    pub fn event_id(&self, event: &str) -> Result<u64, Errno> {
        let text = self.read(&format!("events/{event}/id")).map_err(|error| error.source)?;
        text.trim().parse().map_err(|_| Errno::INVAL)
    }

    fn open_at(&self, path: &str, flags: OFlags, attempt: &str) -> Result<OwnedFd, TracefsError> {
        rustix::fs::openat(self.as_fd(), path, flags | OFlags::CLOEXEC, Mode::empty())
            .map_err(|source| TracefsError { attempt: attempt.to_owned(), path: path.to_owned(), source })
    }
}

impl AsFd for Tracefs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A file system of the kernel's own, mounted on nothing.
///
/// # Errors
/// The kernel refuses, or has none of that kind.
pub fn mounted_nowhere(kind: &CStr) -> Result<OwnedFd, Errno> {
    // SAFETY: the name is NUL-terminated and only read.
    let raw = unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) };
    let context = owned(raw)?;
    let (null, fd) = (std::ptr::null::<u8>(), context.as_raw_fd());
    // SAFETY: this command takes neither key nor value.
    let done = unsafe { libc::syscall(libc::SYS_fsconfig, fd, FSCONFIG_CMD_CREATE, null, null, 0) };
    if done < 0 {
        return Err(last_errno());
    }
    // SAFETY: the call takes a descriptor and flags by value.
    let raw = unsafe { libc::syscall(libc::SYS_fsmount, fd, FSMOUNT_CLOEXEC, 0) };
    owned(raw)
}

/// Where an instance lies in tracefs.
pub fn instance(name: &str) -> String {
    format!("instances/{name}")
}

/// Where an instance lies for people: below the place that tracefs has on every system.
pub fn instance_for_people(name: &str) -> PathBuf {
    PathBuf::from("/sys/kernel/tracing").join(instance(name))
}

fn parse_mounts(mountinfo: &str) -> Vec<String> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (front, end) = line.split_once(" - ")?;
        end.starts_with("tracefs ").then(|| front.split(' ').nth(4).map(str::to_owned))?
    });
    mounts.collect()
}

fn owned(raw: libc::c_long) -> Result<OwnedFd, Errno> {
    match i32::try_from(raw) {
        // SAFETY: the kernel just made this descriptor for us, nobody else owns it.
        Ok(fd @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(last_errno()),
    }
}

/// What the last system call of this thread said.
pub fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_answer_of_tracefs_has_its_own_remedy() {
        let said = |source| TracefsError { attempt: "reading".into(), path: "x".into(), source }.to_string();
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

    #[test]
    #[ignore = "needs: Tracefs"]
    fn an_instance_is_made_and_removed_and_seen_by_everybody() {
        let tracefs = Tracefs::open().unwrap();
        let name = format!("zapscope-test-{}", std::process::id());
        tracefs.make_instance(&name).unwrap();
        let another = Tracefs::detached().unwrap();
        assert!(another.read(&format!("{}/trace_clock", instance(&name))).unwrap().contains("mono"));
        let twice = tracefs.make_instance(&name).unwrap_err();
        assert_eq!(twice.source, Errno::EXIST);
        another.remove_instance(&name).unwrap();
        tracefs.remove_instance(&name).unwrap();
        assert_eq!(tracefs.directory(&instance(&name)).unwrap_err().source, Errno::NOENT);
    }
}
