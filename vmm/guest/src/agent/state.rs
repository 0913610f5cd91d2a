//! The state that the reader thread and the waiting threads share: pure, no input or output.
//!
//! ```text
//!   a request:   Idle ── ask ──> Awaited ── answer ──> Arrived ── take ──> Idle
//!                  │                  └── no answer in time: the link ends
//!                  └── answer: a lie, the link ends
//!   an order:    the same, for each vCPU
//! ```

use std::collections::VecDeque;
use std::time::Instant;

use guest_abi::layout::MAX_VCPUS;
use guest_abi::link::{ABI_VERSION, FromAgent, Mapped, Request};

use super::error::{End, ProtocolError};

/// How the agent introduced itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// vCPUs that are online in the guest.
    pub vcpus: u16,
    /// The guest kernel's release.
    pub release: String,
}

/// The guest's own counters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Pages of the arena and the control areas that the guest's kernel has moved: what the VMM took for one page of
    /// the arena is then another.
    pub moved_pages: u64,
    /// Bytes of the arena that the guest maps by huge pages now.
    pub huge_bytes: u64,
    /// Lines of its `/proc` and `/sys`, each a name and a value.
    pub text: String,
}

/// Something asked of the agent.
#[derive(Debug)]
pub(super) enum Exchange<T> {
    Idle,
    Awaited,
    Arrived(T),
}

impl<T> Exchange<T> {
    /// Notes that it is asked. Returns whether it was free.
    pub(super) fn ask(&mut self) -> bool {
        let free = matches!(self, Self::Idle);
        if free {
            *self = Self::Awaited;
        }
        free
    }

    fn answer(&mut self, answer: T, error: ProtocolError) -> Result<(), End> {
        if !matches!(self, Self::Awaited) {
            return Err(End::Violated(error));
        }
        *self = Self::Arrived(answer);
        Ok(())
    }

    /// Takes the answer, if it is here.
    pub(super) fn take(&mut self) -> Option<T> {
        match std::mem::replace(self, Self::Idle) {
            Self::Arrived(answer) => Some(answer),
            other => {
                *self = other;
                None
            }
        }
    }
}

/// An answer, or the agent's refusal.
pub(super) type Answer<T> = Result<T, String>;

/// The limit on a command's output that waits to be taken; beyond it the reader waits.
const OUTPUT_BYTES: usize = 256 << 10;

/// A command's output and end.
#[derive(Debug)]
pub(super) struct Shell {
    pub(super) status: Exchange<Answer<i32>>,
    pub(super) output: VecDeque<u8>,
}

/// Everything known of the agent.
#[derive(Debug)]
pub(super) struct State {
    pub(super) hello: Option<Hello>,
    /// Why the VMM is ending the link. Until the reader has ended it, answers still arrive.
    pub(super) reason: Option<End>,
    pub(super) end: Option<End>,
    pub(super) mapped: Exchange<Answer<Mapped>>,
    pub(super) counters: Exchange<Answer<Counters>>,
    pub(super) shell: Shell,
    pub(super) orders: [Exchange<()>; MAX_VCPUS as usize],
    /// When anything of this last changed.
    pub(super) changed: Instant,
}

impl State {
    pub(super) fn new() -> Self {
        Self {
            hello: None,
            reason: None,
            end: None,
            mapped: Exchange::Idle,
            counters: Exchange::Idle,
            shell: Shell { status: Exchange::Idle, output: VecDeque::new() },
            orders: [const { Exchange::Idle }; MAX_VCPUS as usize],
            changed: Instant::now(),
        }
    }

    /// Whether further output of the command must wait until some is taken.
    pub(super) fn is_full(&self) -> bool {
        self.shell.output.len() >= OUTPUT_BYTES
    }

    /// Takes in one message.
    ///
    /// # Errors
    /// Why the link ends with it.
    pub(super) fn take_in(&mut self, message: FromAgent<'_>) -> Result<(), End> {
        use FromAgent as M;
        use ProtocolError::Unasked;
        let is_early = !matches!(message, M::Hello { .. } | M::Log { .. } | M::Failed { .. });
        if self.hello.is_none() && is_early {
            return Err(End::Violated(ProtocolError::NoHello));
        }
        match message {
            M::Hello { abi, vcpus, release } => self.greet(abi, vcpus, release),
            M::Mapped(mapped) => self.mapped.answer(Ok(mapped), Unasked(Request::MapArena)),
            M::Done { vcpu } => match self.orders.get_mut(usize::from(vcpu)) {
                Some(order) => order.answer((), ProtocolError::Idle(vcpu)),
                None => Err(End::Violated(ProtocolError::Idle(vcpu))),
            },
            M::ShellOutput { bytes } => {
                if !matches!(self.shell.status, Exchange::Awaited) {
                    return Err(End::Violated(Unasked(Request::Shell)));
                }
                self.shell.output.extend(bytes);
                Ok(())
            }
            M::ShellExited { status } => self.shell.status.answer(Ok(status), Unasked(Request::Shell)),
            M::CountersAre { moved_pages, huge_bytes, text } => {
                let counters = Counters { moved_pages, huge_bytes, text: printable(text) };
                self.counters.answer(Ok(counters), Unasked(Request::Counters))
            }
            // Told where no lock is held.
            M::Log { .. } => Ok(()),
            M::Refused { request, what } => {
                let what = printable(what);
                match request {
                    Request::MapArena => self.mapped.answer(Err(what), Unasked(request)),
                    Request::Shell => self.shell.status.answer(Err(what), Unasked(request)),
                    Request::Counters => self.counters.answer(Err(what), Unasked(request)),
                }
            }
            M::Failed { what } => Err(End::Failed(printable(what))),
        }
    }

    fn greet(&mut self, abi: u32, vcpus: u16, release: &str) -> Result<(), End> {
        if self.hello.is_some() {
            return Err(End::Violated(ProtocolError::SecondHello));
        }
        if abi != ABI_VERSION {
            return Err(End::Violated(ProtocolError::Abi(abi)));
        }
        if vcpus == 0 || u32::from(vcpus) > MAX_VCPUS {
            return Err(End::Violated(ProtocolError::Vcpus(vcpus)));
        }
        self.hello = Some(Hello { vcpus, release: printable(release) });
        Ok(())
    }
}

/// A guest's text without what could command a terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|char| if char.is_control() && char != '\n' { '\u{fffd}' } else { char }).collect()
}
