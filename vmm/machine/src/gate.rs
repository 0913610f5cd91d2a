//! Keeping every vCPU out of the guest for as long as a memslot is absent.
//!
//! A vCPU that runs while its memslot is deleted sees a hole: its accesses leave KVM as MMIO, a locked
//! operation is torn, an instruction fetch is an internal error. So vCPUs are stopped around a slot zap.
//!
//! ```text
//!   vCPU thread                                    zapping thread
//!   ───────────                                    ──────────────
//!   immediate_exit = 0                             closed += 1
//!   inside = 1                                     for each vCPU with inside = 1:
//!   closed == 0 ?  ── no: inside = 0, wait ──┐         immediate_exit = 1, signal its thread
//!   │ yes                                    │     wait until every inside = 0
//!   KVM_RUN … returns (exit or EINTR)        │     ── delete the slot, put it back ──
//!   inside = 0, wake a waiting zapper        │     closed -= 1; at 0 wake the vCPUs
//!   └─ handle the exit, begin again  <───────┘
//! ```
//!
//! A vCPU that waits at the gate is let in before the gate shuts again: a storm of zaps slows a guest down to one
//! entry a zap, but does not stop it.
//!
//! Each side stores its own word and then loads the other's, both sequentially consistent, so at least one of
//! them sees the other. `immediate_exit` closes the window between the check and `KVM_RUN`: a signal that
//! arrives there finds no system call to interrupt, but KVM looks at the flag first and returns at once. A
//! flag set late, for a vCPU that had just left, is cleared before the next entry: the zapper has finished by
//! then, because the gate was shut until it had.
//!
//! Neither side waits for ever. A vCPU that does not leave, one that does not come in, a gate that does not open, or the
//! wake for any of these that is lost: after a deadline the gate is shut for good, and the reason names the event.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use guest_mem::waits::{Overdue, WAKE};
use rustix::thread::Pid;

use super::sys::{self, Futex, Woke};
use guest::CrashKind;

/// How long a waiting side looks before it sleeps: as long as KVM polls for a vCPU that has halted (`halt_poll_ns`). A
/// zap takes tens to hundreds of microseconds; to wake a thread on an idle processor takes the waking thread as long.
const LOOKING: Duration = Duration::from_micros(200);
/// Loads between two readings of the clock. How long a pause takes differs by ten between processors.
const LOADS: u32 = 16;

/// How many times its patience a vCPU waits for a gate that is held. The holder may have much to do: all of a VM's
/// memslots are deleted and made again, one by one.
const HOLDS: u32 = 10;

/// One vCPU's place at the gate.
#[derive(Debug, Default)]
pub struct Seat {
    /// 1 while the vCPU is in `KVM_RUN` or about to be.
    inside: Futex,
    /// The thread to signal; 0 before it has sat down.
    thread: AtomicI32,
    /// The vCPU's `kvm_run.immediate_exit`, locked while another thread writes to it.
    immediate_exit: Mutex<Flag>,
}

/// Where a vCPU's `immediate_exit` is; null while the seat is empty.
#[derive(Debug)]
struct Flag(*mut u8);

// SAFETY: a number, which is followed only under the seat's lock.
unsafe impl Send for Flag {}

impl Default for Flag {
    fn default() -> Self {
        Self(std::ptr::null_mut())
    }
}

/// See the [module](self).
#[derive(Debug)]
pub struct Gate {
    /// How many holders keep the vCPUs out; also the futex on which the vCPUs wait.
    closed: Futex,
    /// How many vCPUs found it shut and are not in yet; also the futex of the thread that wants to shut it again.
    waiting: Futex,
    /// Set once guest memory is not what it should be: no vCPU is let in any more.
    broken: AtomicBool,
    /// Why, from before `broken` is set.
    why: OnceLock<CrashKind>,
    seats: Box<[Seat]>,
    /// How long a wake may take.
    patience: Duration,
}

impl Gate {
    /// An open gate for `vcpus` vCPUs.
    pub fn new(vcpus: u32) -> Self {
        Self::with_patience(vcpus, WAKE)
    }

    fn with_patience(vcpus: u32, patience: Duration) -> Self {
        let seats = (0..vcpus).map(|_| Seat::default()).collect();
        let (closed, waiting) = (Futex::default(), Futex::default());
        Self { closed, waiting, broken: AtomicBool::new(false), why: OnceLock::new(), seats, patience }
    }

