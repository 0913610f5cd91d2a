//! The link: requests going out, a thread that reads what comes back.

use std::io::Read;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use guest_abi::link::{Decoder, FromAgent, MAX_PAYLOAD, Pages, Request, ToAgent};
use guest_mem::GpaRange;
use guest_mem::waits::Thread;

use super::courier;
use super::error::{AgentError, End};
use super::mapped::ArenaMap;
use super::shared::Shared;
use super::state::{Answer, Counters, Exchange, Hello, State, printable};
use crate::Mailbox;

/// The link to one guest's agent.
pub struct Link {
    shared: Arc<Shared>,
    reader: Option<Thread<()>>,
}

impl Link {
    /// A link over `socket`, whose other end is the virtio-console device. An answer may take `patience`, a command
    /// any time; `log` is told, on the reader's thread, what the agent has to say.
    pub fn new(
        socket: UnixStream,
        patience: Duration,
        log: impl FnMut(&str) + Send + 'static,
    ) -> std::io::Result<Self> {
        // A device that takes nothing more, because its guest is gone, must not hold the sender for ever.
        socket.set_write_timeout(Some(patience))?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State::new()),
            changed: Condvar::new(),
            socket,
            sending: Mutex::new(()),
            patience,
        });
        let reader = {
            let shared = shared.clone();
            Thread::start("agent", move || {
                let end = read(&shared, log);
                let mut state = shared.lock();
                let reason = state.reason.take();
                state.end = Some(match end {
                    End::Closed | End::Socket(_) => reason.unwrap_or(end),
                    told => told,
                });
                shared.announce(state);
                // So that a sender gets the error too.
                let _ = shared.socket.shutdown(Shutdown::Both);
            })?
        };
        Ok(Self { shared, reader: Some(reader) })
    }

    /// Waits at most `patience` for the agent to be up.
    pub fn wait_hello(&self, patience: Duration) -> Result<Hello, AgentError> {
        let hello = self.shared.wait(
            "the first word of the guest's agent",
            Some(Instant::now() + patience),
            |state| state.hello.clone(),
        )?;
        hello.ok_or(AgentError::Silent { what: "come up", waited: patience })
    }

    /// Has the agent make an arena of `bytes` and the control areas, in place of those before. `is_ram` tells whether
    /// all of a range is RAM of this guest.
    ///
    /// # Errors
    /// [`AgentError`]; [`AgentError::Misplaced`] if what it says cannot be.
    pub fn map_arena(
        &self,
        bytes: u64,
        pages: Pages,
        is_ram: &dyn Fn(GpaRange) -> bool,
    ) -> Result<ArenaMap, AgentError> {
        let vcpus = self.wait_hello(self.shared.patience)?.vcpus;
        let message = ToAgent::MapArena { bytes, pages };
        let mapped = self.ask(Request::MapArena, &message, "map the arena", |state| &mut state.mapped)?;
        Ok(ArenaMap::check(&mapped, bytes, vcpus, is_ram)?)
    }

    /// The guest's own counters.
    pub fn counters(&self) -> Result<Counters, AgentError> {
        self.ask(Request::Counters, &ToAgent::Counters, "tell its counters", |state| &mut state.counters)
    }

    /// Runs `sh -c command` in the guest, and hands `output` what it writes, as it comes. Until `output` returns the
    /// link may stand still: it must not wait for an order.
    ///
    /// # Errors
    /// [`AgentError`]. A command that fails is no error: its status tells.
    pub fn shell(&self, command: &str, output: &mut dyn FnMut(&[u8])) -> Result<ExitStatus, AgentError> {
        if !self.shared.lock().shell.status.ask() {
            return Err(AgentError::Busy(Request::Shell));
        }
        let sent = self.shared.send(&ToAgent::Shell { command });
        if sent.is_err() {
            self.shared.lock().shell.status = Exchange::Idle;
        }
        sent?;
        loop {
            let heard = self.shared.wait("what a command in the guest prints, or its end", None, |state| {
                let output: Vec<u8> = state.shell.output.drain(..).collect();
                let ended = if output.is_empty() { state.shell.status.take() } else { None };
                (!output.is_empty() || ended.is_some()).then_some((output, ended))
            });
            let Some((bytes, ended)) = heard? else { continue };
            if !bytes.is_empty() {
                output(&bytes);
            }
            match ended {
                Some(Ok(status)) => return Ok(ExitStatus::from_raw(status)),
                Some(Err(what)) => return Err(AgentError::Refused { request: Request::Shell, what }),
                None => {}
            }
        }
    }

    /// Ends the link with a reason of the VMM's, as when the guest has ended: everything that waits for the agent ends
    /// with it. A reason that the agent gave, or that ended the link before, stands.
    pub fn end(&self, reason: &str) {
        self.shared.end(End::Ended(reason.to_owned()));
    }

    /// Starts the thread that takes orders from `mailbox` to the agent. It ends when the mailbox is told to quit, if
    /// its vCPU has no order, and with the link.
    pub fn courier(&self, mailbox: Arc<Mailbox>) -> std::io::Result<Thread<()>> {
        let shared = self.shared.clone();
        let name = format!("courier{}", mailbox.vcpu());
        Thread::start(name, move || courier::run(&shared, &mailbox))
    }

    fn ask<T>(
        &self,
        request: Request,
        message: &ToAgent<'_>,
        what: &'static str,
        slot: impl Fn(&mut State) -> &mut Exchange<Answer<T>>,
    ) -> Result<T, AgentError> {
        if !slot(&mut self.shared.lock()).ask() {
            return Err(AgentError::Busy(request));
        }
        let deadline = Instant::now() + self.shared.patience;
        let heard = match self.shared.send(message) {
            Ok(()) => self
                .shared
                .wait("the answer of the guest's agent", Some(deadline), |state| slot(state).take()),
            Err(error) => Err(error),
        };
        match heard {
            Ok(Some(Ok(answer))) => Ok(answer),
            Ok(Some(Err(what))) => Err(AgentError::Refused { request, what }),
            Ok(None) => {
                // A late answer would be taken for the answer to the next request.
                let silent = AgentError::Silent { what, waited: self.shared.patience };
                self.end(&silent.to_string());
                Err(silent)
            }
            Err(error) => Err(error),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.end("the VMM closed the link");
        if let Some(reader) = self.reader.take() {
            reader.end_or_tell();
        }
    }
}

