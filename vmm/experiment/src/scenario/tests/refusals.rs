//! Scenarios that must be refused: each with the line, and with words that the message must have.

use super::{GOOD, Scenario};

fn refused(text: &str) -> String {
    let Err(why) = Scenario::parse(text, "x.toml") else { panic!("this was accepted:\n{text}") };
    why.to_string()
}

/// The good scenario with `old` (which must be in it) replaced, and what it is answered.
fn refused_with(old: &str, new: &str) -> String {
    assert!(GOOD.contains(old), "{old}");
    refused(&GOOD.replacen(old, new, 1))
}

/// The good scenario with each `old` replaced by its `new` is refused, in this line (0: any), with these words.
fn each_refused(cases: &[(&str, &str, usize, &str)]) {
    for &(old, new, line, said) in cases {
        let why = refused_with(old, new);
        let in_line = line == 0 || why.starts_with(&format!("x.toml:{line}: "));
        assert!(why.contains(said) && in_line, "{new}: {why}");
    }
}

#[test]
fn syntax_is_refused_with_its_line_and_the_choices() {
    each_refused(&[
        ("vcpus = 2", "vcpu = 2", 4, "unknown field `vcpu`"),
        ("vcpus = 2", "vcpus = ", 4, ""),
        ("vcpus = 2", "vcpus = -2", 4, "-2"),
        ("memory = \"64MiB\"", "memory = \"lots\"", 3, "`lots` is no size"),
        ("memory = \"64MiB\"", "memory = 64", 3, "a string in quotes"),
        ("\"4k\", \"thp\"", "\"4k\", \"huge\"", 6, "unknown backing `huge`: use 4k, mthp:SIZE"),
        ("\"folio\"", "\"folios\"", 7, "`folios` is no range policy: choose one of kernel, page"),
        ("granule = [\"2MiB\"]", "granule = \"2MiB\"", 8, "expected a sequence"),
        ("granule = [\"2MiB\"]", "granules = [\"2MiB\"]", 8, "unknown field `granules`"),
        (
            "granule = [\"2MiB\"]",
            "reclaim = [\"swap\"]",
            8,
            "`swap` is no way to reclaim: choose one of pageout",
        ),
        ("do = \"fill\"", "do = \"fil\"", 13, "`fil` is no step: choose one of fill, hot"),
        ("do = \"fill\"", "do = \"fill\"\nagain = true", 14, "unknown field `again`"),
        ("for = \"100ms\"", "for = \"100\"", 19, "`100` is no duration"),
        ("name = \"good\"", "name = \"good\"\nname = \"bad\"", 3, "duplicate key"),
    ]);
    assert!(refused("memory = \"64MiB\"").contains("missing field `name`"));
}

#[test]
fn a_scenario_without_sense_is_refused_with_line_and_remedy() {
    each_refused(&[
        ("name = \"good\"", "name = \"Good one\"", 2, "lower-case letters, digits and hyphens"),
        ("name = \"good\"", "name = \"../etc\"", 2, "lower-case letters"),
        ("memory = \"64MiB\"", "memory = \"0\"", 3, "a memory of 0 bytes: it must be a multiple of 2 MiB"),
        ("memory = \"64MiB\"", "memory = \"3\"", 3, "a memory of 3 bytes"),
        ("memory = \"64MiB\"", "memory = \"8EiB\"", 3, "a memory of 8 EiB"),
        ("memory = \"64MiB\"", "memory = \"64GiB\"", 3, "at most 62 GiB"),
        ("vcpus = 2", "vcpus = 0", 4, "1 to 32"),
        ("vcpus = 2", "vcpus = 33", 4, "1 to 32"),
        ("vcpus = 2", "vcpus = 4294967298", 4, "1 to 32"),
        ("vcpus = 2", "repetitions = 0", 4, "at least one trial"),
        ("vcpus = 2", "linux.pages = \"small\"", 4, "set guest = \"linux\", or remove it"),
        ("vcpus = 2", "guest = \"linux\"\nlinux.memory = \"64MiB\"", 5, "at least 128 MiB"),
        ("vcpus = 2", "guest = \"linux\"\nlinux.memory = \"200m\"\nlinux.pages = \"big\"", 6, "huge, small"),
    ]);
    let no_case = GOOD.split("[[case]]").next().unwrap();
    assert!(refused(no_case).contains("there is no case: add a [[case]]"));
    let no_steps = GOOD.split("[[case.step]]").next().unwrap();
    assert!(refused(no_steps).contains("x.toml:11: the case `sparse` has no steps"));
    let twice = format!("{GOOD}\n[[case]]\nname = \"sparse\"\n[[case.step]]\ndo = \"fill\"");
    let why = refused(&twice);
    assert!(why.starts_with("x.toml:32: there is already a case `sparse` in line 11"), "{why}");
    let idle = GOOD
        .replace("\"kernel\", \"folio\", \"slot\"", "\"folio\"")
        .replace("\"auto\", \"memslot\"", "\"auto\"");
    let idle = idle.replace("vcpus = 2", "vcpus = 2\nslot_zap_all_quirk = true");
    assert!(refused(&idle).contains("x.toml:5: slot_zap_all_quirk changes"), "{}", refused(&idle));
}

