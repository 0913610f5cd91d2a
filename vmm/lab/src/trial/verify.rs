//! Whether every page holds what it should.

use guest_abi::order::Task;
use guest_abi::page::{HEADER_WORDS, WORDS};
use guest_mem::PAGE_SIZE;

use super::{GENERATION, Trial};
use crate::contents::Content;
use crate::errors::TrialError;
use crate::orders;
use experiment::events::Event;

impl Trial<'_> {
    /// Looks at every page.
    pub(super) fn verify(&mut self) -> Result<(), TrialError> {
        let mut wrong = 0;
        let mut first: Option<String> = None;
        for (content, generation) in [(Content::Pattern, GENERATION), (Content::Zeros, 0)] {
            let task = Task::Verify { generation };
            let pages = self.contents.with(content);
            orders::run_list(self.setup.testbed, 0, task, pages, |outcome, _| {
                wrong += outcome.wrong_pages;
                if outcome.wrong_pages > 0 && first.is_none() {
                    first = Some(format!(
                        "first wrong word at gpa {:#x}: {:#x} in place of {:#x}",
                        outcome.wrong_gpa, outcome.wrong_found, outcome.wrong_expected
                    ));
                }
            })?;
        }
        for page in self.contents.with(Content::Either) {
            wrong += u64::from(!self.is_pattern_or_zeros(page));
        }
        self.journal.push(&Event::Verified { wrong });
        first.into_iter().for_each(|first| self.journal.warn(first));
        Ok(())
    }

    /// Checks a page that was given up with `MADV_FREE` from outside: it holds its pattern until the kernel
    /// takes it, then zeros, and the guest's verify knows only one of the two.
    fn is_pattern_or_zeros(&self, page: u64) -> bool {
        let arena = self.testbed().arena();
        let gpa = guest_abi::layout::ARENA_GPA + page * PAGE_SIZE;
        let matches = |generation| {
            (HEADER_WORDS as u64..WORDS as u64).all(|word| {
                let at = arena.hva_at(page * PAGE_SIZE + 8 * word).expect("a page of the arena");
                arena.read_u64(at).ok() == Some(guest_abi::page::pattern(gpa + 8 * word, generation))
            })
        };
        matches(GENERATION) || matches(0)
    }
}
