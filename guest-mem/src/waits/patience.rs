//! The deadline of a loop that polls.

use std::time::{Duration, Instant};

/// How long to go on polling. The clock is not read before the second failed look.
#[derive(Debug)]
pub struct Patience {
    within: Duration,
    looked: bool,
    since: Option<Instant>,
}

impl Patience {
    /// A deadline of `within`.
    pub const fn new(within: Duration) -> Self {
        Self { within, looked: false, since: None }
    }

    /// To be called after each failed look: lets other threads run. Returns the time that was allowed, once it is over.
    pub fn over(&mut self) -> Option<Duration> {
        if std::mem::replace(&mut self.looked, true) {
            let waited = self.since.get_or_insert_with(Instant::now).elapsed();
            if waited >= self.within {
                return Some(self.within);
            }
        }
        std::thread::yield_now();
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends() {
        let mut none = Patience::new(Duration::ZERO);
        assert_eq!((none.over(), none.over()), (None, Some(Duration::ZERO)));
        let mut long = Patience::new(Duration::from_secs(1000));
        assert!((0..100).all(|_| long.over().is_none()));
    }
}
