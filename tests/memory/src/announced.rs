//! The ranges that the kernel announces to a KVM virtual machine of this process.
//!
//! A VM without memory is enough: `kvm:kvm_unmap_hva_range` fires for each VM of the address space before
//! memslots are looked up.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;

use guest_mem::{Address, Hva, HvaRange};

const KVM_CREATE_VM: u64 = 0xae01;

/// Records announcements while it lives.
pub struct Announcements {
    _vm: OwnedFd,
    instance: PathBuf,
    /// The mount point of tracefs, if it was mounted for this.
    mounted: Option<PathBuf>,
}

impl Announcements {
    /// Begins to listen, or returns what is missing.
    pub fn listen() -> Result<Self, String> {
        let kvm =
            File::options().read(true).write(true).open("/dev/kvm").map_err(|e| format!("/dev/kvm: {e}"))?;
        // SAFETY: KVM_CREATE_VM takes a machine type by value; 0 is the default.
        let vm = unsafe { libc::ioctl(kvm.as_raw_fd(), KVM_CREATE_VM, 0) };
        if vm < 0 {
            return Err(format!("KVM_CREATE_VM: {}", std::io::Error::last_os_error()));
        }
        // SAFETY: the kernel has just made this descriptor for us.
        let vm = unsafe { OwnedFd::from_raw_fd(vm) };
        let (tracefs, mounted) = tracefs()?;
        let instance = tracefs.join(format!("instances/guest-mem-{}", std::process::id()));
        let listener = Self { _vm: vm, instance, mounted };
        fs::create_dir(&listener.instance).map_err(|e| format!("{}: {e}", listener.instance.display()))?;
        let event = listener.instance.join("events/kvm/kvm_unmap_hva_range/enable");
        fs::write(&event, "1").map_err(|e| format!("{}: {e}", event.display()))?;
        Ok(listener)
    }

    /// Forgets earlier announcements.
    pub fn clear(&self) {
        fs::write(self.instance.join("trace"), "").unwrap();
    }

    /// The ranges announced since then that overlap `range`, oldest first, unclipped.
    pub fn inside(&self, range: HvaRange) -> Vec<HvaRange> {
        let text = fs::read_to_string(self.instance.join("trace")).unwrap();
        text.lines().filter_map(parse).filter(|announced| announced.overlaps(range)).collect()
    }
}

impl Drop for Announcements {
    fn drop(&mut self) {
        let _ = fs::write(self.instance.join("events/kvm/kvm_unmap_hva_range/enable"), "0");
        let _ = fs::remove_dir(&self.instance);
        if let Some(point) = &self.mounted {
            let path = std::ffi::CString::new(point.to_str().unwrap()).unwrap();
            // SAFETY: the path is NUL-terminated; the mount is our own.
            unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
            let _ = fs::remove_dir(point);
        }
    }
}

/// The path of tracefs, which is mounted if it is mounted nowhere.
fn tracefs() -> Result<(PathBuf, Option<PathBuf>), String> {
    for known in ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"] {
        if fs::metadata(format!("{known}/events/kvm")).is_ok() {
            return Ok((known.into(), None));
        }
    }
    let point = std::env::temp_dir().join(format!("guest-mem-tracefs-{}", std::process::id()));
    fs::create_dir_all(&point).map_err(|e| e.to_string())?;
    let path = std::ffi::CString::new(point.to_str().unwrap()).unwrap();
    // SAFETY: all strings are NUL-terminated; tracefs takes no data.
    let done =
        unsafe { libc::mount(c"none".as_ptr(), path.as_ptr(), c"tracefs".as_ptr(), 0, std::ptr::null()) };
    if done < 0 {
        let error = std::io::Error::last_os_error();
        let _ = fs::remove_dir(&point);
        return Err(format!("mounting tracefs: {error}"));
    }
    Ok((point.clone(), Some(point)))
}

/// `… kvm_unmap_hva_range: mmu notifier unmap range: 0x00007f… -- 0x00007f…`
fn parse(line: &str) -> Option<HvaRange> {
    let (left, right) = line.split_once("unmap range: ")?.1.split_once(" -- ")?;
    let hex = |text: &str| u64::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok().map(Hva::from_raw);
    HvaRange::new(hex(left)?, hex(right)?)
}
