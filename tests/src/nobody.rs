//! The program as a user without any privilege, when root runs the tests.
//!
//! ```text
//!   the test, root ── fork ── own mount namespace: /dev/kvm that any user may open, if it is lent
//!                        └─── no groups, the ids of `nobody` ── exec of a copy that `nobody` may read
//! ```
//!
//! Nothing of the host changes: what is mounted is seen by that one process.

use std::ffi::CString;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::{program, stand_in};

/// The user and the group `nobody` of every Linux.
const NOBODY: u32 = 65_534;
const KVM: &str = "/dev/kvm";

/// Whether the process may use KVM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lent {
    /// As the host has it.
    Nothing,
    /// `/dev/kvm` opens for it.
    Kvm,
}

/// A command line of zapscope as the user `nobody`, in `directory`, which is given to that user. If this process is not
/// root: as its own user.
pub fn zapscope(directory: &Path, arguments: &[&str], lent: Lent) -> io::Result<Command> {
    if !is_root() {
        return Ok(program::zapscope(directory, arguments));
    }
    fs::set_permissions(directory, Permissions::from_mode(0o755))?;
    std::os::unix::fs::chown(directory, Some(NOBODY), Some(NOBODY))?;
    let copy = directory.join("zapscope");
    fs::copy(std::env::current_exe()?, &copy)?;
    fs::set_permissions(&copy, Permissions::from_mode(0o755))?;
    let node = match lent {
        Lent::Nothing => None,
        Lent::Kvm => Some(device_for_all(directory)?),
    };
    let mut command = Command::new(&copy);
    command.arg(program::BE_ZAPSCOPE).args(arguments).current_dir(directory);
    // SAFETY: between fork and exec only system calls are made, on strings made before.
    unsafe { command.pre_exec(move || become_nobody(node.as_ref())) };
    Ok(command)
}

/// Whether there can be such a process, and it can use what it is lent.
pub fn may_be(lent: Lent) -> bool {
    let attempt = || {
        let place = tempfile::tempdir()?;
        fs::set_permissions(place.path(), Permissions::from_mode(0o755))?;
        let mut command = Command::new("/bin/sh");
        command.args(["-c", if lent == Lent::Kvm { ": <>/dev/kvm" } else { ":" }]).stderr(Stdio::null());
        let node = match lent {
            Lent::Kvm if is_root() => Some(device_for_all(place.path())?),
            _ => None,
        };
        if is_root() {
            // SAFETY: between fork and exec only system calls are made, on strings made before.
            unsafe { command.pre_exec(move || become_nobody(node.as_ref())) };
        }
        command.status()
    };
    attempt().is_ok_and(|status: ExitStatus| status.success())
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A file that is the same device as /dev/kvm, and opens for every user.
fn device_for_all(directory: &Path) -> io::Result<CString> {
    let (node, device) = (directory.join("kvm"), fs::metadata(KVM)?.rdev());
    mknodat(CWD, &node, FileType::CharacterDevice, Mode::from_raw_mode(0o600), device)?;
    fs::set_permissions(&node, Permissions::from_mode(0o666))?;
    Ok(CString::new(node.as_os_str().as_bytes())?)
}

fn become_nobody(kvm: Option<&CString>) -> io::Result<()> {
    let checked = |done: libc::c_int| if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
    if let Some(node) = kvm {
        stand_in::bind(node, c"/dev/kvm")?;
    }
    // SAFETY: an empty list is not read.
    checked(unsafe { libc::setgroups(0, std::ptr::null()) })?;
    // SAFETY: takes a number.
    checked(unsafe { libc::setgid(NOBODY) })?;
    // SAFETY: takes a number.
    checked(unsafe { libc::setuid(NOBODY) })
}
