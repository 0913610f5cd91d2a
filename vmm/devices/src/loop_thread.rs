//! The device thread: one event loop that serves every device's descriptors.
//!
//! ```text
//!   new: each Served::init registers its fds ──> thread: wait ── an fd is ready ──> its Served::process ──┐
//!                                                  ^ └── told to end, an error, a panic ──> ended        │
//!                                                  └─────────────────────────────────────────────────────┘
//! ```

use guest_mem::remedy::{self, Asked};
use guest_mem::waits::{END, Overdue, Thread};
use std::any::Any;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{fmt, io};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::EventFd;

use super::{lock, new_event, signal};
use program::exit::{Class, Classified};

/// How many ready descriptors one round takes: more than a machine has queues.
const ROUND: usize = 32;

/// Something that the device thread serves. Unlike the event manager's own subscribers it may fail.
pub trait Served: Send {
    /// The name in errors.
    fn name(&self) -> &'static str;
    /// Registers the descriptors to watch.
    fn init(&mut self, ops: &mut EventOps<'_>) -> Result<(), event_manager::Error>;
    /// One of them is ready. Does a bounded amount of work: others wait.
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) -> Result<(), event_manager::Error>;
}

/// Why there is no device thread, or no longer.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum LoopError {
    #[error("cannot start the device thread{}", remedy::after_io(Asked::Thread, .0))]
    Start(#[source] io::Error),
    #[error("the device thread cannot wait for events: {0}")]
    Wait(event_manager::Error),
    #[error("{device}: cannot change what it waits for: {source}")]
    Device { device: &'static str, source: event_manager::Error },
    #[error("the device thread panicked: {0}")]
    Panicked(String),
    #[error(transparent)]
    Overdue(#[from] Overdue),
}

impl Classified for LoopError {
    fn class(&self) -> Class {
        match self {
            Self::Start(source) => Class::of_refused_io(source),
            Self::Wait(_) | Self::Device { .. } | Self::Panicked(_) | Self::Overdue(_) => Class::Fault,
        }
    }
}

/// Joins [`Served`] to the event manager, whose callbacks cannot fail.
struct Subscriber {
    served: Box<dyn Served>,
    failed: Arc<Mutex<Option<LoopError>>>,
}

impl Subscriber {
    fn note(&self, result: Result<(), event_manager::Error>) {
        if let Err(source) = result {
            lock(&self.failed).get_or_insert(LoopError::Device { device: self.served.name(), source });
        }
    }
}

impl MutEventSubscriber for Subscriber {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let result = self.served.process(events, ops);
        self.note(result);
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let result = self.served.init(ops);
        self.note(result);
    }
}

/// Ends the loop.
struct Stop {
    event: Arc<EventFd>,
    told: Arc<AtomicBool>,
}

impl Served for Stop {
    fn name(&self) -> &'static str {
        "the device thread's end"
    }

    fn init(&mut self, ops: &mut EventOps<'_>) -> Result<(), event_manager::Error> {
        ops.add(Events::new(&*self.event, EventSet::IN))
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) -> Result<(), event_manager::Error> {
        self.told.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// Signals on every way out of the thread, a panic included.
struct Ended(Arc<EventFd>);

impl Drop for Ended {
    fn drop(&mut self) {
        signal(&self.0);
    }
}

/// A running device thread. Dropping it ends the thread.
pub struct DeviceLoop {
    stop: Arc<EventFd>,
    ended: Arc<EventFd>,
    thread: Option<Thread<Result<(), LoopError>>>,
}

impl DeviceLoop {
    /// Starts the thread, with everything it serves.
    pub fn start(served: Vec<Box<dyn Served>>) -> Result<Self, LoopError> {
        let stop = Arc::new(new_event().map_err(LoopError::Start)?);
        let ended = Arc::new(new_event().map_err(LoopError::Start)?);
        let told = Arc::new(AtomicBool::new(false));
        let failed = Arc::new(Mutex::new(None));
        let mut manager = EventManager::new_with_capacity(ROUND).map_err(LoopError::Wait)?;
        let end: Box<dyn Served> = Box::new(Stop { event: stop.clone(), told: told.clone() });
        for served in served.into_iter().chain([end]) {
            manager.add_subscriber(Subscriber { served, failed: failed.clone() });
        }
        if let Some(error) = lock(&failed).take() {
            return Err(error);
        }
        let ending = Ended(ended.clone());
        let run = move || {
            let _ending = ending;
            while !told.load(Ordering::Relaxed) {
                manager.run().map_err(LoopError::Wait)?;
                if let Some(error) = lock(&failed).take() {
                    return Err(error);
                }
            }
            Ok(())
        };
        let thread = Thread::start("devices", run).map_err(LoopError::Start)?;
        Ok(Self { stop, ended, thread: Some(thread) })
    }

    /// Readable once the thread has ended, for any reason.
    pub fn ended(&self) -> &EventFd {
        &self.ended
    }

    /// Ends the thread and says how it fared.
    pub fn end(self) -> Result<(), LoopError> {
        self.end_within(END)
    }

    fn end_within(mut self, patience: Duration) -> Result<(), LoopError> {
        signal(&self.stop);
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.end(patience)?.unwrap_or_else(|payload| Err(LoopError::Panicked(panic_text(&*payload))))
    }
}

impl Drop for DeviceLoop {
    /// A thread that does not end keeps its devices, and what they can reach.
    fn drop(&mut self) {
        signal(&self.stop);
        if let Some(thread) = self.thread.take() {
            thread.end_or_tell();
        }
    }
}

impl fmt::Debug for DeviceLoop {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("DeviceLoop").field("thread", &self.thread).finish_non_exhaustive()
    }
}

fn panic_text(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a text")
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait;

    /// Does what it is made for when its event arrives.
    struct Reacts {
        event: Arc<EventFd>,
        answer: Arc<EventFd>,
        how: fn(&Reacts) -> Result<(), event_manager::Error>,
    }

    impl Served for Reacts {
        fn name(&self) -> &'static str {
            "the test device"
        }
        fn init(&mut self, ops: &mut EventOps<'_>) -> Result<(), event_manager::Error> {
            ops.add(Events::new(&*self.event, EventSet::IN))
        }
        fn process(&mut self, _: Events, _: &mut EventOps<'_>) -> Result<(), event_manager::Error> {
            self.event.read().unwrap();
            (self.how)(self)
        }
    }

    fn started(
        how: fn(&Reacts) -> Result<(), event_manager::Error>,
    ) -> (DeviceLoop, Arc<EventFd>, Arc<EventFd>) {
        let [event, answer] = [(); 2].map(|()| Arc::new(new_event().unwrap()));
        let served = Reacts { event: event.clone(), answer: answer.clone(), how };
        (DeviceLoop::start(vec![Box::new(served)]).unwrap(), event, answer)
    }

    #[test]
    fn it_serves_until_told_to_end() {
        let (running, event, answer) = started(|device| {
            signal(&device.answer);
            Ok(())
        });
        for _ in 0..3 {
            signal(&event);
            wait(&*answer);
            answer.read().unwrap();
        }
        assert!(running.ended().read().is_err(), "still running");
        running.end().unwrap();
    }

    #[test]
    fn a_panic_ends_it_with_its_text() {
        let (running, event, _) = started(|_| panic!("a device with a bug"));
        signal(&event);
        wait(running.ended());
        assert_eq!(running.end().unwrap_err().to_string(), "the device thread panicked: a device with a bug");
    }

    #[test]
    fn a_device_that_fails_ends_it_by_name() {
        let (running, event, _) = started(|_| Err(event_manager::Error::InvalidId));
        signal(&event);
        wait(running.ended());
        let error = running.end().unwrap_err().to_string();
        assert!(error.starts_with("the test device: cannot change what it waits for"), "{error}");
    }

    #[test]
    fn a_device_that_cannot_register_is_an_error_at_once() {
        let event = Arc::new(new_event().unwrap());
        let twice = || Reacts { event: event.clone(), answer: event.clone(), how: |_| Ok(()) };
        let error = DeviceLoop::start(vec![Box::new(twice()), Box::new(twice())]).unwrap_err();
        assert!(matches!(error, LoopError::Device { device: "the test device", .. }), "{error}");
    }

    #[test]
    fn a_device_that_does_not_come_back_is_not_waited_for_for_ever() {
        let (running, event, answer) = started(|device| {
            // Until the test is over.
            let _ = device.answer.read();
            wait(&*device.answer);
            Ok(())
        });
        signal(&event);
        let overdue = running.end_within(Duration::from_millis(50)).unwrap_err().to_string();
        assert!(overdue.contains(" waited 50 ms for the end of thread devices, in vain"), "{overdue}");
        signal(&answer);
    }
}
