//! What a test may need of the host, probed once, and what is said where it is missing.

use std::path::Path;
use std::process::{Command, Stdio};

use guest_mem::{Backing, CgroupPlace, HostThp, PMD_SIZE, PageScanner, Region, SwapInfo};
use host::{Capability, HostChanges, HostFacts, Rights};
use machine::Kvm;
use rustix::fs::{Access, access};
use tap::{Interest, Tap, Via};
use uffd::{Faults, Features, Userfault};

use crate::hugetlb::Group;
use crate::nobody::{self, Lent};
use crate::stand_in;

/// Something a test cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Need {
    /// /dev/kvm.
    Kvm,
    /// A KVM that limits a slot's zap to the slot.
    SlotZap,
    /// Root, and a kernel with zram: a swap device of the test's own.
    Zram,
    /// A memory cgroup of the test's own.
    Cgroup,
    /// `unshare`, and the right to a PID namespace.
    Unshare,
    /// The right to set the host's huge-page switches.
    Switches,
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
    /// A process that finds another file in the place of /dev/kvm.
    OtherKvm,
    /// A userfaultfd that serves faults made in the kernel.
    Userfault,
    /// The kernel's own account, by perf events.
    Tap,
    /// The same by a BPF program.
    Bpf,
    /// Memory of this backing, if need be by a switch that root sets for the test.
    Has(Backing),
    /// A cgroup of its own that limits hugetlb pages: root, and the controller.
    HugetlbGroup,
    /// Huge pages for the asking: `madvise` or `always`, and memory that is not too fragmented.
    HugePages,
    /// A kernel that merges pages of the same content.
    Ksm,
    /// A `perf_event_paranoid` that keeps tracepoints from processes without a capability for them.
    GuardedTracepoints,
    /// A process without any privilege: root's to make, or this one.
    Nobody,
    /// The same, and of another user than this one: root's to make.
    AnotherUser,
    /// As `Nobody`, with /dev/kvm open to it.
    NobodyWithKvm,
    /// A userfaultfd for user mode's faults that any user may have.
    UserModeUserfault,
    /// The same where an unprivileged user may have none for the kernel's faults.
    OnlyUserModeUserfault,
    /// No swap area in use.
    NoSwap,
    /// A host that is not emulated: the test takes minutes there, or needs a fault that an emulator makes otherwise.
    NotEmulated,
}

/// Names the kernel that [`Need::MinimalKernel`] is.
pub const MINIMAL_KERNEL: &str = "ZAPSCOPE_MINIMAL_KERNEL";

impl Need {
    /// Whether the host has it.
    fn is_met(self) -> bool {
        let exists = |path: &str| Path::new(path).exists();
        match self {
            Self::Kvm => Kvm::open().is_ok(),
            Self::SlotZap => slot_zap(),
            Self::Zram => {
                Rights::read().has(Capability::SysAdmin) && exists("/sys/class/zram-control/hot_add")
            }
            Self::Cgroup => memory_cgroup(),
            Self::Unshare => succeeds("unshare", &["-pf", "true"]),
            Self::Switches => access("/sys/kernel/mm/transparent_hugepage/enabled", Access::WRITE_OK).is_ok(),
            Self::Qemu => succeeds("qemu-system-x86_64", &["--version"]),
            Self::LinuxGuest => {
                !guest_kernels().is_empty()
                    && guest_initrd().is_some()
                    && Kvm::open().is_ok()
                    && HostFacts::read().kvm.mmu.is_some()
                    && !pvm()
            }
            Self::Pvm => pvm(),
            Self::NotRoot => !writes_every_file(),
            Self::OtherKvm => stand_in::may_bind("/dev/kvm"),
            Self::Userfault => Userfault::open(Features::empty()).is_ok(),
            Self::Bpf => tap(Via::Bpf),
            Self::Tap => tap(Via::Perf),
            Self::MinimalKernel => {
                std::env::var_os(MINIMAL_KERNEL).is_some_and(|path| Path::new(&path).is_file())
            }
            Self::HugePages => huge_pages(),
            Self::HugetlbGroup => Group::make().is_ok(),
            Self::Ksm => exists("/sys/kernel/mm/ksm/run"),
            Self::GuardedTracepoints => std::fs::read_to_string("/proc/sys/kernel/perf_event_paranoid")
                .is_ok_and(|text| !text.starts_with('-')),
            Self::Nobody => nobody::may_be(Lent::Nothing),
            Self::AnotherUser => rustix::process::geteuid().is_root() && nobody::may_be(Lent::Nothing),
            Self::NobodyWithKvm => nobody::may_be(Lent::Kvm),
            Self::UserModeUserfault => Userfault::open_for(Faults::UserMode, Features::empty()).is_ok(),
            Self::OnlyUserModeUserfault => {
                let access = uffd::probe();
                access.sysctl == Some(0) && access.user_mode.is_ok()
            }
            Self::NoSwap => SwapInfo::read().areas.is_empty(),
            Self::NotEmulated => !emulated(),
            Self::Has(backing) => unreachable!("{backing} is asked for by its switches"),
        }
    }

