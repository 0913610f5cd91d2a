//! Which device answers at an address: ports and MMIO each have one bus.
//!
//! An access that no device claims is no error, since a kernel probes for what is not there: it reads all ones, as an
//! idle bus does, and is counted.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use super::lock;

/// A device with registers.
pub trait BusDevice: Send {
    /// The guest reads `data.len()` bytes at `offset` into the device's range.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// The guest writes.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A range that cannot be given to a device.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum BusError {
    #[error("the {bus} range [{start:#x}, {end:#x}) is empty")]
    Empty { bus: &'static str, start: u64, end: u64 },
    #[error("the {bus} range [{start:#x}, {end:#x}) overlaps a device at [{other_start:#x}, {other_end:#x})")]
    Overlap { bus: &'static str, start: u64, end: u64, other_start: u64, other_end: u64 },
}

struct Claim {
    range: Range<u64>,
    device: Arc<Mutex<dyn BusDevice>>,
}

/// Half-open ranges of one address space, each with its device.
pub struct Bus {
    name: &'static str,
    /// Sorted by address, without overlaps.
    claims: Vec<Claim>,
}

impl Bus {
    /// A bus without devices; `name` says in errors which one.
    pub const fn new(name: &'static str) -> Self {
        Self { name, claims: Vec::new() }
    }

    /// Gives `range` to `device`.
    pub fn insert(&mut self, range: Range<u64>, device: Arc<Mutex<dyn BusDevice>>) -> Result<(), BusError> {
        let Range { start, end } = range;
        if start >= end {
            return Err(BusError::Empty { bus: self.name, start, end });
        }
        let place = self.claims.partition_point(|claim| claim.range.end <= start);
        if let Some(other) = self.claims.get(place).filter(|claim| claim.range.start < end) {
            let Range { start: other_start, end: other_end } = other.range;
            return Err(BusError::Overlap { bus: self.name, start, end, other_start, other_end });
        }
        self.claims.insert(place, Claim { range, device });
        Ok(())
    }

    /// The guest reads at `address`.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.claim(address, data.len()) {
            Some(claim) => lock(&claim.device).read(address - claim.range.start, data),
            None => data.fill(0xff),
        }
    }

    /// The guest writes at `address`.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some(claim) = self.claim(address, data.len()) {
            lock(&claim.device).write(address - claim.range.start, data);
        }
    }

    /// The device that has all of an access.
    fn claim(&self, address: u64, len: usize) -> Option<&Claim> {
        let place = self.claims.partition_point(|claim| claim.range.end <= address);
        self.claims.get(place).filter(|claim| {
            claim.range.start <= address
                && address.checked_add(len as u64).is_some_and(|end| end <= claim.range.end)
        })
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges: Vec<_> = self.claims.iter().map(|claim| &claim.range).collect();
        out.debug_struct("Bus").field("name", &self.name).field("ranges", &ranges).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Answers with its own number and remembers where it was written.
    struct Numbered(u8, Vec<u64>);

    impl BusDevice for Numbered {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(self.0);
            data[0] = offset as u8;
        }
        fn write(&mut self, offset: u64, _data: &[u8]) {
            self.1.push(offset);
        }
    }

    fn device(number: u8) -> Arc<Mutex<Numbered>> {
        Arc::new(Mutex::new(Numbered(number, Vec::new())))
    }

    #[test]
    fn a_device_sees_offsets_into_its_own_range() {
        let mut bus = Bus::new("port");
        let there = device(7);
        bus.insert(0x3f8..0x400, there.clone()).unwrap();
        bus.write(0x3fb, &[1]);
        assert_eq!(there.lock().unwrap().1, [3]);
        let mut data = [0u8; 2];
        bus.read(0x3fe, &mut data);
        assert_eq!(data, [6, 7]);
    }

    #[test]
    fn what_no_device_claims_reads_all_ones() {
        let mut bus = Bus::new("port");
        bus.insert(0x10..0x14, device(1)).unwrap();
        // No device there, past the end, and across the end of the address space.
        for address in [0x20, 0x0f, 0x14, 0x13, u64::MAX] {
            let mut data = [0u8; 2];
            bus.read(address, &mut data);
            assert_eq!(data, [0xff; 2], "{address:#x}");
        }
        bus.write(0x20, &[0]);
    }

    #[test]
    fn an_empty_range_and_an_overlap_are_refused() {
        let mut bus = Bus::new("MMIO");
        assert_eq!(bus.insert(5..5, device(0)), Err(BusError::Empty { bus: "MMIO", start: 5, end: 5 }));
        bus.insert(0x1000..0x2000, device(0)).unwrap();
        let error = bus.insert(0x1fff..0x3000, device(0)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the MMIO range [0x1fff, 0x3000) overlaps a device at [0x1000, 0x2000)"
        );
    }

    proptest! {
        /// Against a table with one entry for each address.
        #[test]
        fn the_bus_agrees_with_a_table(ranges in prop::collection::vec((0u64..60, 1u64..8), 0..12)) {
            let mut bus = Bus::new("port");
            let mut table = [None; 80];
            for (number, (start, len)) in ranges.into_iter().enumerate() {
                let span = start as usize..(start + len) as usize;
                let free = table[span.clone()].iter().all(Option::is_none);
                prop_assert_eq!(bus.insert(start..start + len, device(number as u8)).is_ok(), free);
                if free {
                    table[span].fill(Some((number as u8, start)));
                }
            }
            for address in 0u64..76 {
                let mut data = [0u8; 2];
                bus.read(address, &mut data);
                let expected = match (table[address as usize], table[address as usize + 1]) {
                    (Some((a, start)), Some((b, _))) if a == b => [(address - start) as u8, a],
                    _ => [0xff; 2],
                };
                prop_assert_eq!(data, expected);
            }
        }
    }
}
