//! The files of a Linux guest: its kernel, its modules and the first file system; and the errors on the way to a guest.

use std::path::{Path, PathBuf};

use guest_mem::remedy::{self, Asked};

use devices::virtio::block::DiskError;
use experiment::scenario::LinuxGuest;
use guest::agent::AgentError;
use linux_boot::cpio::CpioError;
use linux_boot::modules::{self, ModuleError};
use linux_boot::{Kernel, LoadError, Refusal, initramfs};
use machine::pc::PcError;
use program::exit::{Class, Classified};
use program::input::{self, FileKind, InputError};
use program::output::visible;

/// The guest to boot.
#[derive(Clone, Copy, Debug)]
pub struct LinuxSetup<'a> {
    /// The kernel's file.
    pub kernel: &'a Path,
    /// The scenario's table `[linux]`.
    pub guest: &'a LinuxGuest,
    /// vCPUs.
    pub vcpus: u32,
    /// Bytes of the memory under test.
    pub arena: u64,
    /// Whether KVM keeps its default of dropping every SPTE when one memslot is deleted.
    pub slot_zap_all_quirk: bool,
}

/// An error on the way to a Linux guest.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum LinuxError {
    #[error(
        "this host's KVM is kvm_pvm, under which a Linux guest reaches no user space: use the bare guest here \
         (`--guest bare`), or a host with kvm_intel or kvm_amd"
    )]
    Emulated,
    #[error(transparent)]
    Input(#[from] InputError),
    #[error("the guest's serial port cannot be given /dev/null to read")]
    Silence(#[source] std::io::Error),
    #[error("the kernel {} {refusal}", path.display())]
    Kernel { path: PathBuf, refusal: Refusal },
    #[error("{}", path.display())]
    Load { path: PathBuf, source: LoadError },
    #[error(
        "no modules for the kernel {}: none in {}; name their directory with `--modules`, or `modules` in [linux]",
        kernel.display(),
        looked.join(", ")
    )]
    NoModules { kernel: PathBuf, looked: Vec<String> },
    #[error(transparent)]
    Module(#[from] ModuleError),
    #[error("the guest's initramfs cannot be made")]
    Initramfs(#[from] CpioError),
    #[error(transparent)]
    Machine(#[from] PcError),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("the Linux guest did not come up{}; its vCPUs:{vcpus}\nbecause", console_tail(console))]
    Agent { source: AgentError, vcpus: String, console: String },
    #[error("no thread can be started for the guest's agent{}", remedy::after_io(Asked::Thread, .0))]
    Thread(#[source] std::io::Error),
    #[error("the Linux guest has {online} of {wanted} vCPUs online: its console says why")]
    Vcpus { wanted: u32, online: usize },
}

impl Classified for LinuxError {
    fn class(&self) -> Class {
        match self {
            Self::Emulated => Class::Host,
            Self::Input(error) => error.class(),
            Self::Silence(source) => Class::of_refused_io(source),
            Self::Kernel { .. } | Self::NoModules { .. } => Class::Mistake,
            Self::Load { source, .. } => source.class(),
            Self::Module(error) => error.class(),
            Self::Initramfs(error) => error.class(),
            Self::Machine(error) => error.class(),
            Self::Disk(error) => error.class(),
            Self::Agent { source, .. } => source.class(),
            Self::Thread(source) => Class::of_refused_io(source),
            Self::Vcpus { .. } => Class::Wrong,
        }
    }
}

pub(super) fn console_tail(console: &str) -> String {
    if console.trim().is_empty() {
        return "; its console is empty".to_owned();
    }
    format!("; the end of its console:{}", visible::quoted(console.trim_end()))
}

/// Bytes of modules at most, whatever the guest has. Those of a distribution have some 10 MiB.
const MODULES_MOST: u64 = 1 << 30;
/// Modules of the devices that the agent needs.
const MODULES: [&str; 3] = ["virtio_mmio", "virtio_console", "virtio_balloon"];
const DISK_MODULE: &str = "virtio_blk";
pub(super) fn identify<'a>(path: &Path, image: &'a [u8]) -> Result<Kernel<'a>, LinuxError> {
    Kernel::identify(image).map_err(|refusal| LinuxError::Kernel { path: path.to_owned(), refusal })
}

/// The files of the guest's first file system: what the user gives it, the modules, the agent.
pub(super) fn archive(setup: &LinuxSetup<'_>, kernel: &Kernel<'_>) -> Result<Vec<u8>, LinuxError> {
    let mut archive = match &setup.guest.initrd {
        Some(path) => input::read(FileKind::Initrd, path)?,
        None => Vec::new(),
    };
    // The kernel looks for a following archive at multiples of four.
    archive.resize(archive.len().next_multiple_of(4), 0);
    let mut wanted = MODULES.to_vec();
    wanted.extend(setup.guest.disk.as_ref().map(|_| DISK_MODULE));
    let directory = modules_of(setup, kernel)?;
    let modules = modules::load_order(&directory, &wanted, setup.guest.memory.min(MODULES_MOST))?;
    let bytes: usize = modules.iter().map(|module| module.image.len()).sum();
    let none = |_| ModuleError::NoMemory { path: directory.clone(), bytes: bytes as u64 };
    archive.try_reserve(bytes).map_err(none)?;
    Ok(initramfs::append_agent(archive, resources::AGENT, &modules)?)
}

/// The directory of the kernel's modules.
fn modules_of(setup: &LinuxSetup<'_>, kernel: &Kernel<'_>) -> Result<PathBuf, LinuxError> {
    if let Some(directory) = &setup.guest.modules {
        return Ok(directory.clone());
    }
    let beside = setup.kernel.parent().unwrap_or(Path::new("."));
    let mut places = vec![beside.join("modules")];
    if let Some(release) = kernel.release() {
        places.push(beside.join("lib/modules").join(release));
        places.push(beside.join("../lib/modules").join(release));
        places.push(Path::new("/lib/modules").join(release));
    }
    let found = places.iter().find(|place| place.is_dir()).cloned();
    found.ok_or_else(|| LinuxError::NoModules {
        kernel: setup.kernel.to_owned(),
        looked: places.iter().map(|place| place.display().to_string()).collect(),
    })
}
