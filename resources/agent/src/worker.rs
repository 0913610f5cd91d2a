//! One thread on each vCPU, which carries out that vCPU's orders.
//!
//! While an order runs its thread makes no system call and allocates nothing: what it times is the memory, not
//! the kernel.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use anyhow::{Error, Result, anyhow, ensure};
use guest_abi::arch;
use guest_abi::block::{ControlArea, Outcome, Stall};
use guest_abi::link::FromAgent;
use guest_abi::order::{RawOrder, WorkOrder};
use guest_abi::page::PagePtr;
use guest_abi::work::{self, Machine};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::memory::Space;
use crate::port::Port;
use crate::{faults, power};

/// An order, and the memory it is about, in which its vCPU has an area.
struct Job {
    space: Arc<Space>,
    order: RawOrder,
}

/// One vCPU's thread.
pub struct Worker {
    jobs: SyncSender<Job>,
    busy: Arc<AtomicBool>,
}

impl Worker {
    /// Starts the thread of `vcpu`, pinned to `cpu`.
    pub fn start(vcpu: u16, cpu: u32, port: &'static Port) -> io::Result<Self> {
        let (jobs, orders) = sync_channel(1);
        let busy = Arc::new(AtomicBool::new(false));
        let at_work = busy.clone();
        thread::Builder::new().name(format!("vcpu{vcpu}")).spawn(move || {
            let mut cpus = CpuSet::new();
            cpus.set(cpu as usize);
            if let Err(error) = sched_setaffinity(None, &cpus) {
                power::fail(&format!("vCPU {vcpu}'s thread cannot be pinned to CPU {cpu}: {error}"));
            }
            faults::report_as(vcpu);
            serve(vcpu, &orders, &at_work, port);
        })?;
        Ok(Self { jobs, busy })
    }

    /// Whether it has an order.
    pub fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Acquire)
    }

    /// Gives it an order on `space`.
    ///
    /// # Errors
    /// It has one already, or there is no area for it.
    pub fn submit(&self, vcpu: u16, order: RawOrder, space: &Arc<Space>) -> Result<()> {
        space.area(vcpu.into()).ok_or_else(|| no_vcpu(vcpu))?;
        let was_busy = self.busy.swap(true, Ordering::AcqRel);
        ensure!(!was_busy, "vCPU {vcpu} was given an order while it had one");
        // It is idle, so the channel has room, and its thread ends only with the guest.
        self.jobs.send(Job { space: space.clone(), order }).map_err(|_| no_vcpu(vcpu))
    }
}

/// The refusal of an order for a vCPU that the guest does not have.
pub fn no_vcpu(vcpu: u16) -> Error {
    anyhow!("an order for vCPU {vcpu}, of which this guest has none")
}

fn serve(vcpu: u16, jobs: &Receiver<Job>, busy: &AtomicBool, port: &Port) {
    while let Ok(job) = jobs.recv() {
        if let Some(area) = job.space.area(vcpu.into()) {
            area.set_outcome(carry_out(&job, area, vcpu.into()));
        }
        // Before the report: after it the memory may be dropped.
        drop(job);
        busy.store(false, Ordering::Release);
        if let Err(error) = port.send(&FromAgent::Done { vcpu }) {
            power::fail(&format!("vCPU {vcpu} cannot report its order done: {error}"));
        }
    }
}

fn carry_out(job: &Job, area: &ControlArea, vcpu: u32) -> Outcome {
    let order = WorkOrder::try_from(job.order).ok().filter(|order| job.space.covers(order));
    let outcome = order.and_then(|order| work::run(&mut Here { space: &job.space, area }, vcpu, &order).ok());
    outcome.unwrap_or(Outcome { refused: 1, ..Outcome::default() })
}

/// An address that is neither in the arena nor in an area.
struct Outside;

/// The arena and the areas as this process maps them.
struct Here<'a> {
    space: &'a Space,
    area: &'a ControlArea,
}

impl Machine for Here<'_> {
    type Fault = Outside;

    #[inline(always)]
    fn page<R>(&mut self, gpa: u64, _write: bool, with: impl FnOnce(PagePtr) -> R) -> Result<R, Outside> {
        let page = self.space.page(gpa).ok_or(Outside)?;
        // SAFETY: a page of a mapping that the job's `Arc` keeps, readable and writable; everyone who shares it,
        // here and in the VMM, uses volatile or atomic access.
        Ok(with(unsafe { PagePtr::new(page.cast()) }))
    }
    #[inline(always)]
    fn tsc(&self) -> u64 {
        arch::tsc()
    }
    fn table(&self, index: u64) -> u32 {
        self.area.table(index)
    }
    fn stop_requested(&self) -> bool {
        self.area.stop_requested()
    }
    fn touched(&mut self, total: u64) {
        self.area.set_touches(total);
    }
    fn stalled(&mut self, stall: Stall) {
        self.area.push_stall(stall);
    }
}
