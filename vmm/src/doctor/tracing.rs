//! The kernel's own account: can its tracepoints be opened, and which of those that matter exist.

use rustix::io::Errno;

use super::finding::Finding;
use host::{Capability, Rights, Root};
use host::{Tracefs, in_initial_pid_namespace};
use tap::{Bpf, Interest, Layout, Perf};

/// The event that shows each range KVM was told to drop.
const UNMAP_EVENT: &str = "kvm/kvm_unmap_hva_range";

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tracing {
    /// Where tracefs is mounted already.
    mounts: Vec<String>,
    /// The tracepoint's number, by a mounted or a detached tracefs.
    event: Result<u64, Errno>,
    /// Those of the other tracepoints that this kernel lacks; nothing where they cannot be looked up.
    lacking: Vec<String>,
    /// Opening it for all processes of one CPU.
    perf: Result<(), Errno>,
    /// Loading a program for raw tracepoints.
    bpf: Result<(), Errno>,
    /// Whether threads have the numbers that a program knows.
    initial_pid_namespace: bool,
    paranoid: Option<i32>,
    privileged: bool,
    /// The chosen word of `/sys/kernel/security/lockdown`.
    lockdown: Option<String>,
}

pub(super) fn probe() -> Tracing {
    let root = Root::default();
    let mounts = Tracefs::mounts();
    let tracefs = match mounts.first() {
        Some(mount) => Tracefs::mounted_at(mount),
        None => Tracefs::detached(),
    };
    let event = tracefs.as_ref().map_err(|errno| *errno).and_then(|tracefs| tracefs.event_id(UNMAP_EVENT));
    let all = Interest { causes: true, calls: true, kvm: true };
    let layout = tracefs.ok().and_then(|tracefs| Layout::read(&tracefs, all).ok());
    let rights = Rights::read();
    Tracing {
        mounts,
        event,
        lacking: layout.map_or(Vec::new(), |layout| layout.missing().to_vec()),
        // Without the event's number, any number tells whether tracepoints may be opened at all.
        perf: Perf::permitted(event.unwrap_or(1) as u16),
        bpf: Bpf::permitted(),
        initial_pid_namespace: in_initial_pid_namespace(),
        paranoid: root.number("/proc/sys/kernel/perf_event_paranoid"),
        privileged: rights.has(Capability::Perfmon) || rights.has(Capability::SysAdmin),
        lockdown: root.choice("/sys/kernel/security/lockdown"),
    }
}

pub(super) fn judge(tracing: &Tracing) -> Vec<Finding> {
    vec![judge_tracefs(tracing), judge_perf(tracing), judge_bpf(tracing)]
}

fn judge_tracefs(tracing: &Tracing) -> Finding {
    const SUBJECT: &str = "tracefs";
    let mounted = match tracing.mounts.first() {
        Some(mount) => format!("mounted at {mount}"),
        None => "mounted nowhere, an own one can be made".to_owned(),
    };
    match tracing.event {
        Ok(_) if tracing.lacking.is_empty() => Finding::can(
            SUBJECT,
            format!("{mounted}; kvm:kvm_unmap_hva_range and those that tell causes exist"),
        ),
        Ok(_) => {
            let lacking = tracing.lacking.join(", ");
            Finding::limited(
                SUBJECT,
                format!("{mounted}; kvm:kvm_unmap_hva_range exists, and of the causes not {lacking}"),
            )
            .remedy("none needed: such causes are told by the thread's name alone")
        }
        Err(Errno::NOENT) => {
            Finding::limited(SUBJECT, format!("{mounted}, but without kvm:kvm_unmap_hva_range"))
                .remedy("load KVM's module; a kernel with CONFIG_FTRACE")
        }
        Err(Errno::PERM | Errno::ACCESS) => Finding::cannot(SUBJECT, "may not be read or mounted by us")
            .remedy("root; or `mount -o remount,gid=tracing,mode=750 /sys/kernel/tracing`"),
        Err(Errno::NODEV) => {
            Finding::cannot(SUBJECT, "this kernel has none").remedy("a kernel with CONFIG_TRACING")
        }
        Err(errno) => Finding::cannot(SUBJECT, format!("failed: {errno}")),
    }
}

fn judge_perf(tracing: &Tracing) -> Finding {
    const SUBJECT: &str = "tracepoints by perf";
    let paranoid = tracing.paranoid.map_or("none".to_owned(), |level| level.to_string());
    match (tracing.perf, tracing.lockdown.as_deref()) {
        (Ok(()), _) if tracing.event.is_ok() => {
            Finding::can(SUBJECT, "kernel_ranges are counted: opened kvm_unmap_hva_range for all processes")
        }
        (Ok(()), _) => Finding::limited(SUBJECT, "may be opened, but the event's number is not known")
            .remedy("see tracefs"),
        (Err(_), Some("confidentiality")) => {
            Finding::cannot(SUBJECT, "the kernel is locked down (confidentiality)")
                .remedy("boot without lockdown=confidentiality")
        }
        (Err(Errno::NOSYS), _) => Finding::cannot(SUBJECT, "this kernel has no perf events")
            .remedy("a kernel with CONFIG_PERF_EVENTS"),
        (Err(Errno::ACCESS | Errno::PERM), _) if !tracing.privileged => {
            Finding::cannot(SUBJECT, format!("perf_event_paranoid is {paranoid} and CAP_PERFMON is missing"))
                .remedy("`setcap cap_perfmon+ep zapscope`, or `sysctl kernel.perf_event_paranoid=-1`")
        }
        (Err(errno), _) => Finding::cannot(SUBJECT, format!("is refused (paranoid {paranoid}): {errno}")),
    }
}

