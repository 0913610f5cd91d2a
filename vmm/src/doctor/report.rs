//! The doctor's report: all findings, as text or as JSON.

use std::fmt::Write;

use serde::Serialize;

use super::finding::{Finding, Verdict};
use super::{
    capabilities, cgroup, exit_cost, huge_pages, kvm_device, madvise, others, strangers, swap, tracing, uffd,
    undoing,
};
use analysis::report::ktap::{Test, ktap};
use host::HostFacts;
use program::output::visible;

/// Everything the doctor found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The host it is about.
    pub host: HostFacts,
    /// One for each subject, in the order in which they are printed.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Examines this host. Takes some tenths of a second: it runs a tiny virtual machine.
    pub fn of_this_host() -> Self {
        // First: what follows is to find the host as it should be.
        let undoing = undoing::probe();
        let host = HostFacts::read();
        let device = kvm_device::probe(&host.kvm);
        let mut findings = kvm_device::judge(&device);
        if device.is_open() {
            findings.extend(capabilities::judge(&capabilities::probe()));
            findings.extend(exit_cost::judge(&exit_cost::probe()));
        }
        findings.extend(huge_pages::judge(&huge_pages::probe()));
        findings.extend(swap::judge(&swap::probe(&host)));
        findings.extend(madvise::judge(&madvise::probe(&host)));
        findings.extend(uffd::judge(&uffd::probe()));
        findings.extend(tracing::judge(&tracing::probe()));
        findings.extend(others::judge(&others::probe()));
        findings.extend(cgroup::judge(&cgroup::probe(&host)));
        findings.extend(strangers::judge(&host));
        findings.extend(undoing::judge(&undoing));
        Self { host, findings }
    }

    /// For people: one aligned line a finding, the remedy below it.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        let host = &self.host;
        let _ = writeln!(
            out,
            "Linux {}, {}, {} cores, KVM: {}",
            host.kernel,
            host.cpu.as_deref().unwrap_or("unknown processor"),
            host.cores,
            match (host.kvm.mmu, &host.kvm.module) {
                (Some(mmu), _) => mmu.to_string(),
                (None, Some(module)) => format!("{module}, with a secondary MMU that /sys does not name"),
                (None, None) => "none".to_owned(),
            },
        );
        let width = self.findings.iter().map(|one| one.subject.chars().count()).max().unwrap_or(0);
        for finding in &self.findings {
            let _ = writeln!(
                out,
                "{:<8}{:<width$}  {}",
                <&str>::from(finding.verdict),
                finding.subject,
                visible::item(&finding.detail)
            );
            if let Some(remedy) = &finding.remedy {
                let _ = writeln!(out, "{:<8}{:<width$}  -> {remedy}", "", "");
            }
        }
        let count = |verdict| self.findings.iter().filter(|one| one.verdict == verdict).count();
        let _ = writeln!(
            out,
            "{} can, {} limited, {} cannot",
            count(Verdict::Can),
            count(Verdict::Limited),
            count(Verdict::Cannot)
        );
        out
    }

    /// For the tools of kernel tests: what this host cannot measure is skipped, with the remedy.
    pub fn to_ktap(&self) -> String {
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
        ktap(&self.findings.iter().map(of_finding).collect::<Vec<_>>())
    }

    /// For programs: the host and its findings.
    pub fn to_json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Report {
        let findings = vec![
            Finding::can("/dev/kvm", "opens"),
            Finding::cannot("zram", "no driver").remedy("`modprobe zram num_devices=0`"),
        ];
        Report { host: HostFacts::default(), findings }
    }

    #[test]
    fn text_is_aligned_and_names_the_remedy() {
        let text = sample().to_text();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[1], "can     /dev/kvm  opens");
        assert_eq!(lines[2], "cannot  zram      no driver");
        assert_eq!(lines[3], "                  -> `modprobe zram num_devices=0`");
        assert_eq!(lines[4], "1 can, 0 limited, 1 cannot");
    }

    #[test]
    fn json_holds_every_finding() {
        let json: serde_json::Value = serde_json::from_str(&sample().to_json().unwrap()).unwrap();
        assert_eq!(json["findings"][1]["verdict"], "cannot");
        assert_eq!(json["findings"][1]["remedy"], "`modprobe zram num_devices=0`");
        assert!(json["findings"][0]["remedy"].is_null());
    }

    #[test]
    fn this_host_is_examined_whole() {
        let report = Report::of_this_host();
        for subject in
            ["/dev/kvm", "backing thp", "swap", "PAGEMAP_SCAN", "userfaultfd", "tracepoints", "cgroup"]
        {
            let found = report.findings.iter().any(|finding| finding.subject.contains(subject));
            assert!(found, "nothing about {subject}:\n{}", report.to_text());
        }
        for finding in report.findings.iter().filter(|one| one.verdict == Verdict::Cannot) {
            assert!(finding.detail.len() > 10, "a refusal without a reason: {finding:?}");
        }
    }
}
