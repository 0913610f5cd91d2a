//! `zapscope snapshot`: the bare guest, its memory filled, into a file.

use std::sync::Arc;

use guest_abi::layout::{ARENA_MAX, PAGE_SIZE};
use guest_abi::order::Task;
use guest_mem::{PMD_SIZE, with_causes};
use machine::Kvm;

use super::args::SnapshotArguments;
use super::interrupt::{cancel_on_signal, when_cancelled};
use super::tuned::Wanted;
use experiment::choice::Size;
use guest::CrashKind;
use host::signals::Cancel;
use machine::snapshot::SnapshotError;
use machine::snapshot::stop::Stopper;
use machine::snapshot::work;
use machine::snapshot::write::{Pattern, Written, write};
use machine::{Machine, VmConfig};
use program::exit::{Class, Classified, Exit, Failure};
use program::output;
use program::units;
use program::whole_file::{Existing, WholeFile, WholeFileError};

/// The generation of the pattern that the guest writes.
const GENERATION: u64 = 1;

/// A value of the command line is wrong.
#[derive(Debug, thiserror::Error)]
enum ArgumentError {
    #[error("--memory {0}: it must be a multiple of 2 MiB, from 2 MiB to 62 GiB")]
    Memory(Size),
    #[error("--fill {fill}: it must be a multiple of 4 KiB and at most the {memory} of memory")]
    Fill { fill: Size, memory: Size },
}

impl Classified for ArgumentError {
    fn class(&self) -> Class {
        Class::Mistake
    }
}

/// The file cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("there is no place for the snapshot")]
struct NoPlace(#[source] WholeFileError);

impl Classified for NoPlace {
    fn class(&self) -> Class {
        self.0.class()
    }
}

pub fn snapshot(arguments: &SnapshotArguments) -> Result<Exit, Failure> {
    let pattern = check(arguments)?;
    let SnapshotArguments { backing, tune, memory: Size(bytes), .. } = *arguments;
    let wanted = Wanted { backing, bytes, tune };
    wanted.check()?;
    let cancel = cancel_on_signal()?;
    let file = WholeFile::create(&arguments.out, Existing::Replaced).map_err(NoPlace)?;
    let kvm = Kvm::open()?;
    wanted.while_given(|| take_and_tell(arguments, file, &kvm, pattern, &cancel))
}

/// Makes the snapshot, and reports its content.
fn take_and_tell(
    arguments: &SnapshotArguments,
    file: WholeFile,
    kvm: &Kvm,
    pattern: Pattern,
    cancel: &Cancel,
) -> Result<Exit, Failure> {
    let mut said = |what: String| output::message(format_args!("this KVM does not give {what}"));
    match take(arguments, file, kvm, pattern, cancel, &mut said) {
        Ok(written) => {
            let (header, bytes) = (&written.header, units::bytes(written.bytes));
            let zeros = units::count(header.pages() - header.stored);
            output::result(format_args!(
                "{}: {bytes}; vCPUs {}, memory {} + {} of {}; {} pages stored, {zeros} of zeros left out\n",
                arguments.out.display(),
                header.vcpus,
                units::bytes(header.low()),
                units::bytes(header.arena),
                units::label(&header.backing.to_string(), written.earned.fraction()),
                units::count(header.stored),
            ));
            Ok(Exit::Done)
        }
        Err(_) if cancel.is_cancelled() => Ok(Exit::Interrupted),
        Err(error) => Err(error.into()),
    }
}

fn check(arguments: &SnapshotArguments) -> Result<Pattern, ArgumentError> {
    let Size(memory) = arguments.memory;
    if memory == 0 || memory > ARENA_MAX || !memory.is_multiple_of(PMD_SIZE) {
        return Err(ArgumentError::Memory(arguments.memory));
    }
    let fill = arguments.fill.unwrap_or(arguments.memory);
    if fill.0 > memory || !fill.0.is_multiple_of(PAGE_SIZE) {
        return Err(ArgumentError::Fill { fill, memory: arguments.memory });
    }
    Ok(Pattern { generation: GENERATION, filled: fill.0 })
}

fn take(
    arguments: &SnapshotArguments,
    file: WholeFile,
    kvm: &Kvm,
    pattern: Pattern,
    cancel: &Cancel,
    missing: &mut impl FnMut(String),
) -> Result<Written, SnapshotError> {
    let Size(arena) = arguments.memory;
    let config = VmConfig {
        vcpus: arguments.vcpus,
        arena,
        backing: arguments.backing,
        granule: arena.next_power_of_two(),
        slot_zap_all_quirk: true,
    };
    let machine = Machine::start(kvm, &config, resources::GUEST)?;
    let stopper = Arc::new(Stopper::default());
    stopper.watch(&machine);
    stop_when_told(cancel, &stopper);
    machine.wait_up()?;
    let fill = Task::Fill { generation: pattern.generation };
    work::all(&machine, &(0..pattern.filled / PAGE_SIZE), fill, 0, |_| ())?;
    write(file, kvm, machine, pattern, cancel, missing)
}

/// Stops the guest when a signal cancels the token.
pub(super) fn stop_when_told(cancel: &Cancel, stopper: &Arc<Stopper>) {
    let told = stopper.clone();
    let stop = move || told.stop(CrashKind::Other("stopped by a signal".to_owned()));
    if let Err(error) = when_cancelled(cancel, stop) {
        output::message(format_args!(
            "Ctrl-C will be heard between two orders only: {}",
            with_causes(&error)
        ));
    }
}
