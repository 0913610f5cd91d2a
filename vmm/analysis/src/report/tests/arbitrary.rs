//! Whatever a record says, made by whomever: the reports of it come to an end, and are text.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::replay::{self, Predicted};
use crate::report::{comparison, ktap, table, timeline, words};
use crate::timeline::{RowTime, write_trace};
use experiment::events::fixture;
use experiment::events::{Counter, Event, EventLog, KernelRange, RowEvents, Stall, StallOn};
use experiment::record::RowFold;
use experiment::record::{KeyKind, Row, RunRecord};
use program::units::Charset;

/// Keys whose numbers have a fraction.
const FRACTIONS: [&str; 4] =
    ["amplification", "evicted_bytes_per_second", "guest_touches_before", "guest_touches_during"];

fn count() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(1),
        Just(4096),
        Just(1 << 20),
        Just(u64::MAX - 1),
        Just(u64::MAX),
        any::<u64>(),
        0..10_000u64
    ]
}

fn fraction() -> impl Strategy<Value = f64> {
    let known = [0.0, -0.0, 1.0, 0.94, f64::MIN_POSITIVE, f64::MAX, f64::MIN, 1e300, -1.0, 1e-300];
    prop_oneof![
        proptest::sample::select(known.to_vec()),
        any::<f64>().prop_filter("JSON has it", |f| f.is_finite())
    ]
}

fn times() -> impl Strategy<Value = Value> {
    (prop::collection::vec(prop::option::of(count()), 6), count(), count()).prop_map(|(of, count, sum)| {
        json!({"count": count, "min": of[0], "p50": of[1], "p90": of[2], "p99": of[3], "p999": of[4], "max": of[5],
               "sum": sum})
    })
}

fn of_key(key: &'static str, kind: KeyKind) -> BoxedStrategy<Value> {
    let some = match (key, kind) {
        ("achieved", _) => {
            let name = proptest::sample::select(&["4k", "thp", "memfd:thp", "mthp:64k", "x"][..]);
            prop::collection::btree_map(name, fraction(), 0..3).prop_map(|map| json!(map)).boxed()
        }
        ("kernel_causes", _) => {
            let name = proptest::sample::select(&["step", "kswapd", "migration", "unattributed", "y"][..]);
            let totals =
                (count(), count()).prop_map(|(ranges, bytes)| json!({"ranges": ranges, "bytes": bytes}));
            prop::collection::btree_map(name, totals, 0..4).prop_map(|map| json!(map)).boxed()
        }
        (_, KeyKind::Other) => {
            prop::collection::btree_map("[a-z]{1,4}", count(), 0..3).prop_map(|map| json!(map)).boxed()
        }
        (_, KeyKind::Times) => times().boxed(),
        (key, KeyKind::Number) if FRACTIONS.contains(&key) => fraction().prop_map(Value::from).boxed(),
        (_, KeyKind::Number) => count().prop_map(Value::from).boxed(),
    };
    prop_oneof![1 => Just(Value::Null), 4 => some].boxed()
}

fn label() -> impl Strategy<Value = Map<String, Value>> {
    let word = |words: &'static [&'static str]| proptest::sample::select(words);
    let case =
        prop_oneof![4 => Just("sparse".to_owned()), 1 => "\\PC{0,6}".prop_map(|name| name.replace('n', "m"))];
    (
        case,
        word(&["4k", "thp", "memfd", "mthp:64k"]),
        word(&["kernel", "folio", "pmd", "vm"]),
        word(&["pageout", "uffd", "cgroup", "cold"]),
        (12..64).prop_map(|shift| 1u64 << shift),
        word(&["none", "protect", "memslot", "unmap"]),
        word(&["kernel", "kvm-slots", "soft-mmu", "replay"]),
    )
        .prop_map(|(case, backing, policy, reclaim, granule, zap, listener)| {
            let label = json!({"case": case, "backing": backing, "policy": policy, "reclaim": reclaim, "granule": granule,
                               "zap": zap, "listener": listener});
            label.as_object().cloned().unwrap()
        })
}

fn row() -> impl Strategy<Value = Row> {
    let keys: Vec<_> = Row::KEYS
        .iter()
        .filter(|(key, _)| !matches!(*key, "granule" | "trials"))
        .map(|(key, kind)| of_key(key, *kind).prop_map(|value| ((*key).to_owned(), value)))
        .collect();
    let why = prop_oneof![9 => Just(None), 1 => "(failed: )?[a-m ]{0,9}".prop_map(Some)];
    let warnings = prop::collection::vec(
        (proptest::sample::select(&["zap_ns", "invalidations", ""][..]), "[a-m]{0,5}"),
        0..4,
    );
    (label(), keys, why, warnings, any::<u32>()).prop_map(|(mut row, keys, why, warnings, trials)| {
        row.extend(keys);
        row.insert("could_not_run".to_owned(), json!(why));
        row.insert("trials".to_owned(), json!(trials));
        let warning = |(key, text): &(&str, String)| match *key {
            "" => json!({ "text": text }),
            key => json!({ "keys": [key], "text": text }),
        };
        row.insert("warnings".to_owned(), warnings.iter().map(warning).collect());
        let text = Value::Object(row).to_string();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    })
}

