//! The memory that orders work on: the arena, and each vCPU's control area.
//!
//! ```text
//!   an order's address             in this process                in guest physical memory
//!   ARENA_GPA + page * 4096  ──>   the arena, by a table    ──>   one contiguous range of the node without CPUs
//!   area_gpa(vcpu) + offset  ──>   the vCPU's area          ──>   2 MiB of the node everything else lives in
//! ```
//!
//! Orders, patterns and stalls are in logical addresses, the same as in the bare guest; only the VMM, which is
//! told where both ranges lie, knows the third column.

mod contiguous;
mod node;
mod pagemap;
mod runs;

use anyhow::{Context, Result, ensure};
use guest_abi::block::ControlArea;
use guest_abi::layout::{AREA_SIZE, ARENA_GPA, ARENA_MAX, CONTROL_GPA, MAX_VCPUS, PAGE_SIZE, area_gpa};
use guest_abi::link::{AreaGpas, Mapped, Pages};
use guest_abi::order::WorkOrder;

use contiguous::{Contiguous, HUGE};
pub use node::{Node, parse_list};

/// The arena and the control areas.
pub struct Space {
    arena: Contiguous,
    areas: Vec<(Contiguous, ControlArea)>,
    /// The node the arena is from.
    pub node: Node,
    /// What did not go as it should, and did no harm.
    pub notes: Vec<String>,
}

impl Space {
    /// Makes an arena of `bytes`, and an area for each of `vcpus`.
    pub fn make(bytes: u64, pages: Pages, vcpus: u32) -> Result<Self> {
        ensure!(
            bytes != 0 && bytes.is_multiple_of(HUGE) && bytes <= ARENA_MAX,
            "an arena of {bytes} bytes: it must be a multiple of 2 MiB, not 0, at most {ARENA_MAX}"
        );
        let (home, node) = Node::find()?;
        let arena = Contiguous::take(node, bytes, pages)?;
        let mut notes = Vec::new();
        let mut areas = Vec::new();
        for vcpu in 0..vcpus {
            areas.push(area(home).or_else(|error| {
                notes.push(format!("vCPU {vcpu}'s control area is not from node {}: {error}", home.id));
                area(node)
            })?);
        }
        Ok(Self { arena, areas, node, notes })
    }

    /// Where everything lies.
    pub fn mapped(&self) -> Result<Mapped> {
        let mut area_gpas = AreaGpas::default();
        for (memory, _) in &self.areas {
            area_gpas.push(memory.gpa());
        }
        Ok(Mapped { arena_gpa: self.arena.gpa(), huge_bytes: self.huge_bytes()?, area_gpas })
    }

    /// A vCPU's control area.
    pub fn area(&self, vcpu: u32) -> Option<&ControlArea> {
        self.areas.get(vcpu as usize).map(|(_, area)| area)
    }

    /// Whether every page that `order` may visit is there.
    pub fn covers(&self, order: &WorkOrder) -> bool {
        let end = order.start + order.len;
        let arena = ARENA_GPA..ARENA_GPA + self.arena.bytes();
        let areas = CONTROL_GPA..area_gpa(self.areas.len() as u32);
        [arena, areas].iter().any(|range| range.start <= order.start && end <= range.end)
    }

    /// The page at a logical address.
    #[inline]
    pub fn page(&self, gpa: u64) -> Option<*mut u8> {
        match gpa.checked_sub(ARENA_GPA) {
            Some(offset) => self.arena.page(offset / PAGE_SIZE),
            None => {
                let offset = gpa.checked_sub(CONTROL_GPA)?;
                let (memory, _) = self.areas.get(usize::try_from(offset / AREA_SIZE).ok()?)?;
                memory.page(offset % AREA_SIZE / PAGE_SIZE)
            }
        }
    }

    /// The logical address of the page at an address of this process.
    pub fn logical(&self, address: usize) -> Option<u64> {
        let area = |(vcpu, (memory, _)): (usize, &(Contiguous, ControlArea))| {
            memory.page_at(address).map(|page| area_gpa(vcpu as u32) + page * PAGE_SIZE)
        };
        let arena = self.arena.page_at(address).map(|page| ARENA_GPA + page * PAGE_SIZE);
        arena.or_else(|| self.areas.iter().enumerate().find_map(area))
    }

    /// How many pages, of the arena and the areas, are not where they were.
    pub fn moved(&self) -> Result<u64> {
        let areas = self.areas.iter().map(|(memory, _)| memory);
        areas.chain([&self.arena]).map(Contiguous::moved).sum()
    }

    /// How many bytes of the arena huge pages map.
    pub fn huge_bytes(&self) -> Result<u64> {
        self.arena.huge_bytes()
    }
}

/// One control area: a huge page, so that it is in one piece for this process too.
fn area(node: Node) -> Result<(Contiguous, ControlArea)> {
    let memory = Contiguous::take(node, AREA_SIZE, Pages::Huge)?;
    let base = memory.linear().with_context(|| {
        format!(
            "node {} has no huge page for a control area: are transparent huge pages compiled in?",
            node.id
        )
    })?;
    // SAFETY: page aligned, `AREA_SIZE` bytes, writable, and unmapped only with the value returned beside it, which
    // `Space` keeps as long as it lends this one.
    let area = unsafe { ControlArea::new(base) };
    Ok((memory, area))
}

const _: () = assert!(MAX_VCPUS < u16::MAX as u32, "a vCPU's number fits into a frame's header");