fn judge_bpf(tracing: &Tracing) -> Finding {
    const SUBJECT: &str = "tracepoints by BPF";
    match (tracing.bpf, tracing.lockdown.as_deref()) {
        (Ok(()), _) if tracing.event.is_err() => {
            Finding::limited(SUBJECT, "programs are taken, but there is no event to be had for them")
                .remedy("see tracefs")
        }
        (Ok(()), _) if !tracing.initial_pid_namespace => {
            Finding::limited(SUBJECT, "programs are taken, but number threads as another PID namespace does")
                .remedy("none needed where perf serves; or run outside the container")
        }
        (Ok(()), _) => Finding::can(SUBJECT, "a program takes kernel_ranges, at the least cost for each"),
        (Err(errno), Some("confidentiality")) => {
            Finding::limited(SUBJECT, format!("{errno}: the kernel is locked down (confidentiality)"))
                .remedy("none needed where perf serves; or boot without lockdown=confidentiality")
        }
        (Err(Errno::ACCESS | Errno::PERM), _) => {
            Finding::limited(SUBJECT, "programs are refused: CAP_BPF and CAP_PERFMON are missing")
                .remedy("none needed where perf serves; or `setcap cap_bpf,cap_perfmon+ep zapscope`")
        }
        (Err(errno), _) => {
            Finding::limited(SUBJECT, format!("this kernel takes none for tracepoints: {errno}"))
                .remedy("none needed where perf serves; or Linux 5.8 with CONFIG_BPF_EVENTS")
        }
    }
}

/// One finding of each kind that has a remedy.
#[cfg(test)]
pub(super) fn samples() -> Vec<Finding> {
    let host = |event, perf, bpf| Tracing {
        mounts: Vec::new(),
        event,
        lacking: Vec::new(),
        perf,
        bpf,
        initial_pid_namespace: true,
        paranoid: Some(2),
        privileged: false,
        lockdown: None,
    };
    let locked = |tracing| Tracing { lockdown: Some("confidentiality".to_owned()), ..tracing };
    let hosts = [
        Tracing { lacking: vec!["a:b".to_owned()], ..host(Ok(1), Ok(()), Ok(())) },
        Tracing { initial_pid_namespace: false, ..host(Err(Errno::NOENT), Ok(()), Ok(())) },
        Tracing { initial_pid_namespace: false, ..host(Ok(1), Ok(()), Ok(())) },
        host(Err(Errno::PERM), Err(Errno::NOSYS), Err(Errno::INVAL)),
        host(Err(Errno::NODEV), Err(Errno::ACCESS), Err(Errno::PERM)),
        locked(host(Ok(1), Err(Errno::PERM), Err(Errno::PERM))),
    ];
    hosts.iter().flat_map(judge).collect()
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    fn root_host() -> Tracing {
        Tracing {
            mounts: vec!["/sys/kernel/tracing".to_owned()],
            event: Ok(1234),
            lacking: Vec::new(),
            perf: Ok(()),
            bpf: Ok(()),
            initial_pid_namespace: true,
            paranoid: Some(2),
            privileged: true,
            lockdown: None,
        }
    }

    fn verdicts(tracing: &Tracing) -> [Verdict; 3] {
        judge(tracing).iter().map(|finding| finding.verdict).collect::<Vec<_>>().try_into().unwrap()
    }

    #[test]
    fn root_sees_everything() {
        assert_eq!(verdicts(&root_host()), [Verdict::Can; 3]);
        let contained = Tracing { initial_pid_namespace: false, ..root_host() };
        assert_eq!(judge_bpf(&contained).verdict, Verdict::Limited);
        let unmounted = Tracing { mounts: Vec::new(), ..root_host() };
        assert!(judge_tracefs(&unmounted).detail.contains("an own one"));
    }

    #[test]
    fn a_user_sees_nothing_and_is_told_how() {
        let user = Tracing {
            event: Err(Errno::ACCESS),
            perf: Err(Errno::ACCESS),
            bpf: Err(Errno::PERM),
            paranoid: Some(4),
            privileged: false,
            ..root_host()
        };
        assert_eq!(verdicts(&user), [Verdict::Cannot, Verdict::Cannot, Verdict::Limited]);
        let perf = judge_perf(&user);
        assert!(perf.detail.contains("paranoid is 4") && perf.remedy.unwrap().contains("cap_perfmon"));
        assert!(judge_bpf(&user).remedy.unwrap().contains("cap_bpf"));
    }

    #[test]
    fn lockdown_refuses_root_too() {
        let locked =
            Tracing { perf: Err(Errno::PERM), lockdown: Some("confidentiality".to_owned()), ..root_host() };
        assert!(judge_perf(&locked).detail.contains("locked down"));
        let integrity = Tracing { lockdown: Some("integrity".to_owned()), ..root_host() };
        assert_eq!(judge_perf(&integrity).verdict, Verdict::Can);
    }

    #[test]
    fn what_the_kernel_lacks_is_named() {
        let old = Tracing { lacking: vec!["migrate:mm_migrate_pages_start".to_owned()], ..root_host() };
        let finding = judge_tracefs(&old);
        assert_eq!(finding.verdict, Verdict::Limited);
        assert!(finding.detail.contains("mm_migrate_pages_start"));
    }

    #[test]
    fn without_kvm_there_is_no_event() {
        let no_kvm = Tracing { event: Err(Errno::NOENT), ..root_host() };
        assert_eq!(verdicts(&no_kvm), [Verdict::Limited; 3]);
    }
}
