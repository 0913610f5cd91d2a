//! The first virtio disk, as the root of commands where the initramfs has no shell.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_bind_recursive};

/// Where it is mounted.
pub const ROOT: &str = "/disk";

/// Mounts the disk, read-only, with the kernel's own filesystems inside, unless it is mounted.
pub fn mount_root() -> Result<()> {
    let disk = first().context(
        "the initramfs has no /bin/sh, and there is no virtio disk: give the guest a disk with a root filesystem",
    )?;
    let shell = Path::new(ROOT).join("bin/sh");
    // A symbolic link to an absolute path leads elsewhere as seen from here, and counts too.
    let has_shell = || fs::symlink_metadata(&shell).is_ok();
    if !has_shell() {
        mount_disk(&disk)?;
    }
    ensure!(has_shell(), "the disk {disk} has no /bin/sh");
    Ok(())
}

fn mount_disk(disk: &str) -> Result<()> {
    let _ = fs::create_dir_all(ROOT);
    let known = fs::read_to_string("/proc/filesystems").context("/proc/filesystems cannot be read")?;
    let kinds: Vec<&str> = on_disk(&known).collect();
    for kind in &kinds {
        match mount(disk, ROOT, *kind, MountFlags::RDONLY, c"") {
            Ok(()) => {
                populate();
                return Ok(());
            }
            Err(Errno::INVAL) => {}
            Err(errno) => {
                return Err(errno).context(format!("the disk {disk} cannot be mounted on {ROOT}"));
            }
        }
    }
    bail!("the disk {disk} holds no filesystem that this kernel knows ({})", kinds.join(", "))
}

/// What a program expects in its root. A directory that the disk lacks has to be done without.
fn populate() {
    for directory in ["/proc", "/sys", "/dev"] {
        let _ = mount_bind_recursive(directory, format!("{ROOT}{directory}"));
    }
    for directory in ["/tmp", "/run"] {
        let _ = mount("tmpfs", format!("{ROOT}{directory}"), "tmpfs", MountFlags::NOSUID, c"");
    }
}

/// The first virtio disk's device.
fn first() -> Option<String> {
    let names = fs::read_dir("/sys/block").ok()?.flatten();
    let mut disks: Vec<_> = names.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    disks.retain(|name| name.starts_with("vd"));
    // `vdz` before `vdaa`.
    disks.sort_by_key(|name| (name.len(), name.clone()));
    disks.first().map(|name| format!("/dev/{name}"))
}

/// The filesystems that live on a device, in the kernel's order.
fn on_disk(filesystems: &str) -> impl Iterator<Item = &str> {
    filesystems
        .lines()
        .filter(|line| !line.starts_with("nodev"))
        .map(str::trim)
        .filter(|kind| !kind.is_empty())
}

#[cfg(test)]
mod tests {
    #[test]
    fn filesystems_without_a_device_are_passed_over() {
        let kinds: Vec<_> =
            super::on_disk("nodev\tsysfs\n\text3\n\text4\nnodev\ttmpfs\n\tsquashfs\n").collect();
        assert_eq!(kinds, ["ext3", "ext4", "squashfs"]);
    }
}
