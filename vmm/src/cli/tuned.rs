//! The memory of the commands that run one guest: whether this host gives it, and `--tune`.

use guest_mem::{Backing, Unavailable};

use super::changes;
use experiment::choice::Size;
use host::{Root, facts};
use lab::{Tuner, offer_of_tune};
use program::exit::{Class, Classified, Exit, Failure};
use program::{output, units};

/// This host does not give the memory.
#[derive(Debug, thiserror::Error)]
pub enum NotGiven {
    #[error("--memory {0}: this host has {host} of memory and swap: give the guest less", host = units::bytes(*.1))]
    MoreThanTheHost(Size, u64),
    #[error("--backing {backing}: {why}{}", if *.tuned { "" } else { offer_of_tune(.why) })]
    Backing { backing: Backing, why: Unavailable, tuned: bool },
}

impl Classified for NotGiven {
    fn class(&self) -> Class {
        Class::Host
    }
}

/// The memory of a guest.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Its backing.
    pub backing: Backing,
    /// Its size.
    pub bytes: u64,
    /// Whether the host's switches are set for it.
    pub tune: bool,
}

impl Wanted {
    /// Checks that the host gives it: so much now, and the backing unless switches are set for it later. The pages are
    /// allocated as the guest touches them: a larger guest would start, and later run out of memory.
    pub fn check(&self) -> Result<(), NotGiven> {
        match facts::memory_and_swap(&Root::default()) {
            Some(host) if host < self.bytes => Err(NotGiven::MoreThanTheHost(Size(self.bytes), host)),
            _ if self.tune => Ok(()),
            _ => self.look(),
        }
    }

    /// Performs `work` with the host's switches set, if asked for, and restores them.
    ///
    /// # Errors
    /// [`NotGiven`] if the host does not give the backing nevertheless, and those of `work`.
    pub fn while_given(&self, work: impl FnOnce() -> Result<Exit, Failure>) -> Result<Exit, Failure> {
        self.while_tuned(|| {
            self.look()?;
            work()
        })
    }

    /// The same without a check of the backing.
    pub fn while_tuned(&self, work: impl FnOnce() -> Result<Exit, Failure>) -> Result<Exit, Failure> {
        if !self.tune {
            return work();
        }
        let changes = changes::begin();
        let prepared = Tuner::new(&changes).prepare(self.backing, self.bytes);
        prepared.err().iter().for_each(output::message);
        let done = work();
        match (done, changes::end(&changes)) {
            (Ok(Exit::Done), false) => Ok(Exit::Fault),
            (done, _) => done,
        }
    }

    fn look(&self) -> Result<(), NotGiven> {
        let Self { backing, bytes, tune: tuned } = *self;
        match backing.unavailable_here(bytes) {
            Some(why) => Err(NotGiven::Backing { backing, why, tuned }),
            None => Ok(()),
        }
    }
}
