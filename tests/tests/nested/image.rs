//! What the rig is booted from: a kernel, and an initramfs.
//!
//! ```text
//! /init                            this binary, as PID 1
//! /bin/busybox, /bin/sh            for a developer
//! /bin/zapscope                    the program itself
//! /rig/whole                       the suite
//! /rig/modules/NN-NAME.ko          the rig's own modules, in the order in which they are loaded
//! /guests/RELEASE/vmlinuz          a stock kernel to boot as a guest, as its package has it
//! /guests/RELEASE/modules/         its /lib/modules/RELEASE: kernel/NAME.ko, modules.builtin
//! /guests/busybox.cpio             an initrd for them: a shell on the console
//! ```

use std::path::{Path, PathBuf};

use linux_boot::modules::{Module, load_order};

use crate::archive::{Content, Entry, archive};
use crate::packages::{Kernel, Packages};
use crate::suite::{Suite, slim};
use crate::{Trouble, create};

/// Bytes of modules that go into an image, unpacked: a few of a distribution's take some ten MiB.
const MOST_MODULES: u64 = 256 << 20;

/// What the rig itself needs: KVM, and a swap device.
const RIG_MODULES: [&str; 2] = ["kvm-amd", "zram"];
/// What its guests need beyond what their kernels have built in.
const GUEST_MODULES: [&str; 4] = ["virtio_mmio", "virtio_blk", "virtio_balloon", "virtio_console"];

/// The `/init` of the guests' initrd.
const GUEST_INIT: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
exec setsid cttyhack sh
";

/// zapscope as a command, for a developer: the suite's binary is it, if asked.
const ZAPSCOPE: &str = "#!/bin/sh
exec /rig/whole __be-zapscope \"$@\"
";

/// The files to boot.
pub struct Image {
    /// The bzImage.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: PathBuf,
}

/// Makes the initramfs.
pub fn build(directory: &Path, packages: &Packages, suite: &Suite) -> Result<Image, Trouble> {
    let scratch = directory.join("stripped");
    create(&scratch)?;
    let own = std::env::current_exe().map_err(Trouble::broken("this binary's path"))?;
    let mut entries: Vec<Entry> =
        ["proc", "sys", "dev", "tmp"].map(|name| (name.to_owned(), Content::Directory)).into();
    entries.push(("init".to_owned(), Content::File(slim(&own, &scratch.join("nested"))?)));
    entries.push(("rig/whole".to_owned(), Content::File(suite.content(&scratch)?)));
    for library in suite.libraries()? {
        let path = library.to_string_lossy().trim_start_matches('/').to_owned();
        entries.push((path, Content::File(read(&library)?)));
    }
    let busybox = shell(&packages.busybox)?;
    entries.extend(busybox.clone());
    entries.push(("bin/zapscope".to_owned(), Content::File(ZAPSCOPE.into())));
    for (index, Module { name, image }) in (0..).zip(modules(&packages.host, &RIG_MODULES)?) {
        entries.push((format!("rig/modules/{index:02}-{name}.ko"), Content::File(image)));
    }
    for kernel in [&packages.host, &packages.older] {
        entries.extend(guest(kernel)?);
    }
    let guest_init = ("init".to_owned(), Content::File(GUEST_INIT.into()));
    let directories = ["proc", "sys", "dev", "tmp"].map(|name| (name.to_owned(), Content::Directory));
    let initrd = archive(&[vec![guest_init], busybox, directories.into()].concat())?;
    entries.push(("guests/busybox.cpio".to_owned(), Content::File(initrd)));
    let initramfs = directory.join("initramfs.cpio");
    std::fs::write(&initramfs, archive(&entries)?).map_err(Trouble::broken(initramfs.display()))?;
    Ok(Image { kernel: packages.host.vmlinuz.clone(), initramfs })
}

fn shell(busybox: &Path) -> Result<Vec<Entry>, Trouble> {
    Ok(vec![
        ("bin/busybox".to_owned(), Content::File(read(busybox)?)),
        ("bin/sh".to_owned(), Content::Link("busybox".to_owned())),
    ])
}

/// A stock kernel and the modules that a guest on it needs.
fn guest(kernel: &Kernel) -> Result<Vec<Entry>, Trouble> {
    let at = format!("guests/{}", kernel.release);
    let mut entries = vec![(format!("{at}/vmlinuz"), Content::File(read(&kernel.vmlinuz)?))];
    let builtin = read(&kernel.modules.join("modules.builtin"))?;
    entries.push((format!("{at}/modules/modules.builtin"), Content::File(builtin)));
    for Module { name, image } in modules(kernel, &GUEST_MODULES)? {
        entries.push((format!("{at}/modules/kernel/{name}.ko"), Content::File(image)));
    }
    Ok(entries)
}

fn modules(kernel: &Kernel, wanted: &[&str]) -> Result<Vec<Module>, Trouble> {
    load_order(&kernel.modules, wanted, MOST_MODULES).map_err(Trouble::broken("modules"))
}

fn read(path: &Path) -> Result<Vec<u8>, Trouble> {
    std::fs::read(path).map_err(Trouble::broken(path.display()))
}
