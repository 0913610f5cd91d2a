//! What the rig reports: a line of JSON for each event, on the second serial port.

use serde::{Deserialize, Serialize};

/// One line of the report.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The rig is set up, so many seconds after its kernel began.
    Up {
        /// Seconds.
        seconds: f64,
    },
    /// The rig's kernel schedules its processes.
    Alive,
    /// The rig waits for the name of a test, on a line of its own; an empty line ends it.
    Next,
    /// A test has ended.
    End {
        /// Its name.
        test: String,
        /// Whether it passed.
        outcome: Outcome,
        /// How long it took.
        seconds: f64,
    },
    /// The rig could not be set up.
    Broken {
        /// The reason, as the test gave it.
        why: String,
    },
}

/// How a test ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// It passed.
    Passed,
    /// It failed, with this output.
    Failed {
        /// The last of what it wrote.
        output: String,
    },
    /// The rig lacks what it needs.
    CouldNotRun {
        /// What is lacking, in words.
        why: String,
    },
}

/// What a run of `whole --exact NAME` says of that test. One that neither passed nor could not run has failed,
/// also if there is no such test.
pub fn outcome(name: &str, succeeded: bool, output: &str) -> Outcome {
    let could_not = format!("COULD NOT RUN {name}: ");
    if let (true, Some(why)) = (succeeded, output.lines().find_map(|line| line.strip_prefix(&could_not))) {
        return Outcome::CouldNotRun { why: why.to_owned() };
    }
    if succeeded && output.contains("\ntest result: ok. 1 passed; 0 failed;") {
        return Outcome::Passed;
    }
    Outcome::Failed { output: output.to_owned() }
}
