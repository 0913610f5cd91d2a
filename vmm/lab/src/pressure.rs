//! The memory cgroup of a trial: made and removed as every change to the host is, with this process inside meanwhile.

use guest_mem::{CgroupPlace, MemoryCgroup, with_causes};

use host::{ChangeId, HostChanges};

/// A cgroup of this trial's own. The process leaves it first, then it is removed.
pub struct Pressure<'c> {
    group: MemoryCgroup,
    _made: Made<'c>,
}

struct Made<'c> {
    changes: &'c HostChanges,
    change: ChangeId,
}

impl<'c> Pressure<'c> {
    /// Makes a cgroup and moves this process into it. Before the machine: what it touches first is charged to the cgroup.
    ///
    /// # Errors
    /// Why there is none: no memory controller, no right to it, or nothing that would remove it again.
    pub fn enter(changes: Option<&'c HostChanges>) -> Result<Self, String> {
        let changes = changes.ok_or("a cgroup would not be removed again")?;
        let place = CgroupPlace::find(&changes.unique_name()).map_err(|error| with_causes(&error))?;
        let made = changes.make_cgroup(place.path(), place.home(), "to reclaim from this process alone");
        // It knows of its undoing before the process is inside.
        let made = Made { changes, change: made.map_err(|error| with_causes(&error))? };
        let group = MemoryCgroup::enter(place).map_err(|error| with_causes(&error))?;
        Ok(Self { group, _made: made })
    }

    /// The group.
    pub fn group(&self) -> &MemoryCgroup {
        &self.group
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        // A change that cannot be undone stays outstanding: it is undone with the others, or reported then.
        let _ = self.changes.undo(self.change);
    }
}
