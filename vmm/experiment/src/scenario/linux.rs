//! The table `[linux]` of a scenario: the parts of a Linux guest.

use std::path::{Path, PathBuf};

use guest_mem::{Backing, PMD_SIZE};
use serde::Deserialize;

use super::error::{At, Checked, Problem, fault};
use super::vocabulary::GuestPages;
use crate::choice::{Size, Word};

/// The kernel's own memory, unless the scenario says otherwise: a distribution kernel needs a quarter of it.
const MEMORY: u64 = 512 << 20;
/// The least in which a distribution kernel comes up.
const LEAST_MEMORY: u64 = 128 << 20;
const MOST_MEMORY: u64 = 1 << 40;

/// A Linux guest, apart from what every guest has: vCPUs, and the memory under test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinuxGuest {
    /// Bytes of the kernel's own memory, beside the memory under test: a multiple of 2 MiB.
    pub memory: u64,
    /// The backing of that memory.
    pub backing: Backing,
    /// The page size by which the guest maps the memory under test.
    pub pages: GuestPages,
    /// The directory of the kernel's modules; `None`: beside the kernel, or in /lib/modules.
    pub modules: Option<PathBuf>,
    /// Whether the guest reports free pages to the host at moments of its own choosing: in a measurement, noise.
    pub free_page_reporting: bool,
    /// Added to the kernel's command line.
    pub cmdline: String,
    /// An initramfs (cpio) whose files the guest has besides the agent: what `sh` steps run in, if it has a shell.
    pub initrd: Option<PathBuf>,
    /// A raw disk image, read-only: what `sh` steps run in, if the initramfs has no shell.
    pub disk: Option<PathBuf>,
}

impl Default for LinuxGuest {
    fn default() -> Self {
        let (modules, cmdline, initrd, disk) = (None, String::new(), None, None);
        let pages = GuestPages::Huge;
        let backing = Backing::Base4k;
        Self { memory: MEMORY, backing, pages, modules, free_page_reporting: false, cmdline, initrd, disk }
    }
}

impl LinuxGuest {
    /// Sees its relative paths from `directory`.
    pub(super) fn seen_from(&mut self, directory: &Path) {
        for path in [&mut self.modules, &mut self.initrd, &mut self.disk].into_iter().flatten() {
            *path = directory.join(&*path);
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct LinuxText {
    /// The kernel's own memory, beside the memory under test; default 512 MiB.
    memory: Option<At<Word<Size>>>,
    /// What fills it; default `4k`.
    backing: Option<Word<Backing>>,
    /// What the guest maps the memory under test with; default `huge`.
    pages: Option<Word<GuestPages>>,
    /// Where its modules are; default: beside the kernel, or in `/lib/modules`.
    modules: Option<PathBuf>,
    /// Whether the guest reports free pages when it likes, and the host takes them; default false.
    free_page_reporting: bool,
    /// Added to the kernel's command line.
    cmdline: String,
    /// An initramfs whose files the guest has besides the agent: `sh` steps run in it, if it has a shell.
    initrd: Option<PathBuf>,
    /// A raw image with a root file system, read-only: `sh` steps run in it otherwise.
    disk: Option<PathBuf>,
}

pub(super) fn check(text: LinuxText) -> Checked<LinuxGuest> {
    let memory = match &text.memory {
        None => MEMORY,
        Some(at) => {
            let Word(size) = *at.get_ref();
            if !(LEAST_MEMORY..=MOST_MEMORY).contains(&size.0) || !size.0.is_multiple_of(PMD_SIZE) {
                return Err(fault(at, Problem::LinuxMemory(size)));
            }
            size.0
        }
    };
    let pages = text.pages.map_or(GuestPages::Huge, |Word(pages)| pages);
    let backing = text.backing.map_or(Backing::Base4k, |Word(backing)| backing);
    let LinuxText { modules, free_page_reporting, cmdline, initrd, disk, .. } = text;
    Ok(LinuxGuest { memory, backing, pages, modules, free_page_reporting, cmdline, initrd, disk })
}