    /// What to say where the host lacks it.
    fn remedy(self) -> &'static str {
        match self {
            Self::Kvm => "/dev/kvm cannot be opened: load a KVM module, or become root",
            Self::SlotZap => "this KVM has no KVM_X86_QUIRK_SLOT_ZAP_ALL to disable: Linux 6.12 is needed",
            Self::Zram => "a swap device needs root and zram: run as root, `modprobe zram`",
            Self::Cgroup => "no memory cgroup can be made: run as root, with the memory controller mounted",
            Self::Unshare => "no PID namespace can be made: run as root, with util-linux's unshare",
            Self::Switches => "the huge-page switches are not ours to set: run as root",
            Self::Qemu => "there is no qemu-system-x86_64: install qemu-system-x86",
            Self::LinuxGuest => {
                "it boots stock kernels: set ZAPSCOPE_GUEST_KERNELS and ZAPSCOPE_GUEST_INITRD on a host with kvm_intel or \
                 kvm_amd, as the nested rig does (`cargo xtask rig`)"
            }
            Self::Pvm => "this host's KVM is not kvm_pvm, and the test is of what only that does",
            Self::NotRoot => "this user may write every file: run it as another one too",
            Self::OtherKvm => "nothing can be put in the place of /dev/kvm: there is none, or be root",
            Self::Userfault => {
                "there is no userfaultfd for a guest's faults: be root, or see `zapscope doctor`"
            }
            Self::Bpf => {
                "a BPF program cannot listen to the kernel's tracepoints: be root, or see `zapscope doctor`"
            }
            Self::Tap => "the kernel's tracepoints cannot be listened to: be root, or see `zapscope doctor`",
            Self::MinimalKernel => {
                "ZAPSCOPE_MINIMAL_KERNEL names no kernel: set it to what tests/peers/minimal-linux.sh prints"
            }
            Self::HugePages => {
                "there are no huge pages for the asking: \
                 `echo madvise > /sys/kernel/mm/transparent_hugepage/enabled`, or free some memory"
            }
            Self::HugetlbGroup => {
                "there is no cgroup with a limit of hugetlb pages: run as root, with CONFIG_CGROUP_HUGETLB"
            }
            Self::Ksm => "this kernel has no KSM",
            Self::GuardedTracepoints => {
                "everybody may listen to tracepoints: `sysctl kernel.perf_event_paranoid=2`"
            }
            Self::Nobody => "no process can be made nobody's: run as root",
            Self::AnotherUser => "no process can be made another user's: run as root",
            Self::NobodyWithKvm => {
                "/dev/kvm cannot be lent to nobody: run as root, with a temporary directory that allows device files"
            }
            Self::UserModeUserfault => {
                "there is no userfaultfd for user mode's faults: see `zapscope doctor`"
            }
            Self::OnlyUserModeUserfault => {
                "everybody may see all faults here, or nobody any: `sysctl vm.unprivileged_userfaultfd=0`"
            }
            Self::NoSwap => "this host has swap, and the test is of one that has none: `swapoff -a`",
            Self::NotEmulated => {
                "this host is emulated (ZAPSCOPE_SHORT=1), too slow or too different for this"
            }
            Self::Has(backing) => unreachable!("{backing} is asked for by its switches"),
        }
    }
}

