//! Opening a userfaultfd, and the error if the host allows none.
//!
//! ```text
//!   Faults::All: a guest's
//!     /dev/userfaultfd ──ok──> sees all faults
//!       └─ refused: userfaultfd(0) ──ok──> sees all faults        CAP_SYS_PTRACE or vm.unprivileged_userfaultfd=1
//!                     └─ EPERM: userfaultfd(UFFD_USER_MODE_ONLY)  opens without a privilege, and is no use here: KVM
//!                                                                 touches a guest's memory from kernel mode
//!   Faults::UserMode: those of threads
//!     userfaultfd(UFFD_USER_MODE_ONLY) ──ok──> no privilege needed; faults of the kernel itself get EFAULT
//!       └─ refused, as by a filter: as above
//! ```

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use guest_mem::remedy::{self, Asked};
use rustix::io::Errno;

use crate::abi::{UFFD_API, UffdioApi};
use crate::features::Features;
use crate::sys;

/// The faults that a userfaultfd has to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Faults {
    /// All, those made inside the kernel too: by KVM for a guest, by a system call.
    All,
    /// Those of threads in user mode. A system call that meets a missing page fails with `EFAULT`.
    UserMode,
}

/// No userfaultfd that serves could be opened.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum OpenError {
    #[error("this kernel has no userfaultfd: it takes one with CONFIG_USERFAULTFD")]
    NoKernelSupport,
    #[error(
        "userfaultfd is allowed for faults from user mode alone{}, and a guest's faults happen inside KVM, in \
         kernel mode: `sysctl vm.unprivileged_userfaultfd=1`, or give access to {} ({device})",
        sysctl_is(*sysctl), sys::DEVICE
    )]
    UserModeOnly { device: Errno, sysctl: Option<u32> },
    /// Also the kind for user mode is refused, which the kernel itself never does.
    #[error(
        "userfaultfd is refused ({syscall}) even for faults from user mode: a seccomp filter, as containers have \
         one; allow the system call there, or pass {} in ({device})",
        sys::DEVICE
    )]
    Filtered { device: Errno, syscall: Errno },
    #[error("opening a userfaultfd{}", remedy::after(Asked::Descriptor, *.0))]
    Exhausted(#[source] Errno),
    #[error("this kernel's userfaultfd lacks {missing} (it has {offered}): a newer host kernel is needed")]
    Lacks { missing: Features, offered: Features },
    /// The handshake failed in a way that no kernel is known for.
    #[error("userfaultfd handshake with {features}")]
    Handshake { features: Features, source: Errno },
}

fn sysctl_is(value: Option<u32>) -> String {
    value.map_or(String::new(), |value| format!(" (vm.unprivileged_userfaultfd={value})"))
}

/// The kinds of userfaultfd that this host allows, and its features. See [`probe`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// By the device, which sees all faults.
    pub device: Result<(), Errno>,
    /// By the system call, faults in kernel mode included.
    pub full: Result<(), Errno>,
    /// By the system call, for faults from user mode alone: no use for a guest.
    pub user_mode: Result<(), Errno>,
    /// `vm.unprivileged_userfaultfd`, where it can be read.
    pub sysctl: Option<u32>,
    /// The kernel's features, if any of the three ways opened.
    pub features: Option<Features>,
}

/// Tries each way to open one, and reads the kernel's features. Leaves nothing open.
pub fn probe() -> Access {
    let (device, full) = (sys::open_by_device(), sys::open_by_syscall(false));
    let user_mode = sys::open_by_syscall(true);
    let any = [&device, &full, &user_mode].into_iter().find_map(|one| one.as_ref().ok());
    Access {
        features: any.and_then(|fd| offered(fd.as_fd()).ok()),
        device: device.map(drop),
        full: full.map(drop),
        user_mode: user_mode.map(drop),
        sysctl: read_sysctl(),
    }
}

fn read_sysctl() -> Option<u32> {
    std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").ok()?.trim().parse().ok()
}

