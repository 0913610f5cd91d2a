//! Rounds in which contestants take turns, and what a round says of the next.

use std::time::Duration;

/// What `N` contestants took for the same work, round by round.
pub struct Rounds<const N: usize>(Vec<[f64; N]>);

impl<const N: usize> Rounds<N> {
    /// Each of the contestants once a round, another one first each time. What they return is divided by `units`.
    pub fn run(count: usize, units: u64, mut contestant: impl FnMut(usize) -> Duration) -> Self {
        let mut round = |first: usize| {
            let mut took = [0.0; N];
            for turn in 0..N {
                let who = (first + turn) % N;
                took[who] = contestant(who).as_secs_f64() * 1e6 / units as f64;
            }
            took
        };
        // The first is for warming up.
        round(0);
        Self((0..count).map(round).collect())
    }

    /// The median of one contestant, in microseconds a unit.
    pub fn of(&self, who: usize) -> f64 {
        self.median(|round| round[who])
    }

    /// The median over the rounds of one contestant's time by another's of the same round.
    pub fn ratio(&self, who: usize, to: usize) -> f64 {
        self.median(|round| round[who] / round[to])
    }

    /// The same as text, with the middle half.
    pub fn compared(&self, who: usize, to: usize) -> String {
        let (low, high) = self.spread(who, to);
        format!("{:.2} ({low:.2} to {high:.2})", self.ratio(who, to))
    }

    /// The middle half of the same.
    fn spread(&self, who: usize, to: usize) -> (f64, f64) {
        let values = self.sorted(|round| round[who] / round[to]);
        (values[values.len() / 4], values[values.len() * 3 / 4])
    }

    fn median(&self, of: impl Fn(&[f64; N]) -> f64) -> f64 {
        let values = self.sorted(of);
        values[values.len() / 2]
    }

    fn sorted(&self, of: impl Fn(&[f64; N]) -> f64) -> Vec<f64> {
        let mut values: Vec<f64> = self.0.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values
    }
}
