//! The kernel's own filesystems, where programs expect them.

use std::ffi::CString;
use std::fs;
use std::io;

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

struct Mount {
    kind: &'static str,
    target: &'static str,
    options: &'static str,
    /// Whether the agent itself needs it.
    needed: bool,
}

const MOUNTS: [Mount; 7] = [
    Mount { kind: "devtmpfs", target: "/dev", options: "", needed: true },
    Mount { kind: "proc", target: "/proc", options: "", needed: true },
    Mount { kind: "sysfs", target: "/sys", options: "", needed: true },
    Mount { kind: "devpts", target: "/dev/pts", options: "ptmxmode=0666", needed: false },
    Mount { kind: "tmpfs", target: "/dev/shm", options: "", needed: false },
    Mount { kind: "tmpfs", target: "/tmp", options: "", needed: false },
    Mount { kind: "cgroup2", target: "/sys/fs/cgroup", options: "", needed: false },
];

/// Mounts them all. Returns a line for each that is missing and not needed.
pub fn mount_all() -> Result<Vec<String>> {
    let mut missing = Vec::new();
    for &Mount { kind, target, options, needed } in &MOUNTS {
        let Err(error) = mount_one(kind, target, options) else { continue };
        if needed {
            return Err(error).context(format!("{kind} cannot be mounted on {target}"));
        }
        missing.push(format!("{kind} is not mounted on {target}: {error}"));
    }
    Ok(missing)
}

fn mount_one(kind: &str, target: &str, options: &str) -> io::Result<()> {
    // In sysfs the directory is there or cannot be made; mounting tells.
    let _ = fs::create_dir_all(target);
    let options = CString::new(options)?;
    match mount(kind, target, kind, MountFlags::NOSUID, options.as_c_str()) {
        // The kernel has done so itself.
        Ok(()) | Err(Errno::BUSY) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
