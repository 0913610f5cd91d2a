//! What leaving KVM and coming back costs here, and what a fault of the secondary MMU costs on top.
//!
//! A bare guest carries out a few thousand orders of one page, one for each `KVM_RUN`: in the first series always on the
//! same page, in the others on another page each. The difference of the medians is the fault. All of it is a price of this
//! host at this moment, idle: use it as a ratio.

use std::sync::mpsc;
use std::time::Duration;

use guest_abi::layout::{ARENA_GPA, PAGE_SIZE};
use guest_abi::order::{Access, Task, Walk, WorkOrder};
use guest_mem::{Backing, PMD_SIZE};

use super::finding::Finding;
use machine::{Kvm, Machine, Stepped, VmConfig};

const ROUNDS: usize = 2000;
const WARM_UP: usize = 100;
/// It takes a tenth of a second; on an emulated host, seconds. A guest that takes longer does not come back.
const PATIENCE: Duration = Duration::from_secs(30);
/// Above this, an exit is dear enough to drown what it surrounds.
const DEAR_EXIT_NS: u64 = 20_000;

/// Medians, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Costs {
    exit: Spread,
    /// Touching a page that neither the host's page tables nor KVM's have.
    first_touch: Spread,
    /// Touching a page that only KVM's lack: what a collateral fault costs.
    spte_only: Spread,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Spread {
    p50: u64,
    p99: u64,
}

/// Runs the machine in a thread of its own: if it should not come back, the doctor goes on without it.
pub(super) fn probe() -> Result<Costs, String> {
    let (send, receive) = mpsc::channel();
    let spawned = std::thread::Builder::new().name("exit-cost".to_owned()).spawn(move || {
        // The receiver is gone once the patience has ended.
        let _ = send.send(measure().map_err(|error| error.to_string()));
    });
    spawned.map_err(|error| error.to_string())?;
    match receive.recv_timeout(PATIENCE) {
        Ok(costs) => costs,
        Err(_) => Err(format!("its vCPU did not come back within {} s", PATIENCE.as_secs())),
    }
}

fn measure() -> Result<Costs, Box<dyn std::error::Error>> {
    Ok(Costs {
        exit: series(Touched::OnePage)?,
        first_touch: series(Touched::NewPages)?,
        spte_only: series(Touched::ResidentPages)?,
    })
}

/// The pages that the orders of a series touch, one page an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Touched {
    /// The same page each time: what is left is the exit.
    OnePage,
    /// A page that neither the host's page tables nor KVM's have.
    NewPages,
    /// A page that only KVM's lack.
    ResidentPages,
}

/// From one touched page to the next, in pages. A fault also installs the SPTEs of resident neighbours, in aligned groups
/// of eight: with a shorter stride most touches would not fault.
const STRIDE: u64 = 8 * PAGE_SIZE;

fn series(touched: Touched) -> Result<Spread, Box<dyn std::error::Error>> {
    let pages = (WARM_UP + ROUNDS) as u64;
    let arena = (pages * STRIDE).next_multiple_of(PMD_SIZE);
    let config = VmConfig {
        vcpus: 1,
        arena,
        backing: Backing::Base4k,
        granule: arena.next_power_of_two(),
        slot_zap_all_quirk: true,
    };
    let machine = Machine::start(&Kvm::open()?, &config, resources::GUEST)?;
    machine.wait_up()?;
    let mut guest = Stepped::new(machine)?;
    if touched == Touched::ResidentPages {
        let arena = guest.core().arena();
        arena.range().chunks(STRIDE).try_for_each(|page| arena.touch(page.start(), true))?;
    }
    let task = Task::Touch { access: Access::Write, passes: Some(1), stall_cycles: u64::MAX };
    let mut times = Vec::with_capacity(pages as usize);
    for page in 0..pages {
        let offset = if touched == Touched::OnePage { 0 } else { page * STRIDE };
        let order = WorkOrder { start: ARENA_GPA + offset, len: PAGE_SIZE, walk: Walk::Sequential, task };
        let took = guest.run(&order).map_err(|kind| kind.to_string())?;
        times.push(took.as_nanos() as u64);
    }
    Ok(Spread::of(&mut times[WARM_UP..]))
}