#[test]
fn axes_without_sense_are_refused_with_line_and_remedy() {
    each_refused(&[
        ("granule = [\"2MiB\"]", "granule = [\"3\"]", 8, "a granule of 3 bytes: it must be a power of two"),
        ("granule = [\"2MiB\"]", "granule = [\"0\"]", 8, "a granule of 0 bytes: it must be a power of two"),
        ("granule = [\"2MiB\"]", "granule = [\"2k\"]", 8, "at least 4 KiB"),
        ("granule = [\"2MiB\"]", "granule = [\"6MiB\"]", 8, "power of two"),
        ("granule = [\"2MiB\"]", "granule = [\"8EiB\"]", 8, "at most as large as the memory"),
        ("granule = [\"2MiB\"]", "granule = [\"128MiB\"]", 8, "a granule of 128 MiB in a memory of 64 MiB"),
        ("granule = [\"2MiB\"]", "granule = []", 8, "`granule` is empty"),
        ("granule = [\"2MiB\"]", "granule = [\"2MiB\",\n\"2m\"]", 9, "`2 MiB` stands twice"),
        ("backing = [\"4k\", \"thp\"]", "", 11, "no backing is given: add `backing = [...]` to [matrix]"),
        ("policy = [\"kernel\", \"folio\", \"slot\"]", "", 11, "no policy is given"),
        (
            "[\"kernel\", \"folio\", \"slot\"]",
            "[\"kernel\"]",
            9,
            "nothing is zapped under policy `kernel` alone",
        ),
        ("\"auto\", \"memslot\"", "\"auto\",\n\"unmap\"", 10, "zap = \"unmap\" loses the content of 4k"),
        ("granule = [\"2MiB\"]", "reclaim = [\"punch-hole\"]", 8, "remove cannot take 4k"),
        ("granule = [\"2MiB\"]", "reclaim = [\"collapse\"]", 8, "collapse cannot take 4k"),
        ("\"4k\", \"thp\"", "\"hugetlb:2m\"", 11, "pageout cannot take hugetlb:2m"),
        ("\"4k\", \"thp\"", "\"memfd\"]\nreclaim = [\"free\"", 7, "free cannot take memfd"),
        ("\"4k\", \"thp\"", "\"hugetlb:2m\"]\nreclaim = [\"dontneed\"", 0, "use unit = \"folio\""),
        (
            "backing = [\"4k\", \"thp\"]\npolicy = [\"kernel\"",
            "backing = [\"hugetlb:2m\"]\nreclaim = [\"dontneed\"]\npolicy = [\"page\"",
            6,
            "cannot zap one 4 KiB page of hugetlb:2m",
        ),
    ]);
}

#[test]
fn hot_steps_without_sense_are_refused_with_line_and_remedy() {
    each_refused(&[
        ("do = \"fill\"", "do = \"fill\"\ncount = 3", 14, "`count` means nothing to a `fill` step"),
        ("count = 100", "pace = \"1us\"", 16, "`pace` means nothing to a `hot` step"),
        ("count = 100", "count = 0", 16, "`count` is 0"),
        ("count = 100", "count = 16384", 15, "16384 hot pages"),
        ("count = 100", "vcpus = [2]", 16, "there is no vCPU 2: the scenario has 2"),
        ("count = 100", "vcpus = [18446744073709551615]", 16, ""),
        ("count = 100", "vcpus = [1, 1]", 16, "vCPU 1 is named twice"),
        ("count = 100", "vcpus = []", 16, "`vcpus` is empty"),
        ("count = 100", "vcpus = [0, 1]", 25, "every vCPU runs a hot loop, and `refault` needs one"),
        ("count = 100", "[[case.step]]\ndo = \"hot\"", 17, "vCPU 0 runs the hot loop of line 15 already"),
        ("count = 100", "walk = \"random\"", 16, "use walk = \"list\", or pages = \"all\""),
        (
            "count = 100",
            "stride = 2",
            16,
            "`stride` means nothing to a `hot` step without walk = \"strided\"",
        ),
        ("count = 100", "walk = \"strided\"\npages = \"all\"", 15, "a `hot` step needs `stride`"),
        ("count = 100", "walk = \"strided\"\npages = \"all\"\nstride = 0", 18, "`stride` is 0"),
        ("count = 100", "walk = \"strided\"\npages = \"all\"\nstride = 16384", 18, "visits one page only"),
        (
            "count = 100",
            "walk = \"sequential\"\npages = \"all\"\ncount = 3",
            18,
            "with walk = \"sequential\"",
        ),
        ("count = 100", "walk = \"zipf\"\npages = \"all\"", 15, "a `hot` step needs `exponent`"),
        ("count = 100", "walk = \"zipf\"\npages = \"all\"\nexponent = 0.0", 18, "the exponent 0 is no use"),
        ("count = 100", "walk = \"zipf\"\npages = \"all\"\nexponent = nan", 18, "the exponent NaN is no use"),
    ]);
}

