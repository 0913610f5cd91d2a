//! Debian's packages: fetched by `apt-get download`, kept, and unpacked beside without being installed.
//!
//! ```text
//! target/nested/packages/NAME_VERSION_amd64.deb    as fetched
//! target/nested/unpacked/NAME_VERSION_amd64/       its files
//! target/nested/apt/                               package lists of our own, where the system has none
//! ```

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::{Trouble, create};

/// The packages of the rig, unpacked.
pub struct Packages {
    /// Debian's kernel that the rig runs on, and that guests boot.
    pub host: Kernel,
    /// The other that guests boot.
    pub older: Kernel,
    /// A shell and the tools of a minimal system.
    pub busybox: PathBuf,
}

/// A kernel package, unpacked.
pub struct Kernel {
    /// As `uname -r` has it.
    pub release: String,
    /// The bzImage.
    pub vmlinuz: PathBuf,
    /// `/lib/modules/RELEASE` of the package.
    pub modules: PathBuf,
}

/// Fetches what is not there yet, and unpacks it.
pub fn unpacked(directory: &Path) -> Result<Packages, Trouble> {
    let store = Store { directory };
    Ok(Packages {
        host: store.kernel("linux-image-6.12-cloud-amd64", "linux-image-6.12.")?,
        older: store.kernel("linux-image-cloud-amd64", "linux-image-6.1.")?,
        busybox: store.package("busybox-static")?.join("bin/busybox"),
    })
}

struct Store<'a> {
    directory: &'a Path,
}

impl Store<'_> {
    /// The kernel that the metapackage `meta` depends on, or the newest one kept, whose name begins with `family`.
    fn kernel(&self, meta: &str, family: &str) -> Result<Kernel, Trouble> {
        let root = match self.depended_on(meta, family) {
            Some(name) => self.package(&name)?,
            None => self.newest_kept(family)?,
        };
        let modules = only_entry(&root.join("lib/modules"))?;
        let release = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let vmlinuz = root.join("boot").join(format!("vmlinuz-{release}"));
        Ok(Kernel { release, vmlinuz, modules })
    }

    /// What `meta` depends on, by the system's package lists or by our own.
    fn depended_on(&self, meta: &str, family: &str) -> Option<String> {
        let name_in = |output: Output| {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            text.lines()
                .find_map(|line| {
                    line.trim().strip_prefix("Depends: ").filter(|name| name.starts_with(family))
                })
                .map(str::to_owned)
        };
        let ask = |options: &[OsString]| {
            Command::new("apt-cache").args(options).args(["depends", meta]).output().ok().and_then(name_in)
        };
        ask(&[]).or_else(|| ask(&self.own_lists()?))
    }

    /// The package, unpacked.
    fn package(&self, name: &str) -> Result<PathBuf, Trouble> {
        if let Ok(kept) = self.newest_kept(&format!("{name}_")) {
            return Ok(kept);
        }
        let fetched = self.fetch(name, &[]).or_else(|why| match self.own_lists() {
            Some(options) => self.fetch(name, &options),
            None => Err(why),
        })?;
        self.unpack(&fetched)
    }

    /// The kept package whose file name begins with `prefix`, unpacked. With several, the last by name.
    fn newest_kept(&self, prefix: &str) -> Result<PathBuf, Trouble> {
        let missing =
            || Trouble::Missing(format!("no package {prefix}* can be had from apt-get, and none is kept"));
        let entries = std::fs::read_dir(self.directory.join("packages")).map_err(|_| missing())?;
        let mut kept: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)))
            .collect();
        kept.sort();
        self.unpack(&kept.pop().ok_or_else(missing)?)
    }

    /// Downloads a package and keeps it. It is moved to its place only when it is whole.
    fn fetch(&self, name: &str, options: &[OsString]) -> Result<PathBuf, Trouble> {
        let (packages, partial) = (self.directory.join("packages"), self.directory.join("partial"));
        create(&packages)?;
        remove(&partial)?;
        create(&partial)?;
        let output = Command::new("apt-get")
            .args(options)
            .args(["-o", "APT::Sandbox::User=root", "download", name])
            .current_dir(&partial)
            .output()
            .map_err(|error| Trouble::Missing(format!("apt-get cannot be started: {error}")))?;
        if !output.status.success() {
            return Err(Trouble::Missing(format!(
                "`apt-get download {name}`: {}",
                last_line(&output.stderr)
            )));
        }
        let fetched = only_entry(&partial)?;
        let kept = packages.join(fetched.file_name().expect("an entry has a name"));
        std::fs::rename(&fetched, &kept).map_err(Trouble::broken(kept.display()))?;
        Ok(kept)
    }

    /// Unpacks a package, unless it is unpacked already.
    fn unpack(&self, package: &Path) -> Result<PathBuf, Trouble> {
        let unpacked =
            self.directory.join("unpacked").join(package.file_stem().expect("a package has a name"));
        if unpacked.is_dir() {
            return Ok(unpacked);
        }
        let partial = unpacked.with_extension("partial");
        remove(&partial)?;
        create(&partial)?;
        let output = Command::new("dpkg-deb")
            .arg("-x")
            .args([package, &partial])
            .output()
            .map_err(|error| Trouble::Missing(format!("dpkg-deb cannot be started: {error}")))?;
        if !output.status.success() {
            // What cannot be unpacked is not kept for the next time.
            remove(package)?;
            let why = last_line(&output.stderr);
            return Err(Trouble::Broken(format!("`dpkg-deb -x {}`: {why}", package.display())));
        }
        std::fs::rename(&partial, &unpacked).map_err(Trouble::broken(unpacked.display()))?;
        Ok(unpacked)
    }

    /// apt's options for package lists of our own, fetched now: a system may have none (a container's are often
    /// removed), and changing the system's is not for a test to do.
    fn own_lists(&self) -> Option<Vec<OsString>> {
        let apt = self.directory.join("apt");
        create(&apt.join("state/lists/partial")).ok()?;
        create(&apt.join("cache/archives/partial")).ok()?;
        let option = |key: &str, value: &Path| {
            let mut option = OsString::from(format!("{key}="));
            option.push(value);
            [OsString::from("-o"), option]
        };
        let options = [
            option("Dir::State", &apt.join("state")),
            option("Dir::State::status", Path::new("/var/lib/dpkg/status")),
            option("Dir::Cache", &apt.join("cache")),
            option("APT::Sandbox::User", Path::new("root")),
        ]
        .concat();
        let updated = Command::new("apt-get").args(&options).args(["-qq", "update"]).output().ok()?;
        updated.status.success().then_some(options)
    }
}

/// The only entry of a directory.
fn only_entry(directory: &Path) -> Result<PathBuf, Trouble> {
    let entries = std::fs::read_dir(directory).map_err(Trouble::broken(directory.display()))?;
    let mut entries: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    match (entries.pop(), entries.is_empty()) {
        (Some(only), true) => Ok(only),
        _ => Err(Trouble::Broken(format!("{} should have one entry", directory.display()))),
    }
}

fn remove(path: &Path) -> Result<(), Trouble> {
    let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Trouble::broken(path.display())(error))
        }
        _ => Ok(()),
    }
}

fn last_line(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing").to_owned()
}
