use std::os::unix::fs::PermissionsExt;

use super::*;

fn remove(number: u32) -> UndoAction {
    UndoAction::RemoveZram { number, diskseq: Some(7) }
}

fn plan(id: u64) -> Request {
    Request::Plan { id, action: remove(id as u32) }
}

struct Place {
    _above: tempfile::TempDir,
    directory: PathBuf,
}

impl Place {
    fn new() -> Self {
        let above = tempfile::tempdir().unwrap();
        let directory = above.path().join("zapscope");
        Self { _above: above, directory }
    }

    fn begin(&self, token: &str) -> ChangeLog {
        ChangeLog::begin(std::slice::from_ref(&self.directory), token).unwrap()
    }

    fn abandoned(&self) -> Vec<Abandoned> {
        Abandoned::find(std::slice::from_ref(&self.directory))
    }
}

#[test]
fn a_log_is_taken_when_run_and_guardian_have_ended() {
    let place = Place::new();
    let mut run = place.begin("1-a");
    run.note(&plan(1)).unwrap();
    run.note(&plan(2)).unwrap();
    let mut guardian = ChangeLog::join(run.path()).unwrap();
    guardian.note(&Request::Forget { id: 1 }).unwrap();
    assert!(place.abandoned().is_empty());
    drop(run);
    assert!(place.abandoned().is_empty(), "the guardian runs");
    drop(guardian);
    let found = place.abandoned();
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].pid, found[0].outstanding.actions.as_slice()),
        (std::process::id(), &[(2, remove(2))][..])
    );
    assert!(place.abandoned().is_empty(), "it is not found twice");
    for one in found {
        one.log.end();
    }
    assert!(!place.directory.exists(), "the directory is removed");
}

#[test]
fn the_last_log_takes_the_directory_along() {
    let place = Place::new();
    let (first, second) = (place.begin("1-a"), place.begin("2-b"));
    first.end();
    assert!(place.directory.exists());
    second.end();
    assert!(!place.directory.exists());
    place.begin("3-c").end();
}

#[test]
fn a_zram_device_without_an_answer_is_known_by_its_request() {
    let place = Place::new();
    let mut log = place.begin("1-a");
    log.note(&Request::AddZram { id: 1 }).unwrap();
    log.note(&Request::AddZram { id: 2 }).unwrap();
    log.note(&plan(2)).unwrap();
    let outstanding = log.outstanding().unwrap();
    assert_eq!((outstanding.unreported.as_slice(), outstanding.actions.len()), (&[1][..], 1));
    log.note(&Request::Forget { id: 1 }).unwrap();
    assert!(log.outstanding().unwrap().unreported.is_empty());
}

#[test]
fn a_line_without_its_end_is_ignored() {
    let place = Place::new();
    let mut log = place.begin("1-a");
    log.note(&plan(1)).unwrap();
    log.file.write_all(br#"{"plan":{"id":2,"#).unwrap();
    drop(log);
    assert_eq!(place.abandoned()[0].outstanding.actions, [(1, remove(1))]);
}

#[test]
fn logs_of_an_earlier_boot_and_empty_ones_are_removed() {
    let place = Place::new();
    drop(place.begin("1-a"));
    let mut old = place.begin("2-b");
    old.note(&plan(1)).unwrap();
    let text = fs::read_to_string(old.path()).unwrap().replace(&this_boot(), "another");
    fs::write(old.path(), text).unwrap();
    drop(old);
    assert!(place.abandoned().is_empty());
    assert!(!place.directory.exists());
}

#[test]
fn a_log_that_other_users_can_write_is_not_performed() {
    let place = Place::new();
    let mut log = place.begin("1-a");
    log.note(&plan(1)).unwrap();
    let path = log.path().to_owned();
    drop(log);
    fs::set_permissions(&path, PermissionsExt::from_mode(0o622)).unwrap();
    assert!(place.abandoned().is_empty(), "a file that others may write");
    fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    fs::set_permissions(&place.directory, PermissionsExt::from_mode(0o777)).unwrap();
    assert!(place.abandoned().is_empty(), "a directory that others may write");
    let refused = ChangeLog::begin(std::slice::from_ref(&place.directory), "2-b").unwrap_err();
    assert_eq!(refused.source.kind(), ErrorKind::PermissionDenied);
    fs::set_permissions(&place.directory, PermissionsExt::from_mode(0o700)).unwrap();
    assert_eq!(place.abandoned().len(), 1);
}

#[test]
fn the_second_directory_serves_where_the_first_cannot() {
    let place = Place::new();
    let nowhere = PathBuf::from("/proc/nowhere");
    let log = ChangeLog::begin(&[nowhere.clone(), place.directory.clone()], "1-a").unwrap();
    assert!(log.path().starts_with(&place.directory));
    let refused = ChangeLog::begin(&[nowhere], "1-a").unwrap_err().to_string();
    assert!(refused.contains("/proc/nowhere"), "{refused}");
}

#[test]
fn runs_begin_and_end_at_the_same_time() {
    let place = Place::new();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let place = &place;
            scope.spawn(move || {
                for round in 0..25 {
                    let mut log = place.begin(&format!("{thread}-{round}"));
                    log.note(&plan(1)).unwrap();
                    assert!(place.abandoned().is_empty(), "no run has ended");
                    log.end();
                }
            });
        }
    });
    assert!(!place.directory.exists());
}