    /// Takes the calling thread's place as vCPU `vcpu`.
    ///
    /// # Safety
    /// `immediate_exit` points into the vCPU's `kvm_run` page and stays valid until the returned value is dropped.
    pub unsafe fn sit(&self, vcpu: u32, immediate_exit: *mut u8) -> Seated<'_> {
        let seat = &self.seats[vcpu as usize];
        seat.flag().0 = immediate_exit;
        seat.thread.store(sys::thread_id(), Ordering::SeqCst);
        Seated { gate: self, seat, immediate_exit }
    }

    /// Stops every vCPU and keeps it stopped until the value is dropped. When this returns, no vCPU runs
    /// guest code, and none will. A thread that holds the vCPUs must not hold them again: it would wait for those
    /// that wait for it.
    ///
    /// # Errors
    /// A vCPU does not leave, or its wake is lost. The gate is shut for good then, but that vCPU may still be in the
    /// guest.
    pub fn hold(&self) -> Result<Hold<'_>, Overdue> {
        self.all_out().inspect_err(|overdue| self.shut_for_good(CrashKind::Overdue(overdue.clone())))
    }

    fn all_out(&self) -> Result<Hold<'_>, Overdue> {
        wait_for_zero(&self.waiting, self.patience).map_err(|missed| {
            let what = "the vCPUs that it kept out of the guest to come in again";
            missed.overdue(what.to_owned(), self.patience)
        })?;
        // Pairs with the store of `inside` and the load of `closed` in `Seated::enter`.
        self.closed.fetch_add(1, Ordering::SeqCst);
        let hold = Hold(self);
        self.seats.iter().for_each(Seat::kick);
        for (vcpu, seat) in self.seats.iter().enumerate() {
            wait_for_zero(&seat.inside, self.patience)
                .map_err(|missed| missed.overdue(format!("vCPU {vcpu} to leave the guest"), self.patience))?;
        }
        Ok(hold)
    }

    /// Lets no vCPU into the guest ever again: its memory is not what it should be. Waiting vCPU threads return. The
    /// first reason is kept.
    pub fn shut_for_good(&self, why: CrashKind) {
        let _ = self.why.set(why);
        self.broken.store(true, Ordering::SeqCst);
    }

    /// Why no vCPU is let in any more, if so.
    pub fn shut(&self) -> Option<&CrashKind> {
        self.why.get()
    }

    /// The thread that has a vCPU's place; `None` before it has sat down.
    pub fn thread(&self, vcpu: u32) -> Option<Pid> {
        Pid::from_raw(self.seats[vcpu as usize].thread.load(Ordering::SeqCst))
    }

    /// Makes one vCPU leave the guest once, without keeping it out.
    pub fn kick(&self, vcpu: u32) {
        self.seats[vcpu as usize].kick();
    }
}

impl Seat {
    fn kick(&self) {
        if self.inside.load(Ordering::SeqCst) == 0 {
            return;
        }
        let flag = self.flag();
        if !flag.0.is_null() {
            // SAFETY: the thread that sits there gives the seat up only under the lock, and `sit` was promised the
            // pointer until then; the page is shared with the kernel, hence volatile.
            unsafe { flag.0.write_volatile(1) };
        }
        drop(flag);
        sys::signal_thread(self.thread.load(Ordering::SeqCst));
    }

