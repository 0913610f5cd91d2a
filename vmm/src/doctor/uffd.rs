//! userfaultfd: whether we get one that also sees faults from inside the kernel, which are what KVM's are,
//! and what it can do.

use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

use super::finding::Finding;
use super::scratch::last_errno;
use crate::host::Root;

const DEVICE: &str = "/dev/userfaultfd";

/// `_IO(0xAA, 0x00)` and `_IOWR(0xAA, 0x3F, struct uffdio_api)`.
const USERFAULTFD_IOC_NEW: libc::c_ulong = 0xaa00;
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFD_API: u64 = 0xaa;
const UFFD_USER_MODE_ONLY: i32 = 1;

/// `struct uffdio_api` of `<linux/userfaultfd.h>`.
#[repr(C)]
#[derive(Debug, Default)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}
const _: () = assert!(size_of::<UffdioApi>() == 24);
const _: () = assert!(UFFDIO_API >> 16 & 0x3fff == size_of::<UffdioApi>() as libc::c_ulong);

/// Features by bit, and what each is needed for here.
const FEATURES: [(u32, &str); 9] = [
    (3, "EVENT_REMOVE"),
    (6, "EVENT_UNMAP"),
    (2, "EVENT_REMAP"),
    (5, "MISSING_SHMEM"),
    (10, "MINOR_SHMEM"),
    (12, "WP_HUGETLBFS_SHMEM"),
    (13, "WP_UNPOPULATED"),
    (15, "WP_ASYNC"),
    (16, "MOVE"),
];

/// What opening one gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Uffd {
    /// By the device; whoever may open it gets everything.
    device: Result<(), Errno>,
    /// By the system call, kernel faults included.
    full: Result<(), Errno>,
    /// By the system call, for faults from user mode alone.
    user_mode: Result<(), Errno>,
    sysctl: Option<u32>,
    features: Option<u64>,
}

pub(super) fn probe() -> Uffd {
    let (device, full, user_mode) = (by_device(), by_syscall(0), by_syscall(UFFD_USER_MODE_ONLY));
    let any = [&device, &full, &user_mode].into_iter().find_map(|one| one.as_ref().ok());
    let features = any.and_then(features_of);
    Uffd {
        features,
        device: device.map(drop),
        full: full.map(drop),
        user_mode: user_mode.map(drop),
        sysctl: Root::default().number("/proc/sys/vm/unprivileged_userfaultfd"),
    }
}

fn by_device() -> Result<OwnedFd, Errno> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .open(DEVICE)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    // SAFETY: the request takes flags by value and returns a new descriptor or an error.
    let raw = unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW, libc::O_CLOEXEC) };
    owned(raw)
}

fn by_syscall(flags: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes flags and returns a new descriptor or an error.
    let raw = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | flags) };
    owned(raw as i32)
}

fn owned(raw: i32) -> Result<OwnedFd, Errno> {
    if raw < 0 {
        return Err(last_errno());
    }
    // SAFETY: the kernel just made this descriptor for us, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Asking for no feature answers with all that there are.
fn features_of(uffd: &OwnedFd) -> Option<u64> {
    let mut api = UffdioApi { api: UFFD_API, ..UffdioApi::default() };
    // SAFETY: `api` is laid out as the kernel's `struct uffdio_api` and lives across the call.
    let done = unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_API, &raw mut api) };
    (done == 0).then_some(api.features)
}

pub(super) fn judge(uffd: &Uffd) -> Vec<Finding> {
    let mut findings = vec![judge_permission(uffd)];
    findings.extend(uffd.features.map(judge_features));
    findings
}

fn judge_permission(uffd: &Uffd) -> Finding {
    const SUBJECT: &str = "userfaultfd";
    const REMEDY: &str = "setfacl -m u:$USER:rw /dev/userfaultfd, or sysctl vm.unprivileged_userfaultfd=1";
    let sysctl = uffd.sysctl.map_or(String::new(), |value| format!(" (vm.unprivileged_userfaultfd={value})"));
    match (uffd.device, uffd.full, uffd.user_mode) {
        (Ok(()), ..) => Finding::can(SUBJECT, format!("{DEVICE} opens: faults made inside KVM are seen")),
        (_, Ok(()), _) => {
            Finding::can(SUBJECT, format!("the system call works{sysctl}: faults made inside KVM are seen"))
        }
        (_, _, Ok(())) => Finding::cannot(
            SUBJECT,
            format!("only for user-mode faults{sysctl}: a guest's faults happen in kernel mode"),
        )
        .remedy(REMEDY),
        (_, Err(Errno::NOSYS), _) => {
            Finding::cannot(SUBJECT, "this kernel has none").remedy("a kernel with CONFIG_USERFAULTFD")
        }
        (_, Err(errno), _) => {
            Finding::cannot(SUBJECT, format!("is refused{sysctl}: {errno}; a container's seccomp filter?"))
                .remedy(REMEDY)
        }
    }
}

fn judge_features(features: u64) -> Finding {
    const SUBJECT: &str = "userfaultfd features";
    let has = |bit: u32| features >> bit & 1 == 1;
    let names = |wanted: bool| {
        let names: Vec<_> =
            FEATURES.iter().filter(|(bit, _)| has(*bit) == wanted).map(|(_, name)| *name).collect();
        names.join(", ")
    };
    let missing = names(false);
    if missing.is_empty() {
        return Finding::can(SUBJECT, names(true));
    }
    Finding::limited(SUBJECT, format!("has {}; lacks {missing}", names(true)))
        .remedy("a newer host kernel (MOVE: 6.8, WP_ASYNC: 6.7, WP_UNPOPULATED: 6.4)")
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    fn refused(user_mode: Result<(), Errno>, full: Errno) -> Uffd {
        Uffd { device: Err(Errno::ACCESS), full: Err(full), user_mode, sysctl: Some(0), features: None }
    }

    #[test]
    fn the_device_is_enough() {
        let uffd = Uffd { device: Ok(()), ..refused(Ok(()), Errno::PERM) };
        assert_eq!(judge(&uffd)[0].verdict, Verdict::Can);
    }

    #[test]
    fn user_mode_alone_does_not_serve_a_guest() {
        let finding = judge(&refused(Ok(()), Errno::PERM)).remove(0);
        assert_eq!(finding.verdict, Verdict::Cannot);
        assert!(finding.detail.contains("vm.unprivileged_userfaultfd=0"));
        assert!(finding.remedy.unwrap().contains("setfacl"));
    }

    #[test]
    fn no_kernel_support_and_a_filter_differ() {
        let none = judge(&refused(Err(Errno::NOSYS), Errno::NOSYS)).remove(0);
        assert!(none.remedy.unwrap().contains("CONFIG_USERFAULTFD"));
        let filtered = judge(&refused(Err(Errno::PERM), Errno::PERM)).remove(0);
        assert!(filtered.detail.contains("seccomp"));
    }

    #[test]
    fn missing_features_are_named() {
        assert_eq!(judge_features(0x1_ffff).verdict, Verdict::Can);
        // Linux 6.1: up to EXACT_ADDRESS and WP_HUGETLBFS_SHMEM.
        let old = judge_features(0x1fff);
        assert_eq!(old.verdict, Verdict::Limited);
        assert!(old.detail.ends_with("lacks WP_UNPOPULATED, WP_ASYNC, MOVE"), "{old:?}");
    }
}
