//! VMs that other processes run: may they be looked at (`zapscope attach`), and may their memory be pushed out.

use super::access::{CAP_SYS_ADMIN, CAP_SYS_NICE, CAP_SYS_PTRACE, Capabilities};
use super::finding::Finding;
use crate::host::Root;

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Others {
    capabilities: Capabilities,
    /// `kernel.yama.ptrace_scope`; `None` without Yama.
    scope: Option<u32>,
}

pub(super) fn probe() -> Others {
    let scope = Root::default().number("/proc/sys/kernel/yama/ptrace_scope");
    Others { capabilities: Capabilities::read(), scope }
}

pub(super) fn judge(others: &Others) -> Vec<Finding> {
    vec![judge_looking(others), judge_pushing(others)]
}

fn judge_looking(others: &Others) -> Finding {
    const SUBJECT: &str = "VMs of other processes";
    let scope = match others.scope {
        Some(scope) => format!("ptrace_scope is {scope}, which is about tracing and not about looking"),
        None => "no Yama".to_owned(),
    };
    let has = |capability| others.capabilities.has(capability);
    match (has(CAP_SYS_PTRACE), has(CAP_SYS_ADMIN)) {
        (true, true) => {
            Finding::can(SUBJECT, format!("mappings, page tables and KVM's counters of any process; {scope}"))
        }
        (true, false) => Finding::limited(
            SUBJECT,
            format!("mappings and page tables of any process, not KVM's counters; {scope}"),
        )
        .remedy("root, who may mount debugfs"),
        (false, _) => {
            Finding::limited(SUBJECT, format!("processes of this user alone: no CAP_SYS_PTRACE; {scope}"))
                .remedy("root; or setcap cap_sys_ptrace,cap_perfmon+ep zapscope")
        }
    }
}

fn judge_pushing(others: &Others) -> Finding {
    const SUBJECT: &str = "attach --pageout";
    if others.capabilities.has(CAP_SYS_NICE) {
        return Finding::can(SUBJECT, "process_madvise is permitted: CAP_SYS_NICE");
    }
    Finding::cannot(SUBJECT, "process_madvise needs CAP_SYS_NICE")
        .remedy("root; or setcap cap_sys_nice+ep zapscope")
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn root_may_look_and_push_and_a_user_sees_his_own() {
        let with = |bits: u64| Others {
            capabilities: Capabilities::parse(&format!("CapEff:\t{bits:016x}\n")).unwrap(),
            scope: Some(1),
        };
        let verdicts = |others: &Others| judge(others).iter().map(|one| one.verdict).collect::<Vec<_>>();
        assert_eq!(verdicts(&with(u64::MAX)), [Verdict::Can, Verdict::Can]);
        assert_eq!(verdicts(&with(0)), [Verdict::Limited, Verdict::Cannot]);
        assert_eq!(verdicts(&with(1 << CAP_SYS_PTRACE)), [Verdict::Limited, Verdict::Cannot]);
        assert!(judge(&with(0))[0].detail.contains("ptrace_scope is 1"));
    }
}
