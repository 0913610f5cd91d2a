use proptest::prelude::*;

use super::*;

const SLOTS_EACH: u32 = 128;
const CPUS: usize = 3;

/// What the program does, step by step.
struct Program<'p>(&'p Parts);

impl Program<'_> {
    fn hit(&self, cpu: usize, time_ns: u64, start: u64, end: u64) {
        let part = cpu * part_size(SLOTS_EACH);
        let word = |offset: usize| self.0.memory.word(part + offset);
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

fn parts() -> Parts {
    let memory = Mapping::anonymous(CPUS * part_size(SLOTS_EACH)).unwrap();
    Parts::over(memory, CPUS, SLOTS_EACH)
}

#[test]
fn a_slot_is_a_range_of_a_thread_at_a_time() {
    let parts = parts();
    Program(&parts).hit(1, 42, 0x1000, 0x3000);
    Program(&parts).hit(2, 41, 0x3000, 0x1000);
    let mut heard = Vec::new();
    parts.drain(|event| heard.push(event)).unwrap();
    let range = HvaRange::new(Hva::new(0x1000), Hva::new(0x3000)).unwrap();
    assert_eq!(heard, [Some(Event { time_ns: 42, pid: 7, tid: 8, what: What::Range(range) }), None]);
    assert_eq!(parts.lost(), 0);
}

#[test]
fn a_head_that_cannot_be_is_damage_and_the_part_goes_on_after_it() {
    let parts = parts();
    let damaged = part_size(SLOTS_EACH);
    parts.memory.word(damaged + HEAD).store(1000, Ordering::Relaxed);
    assert_eq!(parts.drain(|_| panic!("nothing is there")), Err(Damaged { position: 0 }));
    Program(&parts).hit(1, 1, 0x1000, 0x2000);
    let mut heard = 0;
    parts.drain(|event| heard += u64::from(event.is_some())).unwrap();
    assert_eq!(heard, 1);
}

proptest! {
    /// Hits on any CPU between readings: each is heard once, in its CPU's order, or counted as lost.
    #[test]
    fn every_hit_is_heard_or_lost(bursts in prop::collection::vec((0..CPUS, 0u64..300), 1..60)) {
        let parts = parts();
        let (mut hits, mut lost) = (0, 0);
        let (mut sent, mut heard) = (vec![Vec::new(); CPUS], vec![Vec::new(); CPUS]);
        for (cpu, burst) in bursts {
            for at in 0..burst {
                hits += 1;
                Program(&parts).hit(cpu, hits, (cpu as u64) << 30, hits << 40);
                if at < SLOTS_EACH.into() {
                    sent[cpu].push(hits);
                } else {
                    lost += 1;
                }
            }
            parts.drain(|event| {
                let Some(Event { time_ns, what: What::Range(range), .. }) = event else { panic!("{event:?}") };
                assert_eq!(range.end().get(), time_ns << 40);
                heard[(range.start().get() >> 30) as usize].push(time_ns);
            }).unwrap();
        }
        prop_assert_eq!(heard, sent);
        prop_assert_eq!(parts.lost(), lost);
    }
}
