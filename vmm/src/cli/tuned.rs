//! A guest's backing, for the commands that run one guest: whether this host has it, and `--tune`.

use guest_mem::{Backing, Unavailable};

use super::changes;
use lab::{Tuner, offer_of_tune};
use program::exit::{Class, Classified, Exit, Failure};
use program::output;

/// This host does not give a backing that the command line names.
#[derive(Debug, thiserror::Error)]
#[error("--backing {backing}: {why}{}", if *.tuned { "" } else { offer_of_tune(.why) })]
pub struct NoBacking {
    backing: Backing,
    why: Unavailable,
    tuned: bool,
}

impl Classified for NoBacking {
    fn class(&self) -> Class {
        Class::Host
    }
}

/// Memory that a guest is to have.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// What fills it.
    pub backing: Backing,
    /// How much.
    pub bytes: u64,
    /// Whether the host's switches may be set for it.
    pub tune: bool,
}

impl Wanted {
    /// Whether the host gives it as it is; where it may be changed that is found out then.
    ///
    /// # Errors
    /// [`NoBacking`].
    pub fn check(&self) -> Result<(), NoBacking> {
        if self.tune { Ok(()) } else { self.look() }
    }

    /// Does `work` while the host's switches are as this memory needs them, if they may be set, and puts them back.
    ///
    /// # Errors
    /// [`NoBacking`] where that was not enough, and those of `work`.
    pub fn while_given(&self, work: impl FnOnce() -> Result<Exit, Failure>) -> Result<Exit, Failure> {
        self.while_tuned(|| {
            self.look()?;
            work()
        })
    }

    /// The same for memory that is taken as it comes.
    ///
    /// # Errors
    /// Those of `work`.
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

    fn look(&self) -> Result<(), NoBacking> {
        let Self { backing, bytes, tune: tuned } = *self;
        match backing.unavailable_here(bytes) {
            Some(why) => Err(NoBacking { backing, why, tuned }),
            None => Ok(()),
        }
    }
}
