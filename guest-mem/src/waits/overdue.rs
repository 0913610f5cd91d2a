//! A wait that its deadline ended.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::left_behind;

/// How many there were in this process.
static COUNT: AtomicU64 = AtomicU64::new(0);

/// Who waited for what, how long, and how that stood when the deadline came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overdue(Box<Wait>);

/// In a box: errors that may hold one are returned where time counts.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wait {
    /// The thread that waited, by its name.
    who: String,
    what: String,
    waited: Duration,
    stands: Stands,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Stands {
    /// It has not come.
    Out,
    /// It has not come, and the thread that it should come from does this.
    OutAt(String),
    /// It has come, and nobody was woken for it.
    Unannounced,
}

impl Overdue {
    /// The calling thread has waited that long for `what`, in vain.
    pub fn new(what: impl Into<String>, waited: Duration) -> Self {
        Self::of(what.into(), waited, Stands::Out)
    }

    /// What it waited for had come: only the wake did not.
    pub fn unannounced(what: impl Into<String>, waited: Duration) -> Self {
        Self::of(what.into(), waited, Stands::Unannounced)
    }

    /// It was to come from this thread of the process.
    pub fn from_thread(what: impl Into<String>, waited: Duration, thread: i32) -> Self {
        Self::of(what.into(), waited, seen(thread).map_or(Stands::Out, Stands::OutAt))
    }

    fn of(what: String, waited: Duration, stands: Stands) -> Self {
        COUNT.fetch_add(1, Ordering::Relaxed);
        let thread = std::thread::current();
        let who = thread.name().unwrap_or("without a name").to_owned();
        Self(Box::new(Wait { who, what, waited, stands }))
    }

    /// How many waits of this process were ended by their deadlines so far, whoever was told of them. Whoever counts those
    /// of his own work compares with what it was before.
    pub fn count() -> u64 {
        COUNT.load(Ordering::Relaxed)
    }

    /// Says it where what destructors could not do is said.
    pub fn tell(&self) {
        left_behind::tell(&self.to_string());
    }
}

impl fmt::Display for Overdue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Wait { who, what, waited, stands } = &*self.0;
        write!(f, "thread {who} waited ")?;
        match waited.as_secs() {
            0 => write!(f, "{} ms", waited.as_millis())?,
            seconds => write!(f, "{seconds} s")?,
        }
        write!(f, " for {what}, ")?;
        match stands {
            Stands::Out => write!(f, "in vain"),
            Stands::OutAt(at) => write!(f, "in vain: its thread is {at}"),
            Stands::Unannounced => write!(f, "which had come, but the wake for it was lost"),
        }?;
        write!(f, "; zapscope or this host's kernel is at fault")
    }
}

impl std::error::Error for Overdue {}

/// What a thread of this process does, as the kernel shows it.
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
    fn it_says_who_waited_for_what_and_how_that_stands() {
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
