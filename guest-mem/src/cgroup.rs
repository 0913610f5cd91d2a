//! A memory cgroup of this process alone, by which its memory is reclaimed.
//!
//! Memory is charged to the group of the thread that touches it first, and stays charged there: enter the group before
//! the memory is populated.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::causes::with_causes;
use crate::cgroup_mounts::{ControllerMount, Version, find_controller};
use crate::left_behind::tell;
use crate::limit::Limit;
use crate::remedy::{self, Asked};

/// A memory cgroup could not be entered or squeezed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum CgroupError {
    #[error(
        "no memory cgroup for this process: mount cgroup2 at /sys/fs/cgroup with the memory controller, \
         or boot without `cgroup_disable=memory`"
    )]
    NoController,
    #[error("`{0}` is no name for a cgroup: use letters, digits, `-`, `_` and `.`")]
    Name(String),
    #[error("{attempt} {path}{}", remedy::after_io(Asked::Cgroup, source))]
    File { attempt: String, path: PathBuf, source: io::Error },
    #[error(
        "the new cgroup {0} has no memory controller: `echo +memory > cgroup.subtree_control` in its parent"
    )]
    NotDelegated(PathBuf),
}

/// Where a group for this process can be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupPlace {
    version: Version,
    path: PathBuf,
    home: PathBuf,
}

impl CgroupPlace {
    /// A place for a group `name`. With cgroup v1 it is below the process's group; with v2 beside it, because a v2 group
    /// with processes cannot have children with controllers.
    ///
    /// # Errors
    /// No memory controller, or a name that is none.
    pub fn find(name: &str) -> Result<Self, CgroupError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.starts_with('.') || !name.chars().all(allowed) {
            return Err(CgroupError::Name(name.to_owned()));
        }
        let mounts = read(Path::new("/proc/self/mountinfo"))?;
        let groups = read(Path::new("/proc/self/cgroup"))?;
        let ControllerMount { version, home, root } =
            find_controller("memory", &mounts, &groups).ok_or(CgroupError::NoController)?;
        let parent = match version {
            Version::V2 if home != root => home.parent().map_or(root, Path::to_path_buf),
            Version::V1 | Version::V2 => home.clone(),
        };
        Ok(Self { version, path: parent.join(name), home })
    }

    /// The directory of the group to be made.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// The directory of the group that this process is in.
    pub fn home(&self) -> &Path {
        &self.home
    }
}

/// A memory cgroup that this process is in as long as this lives.
#[derive(Debug)]
pub struct MemoryCgroup(CgroupPlace);

/// The result of a squeeze.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Squeezed {
    /// Bytes the group was to lose.
    pub asked_bytes: u64,
    /// Bytes it was charged before.
    pub before: u64,
    /// Bytes it was charged after.
    pub after: u64,
}

impl Squeezed {
    /// Bytes the group lost.
    pub fn got_bytes(&self) -> u64 {
        self.before.saturating_sub(self.after)
    }
}

impl MemoryCgroup {
    /// Moves this process, all its threads, into a group that the caller has made there and will remove.
    ///
    /// # Errors
    /// No memory controller, or no right to use it. The process is then where it was.
    pub fn enter(place: CgroupPlace) -> Result<Self, CgroupError> {
        let group = Self(place);
        // From here on the drop of `group` undoes what was done.
        if !group.file(group.usage_file()).exists() {
            return Err(CgroupError::NotDelegated(group.path().to_owned()));
        }
        group.disarm_killer()?;
        group.adopt(group.path())?;
        Ok(group)
    }

    /// Which generation of cgroups this is.
    pub fn version(&self) -> Version {
        self.0.version
    }
    /// The group's directory.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Bytes charged to the group now.
    pub fn usage(&self) -> Result<u64, CgroupError> {
        let path = self.file(self.usage_file());
        let text = read(&path)?;
        text.trim().parse().map_err(|error| {
            failed("making sense of", &path, io::Error::new(io::ErrorKind::InvalidData, error))
        })
    }

