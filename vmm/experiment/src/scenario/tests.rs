use std::time::Duration;

use guest_mem::Backing;
use rangemap::RangeSet;

use super::*;

mod reference;
mod refusals;

#[test]
fn every_built_in_scenario_can_be_carried_out() {
    for &(name, text) in resources::SCENARIOS {
        let scenario = Scenario::parse(text, name).unwrap_or_else(|why| panic!("{why}"));
        assert_eq!(scenario.name, name);
        assert!(!scenario.about.is_empty());
        assert!(scenario.rows().count() > 0);
        scenario.check_slots(32_764 - 1).unwrap();
        for row in scenario.rows() {
            scenario.plan(&row);
        }
    }
}

const GOOD: &str = r#"
name = "good"
memory = "64MiB"
vcpus = 2
[matrix]
backing = ["4k", "thp"]
policy = ["kernel", "folio", "slot"]
granule = ["2MiB"]
zap = ["auto", "memslot"]
[[case]]
name = "sparse"
[[case.step]]
do = "fill"
[[case.step]]
do = "hot"
count = 100
[[case.step]]
do = "baseline"
for = "100ms"
[[case.step]]
do = "reclaim"
victims = "sparse"
count = 256
[[case.step]]
do = "refault"
[[case.step]]
do = "stop"
[[case.step]]
do = "sweep"
"#;

#[test]
fn a_scenario_becomes_what_it_says() {
    let scenario = Scenario::parse(GOOD, "x.toml").unwrap();
    assert_eq!((scenario.memory, scenario.pages(), scenario.vcpus), (64 << 20, 16_384, 2));
    assert_eq!((scenario.seed, scenario.repetitions, scenario.slot_zap_all_quirk), (42, 1, false));
    assert_eq!((scenario.text(), scenario.origin.as_str()), (GOOD, "x.toml"));
    let steps = &scenario.cases[0].steps;
    let hot = HotLoop {
        walk: HotWalk::List { pages: HotPages::Others, count: Some(100) },
        access: guest_abi::order::Access::Read,
        vcpus: vec![0],
    };
    assert_eq!(steps[1], Step::Hot(hot));
    assert_eq!(steps[2], Step::Baseline(Duration::from_millis(100)));
    assert_eq!(steps[4], Step::Refault { vcpu: 1 }, "vCPU 0 runs the hot loop");
    assert_eq!(steps[6], Step::Sweep { vcpu: 0 });
}

#[test]
fn rows_come_in_a_stable_order_and_each_once() {
    let scenario = Scenario::parse(GOOD, "x.toml").unwrap();
    let rows: Vec<String> = scenario
        .rows()
        .map(|row| format!("{} {} {}", row.combination.backing, row.combination.policy, row.combination.zap))
        .collect();
    // auto and memslot are one for `slot`, and nothing is zapped under `kernel`.
    assert_eq!(
        rows,
        [
            "4k kernel none",
            "4k folio memslot",
            "4k folio protect",
            "4k slot memslot",
            "thp kernel none",
            "thp folio memslot",
            "thp folio protect",
            "thp slot memslot",
        ]
    );
}

#[test]
fn a_case_replaces_single_axes() {
    let text = GOOD.replace(
        "name = \"sparse\"",
        "name = \"sparse\"\nmatrix.backing = [\"memfd\"]\nmatrix.zap = [\"unmap\"]",
    );
    let scenario = Scenario::parse(&text, "x.toml").unwrap();
    assert_eq!(scenario.rows().count(), 3);
    assert!(scenario.rows().all(|row| row.combination.backing == Backing::Memfd));
}

#[test]
fn a_plan_takes_what_it_says_and_keeps_the_rest_hot() {
    let scenario = Scenario::parse(GOOD, "x.toml").unwrap();
    for row in scenario.rows() {
        let plan = scenario.plan(&row);
        let victims = plan.victims(3).unwrap();
        assert_eq!((victims.operations(), victims.bytes()), (256, 1 << 20));
        let taken: RangeSet<u64> = victims.iter().collect();
        assert_eq!(taken.iter().map(|run| run.end - run.start).sum::<u64>(), 256);
        let hot = plan.hot(1).unwrap();
        assert_eq!(hot.table.len(), 100);
        assert_eq!(hot.walk, guest_abi::order::Walk::List { count: 100 });
        assert!(hot.table.iter().all(|&page| !taken.contains(&u64::from(page))));
        assert_eq!((plan.victims(0), plan.hot(3)), (None, None));
    }
}

#[test]
fn units_decide_how_much_an_operation_takes() {
    let victims = |reclaim: &str, backing: &str| {
        let text = GOOD
            .replace("victims = \"sparse\"\ncount = 256", reclaim)
            .replace("backing = [\"4k\", \"thp\"]", &format!("backing = [\"{backing}\"]"));
        let scenario = Scenario::parse(&text, "x.toml").unwrap_or_else(|why| panic!("{why}"));
        let row = scenario.rows().next().unwrap();
        let plan = scenario.plan(&row);
        let victims = plan.victims(3).unwrap();
        let first = victims.iter().next().unwrap();
        (victims.operations(), first.end - first.start, first)
    };
    assert_eq!(victims("range = \"4MiB..8MiB\"\nunit = \"folio\"", "thp"), (2, 512, 1024..1536));
    assert_eq!(victims("range = \"4MiB..8MiB\"\nunit = \"folio\"", "mthp:64k"), (64, 16, 1024..1040));
    assert_eq!(victims("range = \"4MiB..8MiB\"\nunit = \"folio\"", "4k"), (1024, 1, 1024..1025));
    assert_eq!(victims("range = \"4k..12k\"\nunit = \"range\"", "4k"), (1, 2, 1..3));
    assert_eq!(victims("range = \"4MiB..8MiB\"\nunit = \"region\"", "4k"), (2, 512, 1024..1536));
    let (count, pages, first) = victims("victims = \"sparse\"\ncount = 4\nunit = \"folio\"", "thp");
    assert_eq!((count, pages, first.start % 512, first.end - first.start), (4, 512, 0, 512));
}

