//! What a Linux guest is booted from: its kernel, its modules and the first file system, and why there is no such guest.

use std::path::{Path, PathBuf};

use guest_mem::remedy::{self, Asked};

use devices::virtio::block::DiskError;
use experiment::scenario::LinuxGuest;
use guest::agent::AgentError;
use guest::agent::initramfs::{self, Kind};
use linux_boot::cpio::{CpioError, Writer};
use linux_boot::modules::{self, ModuleError};
use linux_boot::{Kernel, LoadError, Refusal};
use machine::pc::PcError;
use program::exit::{Class, Classified};
use program::input::{self, FileKind, InputError};
use program::output::visible;

/// What is to be booted.
#[derive(Clone, Copy, Debug)]
pub struct LinuxSetup<'a> {
    /// The kernel's file.
    pub kernel: &'a Path,
    /// What the guest is made of.
    pub guest: &'a LinuxGuest,
    /// vCPUs.
    pub vcpus: u32,
    /// Bytes of the memory under test.
    pub arena: u64,
    /// Whether KVM keeps its default of dropping every SPTE when one memslot is deleted.
    pub slot_zap_all_quirk: bool,
}

/// Why there is no Linux guest.
#[derive(Debug, thiserror::Error)]
pub enum LinuxError {
    /// No user space under this KVM.
    #[error(
        "this host's KVM is kvm_pvm, under which a Linux guest reaches no user space: use the bare guest here \
         (`--guest bare`), or a host with kvm_intel or kvm_amd"
    )]
    Emulated,
    /// A file cannot be read.
    #[error(transparent)]
    Input(#[from] InputError),
    /// Nothing can be put where others type.
    #[error("the guest's serial port cannot be given /dev/null to read")]
    Silence(#[source] std::io::Error),
    /// A file that is no kernel.
    #[error("the kernel {} {refusal}", path.display())]
    Kernel {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it.
        refusal: Refusal,
    },
    /// A kernel that cannot be loaded.
    #[error("{}", path.display())]
    Load {
        /// The file or directory.
        path: PathBuf,
        /// What went wrong there.
        source: LoadError,
    },
    /// No modules for this kernel.
    #[error(
        "no modules for the kernel {}: none in {}; name their directory with `--modules`, or `modules` in [linux]",
        kernel.display(),
        looked.join(", ")
    )]
    NoModules {
        /// Which kernel.
        kernel: PathBuf,
        /// Where they were looked for.
        looked: Vec<String>,
    },
    /// A module that is needed and not there, or no module.
    #[error(transparent)]
    Module(#[from] ModuleError),
    /// The initramfs could not be made.
    #[error("the guest's initramfs cannot be made")]
    Initramfs(#[from] CpioError),
    /// The machine.
    #[error(transparent)]
    Machine(#[from] PcError),
    /// The disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The agent.
    #[error("the Linux guest did not come up{}; its vCPUs:{vcpus}\nbecause", console_tail(console))]
    Agent {
        /// What it said.
        source: AgentError,
        /// Where its vCPUs are.
        vcpus: String,
        /// The end of its console.
        console: String,
    },
    /// A thread for the agent could not be started.
    #[error("no thread can be started for the guest's agent{}", remedy::after_io(Asked::Thread, .0))]
    Thread(#[source] std::io::Error),
    /// The kernel has not brought up every vCPU.
    #[error("the Linux guest has {online} of {wanted} vCPUs online: its console says why")]
    Vcpus {
        /// How many there are.
        wanted: u32,
        /// How many it has.
        online: usize,
    },
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
/// What the agent talks through, what it is measured with, and what its disk needs.
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
    // Where one archive follows another the kernel looks at multiples of four.
    archive.resize(archive.len().next_multiple_of(4), 0);
    let mut wanted = MODULES.to_vec();
    wanted.extend(setup.guest.disk.as_ref().map(|_| DISK_MODULE));
    let directory = modules_of(setup, kernel)?;
    let modules = modules::load_order(&directory, &wanted, setup.guest.memory.min(MODULES_MOST))?;
    let modules: Vec<_> = modules.into_iter().map(|module| (module.name, module.image)).collect();
    let bytes: usize = modules.iter().map(|(_, image)| image.len()).sum();
    let none = |_| ModuleError::NoMemory { path: directory.clone(), bytes: bytes as u64 };
    archive.try_reserve(bytes).map_err(none)?;
    let mut writer = Writer::new(archive);
    for entry in initramfs::entries(resources::AGENT, &modules) {
        let path = &entry.path;
        match entry.kind {
            Kind::Directory => writer.directory(path, 0o755)?,
            Kind::File(mut bytes) => writer.file(path, 0o644, bytes.len() as u64, &mut bytes)?,
            Kind::Program(mut bytes) => writer.file(path, 0o755, bytes.len() as u64, &mut bytes)?,
            Kind::Device { major, minor } => writer.character_device(path, 0o600, (major, minor))?,
        }
    }
    Ok(writer.finish()?)
}

/// Where the kernel's modules are.
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
