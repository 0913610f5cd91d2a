//! A process that holds virtual machines, as another process sees it.

use program::exit::{Class, Classified};
use program::output::visible;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

/// A process cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum HolderError {
    #[error("there is no process {0}")]
    NoProcess(u32),
    #[error("process {pid} ({comm}) has ended")]
    Ended { pid: u32, comm: String },
    #[error(
        "process {pid} ({comm}) belongs to user {uid}, and we may not look at its {what}: run as root, or as that user"
    )]
    Refused { pid: u32, comm: String, uid: String, what: &'static str },
    #[error("process {pid} ({comm}) holds no KVM virtual machine: none of its {files} open files is one")]
    NoVm { pid: u32, comm: String, files: usize },
    #[error("process {pid}: cannot read its {what}")]
    Read { pid: u32, what: &'static str, source: io::Error },
}

impl Classified for HolderError {
    fn class(&self) -> Class {
        match self {
            Self::NoProcess(_) | Self::NoVm { .. } => Class::Mistake,
            Self::Ended { .. } => Class::Wrong,
            Self::Refused { .. } => Class::Host,
            Self::Read { source, .. } => Class::of_refused_io(source),
        }
    }
}

/// A process that holds at least one VM. The pidfd keeps it apart from another process that gets the same PID later.
#[derive(Debug)]
pub struct Holder {
    pidfd: OwnedFd,
    pid: u32,
    comm: String,
    /// Its descriptors of VMs, lowest first.
    vms: Vec<u32>,
    vcpus: u32,
}

impl Holder {
    /// Opens a process.
    pub fn open(pid: u32) -> Result<Self, HolderError> {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(HolderError::NoProcess(pid))?;
        let pidfd = rustix::process::pidfd_open(raw, PidfdFlags::empty()).map_err(|errno| match errno {
            Errno::SRCH | Errno::INVAL => HolderError::NoProcess(pid),
            errno => HolderError::Read { pid, what: "descriptor", source: errno.into() },
        })?;
        let mut holder = Self { pidfd, pid, comm: String::new(), vms: Vec::new(), vcpus: 0 };
        holder.comm = visible::line(holder.text("comm", "name")?.trim_end_matches('\n')).into_owned();
        let files = holder.find_vms()?;
        if holder.vms.is_empty() {
            let comm = holder.comm;
            return Err(HolderError::NoVm { pid, comm, files });
        }
        Ok(holder)
    }

    /// Its PID.
    pub const fn pid(&self) -> u32 {
        self.pid
    }
    /// Its name.
    pub fn comm(&self) -> &str {
        &self.comm
    }
    /// Its descriptors of VMs.
    pub fn vms(&self) -> &[u32] {
        &self.vms
    }
    /// The number of vCPUs of all its VMs.
    pub const fn vcpus(&self) -> u32 {
        self.vcpus
    }
    /// Its pidfd.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Whether it still runs.
    pub fn is_alive(&self) -> bool {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        // A pidfd is readable once its process has ended.
        !matches!(rustix::event::poll(&mut fds, Some(&now)), Ok(1))
    }

    /// Its mappings, as `/proc/PID/maps` has them.
    pub fn maps(&self) -> Result<String, HolderError> {
        self.text("maps", "mappings")
    }

    /// Its mappings with their statistics: `/proc/PID/smaps`. The kernel walks all page tables for them.
    pub fn smaps(&self) -> Result<String, HolderError> {
        self.text("smaps", "mappings")
    }

    /// The IDs of its threads.
    pub fn threads(&self) -> Vec<u32> {
        let entries = std::fs::read_dir(self.path("task")).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }

    /// The error that tells its end.
    pub fn ended(&self) -> HolderError {
        HolderError::Ended { pid: self.pid, comm: self.comm.clone() }
    }

    fn text(&self, file: &str, what: &'static str) -> Result<String, HolderError> {
        let bytes = std::fs::read(self.path(file)).map_err(|error| self.failed(what, error))?;
        // Once the process has ended, the file may have been another process's.
        if !self.is_alive() {
            return Err(self.ended());
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn path(&self, file: &str) -> String {
        format!("/proc/{}/{file}", self.pid)
    }

    /// Finds its VMs and vCPUs among its open files; returns the number of files.
    fn find_vms(&mut self) -> Result<usize, HolderError> {
        let what = "open files";
        let entries = std::fs::read_dir(self.path("fd")).map_err(|error| self.failed(what, error))?;
        let mut files = 0;
        for entry in entries {
            let entry = entry.map_err(|error| self.failed(what, error))?;
            files += 1;
            // The file may have been closed meanwhile.
            let Ok(target) = std::fs::read_link(entry.path()) else { continue };
            let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
            match (classify(&target.to_string_lossy()), number) {
                (Some(File::Vm), Some(fd)) => self.vms.push(fd),
                (Some(File::Vcpu), _) => self.vcpus += 1,
                _ => {}
            }
        }
        self.vms.sort_unstable();
        Ok(files)
    }

    fn failed(&self, what: &'static str, error: io::Error) -> HolderError {
        let (pid, comm) = (self.pid, self.comm.clone());
        match error.kind() {
            _ if !self.is_alive() => HolderError::Ended { pid, comm },
            io::ErrorKind::PermissionDenied => HolderError::Refused { pid, comm, uid: self.uid(), what },
            io::ErrorKind::NotFound => HolderError::NoProcess(pid),
            _ => HolderError::Read { pid, what, source: error },
        }
    }

    fn uid(&self) -> String {
        let status = std::fs::read_to_string(self.path("status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("Uid:"));
        line.and_then(|line| line.split_whitespace().next()).unwrap_or("unknown").to_owned()
    }
}

/// An open file of KVM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum File {
    Vm,
    Vcpu,
}

/// Parses the target of a link in `/proc/PID/fd`: `anon_inode:kvm-vm`, `anon_inode:kvm-vcpu:3`.
fn classify(target: &str) -> Option<File> {
    let name = target.strip_prefix("anon_inode:")?;
    match name.strip_prefix("kvm-")? {
        "vm" => Some(File::Vm),
        vcpu if vcpu == "vcpu" || vcpu.starts_with("vcpu:") => Some(File::Vcpu),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[test]
    fn files_are_distinguished_by_name() {
        assert_eq!(classify("anon_inode:kvm-vm"), Some(File::Vm));
        assert_eq!(classify("anon_inode:kvm-vcpu:12"), Some(File::Vcpu));
        assert_eq!(classify("anon_inode:kvm-vcpu-stats:0"), None);
        assert_eq!(classify("anon_inode:kvm-vm-stats"), None);
        assert_eq!(classify("/tmp/anon_inode:kvm-vm"), None);
        assert_eq!(classify("anon_inode:[eventfd]"), None);
    }

    #[test]
    fn a_process_without_a_vm_and_a_missing_process_are_distinguished() {
        let ours = std::process::id();
        assert!(matches!(Holder::open(ours), Err(HolderError::NoVm { pid, .. }) if pid == ours));
        for pid in [0, u32::MAX, i32::MAX as u32] {
            assert!(matches!(Holder::open(pid), Err(HolderError::NoProcess(_))), "{pid}");
        }
    }

    #[test]
    fn the_end_of_a_process_is_noticed() {
        let piped = std::process::Stdio::piped;
        let mut child = std::process::Command::new("cat").stdin(piped()).stdout(piped()).spawn().unwrap();
        // Its program is mapped some time after its start: it runs once it echoes.
        child.stdin.as_mut().unwrap().write_all(b"?").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let pid = Pid::from_child(&child);
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).unwrap();
        let holder = Holder { pidfd, pid: child.id(), comm: "cat".to_owned(), vms: vec![3], vcpus: 0 };
        assert!(holder.is_alive() && holder.maps().unwrap().contains("cat"));
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(!holder.is_alive());
        assert!(matches!(holder.maps(), Err(HolderError::Ended { .. } | HolderError::NoProcess(_))));
    }
}
