//! Work orders: what the VMM asks a vCPU to do with the arena.

use crate::layout::{PAGE_SIZE, TABLE_ENTRIES};

/// How one page is touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// One 8-byte load.
    Read,
    /// A plain increment of the vCPU's own lane: a load and a store.
    Write,
    /// A `lock add` on the word all vCPUs share.
    LockedAdd,
}

/// In which order the pages of a range are visited. One *pass* visits each page of the walk once. `seed` begins the draw of
/// the first pass; the next one continues the sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the walks' descriptions say what each field is")]
pub enum Walk {
    /// Every page, lowest first.
    Sequential,
    /// Every `stride`-th page, lowest first. Not 0.
    Strided { stride: u64 },
    /// `count` pages, each drawn uniformly.
    Random { seed: u64, count: u64 },
    /// `count` pages, drawn by the cumulative distribution in the table: entry `r` is the 32-bit fixed-point
    /// probability of drawing a page below rank `r + 1`. One entry for each page of the range.
    Zipf { seed: u64, count: u64 },
    /// The first `count` entries of the table, each a page index in the range.
    List { count: u64 },
}

/// What is done with each page visited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the tasks' descriptions say what each field is")]
pub enum Task {
    /// Fill it with the pattern of this generation.
    Fill { generation: u64 },
    /// Touch it, and time the touch.
    Touch {
        access: Access,
        /// How many passes; `None` until told to stop.
        passes: Option<u64>,
        /// A touch of at least this many TSC cycles is a stall and goes to the ring.
        stall_cycles: u64,
    },
    /// Check it against the pattern of this generation, and sum its counters.
    Verify { generation: u64 },
}

/// One order to one vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkOrder {
    /// Guest physical address of the range, page aligned.
    pub start: u64,
    /// Bytes of the range: a multiple of the page size, not 0.
    pub len: u64,
    /// Which pages, in which order.
    pub walk: Walk,
    /// What to do with them.
    pub task: Task,
}

impl WorkOrder {
    /// Pages in the range.
    pub const fn pages(&self) -> u64 {
        self.len / PAGE_SIZE
    }
}

/// An order as it stands in the control block: words only, so that any bit pattern can be read and refused.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RawOrder {
    /// 1 fill, 2 touch, 3 verify.
    pub task: u64,
    /// 1 read, 2 write, 3 locked add; only for touch.
    pub access: u64,
    /// 1 sequential, 2 strided, 3 random, 4 Zipf, 5 list.
    pub walk: u64,
    /// See [`WorkOrder::start`].
    pub start: u64,
    /// See [`WorkOrder::len`].
    pub len: u64,
    /// The stride, or the visits of a pass.
    pub count: u64,
    /// Seed of a random walk.
    pub seed: u64,
    /// Generation for fill and verify.
    pub generation: u64,
    /// Passes for touch; 0 until told to stop.
    pub passes: u64,
    /// Stall threshold for touch, in TSC cycles.
    pub stall_cycles: u64,
}

impl RawOrder {
    /// How many words it has.
    pub const WORDS: usize = size_of::<Self>() / 8;

    /// Its words, in the order in which they stand in the control block.
    pub const fn words(self) -> [u64; Self::WORDS] {
        let Self { task, access, walk, start, len, count, seed, generation, passes, stall_cycles } = self;
        [task, access, walk, start, len, count, seed, generation, passes, stall_cycles]
    }

    /// The order with these words.
    pub const fn from_words(words: [u64; Self::WORDS]) -> Self {
        let [task, access, walk, start, len, count, seed, generation, passes, stall_cycles] = words;
        Self { task, access, walk, start, len, count, seed, generation, passes, stall_cycles }
    }
}

/// Why an order was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadOrder {
    /// The task, the access or the walk is none that is known.
    Unknown,
    /// The range is empty, unaligned, or runs past the end of the address space.
    Range,
    /// A walk with a stride of 0, no visits, or more entries than the table has.
    Walk,
}

impl From<WorkOrder> for RawOrder {
    fn from(order: WorkOrder) -> Self {
        let mut raw = Self { start: order.start, len: order.len, ..Self::default() };
        match order.walk {
            Walk::Sequential => raw.walk = 1,
            Walk::Strided { stride } => (raw.walk, raw.count) = (2, stride),
            Walk::Random { seed, count } => (raw.walk, raw.seed, raw.count) = (3, seed, count),
            Walk::Zipf { seed, count } => (raw.walk, raw.seed, raw.count) = (4, seed, count),
            Walk::List { count } => (raw.walk, raw.count) = (5, count),
        }
        match order.task {
            Task::Fill { generation } => (raw.task, raw.generation) = (1, generation),
            Task::Touch { access, passes, stall_cycles } => {
                raw.task = 2;
                raw.access = match access {
                    Access::Read => 1,
                    Access::Write => 2,
                    Access::LockedAdd => 3,
                };
                (raw.passes, raw.stall_cycles) = (passes.unwrap_or(0), stall_cycles);
            }
            Task::Verify { generation } => (raw.task, raw.generation) = (3, generation),
        }
        raw
    }
}

