//! Changes that make an object of the kernel: a zram device, a cgroup.

use super::*;

/// One zram device. Its number may be reused, and other programs make devices too.
#[derive(Debug)]
pub(super) struct Disk {
    number: u32,
    diskseq: u64,
}

impl Disk {
    pub(super) fn of(number: u32) -> Self {
        Self { number, diskseq: crate::zram::diskseq_of(number).unwrap() }
    }

    fn parse(text: &str) -> Self {
        let (number, diskseq) = text.split_once(':').unwrap();
        Self { number: number.parse().unwrap(), diskseq: diskseq.parse().unwrap() }
    }

    fn exists(&self) -> bool {
        crate::zram::diskseq_of(self.number) == Some(self.diskseq)
    }
}

impl fmt::Display for Disk {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.number, self.diskseq)
    }
}

#[test]
#[ignore = "needs: Zram"]
fn a_killed_run_leaves_no_zram_behind() {
    let (child, guardian, disk) = run_child("zram", Path::new("/"));
    let disk = Disk::parse(&disk);
    let name = format!("zram{}", disk.number);
    fs::write(format!("/sys/block/{name}/disksize"), "16M").unwrap();
    let formatted = Command::new("mkswap").arg(format!("/dev/{name}")).stdout(Stdio::null()).status();
    let swapped = Command::new("swapon").args(["-p", "0", &format!("/dev/{name}")]).status();
    let in_use = formatted.is_ok_and(|status| status.success()) && swapped.is_ok_and(|one| one.success());
    assert!(disk.exists());
    program::output::message(format_args!(
        "the device is {} when its run is killed",
        if in_use { "swapped to" } else { "idle" }
    ));
    kill_run(child, guardian);
    assert!(!disk.exists(), "{disk} is left");
}

#[test]
#[ignore = "needs: Zram"]
fn a_zram_whose_number_was_not_read_is_removed() {
    let (child, guardian, disk) = run_child("zram-unread", Path::new("/"));
    let disk = Disk::parse(&disk);
    assert!(disk.exists());
    kill_run(child, guardian);
    assert!(!disk.exists(), "{disk} is left");
}

#[test]
#[ignore = "needs: Zram"]
fn a_zram_is_removed_in_the_ordinary_way() {
    let (changes, announced) = changes();
    let added = changes.add_zram("a test").unwrap();
    let disk = Disk::of(added.number);
    assert!(disk.exists());
    changes.undo(added.change).unwrap();
    assert!(!disk.exists());
    drop(changes);
    assert_eq!(announced.lock().unwrap().len(), 2);
}

/// A path for a cgroup of this process. Cgroups of earlier test processes that were killed with their guardians are removed.
fn cgroup_in(parent: &Path) -> PathBuf {
    const NAME: &str = "zapscope-test-";
    for old in fs::read_dir(parent).unwrap().flatten() {
        let owner = old.file_name().to_str().and_then(|name| name.strip_prefix(NAME)?.parse().ok());
        if owner.is_some_and(|owner| !is_running(owner)) {
            let _ = UndoAction::RemoveCgroup { path: old.path(), home: parent.to_owned() }.perform();
        }
    }
    parent.join(format!("{NAME}{}", std::process::id()))
}

#[test]
#[ignore = "needs: Cgroup"]
fn a_cgroup_is_removed_with_a_process_still_in_it() {
    let parent = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"]
        .into_iter()
        .find(|parent| Path::new(parent).join("cgroup.procs").exists())
        .unwrap();
    // A cgroup of a process that does not exist: no process has this number.
    let left = Path::new(parent).join(format!("zapscope-test-{}", i32::MAX));
    fs::create_dir(&left).unwrap();
    let (changes, _) = changes();
    let path = cgroup_in(Path::new(parent));
    assert!(!left.exists(), "the cgroup of a killed test is removed");
    changes.make_cgroup(&path, parent, "a test").unwrap();
    let mut sleeper = Command::new("sleep").arg("60").spawn().unwrap();
    fs::write(path.join("cgroup.procs"), sleeper.id().to_string()).unwrap();
    drop(changes);
    assert!(!path.exists());
    assert!(sleeper.try_wait().unwrap().is_none(), "its process lives on");
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
}
