//! The end: on every way out the guest powers off, so that the VMM learns of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use guest_abi::link::{FromAgent, MAX_PAYLOAD, cut};
use rustix::system::{RebootCommand, reboot};

use crate::console;
use crate::port::Port;

/// How long the last message may take: the VMM may have stopped reading.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Powers the guest off.
pub fn off() -> ! {
    rustix::fs::sync();
    // Refused only to a process that is not root.
    let _ = reboot(RebootCommand::PowerOff);
    loop {
        // A machine that has no way to turn itself off: nothing of this process runs on.
        thread::park();
    }
}

/// Says why the agent cannot go on, to the VMM and on the console, and powers the guest off.
pub fn fail(what: &str) -> ! {
    static FAILING: AtomicBool = AtomicBool::new(false);
    if FAILING.swap(true, Ordering::AcqRel) {
        loop {
            // Another thread is on its way out; one reason is enough.
            thread::park();
        }
    }
    console::say(what);
    if let Some(port) = Port::opened() {
        let what = cut(what, MAX_PAYLOAD).to_owned();
        let (said, hear) = mpsc::channel();
        let say = move || {
            let _ = port.send(&FromAgent::Failed { what: &what });
            let _ = said.send(());
        };
        if thread::Builder::new().spawn(say).is_ok() {
            let _ = hear.recv_timeout(LAST_WORDS);
        }
    }
    off()
}
