//! Going on where one ioctl stops: a handler that needs no more than what a [`uffd::ResolveError`] says.
//!
//! ```text
//!   step(rest) ─ all ──────────────────> filled
//!      │  Stopped: done += count ──────> step(rest) at once, which says why
//!      │  Exists:  done += one page ───> step(rest): somebody else was there first
//!      │  Changing: drain, yield ──────> step(rest), as long as patience lasts
//!      └─ anything else ───────────────> given up, with the bytes done
//! ```

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use guest_mem::{Address, Hva, HvaRange, PAGE_SIZE};
use uffd::{Action, MapAs, ResolveError, ResolveKind, Userfault, Wake};

test_memory::tests! {
    it_goes_on_where_it_stopped_and_steps_over_what_is_there: [],
    the_last_page_may_exist: [],
    a_change_is_waited_out_by_draining: [],
    a_change_that_does_not_end_ends_it: [],
    what_cannot_be_helped_is_given_up_with_an_exact_count: [],
    a_step_that_claims_to_stop_without_progress_does_not_spin: [],
}

/// What to do when a mapping changes under a call.
///
/// `EAGAIN` lasts until somebody reads the event. If that may be this thread, `drain` must do it, or patience runs
/// out. The processor is yielded between two attempts and nothing sleeps.
pub struct Retry<'a> {
    /// How long attempts go on while nothing gets done. Progress starts it anew.
    pub patience: Duration,
    /// What an existing page is passed over by: the page size of the memory.
    pub granule: u64,
    /// Called before each new attempt. It may read and act on events, and ends the attempts with
    /// [`ControlFlow::Break`] if one of them takes the range away.
    pub drain: &'a mut dyn FnMut() -> ControlFlow<()>,
}

impl<'a> Retry<'a> {
    /// For base pages, with a second's patience.
    pub fn draining(drain: &'a mut dyn FnMut() -> ControlFlow<()>) -> Self {
        Self { patience: Duration::from_secs(1), granule: PAGE_SIZE, drain }
    }
}

/// How a whole range got filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Filled {
    /// Bytes that were put in.
    pub filled: u64,
    /// Bytes that were there already.
    pub existed: u64,
}

/// [`Userfault::copy`] until all is done or cannot be. Who waits for a page that was there already is woken as well.
pub fn copy_all(
    userfault: &Userfault,
    dst: Hva,
    src: &[u8],
    wake: Wake,
    retry: &mut Retry<'_>,
) -> Result<Filled, ResolveError> {
    let range = HvaRange::with_len(dst, src.len() as u64).unwrap();
    let (filled, end) = fill_all(range, retry, &mut |rest| {
        let at = (rest.start().get() - dst.get()) as usize;
        userfault.copy(rest.start(), &src[at..], MapAs::Writable, wake)
    });
    // The kernel wakes for what it did, not for what it met: whoever waits there would wait on.
    if wake == Wake::Yes && filled.existed > 0 {
        userfault.wake(HvaRange::with_len(dst, filled.filled + filled.existed).unwrap())?;
    }
    end.map(|()| filled)
}

/// Takes steps until the range is done. Gives what is in place, and what ended it if that is not all.
fn fill_all(
    range: HvaRange,
    retry: &mut Retry<'_>,
    step: &mut dyn FnMut(HvaRange) -> Result<(), ResolveError>,
) -> (Filled, Result<(), ResolveError>) {
    let mut filled = Filled::default();
    let mut stuck_since = None;
    loop {
        let done = filled.filled + filled.existed;
        // `done` never passes the end.
        let rest = range.start().checked_add(done).and_then(|start| HvaRange::new(start, range.end()));
        let Some(rest) = rest.filter(|rest| !rest.is_empty()) else { return (filled, Ok(())) };
        let Err(error) = step(rest) else {
            filled.filled += rest.len();
            return (filled, Ok(()));
        };
        filled.filled += error.done.min(rest.len());
        match error.kind {
            ResolveKind::Stopped if error.done > 0 => stuck_since = None,
            ResolveKind::Exists => {
                stuck_since = None;
                filled.existed += retry.granule.clamp(1, rest.len());
            }
            ResolveKind::Changing if may_go_on(retry, &mut stuck_since) => {}
            _ => {
                let done = filled.filled + filled.existed;
                return (filled, Err(ResolveError { range, done, ..error }));
            }
        }
    }
}

