//! A plan of faults, as a scenario or a test writes it: `put 3: eio; get 5: flip 17; get 6: slow 50ms; put 9: die`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Which calls a fault counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StoreCall {
    /// Calls of [`Store::put`](swap::Store::put).
    Put,
    /// Calls of [`Store::get`](swap::Store::get).
    Get,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The medium says EIO (`eio`).
    Io,
    /// The medium says ENOSPC (`enospc`).
    NoSpace,
    /// The call stops half-way through the batch (`short`).
    Short,
    /// One bit of the batch is the wrong way round (`flip BIT`); the number wraps at the batch's end.
    Flip(u64),
    /// The answer comes so much later (`slow 50ms`).
    Slow(Duration),
    /// The store is dead, and every call fails from then on (`die`).
    Die,
}

/// A fault, and the call that it strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which calls are counted.
    pub call: StoreCall,
    /// The call that is struck; the first is 1.
    pub nth: u64,
    /// What happens to it.
    pub kind: FaultKind,
}

/// Faults in the order in which they are to strike. Several may strike the same call: `put 3: slow 10ms; put 3: eio`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FaultPlan {
    faults: Vec<Fault>,
}

/// Text, or a list of faults, that is no plan.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultPlanError {
    /// Not a fault.
    #[error(
        "`{0}` is no fault: it is `put N: KIND` or `get N: KIND`, N from 1, and KIND one of `eio`, `enospc`, `short`, \
         `flip BIT`, `slow MILLISECONDSms`, `die`"
    )]
    Syntax(String),
    /// A fault that would strike before the one in front of it.
    #[error("`{1}` stands after `{0}` and would strike before it: a plan is in order")]
    Order(Fault, Fault),
    /// A fault that could never strike.
    #[error("`{1}` stands after `{0}`, and a store that has died does not fail in any other way")]
    AfterDeath(Fault, Fault),
}

impl FaultPlan {
    /// A plan of these faults.
    ///
    /// # Errors
    /// Those of one kind of call are not in the order of their calls, or some could never strike.
    pub fn new(faults: Vec<Fault>) -> Result<Self, FaultPlanError> {
        for (at, &fault) in faults.iter().enumerate() {
            if fault.nth == 0 {
                return Err(FaultPlanError::Syntax(fault.to_string()));
            }
            for &before in faults[..at].iter().filter(|before| before.call == fault.call) {
                if fault.nth < before.nth {
                    return Err(FaultPlanError::Order(before, fault));
                }
                if before.kind == FaultKind::Die {
                    return Err(FaultPlanError::AfterDeath(before, fault));
                }
            }
        }
        Ok(Self { faults })
    }

    /// What strikes this call, in order.
    pub(super) fn of(&self, call: StoreCall, nth: u64) -> impl Iterator<Item = Fault> {
        self.faults.iter().copied().filter(move |fault| fault.call == call && fault.nth == nth)
    }
}

impl fmt::Display for StoreCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Put => "put",
            Self::Get => "get",
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: ", self.call, self.nth)?;
        match self.kind {
            FaultKind::Io => f.write_str("eio"),
            FaultKind::NoSpace => f.write_str("enospc"),
            FaultKind::Short => f.write_str("short"),
            FaultKind::Flip(bit) => write!(f, "flip {bit}"),
            FaultKind::Slow(delay) => write!(f, "slow {}ms", delay.as_millis()),
            FaultKind::Die => f.write_str("die"),
        }
    }
}

impl fmt::Display for FaultPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, fault) in self.faults.iter().enumerate() {
            write!(f, "{}{fault}", if at > 0 { "; " } else { "" })?;
        }
        Ok(())
    }
}

impl FromStr for Fault {
    type Err = FaultPlanError;

    fn from_str(text: &str) -> Result<Self, FaultPlanError> {
        parse(text).ok_or_else(|| FaultPlanError::Syntax(text.trim().to_owned()))
    }
}

fn parse(text: &str) -> Option<Fault> {
    let (call, kind) = text.split_once(':')?;
    let (call, nth) = call.trim().split_once(' ')?;
    let call = match call {
        "put" => StoreCall::Put,
        "get" => StoreCall::Get,
        _ => return None,
    };
    let nth = nth.trim().parse().ok().filter(|&nth| nth > 0)?;
    let kind = match kind.trim().split_once(' ').unwrap_or((kind.trim(), "")) {
        ("eio", "") => FaultKind::Io,
        ("enospc", "") => FaultKind::NoSpace,
        ("short", "") => FaultKind::Short,
        ("die", "") => FaultKind::Die,
        ("flip", bit) => FaultKind::Flip(bit.trim().parse().ok()?),
        ("slow", delay) => {
            FaultKind::Slow(Duration::from_millis(delay.trim().strip_suffix("ms")?.parse().ok()?))
        }
        _ => return None,
    };
    Some(Fault { call, nth, kind })
}

impl FromStr for FaultPlan {
    type Err = FaultPlanError;

    fn from_str(text: &str) -> Result<Self, FaultPlanError> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        Self::new(text.split(';').map(str::parse).collect::<Result<_, _>>()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_its_text() {
        let text = "put 3: eio; get 5: flip 17; get 6: slow 50ms; get 6: short; put 3: enospc; put 9: die";
        let plan: FaultPlan = text.parse().unwrap();
        assert_eq!(plan.to_string(), text);
        assert_eq!(
            "put 3:eio ;get  5: flip  17;".parse::<FaultPlan>().unwrap_err(),
            FaultPlanError::Syntax(String::new())
        );
        assert_eq!(" ".parse::<FaultPlan>().unwrap(), FaultPlan::default());
        let kinds: Vec<FaultKind> = plan.of(StoreCall::Put, 3).map(|fault| fault.kind).collect();
        assert_eq!(kinds, [FaultKind::Io, FaultKind::NoSpace]);
        assert_eq!(plan.of(StoreCall::Get, 3).count(), 0);
    }

    #[test]
    fn what_is_no_plan_is_refused_by_name() {
        for text in [
            "eio",
            "put: eio",
            "put 0: eio",
            "free 1: eio",
            "put 1: enoent",
            "put 1: eio 3",
            "get 1: flip",
            "get 1: slow 5",
            "get -1: eio",
            "get 1: slow 5s",
        ] {
            assert_eq!(text.parse::<FaultPlan>(), Err(FaultPlanError::Syntax(text.to_owned())));
        }
        let error = "put 3: eio; get 1: eio; put 2: short".parse::<FaultPlan>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "`put 2: short` stands after `put 3: eio` and would strike before it: a plan is in order"
        );
        let error = "put 3: die; put 4: eio".parse::<FaultPlan>().unwrap_err();
        assert!(matches!(error, FaultPlanError::AfterDeath(..)));
    }
}