impl Spread {
    fn of(times: &mut [u64]) -> Self {
        times.sort_unstable();
        let at = |percent: usize| times.get(times.len() * percent / 100).copied().unwrap_or(0);
        Self { p50: at(50), p99: at(99) }
    }
}

pub(super) fn judge(costs: &Result<Costs, String>) -> Vec<Finding> {
    let costs = match costs {
        Ok(costs) => costs,
        Err(why) => return vec![Finding::cannot("cost of an exit", format!("the tiny VM failed: {why}"))],
    };
    let detail = format!(
        "KVM_RUN round trip {} µs (p99 {} µs), median of {ROUNDS}",
        micros(costs.exit.p50),
        micros(costs.exit.p99)
    );
    let exit = if costs.exit.p50 > DEAR_EXIT_NS {
        Finding::limited("cost of an exit", format!("{detail}: nested, or a busy host"))
            .remedy("measure on bare metal, with nothing else running")
    } else {
        Finding::can("cost of an exit", detail)
    };
    vec![exit, judge_fault(costs)]
}

fn judge_fault(costs: &Costs) -> Finding {
    const SUBJECT: &str = "cost of a fault";
    let beyond_exit = |touch: Spread| touch.p50.checked_sub(costs.exit.p50);
    match (beyond_exit(costs.first_touch), beyond_exit(costs.spte_only)) {
        (Some(first), Some(spte)) => Finding::can(
            SUBJECT,
            format!(
                "first touch of a 4 KiB page {} µs, of one the host has and only KVM lacks {} µs",
                micros(first),
                micros(spte)
            ),
        ),
        // An exit with a fault was quicker than one without: noise, and no number.
        _ => Finding::limited(SUBJECT, "lost in the noise of the exits: the host is busy")
            .remedy("run again with nothing else running"),
    }
}

fn micros(nanoseconds: u64) -> String {
    format!("{:.1}", nanoseconds as f64 / 1000.0)
}

/// One finding of each kind that has a remedy.
#[cfg(test)]
pub(super) fn samples() -> Vec<Finding> {
    let spread = |p50| Spread { p50, p99: p50 };
    let dear = DEAR_EXIT_NS + 1;
    judge(&Ok(Costs { exit: spread(dear), first_touch: spread(0), spte_only: spread(0) }))
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    fn costs(exit: u64, first_touch: u64, spte_only: u64) -> Result<Costs, String> {
        let spread = |p50| Spread { p50, p99: 3 * p50 };
        Ok(Costs { exit: spread(exit), first_touch: spread(first_touch), spte_only: spread(spte_only) })
    }

    #[test]
    fn a_fault_is_what_is_dearer_than_an_exit() {
        let findings = judge(&costs(1_200, 6_200, 3_700));
        assert!(findings[0].detail.contains("1.2 µs (p99 3.6 µs)"), "{findings:?}");
        assert!(findings[1].detail.contains("page 5.0 µs"), "{findings:?}");
        assert!(findings[1].detail.contains("lacks 2.5 µs"), "{findings:?}");
        assert!(findings.iter().all(|finding| finding.verdict == Verdict::Can));
    }

    #[test]
    fn noise_is_no_number() {
        let findings = judge(&costs(1_200, 1_100, 1_300));
        assert_eq!(findings[1].verdict, Verdict::Limited);
        assert!(!findings[1].detail.contains("µs"));
    }

    #[test]
    fn a_dear_exit_limits() {
        assert_eq!(judge(&costs(60_000, 90_000, 80_000))[0].verdict, Verdict::Limited);
    }

    #[test]
    fn a_machine_that_fails_says_why() {
        let findings = judge(&Err("KVM_CREATE_VCPU: busy".to_owned()));
        assert_eq!((findings.len(), findings[0].verdict), (1, Verdict::Cannot));
        assert!(findings[0].detail.contains("KVM_CREATE_VCPU"));
    }

    // How long it takes is the host's business: a busy one makes an exit dearer than a fault.
    #[test]
    #[ignore = "needs: Kvm"]
    fn a_real_machine_rings() {
        let costs = measure().unwrap();
        assert!([costs.exit, costs.first_touch, costs.spte_only].iter().all(|spread| spread.p50 > 0));
    }
}