/// The reader's thread. Returns why there is nothing more to read.
fn read(shared: &Shared, mut log: impl FnMut(&str)) -> End {
    let mut decoder = Decoder::new();
    let mut buffer = [0; MAX_PAYLOAD];
    loop {
        let mut bytes = match (&shared.socket).read(&mut buffer) {
            Ok(0) => return End::Closed,
            Ok(len) => &buffer[..len],
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return End::of(error),
        };
        loop {
            let message = match decoder.next(&mut bytes) {
                Ok(None) => break,
                Ok(Some(frame)) => FromAgent::decode(frame),
                Err(error) => Err(error),
            };
            let taken = match message {
                Ok(message) => take_in(shared, message, &mut log),
                Err(error) => Err(End::Protocol(error)),
            };
            if let Err(end) = taken {
                return end;
            }
        }
    }
}

fn take_in(shared: &Shared, message: FromAgent<'_>, log: &mut dyn FnMut(&str)) -> Result<(), End> {
    match message {
        FromAgent::Log { text } => {
            log(&printable(text));
            return Ok(());
        }
        // A guest that writes faster than its output is taken waits, and does not fill the host's memory.
        FromAgent::ShellOutput { .. } => {
            let room = |state: &mut State| (!state.is_full() || state.reason.is_some()).then_some(());
            match shared.wait("room for what a command prints", None, room) {
                Err(AgentError::Ended(end)) => return Err(end),
                // There is room.
                Err(error) => program::output::message(error),
                Ok(_) => {}
            }
        }
        _ => {}
    }
    let mut state = shared.lock();
    let taken = state.take_in(message);
    shared.announce(state);
    taken
}

#[cfg(test)]
mod tests {
    use super::*;
    use program::exit::{Class, Classified};

    fn link() -> (Link, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Link::new(ours, Duration::from_millis(50), |_| ()).unwrap(), theirs)
    }

    #[test]
    fn an_answer_that_nobody_was_woken_for_is_told_of() {
        let (link, _theirs) = link();
        let mut looks = 0;
        let answer = |_: &mut State| {
            looks += 1;
            (looks == 2).then_some(())
        };
        let deadline = Instant::now() + Duration::from_millis(50);
        let error = link.shared.wait("an answer", Some(deadline), answer).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, AgentError::Overdue(_)) && error.class() == Class::Fault, "{text}");
        assert!(text.contains(" for an answer, which had come, but the wake for it was lost"), "{text}");
    }
}
