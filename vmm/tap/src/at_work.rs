//! What threads are at.

use guest_mem::HvaRange;

use notifier_bridge::By;

use super::cause::of_work;
use super::tracepoints::{Call, Event, What, Work};

/// Works that were begun and not ended, by thread, in the order in which they were begun.
#[derive(Debug, Default)]
pub struct AtWork(Vec<(u32, Work)>);

/// The most that are remembered: an end that was lost must not stay for ever.
const MOST: usize = 1 << 14;

impl AtWork {
    /// Notes what a thread begins or ends, and gives back a range that is announced meanwhile.
    pub fn follow(&mut self, event: &Event) -> Option<HvaRange> {
        match event.what {
            What::Begin(work) => self.begin(event.tid, work),
            What::End(work) => self.end(event.tid, work),
            What::Did(_) => {}
            What::Range(range) => return Some(range),
        }
        None
    }

    /// A thread begins with something.
    fn begin(&mut self, tid: u32, work: Work) {
        // A userfaultfd ioctl has no end of its own. And a thread is in one system call at a time: the end of another
        // was lost.
        let over = |other: &Work| match other {
            Work::Call(Call::Userfault(_)) => true,
            Work::Call(_) => matches!(work, Work::Call(_)),
            _ => false,
        };
        self.0.retain(|(thread, other)| *thread != tid || !over(other));
        if self.0.len() == MOST {
            self.0.remove(0);
        }
        self.0.push((tid, work));
    }

    /// It is done with it.
    fn end(&mut self, tid: u32, work: Work) {
        // The argument of a call is not told at its end.
        let same = |other: Work| std::mem::discriminant(&other) == std::mem::discriminant(&work);
        if let Some(at) = self.0.iter().rposition(|(thread, other)| *thread == tid && same(*other)) {
            self.0.remove(at);
        }
    }

    /// The innermost of all.
    pub fn innermost(&self, tid: u32) -> Option<Work> {
        self.of(tid).next()
    }

    /// The innermost that is a cause.
    pub fn cause(&self, tid: u32) -> Option<By> {
        self.of(tid).find_map(of_work)
    }

    fn of(&self, tid: u32) -> impl Iterator<Item = Work> {
        self.0.iter().rev().filter(move |(thread, _)| *thread == tid).map(|(_, work)| *work)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TID: u32 = 7;

    fn follow(at_work: &mut AtWork, what: What) {
        at_work.follow(&Event { time_ns: 0, pid: 1, tid: TID, what });
    }

    #[test]
    fn a_call_whose_end_was_lost_ends_with_the_next() {
        let (madvise, mprotect) = (Work::Call(Call::Madvise(4)), Work::Call(Call::Mprotect));
        let mut at_work = AtWork::default();
        follow(&mut at_work, What::Begin(madvise));
        follow(&mut at_work, What::Begin(mprotect));
        follow(&mut at_work, What::Begin(Work::DirectReclaim));
        assert_eq!(at_work.innermost(TID), Some(Work::DirectReclaim));
        follow(&mut at_work, What::End(Work::DirectReclaim));
        follow(&mut at_work, What::End(mprotect));
        assert_eq!(at_work.innermost(TID), None);
    }
}
