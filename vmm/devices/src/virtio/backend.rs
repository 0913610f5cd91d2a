//! A device with its queues, and the part of it that lives on the device thread.

use std::io;
use std::sync::{Arc, Mutex};

use event_manager::{EventOps, EventSet, Events};
use vmm_sys_util::eventfd::EventFd;

use super::queue::{Chain, Outcome, QueueError, Turn, VirtQueue};
use super::{Interrupt, VirtioDevice};
use crate::loop_thread::Served;
use crate::{lock, new_event, signal, take_signal};
use guest::GuestRam;

/// What a device has from DRIVER_OK to reset.
#[derive(Debug)]
pub struct Running {
    /// Guest RAM.
    pub memory: GuestRam,
    /// Every queue of the device, whether the driver uses it or not.
    pub queues: Vec<VirtQueue>,
    /// How the driver is told.
    pub interrupt: Arc<Interrupt>,
    /// How the device thread is told, queue by queue.
    pub events: Arc<[EventFd]>,
}

impl Running {
    /// Serves one queue for one turn: see [`VirtQueue::serve`]. If there is more, its event is signalled, so that others
    /// come first.
    pub fn serve(
        &mut self,
        queue: usize,
        serve: &mut dyn FnMut(&GuestRam, &Chain<'_>) -> Result<Outcome, QueueError>,
    ) -> Result<(), QueueError> {
        let Self { memory, queues, interrupt, events, .. } = self;
        let turn = queues[queue].serve(memory, interrupt, &mut |chain| serve(memory, chain))?;
        if turn == Turn::More {
            signal(&events[queue]);
        }
        Ok(())
    }
}

/// A device, and what it has while a driver uses it.
pub struct Backend {
    device: Box<dyn VirtioDevice>,
    running: Option<Running>,
    interrupt: Arc<Interrupt>,
    events: Arc<[EventFd]>,
}

impl Backend {
    /// A device that no driver uses yet.
    pub(super) fn new(device: Box<dyn VirtioDevice>, interrupt: Arc<Interrupt>) -> io::Result<Self> {
        let events = device.queue_sizes().iter().map(|_| new_event()).collect::<io::Result<_>>()?;
        Ok(Self { device, running: None, interrupt, events })
    }

    /// The device itself.
    pub(super) fn device(&self) -> &dyn VirtioDevice {
        &*self.device
    }

    /// One event for each queue.
    pub(super) fn events(&self) -> Arc<[EventFd]> {
        self.events.clone()
    }

    pub(super) fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.device.write_config(offset, data);
    }

    pub(super) fn activate(&mut self, memory: GuestRam, queues: Vec<VirtQueue>) {
        self.device.activate();
        let (interrupt, events) = (self.interrupt.clone(), self.events.clone());
        self.running = Some(Running { memory, queues, interrupt, events });
        // A driver may fill its queues before DRIVER_OK, and its notifications of then are forgotten.
        self.events.iter().for_each(signal);
    }

    /// When this returns, the device has nothing of the driver's any more.
    pub(super) fn reset(&mut self) {
        self.running = None;
        self.device.reset();
    }

    pub(super) fn stop_queue(&mut self, queue: usize) {
        if let Some(queue) = self.running.as_mut().and_then(|running| running.queues.get_mut(queue)) {
            queue.stop();
        }
    }

    /// Serves one queue for one turn.
    pub fn serve(&mut self, queue: usize) {
        let Some(running) = &mut self.running else { return };
        if let Err(fault) = self.device.serve(queue, running) {
            self.fail(&fault);
        }
    }

    /// Something happened to the device's own descriptor.
    pub fn source_ready(&mut self) {
        if let Err(fault) = self.device.source_ready(self.running.as_mut()) {
            self.fail(&fault);
        }
    }

    fn fail(&mut self, fault: &QueueError) {
        self.running = None;
        self.interrupt.fail(fault.to_string());
    }
}

impl std::fmt::Debug for Backend {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let id = self.device.device_id();
        out.debug_struct("Backend")
            .field("device_id", &id)
            .field("running", &self.running)
            .finish_non_exhaustive()
    }
}

/// The `data` of the device's own descriptor in the event loop; queues have their index.
const OWN_SOURCE: u32 = u32::MAX;

/// Serves a device's queues on the device thread.
#[derive(Clone, Debug)]
pub struct DeviceWorker {
    backend: Arc<Mutex<Backend>>,
    events: Arc<[EventFd]>,
}

impl DeviceWorker {
    pub(super) fn new(backend: Arc<Mutex<Backend>>) -> Self {
        let events = lock(&backend).events();
        Self { backend, events }
    }

    /// Serves what is ready, without an event loop; says whether anything was.
    #[cfg(test)]
    pub(super) fn turn(&self) -> bool {
        let ready: Vec<_> =
            (0..self.events.len()).filter(|&queue| take_signal(&self.events[queue])).collect();
        ready.iter().for_each(|&queue| lock(&self.backend).serve(queue));
        !ready.is_empty()
    }

    #[cfg(test)]
    pub(super) fn source_ready(&self) {
        lock(&self.backend).source_ready();
    }
}

impl Served for DeviceWorker {
    fn name(&self) -> &'static str {
        "a virtio device"
    }

    fn init(&mut self, ops: &mut EventOps<'_>) -> Result<(), event_manager::Error> {
        for (index, event) in self.events.iter().enumerate() {
            ops.add(Events::with_data(event, index as u32, EventSet::IN))?;
        }
        let source = lock(&self.backend).device().source();
        if let Some(source) = source {
            let both = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
            ops.add(Events::with_data_raw(source, OWN_SOURCE, both))?;
        }
        Ok(())
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) -> Result<(), event_manager::Error> {
        let queue = events.data() as usize;
        match self.events.get(queue) {
            Some(event) => {
                take_signal(event);
                lock(&self.backend).serve(queue);
            }
            None => lock(&self.backend).source_ready(),
        }
        Ok(())
    }
}
