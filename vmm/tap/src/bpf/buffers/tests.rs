use proptest::prelude::*;

use super::*;

const SLOTS_EACH: u32 = 128;
const CPUS: usize = 3;

/// The program, in Rust.
struct Program<'p>(&'p Buffers);

impl Program<'_> {
    fn hit(&self, cpu: usize, time_ns: u64, start: u64, end: u64) {
        let buffer = cpu * buffer_size(SLOTS_EACH);
        let word = |offset: usize| self.0.memory.word(buffer + offset);
        let head = word(HEAD).load(Ordering::Relaxed);
        if head - word(TAIL).load(Ordering::Relaxed) >= SLOTS_EACH.into() {
            word(LOST).fetch_add(1, Ordering::Relaxed);
            return;
        }
        let slot = SLOTS + (head % u64::from(SLOTS_EACH)) as usize * SLOT;
        for (at, value) in [time_ns, 7 << 32 | 8, start, end].into_iter().enumerate() {
            word(slot + 8 * at).store(value, Ordering::Relaxed);
        }
        word(HEAD).store(head + 1, Ordering::Release);
    }
}

fn buffers() -> Buffers {
    let memory = Mapping::anonymous(CPUS * buffer_size(SLOTS_EACH)).unwrap();
    Buffers::over(memory, CPUS, SLOTS_EACH)
}

#[test]
fn a_slot_is_a_range_with_its_thread_and_time() {
    let buffers = buffers();
    Program(&buffers).hit(1, 42, 0x1000, 0x3000);
    Program(&buffers).hit(2, 41, 0x3000, 0x1000);
    let mut read = Vec::new();
    buffers.drain(|event| read.push(event)).unwrap();
    let range = HvaRange::new(Hva::new(0x1000), Hva::new(0x3000)).unwrap();
    assert_eq!(read, [Some(Event { time_ns: 42, pid: 7, tid: 8, what: What::Range(range) }), None]);
    assert_eq!(buffers.lost(), 0);
}

#[test]
fn an_inconsistent_head_is_damage_and_the_part_goes_on_after_it() {
    let buffers = buffers();
    let damaged = buffer_size(SLOTS_EACH);
    buffers.memory.word(damaged + HEAD).store(1000, Ordering::Relaxed);
    assert_eq!(buffers.drain(|_| panic!("there is no slot")), Err(Damaged { position: 0 }));
    Program(&buffers).hit(1, 1, 0x1000, 0x2000);
    let mut read = 0;
    buffers.drain(|event| read += u64::from(event.is_some())).unwrap();
    assert_eq!(read, 1);
}

proptest! {
    /// Ranges on any CPU between readings: each is read once, in its CPU's order, or counted as lost.
    #[test]
    fn every_range_is_read_or_lost(bursts in prop::collection::vec((0..CPUS, 0u64..300), 1..60)) {
        let buffers = buffers();
        let (mut hits, mut lost) = (0, 0);
        let (mut sent, mut read) = (vec![Vec::new(); CPUS], vec![Vec::new(); CPUS]);
        for (cpu, burst) in bursts {
            for at in 0..burst {
                hits += 1;
                Program(&buffers).hit(cpu, hits, (cpu as u64) << 30, hits << 40);
                if at < SLOTS_EACH.into() {
                    sent[cpu].push(hits);
                } else {
                    lost += 1;
                }
            }
            buffers.drain(|event| {
                let Some(Event { time_ns, what: What::Range(range), .. }) = event else { panic!("{event:?}") };
                assert_eq!(range.end().get(), time_ns << 40);
                read[(range.start().get() >> 30) as usize].push(time_ns);
            }).unwrap();
        }
        prop_assert_eq!(read, sent);
        prop_assert_eq!(buffers.lost(), lost);
    }
}
