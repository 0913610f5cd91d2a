//! Where evicted pages can go: the swap devices in use, and zram to be made.

use std::path::Path;

use rustix::fs::{Access, access};

use super::finding::Finding;
use host::rights::Lacking;
use host::swaps::SwapDevice;
use host::{Capability, HostFacts, Rights, Root};

const CONTROL: &str = "/sys/class/zram-control";

/// What the host says about swap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Swap {
    devices: Vec<SwapDevice>,
    control: Control,
    /// `comp_algorithm` of some zram device: what the driver offers. Unknown if there is no device.
    algorithms: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Control {
    #[default]
    Absent,
    /// The file is not ours to read.
    Forbidden,
    /// A device can be made, and not be swapped to.
    NoSwapping(Lacking),
    Usable,
}

pub(super) fn probe(host: &HostFacts) -> Swap {
    let root = Root::default();
    // Without opening it: to read it makes a device.
    let may_read = access(format!("{CONTROL}/hot_add"), Access::READ_OK).is_ok();
    let swapping = Rights::read().lacks(Capability::SysAdmin);
    let control = match (Path::new(CONTROL).exists(), may_read, swapping) {
        (false, ..) => Control::Absent,
        (true, false, _) => Control::Forbidden,
        (true, true, Some(lacking)) => Control::NoSwapping(lacking),
        (true, true, None) => Control::Usable,
    };
    let device = root.names("/sys/block").into_iter().find(|name| name.starts_with("zram"));
    let algorithms = device.and_then(|name| root.text(&format!("/sys/block/{name}/comp_algorithm")));
    Swap { devices: host.swaps.clone(), control, algorithms }
}

pub(super) fn judge(swap: &Swap) -> Vec<Finding> {
    vec![judge_devices(&swap.devices), judge_zram(swap.control, swap.algorithms.as_deref())]
}

fn judge_devices(devices: &[SwapDevice]) -> Finding {
    let list: Vec<_> = devices
        .iter()
        .map(|one| {
            let (free, size) = (one.bytes.saturating_sub(one.used_bytes) >> 20, one.bytes >> 20);
            format!("{} {free} of {size} MiB free, priority {}", one.path, one.priority)
        })
        .collect();
    let list = list.join("; ");
    if devices.is_empty() {
        return Finding::cannot("swap", "no swap device is in use: nothing can be swapped out")
            .remedy("`zapscope run --zram SIZE`");
    }
    if devices.iter().any(SwapDevice::is_zram) {
        return Finding::can("swap", list);
    }
    Finding::limited("swap", format!("{list}: disks only, their latency is part of every refault"))
        .remedy("`zapscope run --zram SIZE`")
}

fn judge_zram(control: Control, algorithms: Option<&str>) -> Finding {
    const SUBJECT: &str = "zram of one's own";
    match control {
        Control::Usable => {
            let offered = algorithms.map_or(String::new(), |list| format!(", compressors: {list}"));
            Finding::can(SUBJECT, format!("{CONTROL}/hot_add is ours to read{offered}"))
        }
        Control::Forbidden => Finding::cannot(SUBJECT, format!("{CONTROL} is for root"))
            .remedy("`sudo zapscope run --zram SIZE`"),
        Control::NoSwapping(lacking) => Finding::cannot(SUBJECT, format!("swapon is refused: {lacking}"))
            .remedy("`sudo zapscope run --zram SIZE`, outside of user namespaces"),
        Control::Absent => {
            Finding::cannot(SUBJECT, "the zram driver is not there").remedy("`modprobe zram num_devices=0`")
        }
    }
}

/// One finding of each kind that has a remedy.
#[cfg(test)]
pub(super) fn samples() -> Vec<Finding> {
    let device = SwapDevice { path: "/dev/sda2".to_owned(), bytes: 1, used_bytes: 0, priority: 0 };
    let of = |devices: Vec<SwapDevice>, control| judge(&Swap { devices, control, algorithms: None });
    let unable = Control::NoSwapping(Lacking::Capability(Capability::SysAdmin));
    [of(Vec::new(), Control::Absent), of(Vec::new(), unable), of(vec![device], Control::Forbidden)].concat()
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    fn device(path: &str) -> SwapDevice {
        SwapDevice { path: path.to_owned(), bytes: 256 << 20, used_bytes: 56 << 20, priority: 100 }
    }

    #[test]
    fn zram_in_use_is_the_best_case() {
        let swap = Swap {
            devices: vec![device("/dev/zram0")],
            control: Control::Usable,
            algorithms: Some("[lzo-rle] lzo lz4".to_owned()),
        };
        let findings = judge(&swap);
        assert!(findings.iter().all(|finding| finding.verdict == Verdict::Can), "{findings:?}");
        assert!(findings[0].detail.contains("200 of 256 MiB free"));
        assert!(findings[1].detail.contains("lz4"));
    }

    #[test]
    fn no_swap_names_the_flag_that_makes_some() {
        let findings = judge(&Swap::default());
        assert_eq!(findings[0].verdict, Verdict::Cannot);
        assert!(findings[0].remedy.as_deref().unwrap().contains("--zram"));
        assert!(findings[1].remedy.as_deref().unwrap().contains("modprobe zram"));
    }

    #[test]
    fn a_disk_limits_and_a_user_needs_root() {
        let swap = Swap { devices: vec![device("/dev/sda2")], control: Control::Forbidden, algorithms: None };
        let findings = judge(&swap);
        assert_eq!(findings[0].verdict, Verdict::Limited);
        assert!(findings[1].remedy.as_deref().unwrap().contains("sudo"));
    }

    #[test]
    fn a_device_that_cannot_be_swapped_to_is_no_use() {
        let control = Control::NoSwapping(Lacking::Namespace(Capability::SysAdmin));
        let finding = judge_zram(control, None);
        assert_eq!(finding.verdict, Verdict::Cannot);
        assert!(finding.detail.contains("initial user namespace"), "{finding:?}");
    }
}
