//! `/dev/kvm`, open and known to be KVM.
//!
//! That a file of that name opens proves nothing: it may be another device, KVM of another API, or a KVM whose hardware
//! another hypervisor has. So the version is asked for and a VM is made, once, here. The VM is kept for the first caller of
//! [`Kvm::create_vm`], so that the question costs nothing.

use std::fs::OpenOptions;
use std::ops::Deref;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use kvm_ioctls::VmFd;
use rustix::io::Errno;

use super::no_kvm::{DEVICE, NoKvm};

/// The only version of the API there ever was.
const API_VERSION: i32 = 12;

/// KVM, as this process has it open. All that a [`kvm_ioctls::Kvm`] can do, but for the making of VMs.
#[derive(Debug)]
pub struct Kvm {
    system: kvm_ioctls::Kvm,
    /// The VM that was made to see whether one can be made.
    first: Mutex<Option<VmFd>>,
}

impl Kvm {
    /// Opens KVM's device and makes sure that it is one.
    pub fn open() -> Result<Self, NoKvm> {
        Self::open_at(Path::new(DEVICE))
    }

    fn open_at(path: &Path) -> Result<Self, NoKvm> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            // The open must not wait, whatever the file is: a serial line would wait for its carrier.
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map_err(|error| NoKvm::cannot_open(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        // SAFETY: the descriptor is open, and from here on only this value owns it.
        let system = unsafe { kvm_ioctls::Kvm::from_raw_fd(file.into_raw_fd()) };
        speaks_our_version(system.get_api_version())?;
        let first = create_vm(&system)?;
        Ok(Self { system, first: Mutex::new(Some(first)) })
    }

    /// A VM without memory and vCPUs.
    pub fn create_vm(&self) -> Result<VmFd, NoKvm> {
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        first.map_or_else(|| create_vm(&self.system), Ok)
    }
}

impl Deref for Kvm {
    type Target = kvm_ioctls::Kvm;

    fn deref(&self) -> &Self::Target {
        &self.system
    }
}

/// Judges the answer to `KVM_GET_API_VERSION`, the last system call of this thread.
fn speaks_our_version(version: i32) -> Result<(), NoKvm> {
    match version {
        API_VERSION => Ok(()),
        0.. => Err(NoKvm::Version(version)),
        _ => Err(NoKvm::no_version(last_errno())),
    }
}

fn create_vm(system: &kvm_ioctls::Kvm) -> Result<VmFd, NoKvm> {
    uninterrupted(|| system.create_vm()).map_err(|error| NoKvm::NoVm(Errno::from_raw_os_error(error.errno())))
}

/// Calls again for as long as a signal comes while the kernel waits for a lock.
fn uninterrupted<T>(mut call: impl FnMut() -> Result<T, kvm_ioctls::Error>) -> Result<T, kvm_ioctls::Error> {
    loop {
        match call() {
            Err(error) if error.errno() == libc::EINTR => {}
            answer => return answer,
        }
    }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::NOTTY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_opens_need_not_be_kvm() {
        for path in ["/dev/null", "/dev/zero"] {
            let error = Kvm::open_at(Path::new(path)).unwrap_err();
            assert!(matches!(error, NoKvm::OtherDevice(Errno::NOTTY)), "{path}: {error:?}");
        }
        let place = tempfile::tempdir().unwrap();
        let (file, pipe) = (place.path().join("file"), place.path().join("pipe"));
        std::fs::write(&file, "").unwrap();
        let fifo = (rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o600));
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, fifo.0, fifo.1, 0).unwrap();
        for path in [file, pipe] {
            let error = Kvm::open_at(&path).unwrap_err();
            assert!(matches!(error, NoKvm::OtherDevice(Errno::NOTTY)), "{}: {error:?}", path.display());
        }
        let errno = |path: &Path| match Kvm::open_at(path) {
            Err(NoKvm::Open { source, .. }) => source,
            other => panic!("{}: {other:?}", path.display()),
        };
        assert_eq!(errno(place.path()), Errno::ISDIR);
        assert_eq!(errno(&place.path().join("none")), Errno::NOENT);
    }

    #[test]
    fn another_version_is_told_from_another_device() {
        assert_eq!(speaks_our_version(12), Ok(()));
        for version in [0, 11, 13] {
            assert_eq!(speaks_our_version(version), Err(NoKvm::Version(version)));
        }
        assert!(matches!(speaks_our_version(-1), Err(NoKvm::OtherDevice(_))));
    }

    #[test]
    fn a_signal_is_no_answer() {
        let answers = |answers: &[i32]| {
            let mut answers = answers.iter();
            uninterrupted(|| match answers.next() {
                Some(&errno) => Err(kvm_ioctls::Error::new(errno)),
                None => Ok(()),
            })
        };
        assert_eq!(answers(&[libc::EINTR, libc::EINTR]), Ok(()));
        assert_eq!(answers(&[libc::EINTR, libc::EBUSY]), Err(kvm_ioctls::Error::new(libc::EBUSY)));
    }

    #[test]
    #[ignore = "needs: Kvm"]
    fn the_first_vm_is_the_one_that_was_made_to_see() {
        let kvm = Kvm::open().unwrap();
        let is_there = || kvm.first.lock().unwrap().is_some();
        assert!(is_there());
        let (_first, _second) = (kvm.create_vm().unwrap(), kvm.create_vm().unwrap());
        assert!(!is_there());
    }
}
