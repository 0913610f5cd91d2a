//! What each thread is doing: work that it has begun and not ended.

use guest_mem::HvaRange;

use notifier_bridge::By;

use super::tracepoints::{Call, Event, What, Work};

/// Work in progress, by thread, in the order in which it was begun.
#[derive(Debug, Default)]
pub struct Ongoing(Vec<(u32, Work)>);

/// The limit on entries: an entry whose end was lost must not stay for ever.
const MOST: usize = 1 << 14;

impl Ongoing {
    /// Notes what a thread begins or ends; returns the range if the event is one.
    pub fn follow(&mut self, event: &Event) -> Option<HvaRange> {
        match event.what {
            What::Begin(work) => self.begin(event.tid, work),
            What::End(work) => self.end(event.tid, work),
            What::Kvm(_) => {}
            What::Range(range) => return Some(range),
        }
        None
    }

    fn begin(&mut self, tid: u32, work: Work) {
        // A userfaultfd ioctl has no end of its own. And a thread is in one system call at a time: if another one is still
        // open, its end was lost.
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

    fn end(&mut self, tid: u32, work: Work) {
        // The record of a call's end does not have its argument.
        let same = |other: Work| std::mem::discriminant(&other) == std::mem::discriminant(&work);
        if let Some(at) = self.0.iter().rposition(|(thread, other)| *thread == tid && same(*other)) {
            self.0.remove(at);
        }
    }

    /// The innermost work of a thread.
    pub fn innermost(&self, tid: u32) -> Option<Work> {
        self.of(tid).next()
    }

    /// The innermost work of a thread that is a cause by itself.
    pub fn cause(&self, tid: u32) -> Option<By> {
        self.of(tid).find_map(Work::maker)
    }

    fn of(&self, tid: u32) -> impl Iterator<Item = Work> {
        self.0.iter().rev().filter(move |(thread, _)| *thread == tid).map(|(_, work)| *work)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TID: u32 = 7;

    fn follow(ongoing: &mut Ongoing, what: What) {
        ongoing.follow(&Event { time_ns: 0, pid: 1, tid: TID, what });
    }

    #[test]
    fn a_call_whose_end_was_lost_ends_with_the_next() {
        let (madvise, mprotect) = (Work::Call(Call::Madvise(4)), Work::Call(Call::Mprotect));
        let mut ongoing = Ongoing::default();
        follow(&mut ongoing, What::Begin(madvise));
        follow(&mut ongoing, What::Begin(mprotect));
        follow(&mut ongoing, What::Begin(Work::DirectReclaim));
        assert_eq!(ongoing.innermost(TID), Some(Work::DirectReclaim));
        follow(&mut ongoing, What::End(Work::DirectReclaim));
        follow(&mut ongoing, What::End(mprotect));
        assert_eq!(ongoing.innermost(TID), None);
    }
}
