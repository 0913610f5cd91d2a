//! Serving work orders from the control area.

use core::convert::Infallible;
use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicU32, Ordering};

use guest_abi::block::{ControlArea, Outcome, Stall};
use guest_abi::layout::{area_gpa, doorbell};
use guest_abi::order::WorkOrder;
use guest_abi::page::PagePtr;
use guest_abi::work::{self, Machine};

use crate::arch;

/// Index plus 1 of the vCPU that began to serve last: where a panic message goes. With several vCPUs a panic
/// may be reported in another's area; the doorbell still tells which vCPU it was.
static SERVING: AtomicU32 = AtomicU32::new(0);

/// Takes orders for ever.
pub fn serve(vcpu: u32) -> ! {
    SERVING.store(vcpu + 1, Ordering::Relaxed);
    let area = area_of(vcpu);
    arch::ring(doorbell::READY);
    loop {
        let outcome = match WorkOrder::try_from(area.order()) {
            Ok(order) => {
                arch::map_up_to(order.start + order.len);
                arch::warm();
                let Ok(outcome) = work::run(&mut Bare { area: area_of(vcpu) }, vcpu, &order);
                outcome
            }
            Err(_) => Outcome { refused: 1, ..Outcome::default() },
        };
        area.set_outcome(outcome);
        arch::ring(doorbell::DONE);
    }
}

/// Leaves the panic's text in the control area, if there is one.
pub fn report_panic(info: &PanicInfo<'_>) {
    let Some(vcpu) = SERVING.load(Ordering::Relaxed).checked_sub(1) else { return };
    // A message cut short is better than none: the writer never fails.
    let _ = write!(Message(area_of(vcpu)), "{info}");
}

/// The control area of a vCPU that serves.
fn area_of(vcpu: u32) -> ControlArea {
    // SAFETY: the VMM promised the area by the magic at entry; it is identity mapped and never goes away.
    unsafe { ControlArea::new(area_gpa(vcpu) as *mut u8) }
}

struct Message(ControlArea);

impl Write for Message {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.push_message(text);
        Ok(())
    }
}

/// The arena as ring 3 sees it: identity mapped, always there. A page without memory is an exception.
struct Bare {
    area: ControlArea,
}

impl Machine for Bare {
    type Fault = Infallible;

    #[inline(always)]
    fn page<R>(&mut self, gpa: u64, _write: bool, with: impl FnOnce(PagePtr) -> R) -> Result<R, Infallible> {
        // SAFETY: identity mapped writable; if nothing backs it the exception ends in a fault report.
        Ok(with(unsafe { PagePtr::new(gpa as *mut u64) }))
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
