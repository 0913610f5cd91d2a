//! VMs that other processes run: may they be looked at (`zapscope attach`), and may their memory be pushed out.

use rustix::io::Errno;

use super::finding::Finding;
use crate::attach::Readable;
use host::{Capability, Rights, Root};

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Others {
    rights: Rights,
    /// `kernel.yama.ptrace_scope`; `None` without Yama.
    scope: Option<u32>,
    counters: Readable,
}

pub(super) fn probe() -> Others {
    let scope = Root::default().number("/proc/sys/kernel/yama/ptrace_scope");
    Others { rights: Rights::read(), scope, counters: Readable::probe() }
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
    if !others.rights.has(Capability::SysPtrace) {
        return Finding::limited(
            SUBJECT,
            format!("processes of this user alone: no CAP_SYS_PTRACE; {scope}"),
        )
        .remedy("root; or `setcap cap_sys_ptrace,cap_perfmon+ep zapscope`");
    }
    let seen = "mappings and page tables of any process";
    match others.counters {
        Readable::All => {
            Finding::can(SUBJECT, format!("{seen}, KVM's counters of its translations and faults; {scope}"))
        }
        Readable::NotFaults => Finding::limited(
            SUBJECT,
            format!(
                "{seen}, KVM's counters of its translations; not those of its faults, which a kernel that is locked down \
                 does not open: attach counts the faults that tracepoints tell of; {scope}"
            ),
        )
        .remedy("none needed where tracepoints can be listened to; or boot without lockdown"),
        Readable::None(Errno::PERM | Errno::ACCESS) => {
            Finding::limited(SUBJECT, format!("{seen}, not KVM's counters: debugfs is not for us; {scope}"))
                .remedy("root, who may mount debugfs")
        }
        Readable::None(errno) => Finding::limited(
            SUBJECT,
            format!("{seen}, not KVM's counters: debugfs has none ({errno}); {scope}"),
        )
        .remedy("load KVM's module; a kernel with CONFIG_DEBUG_FS"),
    }
}

fn judge_pushing(others: &Others) -> Finding {
    const SUBJECT: &str = "attach --pageout";
    if others.rights.has(Capability::SysNice) {
        return Finding::can(SUBJECT, "process_madvise is permitted: CAP_SYS_NICE");
    }
    Finding::cannot(SUBJECT, "process_madvise needs CAP_SYS_NICE")
        .remedy("root; or `setcap cap_sys_nice+ep zapscope`")
}

/// One finding of each kind that has a remedy.
#[cfg(test)]
pub(super) fn samples() -> Vec<Finding> {
    let of = |bits: u64, counters| judge(&Others { rights: Rights::of_bits(bits), scope: None, counters });
    let counters = [Readable::NotFaults, Readable::None(Errno::PERM), Readable::None(Errno::NOENT)];
    let seen = counters.into_iter().flat_map(|counters| of(u64::MAX, counters));
    seen.chain(of(0, Readable::All)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    fn with(bits: u64, counters: Readable) -> Others {
        Others { rights: Rights::of_bits(bits), scope: Some(1), counters }
    }

    #[test]
    fn root_may_look_and_push_and_a_user_sees_his_own() {
        let verdicts =
            |bits, counters| judge(&with(bits, counters)).iter().map(|one| one.verdict).collect::<Vec<_>>();
        let refused = Readable::None(Errno::PERM);
        assert_eq!(verdicts(u64::MAX, Readable::All), [Verdict::Can, Verdict::Can]);
        assert_eq!(verdicts(0, refused), [Verdict::Limited, Verdict::Cannot]);
        assert_eq!(verdicts(1 << Capability::SysPtrace as u8, refused), [Verdict::Limited, Verdict::Cannot]);
        assert!(judge(&with(0, refused))[0].detail.contains("ptrace_scope is 1"));
    }

    #[test]
    fn counters_are_promised_as_far_as_they_open() {
        let told = |counters| judge_looking(&with(u64::MAX, counters));
        assert!(told(Readable::All).detail.contains("translations and faults"));
        let locked = told(Readable::NotFaults);
        assert_eq!(locked.verdict, Verdict::Limited);
        assert!(locked.detail.contains("faults that tracepoints tell of"), "{locked:?}");
        assert!(told(Readable::None(Errno::NOENT)).remedy.unwrap().contains("KVM's module"));
        assert!(told(Readable::None(Errno::PERM)).remedy.unwrap().contains("root"));
    }
}