#[test]
fn every_walk_becomes_an_order() {
    let order = |walk: &str| {
        let text =
            GOOD.replace("do = \"hot\"\ncount = 100", &format!("do = \"hot\"\npages = \"all\"\n{walk}"));
        let scenario = Scenario::parse(&text, "x.toml").unwrap_or_else(|why| panic!("{why}"));
        let row = scenario.rows().next().unwrap();
        let hot = scenario.plan(&row).hot(1).unwrap().clone();
        (hot.walk, hot.table.len())
    };
    use guest_abi::order::Walk;
    assert_eq!(order("walk = \"sequential\""), (Walk::Sequential, 0));
    assert_eq!(order("walk = \"strided\"\nstride = 512"), (Walk::Strided { stride: 512 }, 0));
    assert!(matches!(order("walk = \"random\"\ncount = 9"), (Walk::Random { count: 9, .. }, 0)));
    assert!(matches!(order("walk = \"zipf\"\nexponent = 1.0"), (Walk::Zipf { count: 16_384, .. }, 16_384)));
    assert_eq!(order("walk = \"list\""), (Walk::List { count: 16_384 }, 16_384));
}

#[test]
fn a_file_that_is_none_is_told_from_one_that_is_no_scenario() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let why = Scenario::load(&path("absent.toml")).unwrap_err();
    assert!(why.to_string().contains("absent.toml: name a TOML file"), "{why}");
    let why = Scenario::load(directory.path()).unwrap_err();
    assert!(why.to_string().contains("is a directory"), "{why}");
    std::fs::write(path("latin.toml"), b"name = \"x\"\nabout = \"caf\xe9\"\n").unwrap();
    let why = Scenario::load(&path("latin.toml")).unwrap_err().to_string();
    assert!(why.contains("latin.toml:2: byte 23"), "{why}");
    std::fs::write(path("good.toml"), GOOD.replace("vcpus = 2", "vcpus = 2\nkernel = \"guest.elf\""))
        .unwrap();
    let scenario = Scenario::load(&path("good.toml")).unwrap();
    assert_eq!(scenario.kernel, Some(path("guest.elf")));
    std::fs::write(path("empty.toml"), "").unwrap();
    assert!(Scenario::load(&path("empty.toml")).is_err());
}

#[test]
fn steps_in_the_guests_system_need_one() {
    let with = |guest: &str, step: &str| {
        let step = format!("[[case.step]]\n{step}\n[[case.step]]\ndo = \"reclaim\"");
        let text = GOOD.replace("vcpus = 2", guest).replacen("[[case.step]]\ndo = \"reclaim\"", &step, 1);
        Scenario::parse(&text, "x.toml").map_err(|why| why.to_string())
    };
    let linux = "vcpus = 2\nguest = \"linux\"\nlinux.memory = \"256MiB\"";
    for (step, action) in [
        ("do = \"sh\"\ncommand = \"true\"", Action::Shell),
        ("do = \"inflate\"\nsize = \"64MiB\"", Action::Inflate),
        ("do = \"deflate\"", Action::Deflate),
    ] {
        let scenario = with(linux, step).unwrap();
        assert!(scenario.cases[0].steps.iter().any(|step| Action::from(step) == action));
        assert!(scenario.in_bare_guest().unwrap_err().to_string().contains("needs a Linux guest"));
        let refused = with("vcpus = 2", step).unwrap_err();
        assert!(refused.contains(&format!("`{action}` step needs a Linux guest")), "{refused}");
    }
    for (step, said) in [
        ("do = \"sh\"", "command = "),
        ("do = \"sh\"\ncommand = \" \"", "empty"),
        ("do = \"inflate\"\nsize = \"0\"", "`size` is 0"),
        ("do = \"inflate\"\nsize = \"193MiB\"", "a balloon of 193 MiB"),
        ("do = \"deflate\"\nsize = \"1MiB\"", "`size` means nothing"),
    ] {
        let refused = with(linux, step).unwrap_err();
        assert!(refused.contains(said), "{refused}");
    }
}

#[test]
fn any_scenario_runs_in_a_linux_guest() {
    let scenario = Scenario::parse(GOOD, "x.toml").unwrap();
    let linux = scenario.clone().in_linux(Some("k".into()), Some("m".into()));
    assert_eq!(linux.kernel.as_deref(), Some(std::path::Path::new("k")));
    assert_eq!(linux.linux.as_ref().unwrap().modules.as_deref(), Some(std::path::Path::new("m")));
    let bare = linux.in_bare_guest().unwrap();
    assert_eq!((bare.kernel, bare.linux), (None, None));
}
