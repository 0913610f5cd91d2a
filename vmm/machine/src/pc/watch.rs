//! The thread that ends a PC's life for those that have no thread of their own: the power switch, and a device thread
//! that has ended.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use guest_mem::waits::Thread;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use vmm_sys_util::eventfd::EventFd;

use super::life::{Ending, Life};
use devices::loop_thread::DeviceLoop;
use devices::power::{PowerEvent, PowerSwitch};
use devices::{new_event, signal};

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
            if !fds[0].revents().is_empty() {
                return;
            }
            life.end(match switch.happened() {
                Some(PowerEvent::Off) => Ending::PowerOff,
                Some(PowerEvent::Reset) => Ending::Reset,
                Some(PowerEvent::Quit) => Ending::Stopped,
                None => Ending::Device("the device thread has ended".to_owned()),
            });
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use guest_mem::waits::WAKE;

    use super::*;

    /// How a life ends in which this happens.
    fn ending_after(what: impl FnOnce(&PowerSwitch, DeviceLoop)) -> String {
        let (life, switch) = (Arc::new(Life::default()), PowerSwitch::new().unwrap());
        let devices = DeviceLoop::start(Vec::new()).unwrap();
        let _watch = LifeWatch::start(life.clone(), switch.clone(), &devices).unwrap();
        let (send, ended) = channel();
        life.at_end(move |ending| send.send(format!("{ending:?}")).unwrap());
        what(&switch, devices);
        ended.recv_timeout(WAKE).expect("it ends")
    }

    #[test]
    fn the_switch_and_the_end_of_the_device_thread_end_a_life() {
        for (event, ending) in
            [(PowerEvent::Off, "PowerOff"), (PowerEvent::Reset, "Reset"), (PowerEvent::Quit, "Stopped")]
        {
            let mut running = None;
            let pressed = ending_after(|switch, devices| {
                running = Some(devices);
                switch.press(event);
            });
            assert_eq!(pressed, ending);
        }
        let of_the_devices = ending_after(|_, devices| devices.end().unwrap());
        assert_eq!(of_the_devices, "Device(\"the device thread has ended\")");
    }

    #[test]
    fn a_watch_that_is_dropped_ends_nothing_and_keeps_nothing() {
        let (life, switch) = (Arc::new(Life::default()), PowerSwitch::new().unwrap());
        let devices = DeviceLoop::start(Vec::new()).unwrap();
        drop(LifeWatch::start(life.clone(), switch, &devices).unwrap());
        assert_eq!(Arc::strong_count(&life), 1, "its thread has ended");
        assert!(life.ending().is_none());
    }
}