/// Lets others read the event, or reads it. Whether there is to be another attempt.
fn may_go_on(retry: &mut Retry<'_>, stuck_since: &mut Option<Instant>) -> bool {
    let patience_left = stuck_since.get_or_insert_with(Instant::now).elapsed() < retry.patience;
    if (retry.drain)().is_break() || !patience_left {
        return false;
    }
    std::thread::yield_now();
    true
}

const PAGES: u64 = 8;

fn range() -> HvaRange {
    HvaRange::with_len(Hva::new(0x10000), PAGES * PAGE_SIZE).unwrap()
}

/// A kernel that plays back answers: pages done, and why no more. After the last it does all.
fn play(
    answers: &[(u64, ResolveKind)],
    patience: Duration,
    drain: &mut dyn FnMut() -> ControlFlow<()>,
) -> (Vec<u64>, Filled, Result<(), ResolveError>) {
    let mut answers = answers.iter();
    let mut asked = Vec::new();
    let mut step = |rest: HvaRange| {
        assert_eq!(rest.end(), range().end());
        asked.push((rest.start().get() - range().start().get()) / PAGE_SIZE);
        answers.next().map_or(Ok(()), |&(pages, kind)| {
            Err(ResolveError { action: Action::Copy, range: rest, done: pages * PAGE_SIZE, kind })
        })
    };
    let mut retry = Retry { patience, ..Retry::draining(drain) };
    let (filled, end) = fill_all(range(), &mut retry, &mut step);
    (asked, filled, end)
}

const LONG: Duration = Duration::from_secs(1000);

fn filled(filled: u64, existed: u64) -> Filled {
    Filled { filled: filled * PAGE_SIZE, existed: existed * PAGE_SIZE }
}

fn it_goes_on_where_it_stopped_and_steps_over_what_is_there() {
    use ResolveKind::{Exists, Stopped};
    let answers = [(2, Stopped), (0, Exists), (0, Exists), (3, Stopped)];
    let (asked, done, end) = play(&answers, LONG, &mut || unreachable!());
    assert_eq!((asked, done, end), (vec![0, 2, 3, 4, 7], filled(6, 2), Ok(())));
}

fn the_last_page_may_exist() {
    use ResolveKind::{Exists, Stopped};
    let (asked, done, end) = play(&[(7, Stopped), (0, Exists)], LONG, &mut || unreachable!());
    assert_eq!((asked, done, end), (vec![0, 7], filled(7, 1), Ok(())));
}

fn a_change_is_waited_out_by_draining() {
    use ResolveKind::{Changing, Stopped};
    let mut drained = 0;
    let answers = [(1, Stopped), (0, Changing), (0, Changing)];
    let (asked, done, end) = play(&answers, LONG, &mut || {
        drained += 1;
        ControlFlow::Continue(())
    });
    assert_eq!((asked, done, end), (vec![0, 1, 1, 1], filled(8, 0), Ok(())));
    assert_eq!(drained, 2);
}

fn a_change_that_does_not_end_ends_it() {
    use ResolveKind::{Changing, Stopped};
    let mut drained = 0;
    let mut drain = || {
        drained += 1;
        ControlFlow::Continue(())
    };
    let (asked, done, end) = play(&[(1, Stopped), (0, Changing)], Duration::ZERO, &mut drain);
    let error = end.unwrap_err();
    assert_eq!((error.kind, error.done, error.range), (Changing, PAGE_SIZE, range()));
    // The events were given a last chance.
    assert_eq!((asked, done, drained), (vec![0, 1], filled(1, 0), 1));

    let (asked, _, end) = play(&[(0, Changing)], LONG, &mut || ControlFlow::Break(()));
    assert_eq!((asked, end.unwrap_err().kind), (vec![0], Changing));
}

fn what_cannot_be_helped_is_given_up_with_an_exact_count() {
    use ResolveKind::{Dead, Exists, NoMapping, Stopped};
    for kind in [NoMapping, Dead] {
        let answers = [(2, Stopped), (0, Exists), (0, kind)];
        let (_, done, end) = play(&answers, LONG, &mut || unreachable!());
        let error = end.unwrap_err();
        assert_eq!((error.kind, error.done, done), (kind, 3 * PAGE_SIZE, filled(2, 1)));
    }
}

fn a_step_that_claims_to_stop_without_progress_does_not_spin() {
    let (asked, _, end) = play(&[(0, ResolveKind::Stopped)], LONG, &mut || unreachable!());
    assert_eq!((asked, end.unwrap_err().kind), (vec![0], ResolveKind::Stopped));
}
