//! Why modules could not be had.

use std::io;
use std::path::PathBuf;

use program::exit::{Class, Classified};
use program::input::InputError;
use program::units;

/// Files at most in a directory of modules. Debian's has 4,400.
pub(super) const MAX_FILES: usize = 200_000;
/// Modules at most in one load order. Debian's kernel comes with 1,100 in all.
pub(super) const MAX_MODULES: usize = 4096;

/// Why modules could not be had.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum ModuleError {
    #[error("there is no module {name:?} in {}, and it is not built in{}", .directory.display(), wanted_by(.by.as_deref()))]
    Missing { name: String, by: Option<String>, directory: PathBuf },
    #[error(transparent)]
    Input(#[from] InputError),
    #[error("the directory of modules {} cannot be read{}", .path.display(), read_remedy(.source))]
    Directory { path: PathBuf, source: io::Error },
    #[error("{} has more than {MAX_FILES} files: it is no directory of modules", .0.display())]
    Crowded(PathBuf),
    #[error(
        "the modules up to {} have more than {} together: give the guest more memory (`memory` in [linux]), or name its \
         own kernel's modules",
        .path.display(), units::bytes(*.room)
    )]
    Room { path: PathBuf, room: u64 },
    #[error("{} is {}", .path.display(), .why)]
    Damaged { path: PathBuf, why: String },
    #[error("no memory for {bytes} bytes, to unpack {}: free memory on the host, or raise `ulimit -v`", .path.display())]
    NoMemory { path: PathBuf, bytes: u64 },
    #[error("the modules {0} need one another: no order loads them")]
    Cycle(String),
    #[error("more than {MAX_MODULES} modules would be loaded: ask for fewer")]
    TooMany,
}

impl Classified for ModuleError {
    fn class(&self) -> Class {
        match self {
            Self::Input(error) => error.class(),
            Self::Directory { source, .. } => Class::of_named_file(source),
            Self::NoMemory { .. } => Class::Host,
            _ => Class::Mistake,
        }
    }
}

fn read_remedy(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ": name one with `--modules`",
        io::ErrorKind::PermissionDenied => ": give this user the right to",
        _ => "",
    }
}

fn wanted_by(by: Option<&str>) -> String {
    by.map(|by| format!(" (needed by {by:?})")).unwrap_or_default()
}
