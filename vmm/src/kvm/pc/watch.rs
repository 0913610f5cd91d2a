//! The thread that ends a PC's life for whoever is no thread of its own: the power switch, and a device thread that
//! has ended.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use guest_mem::waits::Thread;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use vmm_sys_util::eventfd::EventFd;

use super::life::{Ending, Life};
use crate::devices::loop_thread::DeviceLoop;
use crate::devices::power::{PowerEvent, PowerSwitch};
use crate::devices::{new_event, signal};

/// Runs until dropped.
#[derive(Debug)]
pub struct LifeWatch {
    stop: Arc<EventFd>,
    thread: Option<Thread<()>>,
}

impl LifeWatch {
    /// Starts it.
    ///
    /// # Errors
    /// No descriptor, or no room for another thread.
    pub fn start(life: Arc<Life>, switch: Arc<PowerSwitch>, devices: &DeviceLoop) -> std::io::Result<Self> {
        let stop = Arc::new(new_event()?);
        let ended = devices.ended().try_clone()?;
        let watched = stop.clone();
        let thread = Thread::start("life", move || {
            let mut fds = [&*watched, switch.wake(), &ended].map(|event| {
                // SAFETY: the event outlives the poll below.
                let fd = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
                PollFd::from_borrowed_fd(fd, PollFlags::IN)
            });
            // An error that is no interruption would come back at once: then the machine is not worth running.
            while poll(&mut fds, None) == Err(Errno::INTR) {}
            let [stopped, switched, _] = fds.map(|fd| !fd.revents().is_empty());
            match switch.happened() {
                _ if stopped => {}
                Some(PowerEvent::Off) if switched => life.end(Ending::PowerOff),
                Some(PowerEvent::Reset) if switched => life.end(Ending::Reset),
                Some(PowerEvent::Quit) if switched => life.end(Ending::Stopped),
                _ => life.end(Ending::Device("the device thread has ended".to_owned())),
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for LifeWatch {
    fn drop(&mut self) {
        signal(&self.stop);
        if let Some(thread) = self.thread.take() {
            thread.end_or_tell();
        }
    }
}
