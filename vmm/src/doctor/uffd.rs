//! userfaultfd: whether we get one that also sees faults from inside the kernel, which are what KVM's are,
//! and what it can do.

use rustix::io::Errno;
use uffd::{Access, Features};

use super::finding::Finding;

pub(super) use uffd::probe;

const DEVICE: &str = "/dev/userfaultfd";

/// What is of use here.
const WANTED: Features = Features::EVENT_REMOVE
    .union(Features::EVENT_UNMAP)
    .union(Features::EVENT_REMAP)
    .union(Features::MISSING_SHMEM)
    .union(Features::MINOR_SHMEM)
    .union(Features::WP_HUGETLBFS_SHMEM)
    .union(Features::WP_UNPOPULATED)
    .union(Features::WP_ASYNC)
    .union(Features::MOVE);

pub(super) fn judge(uffd: &Access) -> Vec<Finding> {
    let mut findings = vec![judge_permission(uffd)];
    findings.extend(uffd.features.map(judge_features));
    findings
}

fn judge_permission(uffd: &Access) -> Finding {
    const SUBJECT: &str = "userfaultfd";
    const REMEDY: &str =
        "`setfacl -m u:$USER:rw /dev/userfaultfd`, or `sysctl vm.unprivileged_userfaultfd=1`";
    let sysctl = uffd.sysctl.map_or(String::new(), |value| format!(" (vm.unprivileged_userfaultfd={value})"));
    match (uffd.device, uffd.full, uffd.user_mode) {
        (Ok(()), ..) => Finding::can(SUBJECT, format!("{DEVICE} opens: faults made inside KVM are seen")),
        (_, Ok(()), _) => {
            Finding::can(SUBJECT, format!("the system call works{sysctl}: faults made inside KVM are seen"))
        }
        (_, _, Ok(())) => Finding::cannot(
            SUBJECT,
            format!(
                "only for user-mode faults{sysctl}, as `run --backend soft` has them: a guest's happen in kernel mode"
            ),
        )
        .remedy(REMEDY),
        (_, Err(Errno::NOSYS), _) => {
            Finding::cannot(SUBJECT, "this kernel has none").remedy("a kernel with CONFIG_USERFAULTFD")
        }
        (_, Err(errno), _) => {
            Finding::cannot(SUBJECT, format!("is refused{sysctl}: {errno}; a container's seccomp filter?"))
                .remedy(REMEDY)
        }
    }
}

fn judge_features(features: Features) -> Finding {
    const SUBJECT: &str = "userfaultfd features";
    let missing = WANTED.difference(features);
    let has = WANTED.difference(missing);
    if missing.is_empty() {
        return Finding::can(SUBJECT, has.to_string());
    }
    Finding::limited(SUBJECT, format!("has {has}; lacks {missing}"))
        .remedy("a newer host kernel (MOVE: 6.8, WP_ASYNC: 6.7, WP_UNPOPULATED: 6.4)")
}

/// One finding of each kind that has a remedy.
#[cfg(test)]
pub(super) fn samples() -> Vec<Finding> {
    let refused = |user_mode: Result<(), Errno>, full| {
        judge(&Access { device: Err(full), full: Err(full), user_mode, sysctl: None, features: None })
    };
    let kinds = [(Ok(()), Errno::PERM), (Err(Errno::PERM), Errno::PERM), (Err(Errno::NOSYS), Errno::NOSYS)];
    let kinds = kinds.into_iter().flat_map(|(user_mode, full)| refused(user_mode, full));
    kinds.chain([judge_features(Features::empty())]).collect()
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    fn refused(user_mode: Result<(), Errno>, full: Errno) -> Access {
        Access { device: Err(Errno::ACCESS), full: Err(full), user_mode, sysctl: Some(0), features: None }
    }

    #[test]
    fn the_device_is_enough() {
        let uffd = Access { device: Ok(()), ..refused(Ok(()), Errno::PERM) };
        assert_eq!(judge(&uffd)[0].verdict, Verdict::Can);
    }

    #[test]
    fn user_mode_alone_does_not_serve_a_guest() {
        let finding = judge(&refused(Ok(()), Errno::PERM)).remove(0);
        assert_eq!(finding.verdict, Verdict::Cannot);
        assert!(finding.detail.contains("vm.unprivileged_userfaultfd=0"));
        assert!(finding.remedy.unwrap().contains("setfacl"));
    }

    #[test]
    fn no_kernel_support_and_a_filter_differ() {
        let none = judge(&refused(Err(Errno::NOSYS), Errno::NOSYS)).remove(0);
        assert!(none.remedy.unwrap().contains("CONFIG_USERFAULTFD"));
        let filtered = judge(&refused(Err(Errno::PERM), Errno::PERM)).remove(0);
        assert!(filtered.detail.contains("seccomp"));
    }

    #[test]
    fn missing_features_are_named() {
        assert_eq!(judge_features(Features::from_bits_retain(0x1_ffff)).verdict, Verdict::Can);
        // Linux 6.1: up to EXACT_ADDRESS and WP_HUGETLBFS_SHMEM.
        let old = judge_features(Features::from_bits_retain(0x1fff));
        assert_eq!(old.verdict, Verdict::Limited);
        assert!(old.detail.ends_with("lacks WP_UNPOPULATED, WP_ASYNC, MOVE"), "{old:?}");
    }
}
