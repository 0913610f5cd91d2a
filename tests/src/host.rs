//! What a test may need of the host, probed once, and what is said where it is missing.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use kvm_ioctls::Kvm;
use vmm::host::HostFacts;
use vmm::host::kvm_module::MmuKind;
use vmm::tap::{Interest, Tap, Via};

/// Something a test cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// /dev/kvm.
    Kvm,
    /// A KVM that limits a slot's zap to the slot.
    SlotZap,
    /// Root, and a kernel with zram: a swap device of the test's own.
    Zram,
    /// qemu-system-x86_64, any accelerator.
    Qemu,
    /// A Linux kernel to boot as a guest, and a KVM that runs its user space.
    LinuxGuest,
    /// A KVM that is kvm_pvm.
    Pvm,
    /// A kernel small enough for kvm_pvm.
    MinimalKernel,
    /// Not root, who may write every file.
    NotRoot,
    /// A userfaultfd that serves faults made in the kernel.
    Userfault,
    /// The kernel's own account, by perf events.
    Tap,
    /// The same by a BPF program.
    Bpf,
}

/// Names the kernel that [`Need::MinimalKernel`] is.
pub const MINIMAL_KERNEL: &str = "ZAPSCOPE_MINIMAL_KERNEL";

impl Need {
    /// In order of declaration.
    const ALL: [Self; 11] = [
        Self::Kvm,
        Self::SlotZap,
        Self::Zram,
        Self::Qemu,
        Self::LinuxGuest,
        Self::Pvm,
        Self::MinimalKernel,
        Self::NotRoot,
        Self::Userfault,
        Self::Tap,
        Self::Bpf,
    ];

    /// Why the need is not met here, with the remedy; `None` if it is.
    pub fn missing(self) -> Option<&'static str> {
        static ANSWERS: OnceLock<[Option<&'static str>; Need::ALL.len()]> = OnceLock::new();
        ANSWERS.get_or_init(|| Self::ALL.map(Self::probe))[self as usize]
    }

    fn probe(self) -> Option<&'static str> {
        let (met, why) = match self {
            Self::Kvm => (Kvm::new().is_ok(), "/dev/kvm cannot be opened: load a KVM module, or become root"),
            Self::SlotZap => {
                (slot_zap(), "this KVM has no KVM_X86_QUIRK_SLOT_ZAP_ALL to disable: Linux 6.12 is needed")
            }
            Self::Zram => (
                rustix::process::geteuid().is_root() && Path::new("/sys/class/zram-control/hot_add").exists(),
                "a swap device needs root and zram: run as root, `modprobe zram`",
            ),
            Self::Qemu => (
                Command::new("qemu-system-x86_64")
                    .arg("--version")
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .status()
                    .is_ok_and(|status| status.success()),
                "there is no qemu-system-x86_64: install qemu-system-x86",
            ),
            Self::LinuxGuest => (
                !guest_kernels().is_empty()
                    && guest_initrd().is_some()
                    && Kvm::new().is_ok()
                    && HostFacts::read().kvm.mmu.is_some_and(MmuKind::runs_guest_kernels_natively),
                "it boots stock kernels: set ZAPSCOPE_GUEST_KERNELS and ZAPSCOPE_GUEST_INITRD on a host with kvm_intel or \
                 kvm_amd, as the nested rig does (`cargo test --release -p tests --test nested`)",
            ),
            Self::Pvm => (pvm(), "this host's KVM is not kvm_pvm, and the test is of what only that does"),
            Self::NotRoot => (
                !rustix::process::geteuid().is_root(),
                "root may write every file: run it as another user too",
            ),
            Self::Userfault => (
                guest_mem::Userfault::open(guest_mem::uffd::Features::empty()).is_ok(),
                "there is no userfaultfd for a guest's faults: be root, or see `zapscope doctor`",
            ),
            Self::Bpf => (
                tap(&Via::Bpf),
                "a BPF program cannot listen to the kernel's tracepoints: be root, or see `zapscope doctor`",
            ),
            Self::Tap => (
                tap(&Via::Perf),
                "the kernel's tracepoints cannot be listened to: be root, or see `zapscope doctor`",
            ),
            Self::MinimalKernel => (
                std::env::var_os(MINIMAL_KERNEL).is_some_and(|path| Path::new(&path).is_file()),
                "ZAPSCOPE_MINIMAL_KERNEL names no kernel: set it to what tests/peers/minimal-linux.sh prints",
            ),
        };
        (!met).then_some(why)
    }
}

/// Kernels to boot as guests, as whoever set the host up says by `ZAPSCOPE_GUEST_KERNELS`.
pub fn guest_kernels() -> Vec<String> {
    let named = std::env::var("ZAPSCOPE_GUEST_KERNELS").unwrap_or_default();
    named.split(':').filter(|path| !path.is_empty()).map(str::to_owned).collect()
}

/// An initrd for them that leaves a shell on the console, by `ZAPSCOPE_GUEST_INITRD`.
pub fn guest_initrd() -> Option<String> {
    std::env::var("ZAPSCOPE_GUEST_INITRD").ok()
}

/// Whether this host is emulated, as whoever set it up says by `ZAPSCOPE_SHORT=1`: all takes twenty times as long.
pub fn emulated() -> bool {
    asked_for("ZAPSCOPE_SHORT")
}

/// Whether an environment variable is 1.
pub fn asked_for(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| value == "1")
}

/// Whether KVM is kvm_pvm, which emulates a guest's ring 0.
pub fn pvm() -> bool {
    HostFacts::read().kvm.mmu == Some(MmuKind::ShadowPvm)
}

/// Whether KVM keeps its translations by the TDP MMU: two-dimensional paging, without shadow pages.
pub fn tdp_mmu() -> bool {
    let kvm = HostFacts::read().kvm;
    kvm.tdp_mmu == Some(true) && matches!(kvm.mmu, Some(MmuKind::Ept | MmuKind::Npt))
}

fn slot_zap() -> bool {
    const SLOT_ZAP_ALL: i32 = 1 << 7;
    const DISABLE_QUIRKS2: u64 = 213;
    let vm = Kvm::new().and_then(|kvm| kvm.create_vm());
    vm.is_ok_and(|vm| {
        let mask = vm.check_extension_raw(DISABLE_QUIRKS2);
        mask > 0 && mask & SLOT_ZAP_ALL != 0
    })
}

fn tap(via: &Via) -> bool {
    let nowhere = guest_mem::HvaRange::empty(guest_mem::Hva::new(0));
    Tap::open(via, Interest::default(), &[nowhere], 1).is_ok()
}
