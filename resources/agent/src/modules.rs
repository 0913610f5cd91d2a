//! Kernel modules, which the VMM put into the initramfs in the order in which they depend on each other.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::system::finit_module;

const DIRECTORY: &str = "/modules";

/// Loads every `NN-name.ko`, lowest number first. Returns a line for each that did not load.
pub fn load_all() -> Vec<String> {
    let Ok(entries) = fs::read_dir(DIRECTORY) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "ko"));
    paths.sort_unstable();
    let failed = |path: &PathBuf| Some(format!("module {}: {}", path.display(), load(path).err()?));
    paths.iter().filter_map(failed).collect()
}

fn load(path: &Path) -> io::Result<()> {
    match finit_module(File::open(path)?, c"", 0) {
        // Built in, or loaded by the kernel itself.
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        // The file is open: it is not the one that is missing.
        Err(Errno::NOENT) => Err(io::Error::other("a module that it depends on is not loaded")),
        Err(error) => Err(error.into()),
    }
}