    fn flag(&self) -> MutexGuard<'_, Flag> {
        self.immediate_exit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a wait for zero failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Missed {
    /// The word stands as it stood.
    Zero,
    /// It is 0, and the waiter was not woken.
    Wake,
}

impl Missed {
    fn overdue(self, what: String, waited: Duration) -> Overdue {
        match self {
            Self::Zero => Overdue::new(what, waited),
            Self::Wake => Overdue::unannounced(what, waited),
        }
    }
}

/// Waits until a word is 0: for a moment by looking, then asleep. The thread that makes it 0 wakes the futex. A word
/// that changes to something else has the patience begin anew.
fn wait_for_zero(word: &Futex, patience: Duration) -> Result<(), Missed> {
    if becomes_zero(word, LOOKING) {
        return Ok(());
    }
    loop {
        let value = word.load(Ordering::SeqCst);
        if value == 0 {
            return Ok(());
        }
        if word.wait(value, patience) == Woke::TimedOut
            && let Some(missed) = missed(word, value)
        {
            return Err(missed);
        }
    }
}

/// Looks at a word until it is 0, for so long.
fn becomes_zero(word: &AtomicU32, looking: Duration) -> bool {
    // Without a reading of the clock where the first loads find it.
    let mut begun = None;
    loop {
        for _ in 0..LOADS {
            if word.load(Ordering::SeqCst) == 0 {
                return true;
            }
            std::hint::spin_loop();
        }
        if begun.get_or_insert_with(Instant::now).elapsed() >= looking {
            return false;
        }
    }
}

/// How the wait on a word that was `before` has failed, if no wake came in time.
fn missed(word: &AtomicU32, before: u32) -> Option<Missed> {
    match word.load(Ordering::SeqCst) {
        0 => Some(Missed::Wake),
        now if now == before => Some(Missed::Zero),
        _ => None,
    }
}

/// All vCPUs are out until this is dropped.
#[derive(Debug)]
#[must_use = "the vCPUs run again as soon as this is dropped"]
pub struct Hold<'a>(&'a Gate);

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        if self.0.closed.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.closed.wake_all();
        }
    }
}

/// A vCPU thread at its place.
#[derive(Debug)]
pub struct Seated<'a> {
    gate: &'a Gate,
    seat: &'a Seat,
    immediate_exit: *mut u8,
}

impl<'a> Seated<'a> {
    /// Waits until the gate is open, then runs `guest`, which is `KVM_RUN`.
    ///
    /// A kick from then on makes `KVM_RUN` return at once; one before is not seen, so `guest` looks by itself
    /// whether it was told anything.
    ///
    /// # Errors
    /// The gate is shut for good, for this reason.
    pub fn enter<R>(&self, guest: impl FnOnce() -> R) -> Result<R, &'a CrashKind> {
        let mut waited = false;
        loop {
            // SAFETY: `sit` was promised the pointer as long as `self`; volatile as in `Seat::kick`. Before `inside` is set, so that no kick meant for this entry is lost.
            unsafe { self.immediate_exit.write_volatile(0) };
            // Pairs with the increment of `closed` and the load of `inside` in `Gate::hold`.
            self.seat.inside.store(1, Ordering::SeqCst);
            let closed = self.gate.closed.load(Ordering::SeqCst);
            if closed == 0 {
                break;
            }
            self.leave();
            if !waited {
                waited = true;
                self.gate.waiting.fetch_add(1, Ordering::SeqCst);
            }
            if let Err(overdue) = self.wait_until_open() {
                self.gate.shut_for_good(CrashKind::Overdue(overdue));
                self.no_longer_waiting();
                return Err(self.gate.why.get().expect("just set"));
            }
        }
        if waited {
            self.no_longer_waiting();
        }
        let _leave = Leave(self);
        // A thread that shuts the gate for good holds it, so it did that before the vCPU came this far; or it kicks the
        // vCPU afterwards.
        if self.gate.broken.load(Ordering::SeqCst) {
            return Err(self.gate.why.get().expect("set before the flag"));
        }
        Ok(guest())
    }

    fn wait_until_open(&self) -> Result<(), Overdue> {
        let patience = self.gate.patience;
        let mut times = 1;
        loop {
            match wait_for_zero(&self.gate.closed, patience) {
                Ok(()) => return Ok(()),
                // The holder may still be at work.
                Err(Missed::Zero) if times < HOLDS => times += 1,
                Err(missed) => {
                    let what = "the gate to be opened by the thread that takes memory from the guest";
                    return Err(missed.overdue(what.to_owned(), patience * times));
                }
            }
        }
    }

    fn no_longer_waiting(&self) {
        if self.gate.waiting.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.gate.waiting.wake_all();
        }
    }

    fn leave(&self) {
        self.seat.inside.store(0, Ordering::SeqCst);
        self.seat.inside.wake_all();
    }
}

impl Drop for Seated<'_> {
    fn drop(&mut self) {
        // A kick that has found the pointer has the lock.
        self.seat.flag().0 = std::ptr::null_mut();
    }
}

struct Leave<'a>(&'a Seated<'a>);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

#[cfg(test)]
mod tests;