#[test]
fn other_steps_without_sense_are_refused_with_line_and_remedy() {
    each_refused(&[
        ("for = \"100ms\"", "for = \"0s\"", 19, "`for` is 0"),
        ("for = \"100ms\"", "for = \"2000s\"", 19, "`for` is longer than 60 s"),
        ("for = \"100ms\"", "", 18, "a `baseline` step needs `for`: add for = \"100ms\""),
        ("victims = \"sparse\"", "", 21, "a `reclaim` step needs `victims`"),
        ("victims = \"sparse\"\ncount = 256", "victims = \"sparse\"", 21, "a `reclaim` step needs `count`"),
        ("victims = \"sparse\"", "victims = \"range\"", 23, "`count` means nothing"),
        ("victims = \"sparse\"\ncount = 256", "victims = \"range\"", 21, "needs `range`"),
        ("victims = \"sparse\"", "victims = \"sparse\"\nrange = \"0..4k\"", 23, "with victims = \"sparse\""),
        (
            "victims = \"sparse\"",
            "victims = \"sparse\"\nunit = \"range\"",
            23,
            "sparse and idle victims stand alone",
        ),
        ("victims = \"sparse\"", "victims = \"sparse\"\npace = \"11s\"", 23, "`pace` is longer than 10 s"),
        ("count = 256", "count = 16385", 21, "16385 victims of 4 KiB each, and 4k in this memory has 16384"),
        (
            "count = 256",
            "count = 33\nunit = \"folio\"",
            21,
            "33 victims of 2 MiB each, and thp in this memory has 32",
        ),
        (
            "victims = \"sparse\"\ncount = 256",
            "range = \"0..65MiB\"",
            22,
            "the range ends at 65 MiB, and the memory at 64 MiB",
        ),
        ("victims = \"sparse\"\ncount = 256", "range = \"0..1\"", 21, "no multiple of 4 KiB, the unit of 4k"),
        (
            "victims = \"sparse\"\ncount = 256",
            "range = \"0..1m\"\nunit = \"folio\"",
            21,
            "no multiple of 2 MiB, the unit of thp",
        ),
        ("victims = \"sparse\"\ncount = 256", "range = \"0..64MiB\"", 15, "leave only 0 pages alone"),
    ]);
}

#[test]
fn steps_out_of_order_are_refused_with_line_and_remedy() {
    let steps = |names: &[&str]| {
        let head = GOOD.split("[[case.step]]").next().unwrap();
        let step = |name: &&str| match *name {
            "baseline" => "[[case.step]]\ndo = \"baseline\"\nfor = \"1ms\"\n".to_owned(),
            "reclaim" => "[[case.step]]\ndo = \"reclaim\"\nrange = \"0..2m\"\n".to_owned(),
            name => format!("[[case.step]]\ndo = \"{name}\"\n"),
        };
        let text = head.to_owned() + &names.iter().map(step).collect::<String>();
        Scenario::parse(&text, "x.toml").map(|_| ()).map_err(|why| why.to_string())
    };
    for (names, said) in [
        (&["reclaim"][..], "13: `reclaim` before `fill`"),
        (&["hot", "fill"], "13: `hot` before `fill`"),
        (&["stop"], "13: `stop` before `fill`"),
        (&["fill", "stop"], "15: `stop` without a hot loop: put a `hot` step before it"),
        (&["fill", "hot", "stop", "stop"], "19: `stop` without a hot loop"),
        (&["fill", "baseline"], "15: `baseline` without a hot loop"),
        (&["fill", "hot", "reclaim", "baseline"], "20: `baseline` after `reclaim`"),
        (&["fill", "refault"], "15: `refault` before any `reclaim`"),
        (&["fill", "sweep"], "15: `sweep` before any `reclaim`"),
        (&["fill", "reclaim", "fill", "refault"], "20: `refault` before any `reclaim` since the last `fill`"),
        (&["fill", "hot", "fill"], "17: `fill` while a hot loop runs"),
    ] {
        let why = steps(names).unwrap_err();
        assert!(why.starts_with(&format!("x.toml:{said}")), "{names:?}: {why}");
    }
    for names in [
        &["fill"][..],
        &["fill", "hot", "baseline", "reclaim", "stop", "refault", "sweep"],
        &["fill", "reclaim", "refault", "reclaim", "refault", "fill", "reclaim", "sweep"],
        &["fill", "hot", "stop", "hot", "baseline", "reclaim", "refault"],
    ] {
        assert_eq!(steps(names), Ok(()), "{names:?}");
    }
}

