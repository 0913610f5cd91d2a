//! The text of a scenario as a test needs it: a test says only what matters to it.

use std::fmt::Write;

/// A scenario in the making.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Lines before the first table.
    head: String,
    /// Lines of tables before the first case.
    tables: String,
    axes: Vec<(String, Vec<String>)>,
    cases: Vec<Case>,
}

#[derive(Clone, Debug)]
struct Case {
    name: String,
    lines: String,
    steps: String,
}

/// A scenario with this much memory in 4 KiB pages, whose one row is the kernel's own zap of what `dontneed` takes. Its case
/// `c` has no step yet.
pub fn of(memory: &str) -> Scenario {
    let head = format!("name = \"made\"\nmemory = {memory:?}\n");
    let scenario = Scenario { head, tables: String::new(), axes: Vec::new(), cases: Vec::new() };
    scenario.case("c").backings(&["4k"]).policies(&["kernel"]).reclaims(&["dontneed"])
}

impl Scenario {
    /// Another line before the first table.
    #[must_use]
    pub fn top(mut self, line: &str) -> Self {
        self.head = format!("{line}\n{}", self.head);
        self
    }

    /// A table of its own: its name and its lines.
    #[must_use]
    pub fn table(mut self, name: &str, lines: &[&str]) -> Self {
        let _ = writeln!(self.tables, "[{name}]\n{}", lines.join("\n"));
        self
    }

    /// The values of an axis of the matrix.
    #[must_use]
    pub fn axis(mut self, name: &str, values: &[&str]) -> Self {
        self.axes.retain(|(known, _)| known != name);
        self.axes.push((name.to_owned(), values.iter().map(|&value| value.to_owned()).collect()));
        self
    }

    /// The backings.
    #[must_use]
    pub fn backings(self, backings: &[&str]) -> Self {
        self.axis("backing", backings)
    }

    /// The range policies.
    #[must_use]
    pub fn policies(self, policies: &[&str]) -> Self {
        self.axis("policy", policies)
    }

    /// The reclaim operations.
    #[must_use]
    pub fn reclaims(self, reclaims: &[&str]) -> Self {
        self.axis("reclaim", reclaims)
    }

    /// Begins a case; the first takes the place of the one without a step.
    #[must_use]
    pub fn case(mut self, name: &str) -> Self {
        self.cases.retain(|case| !case.steps.is_empty());
        self.cases.push(Case { name: name.to_owned(), lines: String::new(), steps: String::new() });
        self
    }

    /// Another line of the case, before its steps.
    #[must_use]
    pub fn of_case(mut self, line: &str) -> Self {
        let _ = writeln!(self.last().lines, "{line}");
        self
    }

    /// What must be true of each row of the case.
    #[must_use]
    pub fn expect(self, expect: &[&str]) -> Self {
        self.of_case(&format!("expect = {expect:?}"))
    }

    /// Another step, with these lines of its own.
    #[must_use]
    pub fn step(mut self, name: &str, lines: &[&str]) -> Self {
        let _ = write!(self.last().steps, "[[case.step]]\ndo = {name:?}\n");
        lines.iter().for_each(|line| self.last().steps.extend([line, "\n"]));
        self
    }

    fn last(&mut self) -> &mut Case {
        self.cases.last_mut().expect("there is always one")
    }

    /// Every page is written.
    #[must_use]
    pub fn fill(self) -> Self {
        self.step("fill", &[])
    }

    /// A loop over this many pages.
    #[must_use]
    pub fn hot(self, pages: u64) -> Self {
        self.step("hot", &[&format!("count = {pages}")])
    }

    /// The speed of the loop is measured for this long.
    #[must_use]
    pub fn baseline(self, time: &str) -> Self {
        self.step("baseline", &[&format!("for = {time:?}")])
    }

    /// Pages at seeded addresses are taken.
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

    /// Every other page is touched.
    #[must_use]
    pub fn sweep(self) -> Self {
        self.step("sweep", &[])
    }

    /// The text.
    pub fn text(&self) -> String {
        let mut text = format!("{}{}[matrix]\n", self.head, self.tables);
        for (name, values) in &self.axes {
            let _ = writeln!(text, "{name} = {values:?}");
        }
        for Case { name, lines, steps } in &self.cases {
            let _ = write!(text, "[[case]]\nname = {name:?}\n{lines}{steps}");
        }
        text
    }
}

/// The text of the built-in `swapout`, with this part of its memory and of what it takes whole.
pub fn swapout(part: u64) -> String {
    let (_, text) = resources::SCENARIOS.iter().find(|(name, _)| *name == "swapout").expect("it is built in");
    text.replace("\"64MiB\"", &format!("\"{}MiB\"", 64 / part))
        .replace("\"0..8MiB\"", &format!("\"0..{}MiB\"", 8 / part))
}
