//! The doctor's findings as KTAP.

use super::{Finding, Report, Verdict};
use analysis::report::ktap::Test;

/// A test of each of the doctor's subjects: what this host cannot measure is skipped, with the remedy.
pub fn of_doctor(report: &Report) -> Vec<Test> {
    let of_finding = |finding: &Finding| {
        let subject = finding.subject.as_str();
        let test = match finding.verdict {
            Verdict::Can => Test::ok(subject).note(finding.detail.as_str()),
            Verdict::Limited => Test::ok(subject).note(format!("limited: {}", finding.detail)),
            Verdict::Cannot => Test::skip(subject, finding.detail.as_str()),
        };
        match &finding.remedy {
            Some(remedy) => test.note(format!("remedy: {remedy}")),
            None => test,
        }
    };
    report.findings.iter().map(of_finding).collect()
}