#[test]
fn a_table_that_the_guest_cannot_hold_is_refused() {
    let large = GOOD.replace("64MiB", "2GiB");
    Scenario::parse(&large, "x.toml").unwrap();
    for walk in ["", "pages = \"all\"", "pages = \"all\"\nwalk = \"zipf\"\nexponent = 1.0"] {
        let why = refused(&large.replace("count = 100", walk));
        assert!(why.contains("the guest's table holds 261120"), "{why}");
    }
}

#[test]
fn memslots_are_counted_against_the_host() {
    let scenario = Scenario::parse(&GOOD.replace("\"2MiB\"", "\"2MiB\",\n\"4k\""), "x.toml").unwrap();
    scenario.check_slots(16_384).unwrap();
    let why = scenario.check_slots(16_383).unwrap_err().to_string();
    assert!(why.starts_with("x.toml:9: a granule of 4 KiB cuts 64 MiB into 16384 memslots"), "{why}");
    assert!(why.ends_with("use a granule of at least 8 KiB"), "{why}");
    assert!(scenario.check_slots(0).is_err());
}

#[test]
fn idle_victims_need_a_target_and_rows_that_see_them() {
    let uffd = |step: &str| {
        format!(
            "name = \"x\"\nmemory = \"4MiB\"\n[matrix]\nbacking = [\"4k\"]\npolicy = [\"kernel\"]\n\
             reclaim = [\"uffd\"]\n[[case]]\nname = \"a\"\n[[case.step]]\ndo = \"fill\"\n\
             [[case.step]]\ndo = \"reclaim\"\n{step}"
        )
    };
    Scenario::parse(&uffd("victims = \"idle\"\ntarget = \"2MiB\""), "x.toml").unwrap();
    for (step, said) in [
        ("victims = \"idle\"", "a `reclaim` step needs `target`"),
        ("victims = \"idle\"\ntarget = \"4MiB\"", "it must be smaller"),
        ("victims = \"idle\"\ntarget = \"5k\"", "whole pages"),
        ("victims = \"idle\"\ntarget = \"1MiB\"\ncount = 3", "`count`"),
        ("victims = \"idle\"\ntarget = \"1MiB\"\nunit = \"range\"", "stand alone"),
        ("victims = \"idle\"\ntarget = \"1MiB\"\nafter = \"90s\"", "60 s"),
        ("victims = \"sparse\"\ncount = 1\nafter = \"1s\"", "`after`"),
    ] {
        let why = refused(&uffd(step));
        assert!(why.contains(said), "{step}: {why}");
    }
    let kernels = uffd("victims = \"idle\"\ntarget = \"2MiB\"").replace("\"uffd\"", "\"uffd\", \"pageout\"");
    assert!(refused(&kernels).contains("matrix.reclaim = [\"uffd\"]"));
}

#[test]
fn what_is_excluded_must_be_there_and_leave_something() {
    let excluding =
        |list: &str| GOOD.replace("[[case]]\n", &format!("[[case]]\nmatrix.exclude = [{list}]\n"));
    let rows = |text: &str| Scenario::parse(text, "x.toml").unwrap().rows().count();
    let all = rows(GOOD);
    assert!(rows(&excluding("{ policy = \"kernel\" }")) < all);
    for (list, said) in [
        ("{ backing = \"memfd\" }", "no row of this case is like that"),
        ("{}", "leaves nothing"),
        ("{ reclaim = \"pageout\" }", "leaves nothing"),
        ("{ granule = \"3 B\" }", "a granule of"),
    ] {
        let why = refused(&excluding(list));
        assert!(why.contains(said), "{list}: {why}");
    }
}