impl TryFrom<RawOrder> for WorkOrder {
    type Error = BadOrder;

    fn try_from(raw: RawOrder) -> Result<Self, BadOrder> {
        let aligned = raw.start.is_multiple_of(PAGE_SIZE) && raw.len.is_multiple_of(PAGE_SIZE);
        if !aligned || raw.len == 0 || raw.start.checked_add(raw.len).is_none() {
            return Err(BadOrder::Range);
        }
        let pages = raw.len / PAGE_SIZE;
        let walk = match raw.walk {
            1 => Walk::Sequential,
            2 => Walk::Strided { stride: raw.count },
            3 => Walk::Random { seed: raw.seed, count: raw.count },
            4 => Walk::Zipf { seed: raw.seed, count: raw.count },
            5 => Walk::List { count: raw.count },
            _ => return Err(BadOrder::Unknown),
        };
        let table = match walk {
            Walk::Zipf { .. } => pages,
            Walk::List { count } => count,
            _ => 0,
        };
        if (raw.walk != 1 && raw.count == 0) || table > TABLE_ENTRIES {
            return Err(BadOrder::Walk);
        }
        let task = match (raw.task, raw.access) {
            (1, _) => Task::Fill { generation: raw.generation },
            (2, access @ 1..=3) => Task::Touch {
                access: [Access::Read, Access::Write, Access::LockedAdd][access as usize - 1],
                passes: (raw.passes != 0).then_some(raw.passes),
                stall_cycles: raw.stall_cycles,
            },
            (3, _) => Task::Verify { generation: raw.generation },
            _ => return Err(BadOrder::Unknown),
        };
        Ok(Self { start: raw.start, len: raw.len, walk, task })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORDER: WorkOrder = WorkOrder {
        start: 0x4000_0000,
        len: 0x20_0000,
        walk: Walk::Zipf { seed: 7, count: 100 },
        task: Task::Touch { access: Access::LockedAdd, passes: None, stall_cycles: 5_000 },
    };

    #[test]
    fn every_order_survives_the_control_block() {
        let walks = [
            Walk::Sequential,
            Walk::Strided { stride: 512 },
            Walk::Random { seed: 1, count: 2 },
            Walk::Zipf { seed: 3, count: 4 },
            Walk::List { count: 5 },
        ];
        let tasks = [
            Task::Fill { generation: 9 },
            Task::Verify { generation: 0 },
            ORDER.task,
            Task::Touch { access: Access::Read, passes: Some(3), stall_cycles: 0 },
            Task::Touch { access: Access::Write, passes: Some(1), stall_cycles: 1 },
        ];
        for walk in walks {
            for task in tasks {
                let order = WorkOrder { walk, task, ..ORDER };
                assert_eq!(WorkOrder::try_from(RawOrder::from(order)), Ok(order));
            }
        }
    }

    #[test]
    fn nonsense_is_refused_by_kind() {
        let raw = RawOrder::from(ORDER);
        for (bad, why) in [
            (RawOrder { task: 0, ..raw }, BadOrder::Unknown),
            (RawOrder { task: u64::MAX, ..raw }, BadOrder::Unknown),
            (RawOrder { access: 4, ..raw }, BadOrder::Unknown),
            (RawOrder { walk: 6, ..raw }, BadOrder::Unknown),
            (RawOrder { start: 3, ..raw }, BadOrder::Range),
            (RawOrder { len: 0, ..raw }, BadOrder::Range),
            (RawOrder { len: 1 << 63, start: 1 << 63, ..raw }, BadOrder::Range),
            (RawOrder { count: 0, ..raw }, BadOrder::Walk),
            (RawOrder { walk: 5, count: TABLE_ENTRIES + 1, ..raw }, BadOrder::Walk),
            (RawOrder { len: (TABLE_ENTRIES + 1) * PAGE_SIZE, ..raw }, BadOrder::Walk),
        ] {
            assert_eq!(WorkOrder::try_from(bad), Err(why), "{bad:?}");
        }
    }
}
