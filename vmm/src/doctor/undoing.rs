//! The undoing of changes to the host when zapscope is killed, and changes that an earlier zapscope has left. Those are undone
//! here: the one thing that the doctor changes.

use std::path::PathBuf;

use super::finding::{Finding, Verdict};
use host::in_initial_pid_namespace;
use host::{Leftover, change_log, undo_leftovers};

/// What the host says about undoing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Undoing {
    left: Vec<Leftover>,
    initial_pid_namespace: bool,
    /// Where changes are noted for a later zapscope.
    directory: Option<PathBuf>,
}

pub(super) fn probe() -> Undoing {
    let left = undo_leftovers();
    let directory = change_log::usable(&change_log::directories()).cloned();
    Undoing { left, initial_pid_namespace: in_initial_pid_namespace(), directory }
}

pub(super) fn judge(undoing: &Undoing) -> Vec<Finding> {
    let left = undoing.left.iter().map(|left| {
        let verdict = if left.is_gone { Verdict::Can } else { Verdict::Limited };
        Finding { verdict, ..Finding::can("host as it was", left.text.clone()) }
    });
    left.chain([judge_sigkill(undoing)]).collect()
}

fn judge_sigkill(undoing: &Undoing) -> Finding {
    const SUBJECT: &str = "undo after SIGKILL";
    let noted = undoing
        .directory
        .as_ref()
        .map(|directory| format!("noted in {} for a later zapscope", directory.display()));
    match (undoing.initial_pid_namespace, noted) {
        (true, Some(noted)) => {
            Finding::can(SUBJECT, format!("a process of its own undoes changes; they are {noted}, too"))
        }
        (true, None) => Finding::can(SUBJECT, "a process of its own undoes changes"),
        (false, Some(noted)) => Finding::limited(
            SUBJECT,
            format!("the end of this PID namespace ends the process that would undo changes; they are {noted}"),
        )
        .remedy("let that directory outlive the container: `docker run -v /run/zapscope:/run/zapscope`"),
        (false, None) => Finding::cannot(
            SUBJECT,
            "the end of this PID namespace ends the process that would undo changes, and they can be noted nowhere: none is made",
        )
        .remedy("a writable /run, or a directory named by ZAPSCOPE_STATE_DIR"),
    }
}

/// One finding of each kind that has a remedy.
#[cfg(test)]
pub(super) fn samples() -> Vec<Finding> {
    let of =
        |directory: Option<&str>| Undoing { directory: directory.map(PathBuf::from), ..Undoing::default() };
    [of(Some("/run/zapscope")), of(None)].iter().flat_map(judge).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(initial_pid_namespace: bool, directory: Option<&str>) -> Verdict {
        let directory = directory.map(PathBuf::from);
        judge(&Undoing { left: Vec::new(), initial_pid_namespace, directory })[0].verdict
    }

    #[test]
    fn a_namespace_that_can_end_makes_it_depend_on_the_log() {
        assert_eq!(verdict(true, Some("/run/zapscope")), Verdict::Can);
        assert_eq!(verdict(true, None), Verdict::Can);
        assert_eq!(verdict(false, Some("/run/zapscope")), Verdict::Limited);
        assert_eq!(verdict(false, None), Verdict::Cannot);
    }

    #[test]
    fn what_was_left_is_said_one_by_one() {
        let left = |text: &str, is_gone| Leftover { text: text.to_owned(), is_gone };
        let left = vec![left("undone now: remove zram3", true), left("by hand: rmdir /x", false)];
        let findings = judge(&Undoing { left, initial_pid_namespace: true, directory: None });
        let verdicts: Vec<_> = findings.iter().map(|finding| finding.verdict).collect();
        assert_eq!(verdicts, [Verdict::Can, Verdict::Limited, Verdict::Can]);
    }
}
