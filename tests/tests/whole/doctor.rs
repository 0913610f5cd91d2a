//! The doctor: it examines the KVM of this host by a virtual machine of its own.

use tests::place::Place;

crate::tests! {
    the_doctor_knows_this_kvm_and_times_it: [Kvm],
}

/// Its tiny machine has no ring 0 and does I/O from ring 3: that has to work on every kind of KVM.
fn the_doctor_knows_this_kvm_and_times_it() {
    let report = Place::new().run(&["doctor", "--json"]).json();
    assert!(report["host"]["kvm"]["mmu"].is_string(), "{}", report["host"]["kvm"]);
    let finding = |subject: &str| {
        let findings = report["findings"].as_array().unwrap();
        findings
            .iter()
            .find(|one| one["subject"] == subject)
            .unwrap_or_else(|| panic!("nothing about {subject}"))
    };
    let exit = finding("cost of an exit");
    assert_ne!(exit["verdict"], "cannot", "{exit}");
    assert!(exit["detail"].as_str().unwrap().contains("KVM_RUN round trip"), "{exit}");
    let fault = finding("cost of a fault");
    assert_ne!(fault["verdict"], "cannot", "{fault}");
}