/// A descriptor that sees these faults, before its handshake.
pub(crate) fn open(faults: Faults) -> Result<OwnedFd, OpenError> {
    // First without a privilege, so that root and other users take the same way.
    if faults == Faults::UserMode
        && let Ok(fd) = sys::open_by_syscall(true)
    {
        return Ok(fd);
    }
    let device = match sys::open_by_device() {
        Ok(fd) => return Ok(fd),
        Err(errno) => errno,
    };
    sys::open_by_syscall(false).map_err(|full| {
        let user_mode = || sys::open_by_syscall(true).map(drop);
        explain(device, full, user_mode, read_sysctl)
    })
}

/// The error of two refused ways. Tries the third only if its answer decides.
fn explain(
    device: Errno,
    full: Errno,
    user_mode: impl FnOnce() -> Result<(), Errno>,
    sysctl: impl FnOnce() -> Option<u32>,
) -> OpenError {
    match full {
        Errno::NOSYS => OpenError::NoKernelSupport,
        Errno::MFILE | Errno::NFILE | Errno::NOMEM => OpenError::Exhausted(full),
        _ => match user_mode() {
            Ok(()) => OpenError::UserModeOnly { device, sysctl: sysctl() },
            Err(syscall) => OpenError::Filtered { device, syscall },
        },
    }
}

/// The handshake: asks for `features`, and gives those that are on now.
pub(crate) fn handshake(fd: BorrowedFd<'_>, features: Features) -> Result<Features, OpenError> {
    let mut argument = UffdioApi { api: UFFD_API, features: features.bits(), ioctls: 0 };
    match sys::api(fd, &mut argument) {
        // The kernel answers with all it has, not with what is on.
        Ok(()) if features.contains(Features::WP_ASYNC) => Ok(features | Features::WP_UNPOPULATED),
        Ok(()) => Ok(features),
        // A handshake that was refused may be repeated.
        Err(source) => match offered(fd) {
            Ok(offered) if !offered.contains(features) => {
                Err(OpenError::Lacks { missing: features.difference(offered), offered })
            }
            _ => Err(OpenError::Handshake { features, source }),
        },
    }
}

/// The features that the kernel offers: the answer to a handshake without any.
fn offered(fd: BorrowedFd<'_>) -> Result<Features, Errno> {
    let mut argument = UffdioApi { api: UFFD_API, features: 0, ioctls: 0 };
    sys::api(fd, &mut argument)?;
    Ok(Features::from_bits_retain(argument.features))
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_mem::with_causes;

    #[test]
    fn user_mode_alone_says_what_to_set() {
        let error = explain(Errno::ACCESS, Errno::PERM, || Ok(()), || Some(0));
        let text = error.to_string();
        assert!(matches!(error, OpenError::UserModeOnly { .. }));
        for part in ["KVM", "vm.unprivileged_userfaultfd=0", "vm.unprivileged_userfaultfd=1", sys::DEVICE] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn no_support_a_filter_and_a_limit_differ() {
        let none = explain(Errno::NOENT, Errno::NOSYS, || Err(Errno::NOSYS), || None);
        assert!(none.to_string().contains("CONFIG_USERFAULTFD"));
        let filtered = explain(Errno::NOENT, Errno::PERM, || Err(Errno::PERM), || Some(1));
        assert!(filtered.to_string().contains("seccomp"));
        let short = explain(Errno::MFILE, Errno::MFILE, || Err(Errno::MFILE), || None);
        assert!(with_causes(&short).ends_with(": raise `ulimit -n`"), "{}", with_causes(&short));
    }

    #[test]
    fn what_is_lacking_is_named() {
        let error =
            OpenError::Lacks { missing: Features::MOVE | Features::POISON, offered: Features::SIGBUS };
        assert!(error.to_string().contains("lacks POISON, MOVE (it has SIGBUS)"), "{error}");
    }
}
