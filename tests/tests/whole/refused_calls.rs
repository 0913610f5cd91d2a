//! System calls that the kernel refuses in the middle of a row: each answer ends in its own remedy, and in no other.

use rustix::io::Errno;
use tests::program;
use tests::stand_in::{self, Refusal};

crate::tests! {
    a_refusal_names_its_own_remedy: [UserModeUserfault],
    a_memslot_that_is_refused_names_its_own_remedy: [Kvm],
}

const UFFDIO_REGISTER: u32 = 0xc020_aa00;
const KVM_SET_USER_MEMORY_REGION: u32 = 0x4020_ae46;

fn scenario(backing: &str, reclaim: &str) -> String {
    format!(
        "name = \"x\"\nmemory = \"4MiB\"\n[matrix]\nbacking = [\"{backing}\"]\npolicy = [\"folio\"]\n\
         reclaim = [\"{reclaim}\"]\n[[case]]\nname = \"c\"\n[[case.step]]\ndo = \"fill\"\n[[case.step]]\n\
         do = \"reclaim\"\nvictims = \"sparse\"\ncount = 3\n"
    )
}

/// A run in which the call is refused has no row, and says these words and none of those.
fn says(backend: &str, text: &str, refusal: Refusal, words: &str, never: &[&str]) {
    let place = tempfile::tempdir().unwrap();
    std::fs::write(place.path().join("s.toml"), text).unwrap();
    let mut command = program::grouped(place.path(), &["run", "s.toml", "--json", "--backend", backend]);
    stand_in::refused(&mut command, refusal);
    let output = program::end_of_group(command.spawn().unwrap());
    let said = program::stderr(&output) + &String::from_utf8(output.stdout).unwrap();
    let code = output.status.code().unwrap();
    assert!([1, 3].contains(&code), "{refusal:?}: {code}, {said}");
    assert!(said.contains(words), "{refusal:?} does not say {words:?}: {said}");
    for word in never {
        assert!(!said.contains(word), "{refusal:?} says {word:?}: {said}");
    }
}

fn a_refusal_names_its_own_remedy() {
    let register = |errno| Refusal { call: libc::SYS_ioctl, request: Some(UFFDIO_REGISTER), errno };
    let copy = |errno| Refusal { call: libc::SYS_process_vm_readv, request: None, errno };
    let memfd = |errno| Refusal { call: libc::SYS_memfd_create, request: None, errno };
    let (swap, memory) = (scenario("4k", "uffd"), scenario("memfd", "punch"));
    for (text, refusal, words, never) in [
        (&swap, register(Errno::NOMEM), "sysctl vm.max_map_count", &["sandbox"][..]),
        (&swap, copy(Errno::NOSYS), "CONFIG_CROSS_MEMORY_ATTACH", &["max_map_count"]),
        (&swap, copy(Errno::PERM), "a sandbox", &["CONFIG_CROSS_MEMORY_ATTACH", "max_map_count"]),
        (&memory, memfd(Errno::MFILE), "ulimit -n", &["may lack the feature"]),
        (&memory, memfd(Errno::NOSYS), "may lack the feature", &["ulimit -n"]),
    ] {
        says("soft", text, refusal, words, never);
    }
}

fn a_memslot_that_is_refused_names_its_own_remedy() {
    let slot = |errno| Refusal { call: libc::SYS_ioctl, request: Some(KVM_SET_USER_MEMORY_REGION), errno };
    let text = scenario("4k", "dontneed");
    says("kvm", &text, slot(Errno::NOMEM), "free memory on the host", &["max_map_count"]);
    says("kvm", &text, slot(Errno::INVAL), "see the kernel's log", &["free memory"]);
}