/// A log's row with times and places at their ends.
fn events() -> impl Strategy<Value = RowEvents> {
    let numbers = prop::collection::vec(count(), 20);
    (numbers, any::<u32>(), label()).prop_map(|(of, row, label)| {
        use notifier_bridge::Cause;

        use notifier_bridge::By;
        let mut events =
            fixture::row(vec![fixture::bracket(0, Cause::PmdSplit), fixture::bracket(1, Cause::PageOut)]);
        events.row = row;
        let mut times = of.iter().copied();
        let mut next = || times.next().unwrap_or(u64::MAX);
        for event in &mut events.events {
            match event {
                Event::Trial(setting) => {
                    setting.label = serde_json::from_value(Value::Object(label.clone())).unwrap();
                    setting.began_ns = next();
                }
                Event::StepBegan { at_ns, .. } => *at_ns = next(),
                Event::StepEnded { at_ns, counted } => {
                    (*at_ns, counted.faults, counted.retries) = (next(), Some(of[0]), Some(of[1]));
                }
                Event::Announced(one) => {
                    (one.at_ns, one.zap_ns, one.operation_ns, one.end_ns) = (next(), next(), next(), next());
                }
                _ => {}
            }
        }
        let stall =
            |at_ns, ns, on| Event::Stall(Stall { at_ns: Some(at_ns), ns, vcpu: row, page: Some(7), on });
        let range = |at_ns, bytes, cause| {
            Event::KernelRange(KernelRange { at_ns, start: of[2] as i64, bytes, cause, call: None })
        };
        events.events.extend([
            stall(of[10], of[11], StallOn::Taken),
            stall(of[12], of[13], StallOn::Other),
            range(of[14], of[15], By::Step),
            range(of[16], of[17], By::Kswapd),
            range(of[16], of[15], By::Kswapd),
            Event::KernelSpan { lost: of[19] },
            Event::Reading { counter: Counter::LostStalls, count: Some(of[17]) },
            Event::Clock { uncertain_ns: of[16] },
        ]);
        events
    })
}

/// No number that is none, whatever it was made of. The texts of a record are made without the letter n for this.
fn sane(text: &str) -> Result<(), TestCaseError> {
    for none in ["NaN", "inf ", "inf\n", "-inf"] {
        prop_assert!(!text.contains(none), "{}", text);
    }
    Ok(())
}

proptest! {
    /// What makes sense in a damaged log is folded, timed and replayed, whatever it says.
    #[test]
    fn no_bytes_of_a_log_make_it_panic(changes in prop::collection::vec((any::<usize>(), any::<u8>()), 1..8)) {
        match EventLog::new(&fixture::damaged(changes)[..]).and_then(|log| log.rows()) {
            Err(error) => prop_assert!(error.to_string().starts_with("byte "), "{}", error),
            Ok(rows) => for row in rows {
                RowFold::of(row.events.clone());
                RowTime::of(&row);
                let _ = replay::row(&row, "vm".parse().unwrap(), None);
            }
        }
    }

    #[test]
    fn any_record_is_reported(rows in prop::collection::vec(row(), 0..6)) {
        let record: RunRecord = crate::report::fixture::run(rows);
        for charset in [Charset::Utf8, Charset::Ascii] {
            sane(&table(&record, charset))?;
            sane(&words(&record, charset))?;
        }
        sane(&ktap::ktap(&ktap::of_run(&record)))?;
        let (_, _, _) = (record.integrity_errors(), record.account_differences(), record.failed_expectations());
        // The record reads back as it was written.
        prop_assert_eq!(RunRecord::from_json(&record.to_json().unwrap()).unwrap().rows.len(), record.rows.len());
    }

    #[test]
    fn any_two_rows_are_compared(predicted in row(), measured in row(), slack in prop::option::of(fraction())) {
        let predicted = Predicted { row: predicted, bounds: Some((0, u64::MAX)), slack };
        let compared = [(&measured, replay::checks(&predicted, &measured))];
        sane(&comparison(&compared, Charset::Ascii))?;
        sane(&ktap::ktap(&ktap::of_comparison(&compared)))?;
    }

    #[test]
    fn any_times_are_summed_up(rows in prop::collection::vec(events(), 0..3)) {
        let summed: Vec<RowTime> = rows.iter().map(RowTime::of).collect();
        sane(&timeline(&summed, Charset::Ascii))?;
        let mut trace = Vec::new();
        write_trace(rows.iter(), &mut trace).unwrap();
        prop_assert!(serde_json::from_slice::<Value>(&trace).is_ok());
    }

    #[test]
    fn any_rows_events_are_replayed(events in events()) {
        for policy in ["kernel", "page", "pmd", "folio", "slot", "vm"] {
            if let Ok(predicted) = replay::row(&events, policy.parse().unwrap(), None) {
                sane(&table(&crate::report::fixture::run(vec![predicted.row]), Charset::Ascii))?;
            }
        }
    }
}
