//! The text of a scenario of one case, as a test needs it: only what matters to the test is said there.

use std::fmt::Write;

/// A scenario in the making.
#[derive(Clone, Debug)]
pub struct Scenario {
    memory: String,
    backings: Vec<String>,
    policies: Vec<String>,
    reclaims: Vec<String>,
    expect: Vec<String>,
    /// More lines of the matrix.
    matrix: String,
    steps: String,
}

/// A scenario with so much memory, of 4 KiB pages, whose one row is the kernel's own zap of what `dontneed` takes. It has
/// no step yet.
pub fn of(memory: &str) -> Scenario {
    let one = |word: &str| vec![word.to_owned()];
    Scenario {
        memory: memory.to_owned(),
        backings: one("4k"),
        policies: one("kernel"),
        reclaims: one("dontneed"),
        expect: Vec::new(),
        matrix: String::new(),
        steps: String::new(),
    }
}

impl Scenario {
    /// Other backings.
    #[must_use]
    pub fn backings(self, backings: &[&str]) -> Self {
        Self { backings: owned(backings), ..self }
    }

    /// Other policies.
    #[must_use]
    pub fn policies(self, policies: &[&str]) -> Self {
        Self { policies: owned(policies), ..self }
    }

    /// Other ways to take memory.
    #[must_use]
    pub fn reclaims(self, reclaims: &[&str]) -> Self {
        Self { reclaims: owned(reclaims), ..self }
    }

    /// Slots of this size.
    #[must_use]
    pub fn granule(self, granule: &str) -> Self {
        Self { matrix: format!("{}granule = [{granule:?}]\n", self.matrix), ..self }
    }

    /// What must be true of each row.
    #[must_use]
    pub fn expect(self, expect: &[&str]) -> Self {
        Self { expect: owned(expect), ..self }
    }

    /// Another step, with these lines of its own.
    #[must_use]
    pub fn step(mut self, name: &str, lines: &[&str]) -> Self {
        let _ = writeln!(self.steps, "[[case.step]]\ndo = {name:?}\n{}", lines.join("\n"));
        self
    }

    /// Every page is written.
    #[must_use]
    pub fn fill(self) -> Self {
        self.step("fill", &[])
    }

    /// A loop over so many pages.
    #[must_use]
    pub fn hot(self, pages: u64) -> Self {
        self.step("hot", &[&format!("count = {pages}")])
    }

    /// How fast that is for so long.
    #[must_use]
    pub fn baseline(self, time: &str) -> Self {
        self.step("baseline", &[&format!("for = {time:?}")])
    }

    /// So many pages are taken, at seeded addresses.
    #[must_use]
    pub fn sparse(self, count: u64) -> Self {
        self.step("reclaim", &["victims = \"sparse\"", &format!("count = {count}")])
    }

    /// A range is taken, unit by unit.
    #[must_use]
    pub fn range(self, range: &str, unit: &str) -> Self {
        self.step("reclaim", &[&format!("range = {range:?}"), &format!("unit = {unit:?}")])
    }

    /// The loop ends.
    #[must_use]
    pub fn stop(self) -> Self {
        self.step("stop", &[])
    }

    /// What was taken is touched.
    #[must_use]
    pub fn refault(self) -> Self {
        self.step("refault", &[])
    }

    /// The text.
    pub fn text(&self) -> String {
        let Self { memory, backings, policies, reclaims, expect, matrix, steps } = self;
        let expect = if expect.is_empty() { String::new() } else { format!("expect = {expect:?}\n") };
        format!(
            "name = \"made\"\nmemory = {memory:?}\n[matrix]\nbacking = {backings:?}\npolicy = {policies:?}\n\
             reclaim = {reclaims:?}\n{matrix}[[case]]\nname = \"c\"\n{expect}{steps}"
        )
    }
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
