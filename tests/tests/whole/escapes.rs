//! What others wrote, on the way to a terminal: shown, and not obeyed.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use guest_abi::arch::DOORBELL_PORT;
use guest_abi::block::Outcome;
use guest_abi::layout::{area_gpa, doorbell};
use guest_abi::order::RawOrder;
use harness::until;
use machine::snapshot::header::HEADER_BYTES;
use tests::place::{Ended, Place};
use tests::{elf, scenario, xz};

use crate::restore::snapshot;

crate::tests! {
    the_name_of_another_process_is_shown: [Kvm],
    a_daemon_with_a_name_of_its_own_is_shown: [],
    files_and_their_names_are_shown: [],
    what_a_guest_says_when_it_panics_is_shown: [Kvm, SlotZap],
    the_strings_of_a_snapshot_are_shown: [Kvm],
}

/// A process of a name that the test gives it, killed with the test.
struct Named(Child);

impl Named {
    /// Its name is what its file is called: 15 bytes of it.
    fn start(place: &Path, name: &str) -> Self {
        let file = place.join(name);
        let sleep = std::env::split_paths(&std::env::var_os("PATH").unwrap())
            .map(|directory| directory.join("sleep"))
            .find(|file| file.exists())
            .expect("a system has sleep");
        fs::copy(sleep, &file).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        let child = Command::new(&file).arg0("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap();
        let named = Self(child);
        // Its name is its own only once it has begun with its program.
        let comm = format!("/proc/{}/comm", named.0.id());
        until("a process has its name", || fs::read(&comm).unwrap() == [name.as_bytes(), b"\n"].concat());
        named
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// All that was printed, which no terminal obeys: no line is made by others, no byte acts.
fn harmless(ended: &Ended) -> String {
    let said = ended.text() + &ended.said;
    let acts: Vec<char> =
        said.chars().filter(|character| character.is_control() && *character != '\n').collect();
    assert!(acts.is_empty(), "{acts:?} in {said:?}");
    assert!(!said.lines().any(|line| line.starts_with("FORGED")), "{said}");
    said
}

fn the_name_of_another_process_is_shown() {
    let place = Place::new();
    let named = Named::start(place.path(), "\u{1b}c\u{9b}m\nFORGED");
    let said = harmless(&place.run(&["attach", "--pid", &named.0.id().to_string()]));
    assert!(said.contains("\\u{1b}c\\u{9b}m\\u{a}FORGED"), "{said}");
}

fn a_daemon_with_a_name_of_its_own_is_shown() {
    let place = Place::new();
    let _named = Named::start(place.path(), "kdamond\u{1b}\nFORGED");
    for how in [&["doctor"][..], &["doctor", "--json"], &["doctor", "--format", "ktap"]] {
        let ended = place.run(how).with(0);
        let said = harmless(&ended);
        assert!(said.contains("kdamond") && !said.contains("kdamond\u{1b}"), "{said}");
        if how.contains(&"--json") {
            ended.json();
        }
    }
}

fn files_and_their_names_are_shown() {
    let place = Place::new();
    let name = OsStr::new("s\u{1b}]0;title\u{7}\nFORGED.toml");
    let value = "name = \"\\u001b[2J\\u009bm\\nFORGED\"\nmemory = \"8MiB\"\n";
    for text in [value, "\u{1b}[2J = 1\n", "[\u{202e}x]\n", "memory = \"\\u001b[8m\"\n"] {
        place.put(name, text);
        let said = harmless(&place.run(&[OsStr::new("run"), name]).with(2));
        assert!(said.contains("\\u{1b}"), "{said}");
    }
    let name = OsStr::from_bytes(b"no\x1b]0;title\x07\xff\nFORGED");
    for command in ["replay", "timeline"] {
        let ended = place.run(&[OsStr::new(command), name]).with(2);
        assert!(harmless(&ended).contains("no\\u{1b}]0;title"));
    }
    place.run(&[name]).with(2);
}

/// Code that leaves `text` in the control block as what the guest's panic said, and rings for it.
fn panicking(text: &[u8]) -> Vec<u8> {
    // In front of it stand the order, its outcome and five words.
    let message = area_gpa(0) + (size_of::<RawOrder>() + size_of::<Outcome>() + 5 * size_of::<u64>()) as u64;
    let said = [&(text.len() as u64).to_le_bytes(), text].concat();
    let word = |value: u64| u32::try_from(value).unwrap().to_le_bytes();
    let [low, high] = DOORBELL_PORT.to_le_bytes();
    let code = |said_at: u64| {
        [
            &[0xbe][..], // mov esi, what is said
            &word(said_at),
            &[0xbf], // mov edi, the message's length and text
            &word(message),
            &[0xb9], // mov ecx, its bytes
            &word(said.len() as u64),
            &[0xf3, 0xa4],            // rep movsb
            &[0x66, 0xba, low, high], // mov dx, the doorbell
            &[0xb0, doorbell::PANIC], // mov al, why
            &[0xee, 0xf4],            // out dx, al; hlt
        ]
        .concat()
    };
    let said_at = u64::from(elf::CODE_GPA) + code(0).len() as u64;
    [code(said_at), said].concat()
}

fn what_a_guest_says_when_it_panics_is_shown() {
    let place = Place::of(&scenario::of("4MiB").top("kernel = \"guest.elf\"").fill().sparse(3));
    place.put("guest.elf", elf::image(&panicking("lost\u{1b}[2J\u{9b}m\nFORGED \u{202e}".as_bytes())));
    let said = harmless(&place.run(&["run", "s.toml", "--backend", "kvm", "--out", "out"]).with(1));
    assert!(said.contains("panic: lost\\u{1b}[2J\\u{9b}m"), "{said}");
    assert!(said.contains("FORGED \\u{202e}"), "{said}");
}

/// The one text that a snapshot's header has is the name of a backing.
fn the_strings_of_a_snapshot_are_shown() {
    let place = Place::new();
    snapshot(&place, "s", &["--memory", "2MiB"]);
    let mut file = fs::read(place.file("s")).unwrap();
    let (header, crc) = file[..HEADER_BYTES].split_at_mut(HEADER_BYTES - 4);
    let name = header.windows(3).position(|bytes| bytes == b"4k\0").expect("the backing's name");
    let forged = b"\x1b[2J\xc2\x9bm\nFORGED";
    header[name..name + forged.len()].copy_from_slice(forged);
    crc.copy_from_slice(&xz::crc32(header).to_le_bytes());
    place.put("s", file);
    let said = harmless(&place.run(&["boot", "--restore", "s"]).with(2));
    assert!(said.contains("memory backed by `\\u{1b}[2J\\u{9b}m"), "{said}");
}
