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
fn a_log_is_taken_only_when_run_and_guardian_are_gone() {
    let place = Place::new();
    let mut run = place.begin("1-a");
    run.note(&plan(1)).unwrap();
    run.note(&plan(2)).unwrap();
    let mut guardian = ChangeLog::join(run.path()).unwrap();
    guardian.note(&Request::Forget { id: 1 }).unwrap();
    assert!(place.abandoned().is_empty());
    drop(run);
    assert!(place.abandoned().is_empty(), "the guardian is there");
    drop(guardian);
    let found = place.abandoned();
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].pid, found[0].noted.actions.as_slice()),
        (std::process::id(), &[(2, remove(2))][..])
    );
    assert!(place.abandoned().is_empty(), "two do not undo the same");
    for one in found {
        one.log.end();
    }
    assert!(!place.directory.exists(), "nothing of it is left");
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
fn a_zram_device_that_nobody_heard_of_is_known_by_its_request() {
    let place = Place::new();
    let mut log = place.begin("1-a");
    log.note(&Request::AddZram { id: 1 }).unwrap();
    log.note(&Request::AddZram { id: 2 }).unwrap();
    log.note(&plan(2)).unwrap();
    let noted = log.outstanding().unwrap();
    assert_eq!((noted.unheard.as_slice(), noted.actions.len()), (&[1][..], 1));
    log.note(&Request::Forget { id: 1 }).unwrap();
    assert!(log.outstanding().unwrap().unheard.is_empty());
}

#[test]
fn a_line_that_was_cut_off_is_of_a_change_that_was_not_made() {
    let place = Place::new();
    let mut log = place.begin("1-a");
    log.note(&plan(1)).unwrap();
    log.file.write_all(br#"{"plan":{"id":2,"#).unwrap();
    drop(log);
    assert_eq!(place.abandoned()[0].noted.actions, [(1, remove(1))]);
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
fn what_somebody_else_may_have_written_is_not_done() {
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
fn two_runs_do_not_change_one_switch() {
    let place = Place::new();
    let switch = Path::new("/sys/switch");
    let (mut first, second) = (place.begin("1-a"), place.begin("2-b"));
    assert_eq!(second.who_else_changes(switch), None);
    let action = UndoAction::WriteFile { path: switch.into(), value: "a".into(), set: "b".into() };
    first.note(&Request::Plan { id: 1, action }).unwrap();
    assert_eq!(second.who_else_changes(switch), Some(std::process::id()));
    assert_eq!(second.who_else_changes(Path::new("/sys/other")), None);
    assert_eq!(first.who_else_changes(switch), None, "its own");
    first.note(&Request::Forget { id: 1 }).unwrap();
    assert_eq!(second.who_else_changes(switch), None);
}

#[test]
fn many_come_and_go_at_once() {
    let place = Place::new();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let place = &place;
            scope.spawn(move || {
                for round in 0..25 {
                    let mut log = place.begin(&format!("{thread}-{round}"));
                    log.note(&plan(1)).unwrap();
                    assert!(place.abandoned().is_empty(), "nobody is dead");
                    log.end();
                }
            });
        }
    });
    assert!(!place.directory.exists());
}
