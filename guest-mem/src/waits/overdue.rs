//! A wait that its deadline ended.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::left_behind;

/// Overdue waits of this process so far.
static COUNT: AtomicU64 = AtomicU64::new(0);

/// The waiting thread, what it waited for, how long, and the state at the deadline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overdue(Box<Wait>);

/// In a box, to keep the errors that hold one small: they are returned on hot paths.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wait {
    /// The name of the thread that waited.
    thread: String,
    event: String,
    waited: Duration,
    stands: Stands,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Stands {
    /// The event has not come.
    Out,
    /// The event has not come, and this is the state of the thread that should cause it.
    OutAt(String),
    /// The event has come, but its wake was lost.
    Unannounced,
}

impl Overdue {
    /// The calling thread has waited that long for `event`, which has not come.
    pub fn new(event: impl Into<String>, waited: Duration) -> Self {
        Self::of(event.into(), waited, Stands::Out)
    }

    /// `event` had come: only its wake was lost.
    pub fn unannounced(event: impl Into<String>, waited: Duration) -> Self {
        Self::of(event.into(), waited, Stands::Unannounced)
    }

    /// As [`Overdue::new`], for an event that this thread of the process was to cause.
    pub fn from_thread(event: impl Into<String>, waited: Duration, thread: i32) -> Self {
        Self::of(event.into(), waited, seen(thread).map_or(Stands::Out, Stands::OutAt))
    }

    fn of(event: String, waited: Duration, stands: Stands) -> Self {
        COUNT.fetch_add(1, Ordering::Relaxed);
        let thread = std::thread::current().name().unwrap_or("without a name").to_owned();
        Self(Box::new(Wait { thread, event, waited, stands }))
    }

    /// Waits of this process that were ended by their deadlines so far. A caller compares two counts.
    pub fn count() -> u64 {
        COUNT.load(Ordering::Relaxed)
    }

    /// Reports it to the function that receives the reports of destructors.
    pub fn tell(&self) {
        left_behind::tell(&self.to_string());
    }
}

impl fmt::Display for Overdue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Wait { thread, event, waited, stands } = &*self.0;
        write!(f, "thread {thread} waited ")?;
        match waited.as_secs() {
            0 => write!(f, "{} ms", waited.as_millis())?,
            seconds => write!(f, "{seconds} s")?,
        }
        write!(f, " for {event}, ")?;
        match stands {
            Stands::Out => write!(f, "in vain"),
            Stands::OutAt(at) => write!(f, "in vain: its thread is {at}"),
            Stands::Unannounced => write!(f, "which had come, but the wake for it was lost"),
        }?;
        write!(f, "; zapscope or this host's kernel is at fault")
    }
}

impl std::error::Error for Overdue {}

/// The state of a thread of this process, as the kernel shows it.
fn seen(thread: i32) -> Option<String> {
    let file = |name: &str| std::fs::read_to_string(format!("/proc/self/task/{thread}/{name}")).ok();
    let status = file("status")?;
    let state = status.lines().find_map(|line| line.strip_prefix("State:"))?.trim().to_owned();
    Some(match file("wchan").filter(|at| !matches!(at.trim(), "" | "0")) {
        Some(at) => format!("{state} in {}", at.trim()),
        None => state,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_names_the_waiter_the_event_and_its_state() {
        let before = Overdue::count();
        let of = |make: fn() -> Overdue| {
            let waits = std::thread::Builder::new().name("the-waiter".to_owned());
            waits.spawn(make).unwrap().join().unwrap().to_string()
        };
        let text = of(|| Overdue::new("vCPU 3 to leave the guest", Duration::from_secs(30)));
        assert!(
            text.starts_with("thread the-waiter waited 30 s for vCPU 3 to leave the guest, in vain"),
            "{text}"
        );
        let text = of(|| Overdue::unannounced("the gate to open", Duration::from_millis(20)));
        assert!(text.contains("waited 20 ms for the gate to open, which had come"), "{text}");
        // SAFETY: takes nothing and cannot fail.
        let text = of(|| Overdue::from_thread("itself", Duration::from_secs(1), unsafe { libc::gettid() }));
        assert!(text.contains("its thread is R (running)"), "{text}");
        assert!(Overdue::count() >= before + 3, "other tests may have had some");
    }
}
