//! Hot loops on vCPUs: started, watched until they have been round, stopped.

use std::time::Duration;

use guest_abi::order::{Access, Task};
use notifier_bridge::monotonic_ns;

use super::errors::TrialError;
use super::orders::{self, PATIENCE};
use crate::testbed::Testbed;
use experiment::scenario::HotSet;
use guest::GuestError;
use host::signals::Cancel;

/// The loops of one hot step.
#[derive(Clone, Copy, Debug)]
pub struct HotLoops<'a> {
    /// The pages they visit.
    pub set: &'a HotSet,
    pub access: Access,
    pub vcpus: &'a [u32],
}

/// The pause from one look at a loop's counter to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// It sleeps.
    Sleeping,
    /// It yields the processor: for what is timed.
    Yielding,
}

impl HotLoops<'_> {
    /// Visits of two passes of one loop, as far as a list says.
    pub fn two_passes(&self) -> u64 {
        2 * (self.set.table.len() as u64).max(1)
    }

    /// Starts them, and waits until each has been round twice: then every page of the loop has been touched, and its table is in
    /// the caches. A touch of `stall_cycles` or more is recorded as a stall.
    pub fn start(&self, testbed: &dyn Testbed, stall_cycles: u64, cancel: &Cancel) -> Result<(), TrialError> {
        let task = Task::Touch { access: self.access, passes: None, stall_cycles };
        for &vcpu in self.vcpus {
            let area = testbed.mailbox(vcpu).area();
            for (index, &entry) in (0u64..).zip(&self.set.table) {
                area.set_table(index, entry);
            }
            testbed.mailbox(vcpu).submit(&orders::arena_order(testbed, self.set.walk, task))?;
        }
        for &vcpu in self.vcpus {
            until_touched(testbed, vcpu, self.two_passes(), Wait::Sleeping, cancel)?;
        }
        Ok(())
    }
}

/// Stops the loops on these vCPUs.
pub fn stop(testbed: &dyn Testbed, vcpus: &[u32]) -> Result<(), TrialError> {
    for &vcpu in vcpus {
        testbed.mailbox(vcpu).area().request_stop();
    }
    for &vcpu in vcpus {
        testbed.wait(vcpu, PATIENCE)?;
    }
    Ok(())
}

/// Waits until a loop has made so many touches in all.
pub fn until_touched(
    testbed: &dyn Testbed,
    vcpu: u32,
    wanted: u64,
    wait: Wait,
    cancel: &Cancel,
) -> Result<(), TrialError> {
    let deadline = monotonic_ns() + PATIENCE.as_nanos() as u64;
    loop {
        let touches = testbed.mailbox(vcpu).area().touches();
        if touches >= wanted {
            return Ok(());
        }
        match wait {
            Wait::Sleeping => cancel.sleep(Duration::from_micros(200))?,
            Wait::Yielding => {
                std::thread::yield_now();
                cancel.check()?;
            }
        }
        testbed.mailbox(vcpu).alive()?;
        if monotonic_ns() > deadline {
            // Either it is slow beyond reason, or it is stuck, and the report of this wait says where.
            stop(testbed, &[vcpu])?;
            return Err(GuestError::Silent { vcpu, waited: PATIENCE, touches }.into());
        }
    }
}