/// Whether a command succeeds.
fn succeeds(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

impl Need {
    /// The need of this name, for those that have nothing but a name.
    pub fn named(name: &str) -> Option<Self> {
        use Need::{Cgroup, Kvm, LinuxGuest, NotEmulated, Qemu, SlotZap, Tap, Unshare, Userfault, Zram};
        let named = [Kvm, SlotZap, Zram, Cgroup, Unshare, Userfault, Tap, Qemu, LinuxGuest, NotEmulated];
        named.into_iter().find(|need| format!("{need:?}") == name)
    }
}

impl harness::Need for Need {
    fn missing(self) -> Option<String> {
        if let Self::Has(backing) = self {
            let changes = HostChanges::new(|_| ());
            allow(&changes, backing);
            return backing.unavailable(REGION, &HostThp::read()).map(|why| why.to_string());
        }
        (!self.is_met()).then(|| self.remedy().to_owned())
    }

    fn may_run_out(self) -> bool {
        matches!(self, Self::HugePages)
    }
}

/// Kernels to boot as guests: the paths in `ZAPSCOPE_GUEST_KERNELS`.
pub fn guest_kernels() -> Vec<String> {
    let named = std::env::var("ZAPSCOPE_GUEST_KERNELS").unwrap_or_default();
    named.split(':').filter(|path| !path.is_empty()).map(str::to_owned).collect()
}

/// An initrd for them that leaves a shell on the console, by `ZAPSCOPE_GUEST_INITRD`.
pub fn guest_initrd() -> Option<String> {
    std::env::var("ZAPSCOPE_GUEST_INITRD").ok()
}

/// Whether this host is emulated (`ZAPSCOPE_SHORT=1`): all takes twenty times as long.
pub fn emulated() -> bool {
    asked_for("ZAPSCOPE_SHORT")
}

/// Whether an environment variable is 1.
pub fn asked_for(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| value == "1")
}

/// Whether KVM is kvm_pvm, which emulates a guest's ring 0.
pub fn pvm() -> bool {
    HostFacts::read().kvm.emulates_guest_kernels()
}

/// Whether KVM keeps its translations by the TDP MMU: two-dimensional paging, without shadow pages.
pub fn tdp_mmu() -> bool {
    HostFacts::read().kvm.shadows() == Some(false)
}

/// What the largest region of a test has.
const REGION: u64 = 16 * PMD_SIZE;

/// Sets the switches that a backing's label asks for, until the changes are undone. Without the right to, nothing.
pub fn allow(changes: &HostChanges, backing: Backing) {
    let Some(why) = backing.unavailable(REGION, &HostThp::read()) else { return };
    for setting in why.remedy.settings() {
        let _ = changes.change_sysfs(setting.knob.path(), &setting.text(), "a test's memory");
    }
}

/// Whether permissions do not bind this process.
fn writes_every_file() -> bool {
    let forbidden = tempfile::NamedTempFile::new().and_then(|file| {
        std::fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o400))?;
        std::fs::OpenOptions::new().write(true).open(file.path())
    });
    forbidden.is_ok()
}

fn memory_cgroup() -> bool {
    let Ok(place) = CgroupPlace::find(&format!("zapscope-test-{}", std::process::id())) else { return false };
    let made = std::fs::create_dir(place.path()).is_ok();
    made && std::fs::remove_dir(place.path()).is_ok()
}

fn huge_pages() -> bool {
    let Ok(region) = Region::map(4 * PMD_SIZE, Backing::Thp) else { return false };
    let counts = region
        .populate(region.range())
        .ok()
        .and_then(|()| PageScanner::new().ok()?.counts(&region, region.range()).ok());
    counts.is_some_and(|counts| counts.pmd_mapped == region.range().page_count())
}

fn slot_zap() -> bool {
    const SLOT_ZAP_ALL: i32 = 1 << 7;
    const DISABLE_QUIRKS2: u64 = 213;
    let vm = Kvm::open().and_then(|kvm| kvm.create_vm());
    vm.is_ok_and(|vm| {
        let mask = vm.check_extension_raw(DISABLE_QUIRKS2);
        mask > 0 && mask & SLOT_ZAP_ALL != 0
    })
}

fn tap(via: Via) -> bool {
    let nowhere = guest_mem::HvaRange::empty(guest_mem::Hva::new(0));
    Tap::open(via, Interest::default(), &[nowhere], 1).is_ok()
}

/// Folios of 64 KiB.
pub fn mthp_64k() -> Backing {
    Backing::mthp(64 << 10).expect("a size that is one")
}

/// What a backend needs; the software MMU nothing but memory.
pub fn of_backend(backend: &str) -> Need {
    if backend == "kvm" { Need::Kvm } else { Need::Has(Backing::Base4k) }
}
