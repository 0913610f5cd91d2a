//! A device that is served only while it may write to guest memory: not while that is read-only for a toggle.

use std::sync::{Arc, PoisonError};

use event_manager::{EventOps, Events};

use crate::vm_shared::VmShared;
use devices::loop_thread::Served;

/// See the [module](self).
pub(super) struct Guarded {
    pub served: Box<dyn Served>,
    pub shared: Arc<VmShared>,
}

impl Served for Guarded {
    fn name(&self) -> &'static str {
        self.served.name()
    }
    fn init(&mut self, ops: &mut EventOps<'_>) -> Result<(), event_manager::Error> {
        self.served.init(ops)
    }
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) -> Result<(), event_manager::Error> {
        let _writes = self.shared.host_writes.read().unwrap_or_else(PoisonError::into_inner);
        self.served.process(events, ops)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
    use std::time::Duration;

    use event_manager::EventSet;
    use vmm_sys_util::eventfd::EventFd;

    use super::*;
    use devices::loop_thread::DeviceLoop;
    use devices::{new_event, signal, take_signal};

    /// Says that it was served.
    struct Tells(Arc<EventFd>, Sender<()>);

    impl Served for Tells {
        fn name(&self) -> &'static str {
            "the test device"
        }
        fn init(&mut self, ops: &mut EventOps<'_>) -> Result<(), event_manager::Error> {
            ops.add(Events::new(&*self.0, EventSet::IN))
        }
        fn process(&mut self, _: Events, _: &mut EventOps<'_>) -> Result<(), event_manager::Error> {
            assert!(take_signal(&self.0));
            self.1.send(()).unwrap();
            Ok(())
        }
    }

    #[test]
    fn a_device_waits_for_the_end_of_a_toggle() {
        let shared = Arc::new(VmShared::new(1, Vec::new()));
        let event = Arc::new(new_event().unwrap());
        let (send, served) = channel();
        let device = Guarded { served: Box::new(Tells(event.clone(), send)), shared: shared.clone() };
        assert_eq!(device.name(), "the test device");
        let running = DeviceLoop::start(vec![Box::new(device)]).unwrap();
        let toggle = shared.host_writes.write().unwrap();
        signal(&event);
        let early = served.recv_timeout(Duration::from_millis(200));
        drop(toggle);
        assert_eq!(early, Err(RecvTimeoutError::Timeout), "served while memory is read-only");
        served.recv_timeout(Duration::from_secs(60)).expect("served after it");
        running.end().unwrap();
    }
}
