//! Swap areas that are not this run's and may hold a row's pages. A swap area serves every process: the kernel fills the one
//! of the highest priority first, and reads back what lies in one that is switched off. Two runs with a device each take their
//! pages to the same one, and the end of one run brings pages of the other back.

use std::fs::File;
use std::path::{Path, PathBuf};

use guest_mem::{SwapArea, SwapInfo};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The host's swap areas, watched while a row is made.
#[derive(Debug)]
pub struct SwapWatch {
    /// The file tells when an area came or went since it was opened, also one that is gone again by now.
    swaps: Option<File>,
    /// Areas that this run made.
    ours: Vec<PathBuf>,
    before: SwapInfo,
}

impl SwapWatch {
    /// Watches from now on.
    pub fn begin(ours: Vec<PathBuf>) -> Self {
        Self { swaps: File::open("/proc/swaps").ok(), ours, before: SwapInfo::read() }
    }

    /// A warning for the reader of the row, if other areas may have mattered.
    pub fn end(self) -> Option<String> {
        let changed = self.swaps.as_ref().is_some_and(has_changed);
        told(&self.ours, &self.before, &SwapInfo::read(), changed)
    }
}

fn has_changed(swaps: &File) -> bool {
    let mut waiting = [PollFd::new(swaps, PollFlags::PRI)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut waiting, Some(&at_once)).is_ok()
        && waiting[0].revents().intersects(PollFlags::PRI | PollFlags::ERR)
}

/// The sentence of [`SwapWatch::end`].
fn told(ours: &[PathBuf], before: &SwapInfo, after: &SwapInfo, changed: bool) -> Option<String> {
    let is_ours = |area: &SwapArea| ours.contains(&area.path);
    let all = || before.areas.iter().chain(&after.areas);
    let mut parts = Vec::new();
    if let Some(own) = all().filter(|area| is_ours(area)).map(|area| area.priority).max() {
        let mut first: Vec<&Path> =
            all().filter(|area| !is_ours(area) && area.priority >= own).map(|area| &*area.path).collect();
        first.sort();
        first.dedup();
        if !first.is_empty() {
            parts.push(format!(
                "{} of somebody else's has no lower priority than this run's own: pages of this row may lie there",
                listed(&first)
            ));
        }
    }
    if changed {
        let missing_in = |there: &SwapInfo, in_: &SwapInfo| -> String {
            let gone = there.areas.iter().filter(|area| in_.find(&area.path).is_none());
            listed(&gone.map(|area| &*area.path).collect::<Vec<_>>())
        };
        let which = match (missing_in(after, before), missing_in(before, after)) {
            (came, went) if came.is_empty() && went.is_empty() => "one came and went".to_owned(),
            (came, went) if went.is_empty() => format!("{came} came"),
            (came, went) if came.is_empty() => format!("{went} went"),
            (came, went) => format!("{came} came, {went} went"),
        };
        parts.push(format!(
            "swap areas changed while this row was made ({which}): pages that lie in one that goes come back by themselves"
        ));
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

fn listed(paths: &[&Path]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn areas(areas: &[(&str, i32)]) -> SwapInfo {
        let area =
            |&(path, priority): &(&str, i32)| SwapArea { path: path.into(), size: 1, used: 0, priority };
        SwapInfo { areas: areas.iter().map(area).collect() }
    }

    #[test]
    fn an_area_of_our_own_that_comes_first_is_nothing_to_tell() {
        let swaps = areas(&[("/dev/zram0", 100), ("/dev/vda2", -2)]);
        assert_eq!(told(&["/dev/zram0".into()], &swaps, &swaps, false), None);
        // Without an area of our own, all areas are the user's.
        assert_eq!(told(&[], &swaps, &swaps, false), None);
        assert_eq!(told(&[], &areas(&[]), &areas(&[]), false), None);
    }

    #[test]
    fn an_area_of_somebody_else_s_that_comes_first_is_named() {
        let (alone, both) =
            (areas(&[("/dev/zram0", 100)]), areas(&[("/dev/zram0", 100), ("/dev/zram1", 101)]));
        for (before, after) in [(&both, &both), (&alone, &both), (&both, &alone)] {
            let said = told(&["/dev/zram0".into()], before, after, false).unwrap();
            assert!(said.starts_with("/dev/zram1 of somebody else's") && !said.contains("zram0"), "{said}");
        }
        let same = areas(&[("/dev/zram0", 100), ("/dev/zram1", 100)]);
        assert!(told(&["/dev/zram0".into()], &same, &same, false).is_some(), "the kernel takes turns");
    }

    #[test]
    fn what_came_and_went_is_told() {
        let (a, b) = (areas(&[("/dev/a", 1)]), areas(&[("/dev/b", 1)]));
        for (before, after, words) in [
            (&a, &areas(&[]), "(/dev/a went)"),
            (&areas(&[]), &a, "(/dev/a came)"),
            (&a, &b, "(/dev/b came, /dev/a went)"),
            (&a, &a, "(one came and went)"),
        ] {
            let said = told(&[], before, after, true).unwrap();
            assert!(said.contains(words) && said.contains("come back by themselves"), "{said}");
        }
    }
}