    /// Makes the kernel reclaim about `bytes` from the group, as if memory were short. The kernel chooses the pages. v2:
    /// `memory.reclaim`, or `memory.high` before Linux 5.19; v1: the limit lowered in steps, each lifted again at once.
    /// No process is killed for it. While a v1 limit is low, a thread whose fault finds nothing more to reclaim waits, and a
    /// system call or `KVM_RUN` that needs a page then may fail with EFAULT: try that again afterwards.
    ///
    /// # Errors
    /// The kernel's files cannot be used. Getting less than was asked is no error: [`Squeezed`] says so.
    pub fn squeeze(&self, bytes: u64) -> Result<Squeezed, CgroupError> {
        let before = self.usage()?;
        let target = before.saturating_sub(bytes);
        match self.version() {
            Version::V1 => self.press("memory.limit_in_bytes", "-1", before, target)?,
            Version::V2 if self.file("memory.reclaim").exists() => {
                self.ask_for(&self.file("memory.reclaim"), before - target)?;
            }
            Version::V2 => self.press("memory.high", "max", before, target)?,
        }
        Ok(Squeezed { asked_bytes: bytes, before, after: self.usage()? })
    }

    /// `memory.reclaim` fails with EAGAIN if the kernel reclaimed less than it was asked for.
    fn ask_for(&self, file: &Path, bytes: u64) -> Result<(), CgroupError> {
        match fs::write(file, bytes.to_string()) {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(()),
            done => done.map_err(|source| failed("writing to", file, source)),
        }
    }

    /// Lowers a limit to `target` in steps: one leap makes the kernel give up (v1: EBUSY) where many small ones succeed.
    fn press(&self, file: &str, lifted: &'static str, from: u64, target: u64) -> Result<(), CgroupError> {
        const STEPS: u64 = 8;
        let path = self.file(file);
        let limit = Limit::open(&path, lifted).map_err(|source| failed("opening", &path, source))?;
        for step in 1..=STEPS {
            let pressed = limit.press(from - (from - target) / STEPS * step);
            if !pressed.map_err(|(attempt, source)| failed(attempt, &path, source))? {
                break;
            }
        }
        Ok(())
    }

    /// Switches the OOM killer of the group off (v1): a fault that finds no room waits.
    fn disarm_killer(&self) -> Result<(), CgroupError> {
        let path = self.file("memory.oom_control");
        match self.version() {
            Version::V1 => fs::write(&path, "1").map_err(|source| failed("writing 1 to", &path, source)),
            Version::V2 => Ok(()),
        }
    }

    fn usage_file(&self) -> &'static str {
        match self.version() {
            Version::V1 => "memory.usage_in_bytes",
            Version::V2 => "memory.current",
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Moves this process into the group at `path`.
    fn adopt(&self, path: &Path) -> Result<(), CgroupError> {
        let procs = path.join("cgroup.procs");
        let pid = std::process::id().to_string();
        fs::write(&procs, pid).map_err(|source| failed("moving this process by", &procs, source))
    }
}

impl Drop for MemoryCgroup {
    /// Moves the process back where it was. Memory charged to the group stays charged to its parent.
    fn drop(&mut self) {
        if let Err(error) = self.adopt(self.0.home()) {
            tell(&format!("this process stays in cgroup {}: {}", self.path().display(), with_causes(&error)));
        }
    }
}

/// The text of a file. Paths in it need not be UTF-8.
fn read(path: &Path) -> Result<String, CgroupError> {
    let bytes = fs::read(path).map_err(|source| failed("reading", path, source))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn failed(attempt: &str, path: &Path, source: io::Error) -> CgroupError {
    CgroupError::File { attempt: attempt.to_owned(), path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_climb_out_are_refused() {
        for name in ["", ".", "..", "a/b", "../x", "a b"] {
            assert!(matches!(CgroupPlace::find(name), Err(CgroupError::Name(_))), "{name}");
        }
    }
}
