//! The escape key: Ctrl-A and what follows it.

/// Ctrl-A.
const ESCAPE: u8 = 0x01;

/// What Ctrl-A h prints.
pub const HELP: &str = "\r\n\
    Ctrl-A x   end the virtual machine\r\n\
    Ctrl-A a   send Ctrl-A to the guest (also Ctrl-A Ctrl-A)\r\n\
    Ctrl-A h   this help\r\n";

/// What the person at the terminal wants of the VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Escape {
    /// Ctrl-A x.
    Quit,
    /// Ctrl-A h.
    Help,
}

/// Takes the escapes out of what is typed. A Ctrl-A that no known key follows goes to the guest together with that key:
/// in a shell it is the way to the start of the line.
#[derive(Clone, Copy, Debug, Default)]
pub struct Escapes {
    /// The last key was a Ctrl-A that begins an escape.
    begun: bool,
}

impl Escapes {
    /// Appends what is meant for the guest to `guest`, and returns what is meant for the VMM.
    pub fn feed(&mut self, typed: &[u8], guest: &mut Vec<u8>) -> Vec<Escape> {
        let mut escapes = Vec::new();
        for &key in typed {
            if !std::mem::take(&mut self.begun) {
                match key {
                    ESCAPE => self.begun = true,
                    _ => guest.push(key),
                }
                continue;
            }
            match key {
                b'x' => escapes.push(Escape::Quit),
                b'h' => escapes.push(Escape::Help),
                b'a' | ESCAPE => guest.push(ESCAPE),
                _ => guest.extend([ESCAPE, key]),
            }
        }
        escapes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The same, by looking at two keys at a time in the whole of what was typed.
    fn oracle(typed: &[u8]) -> (Vec<u8>, Vec<Escape>) {
        match typed {
            [] | [ESCAPE] => (Vec::new(), Vec::new()),
            [first, second, rest @ ..] if *first == ESCAPE => {
                let (guest, escapes) = oracle(rest);
                let (sent, meant): (&[u8], &[Escape]) = match second {
                    b'x' => (&[], &[Escape::Quit]),
                    b'h' => (&[], &[Escape::Help]),
                    b'a' | &ESCAPE => (&[ESCAPE], &[]),
                    _ => (&typed[..2], &[]),
                };
                ([sent, &guest].concat(), [meant, &escapes].concat())
            }
            [key, rest @ ..] => {
                let (guest, escapes) = oracle(rest);
                ([&[*key], guest.as_slice()].concat(), escapes)
            }
        }
    }

    fn key() -> impl Strategy<Value = u8> {
        prop_oneof![3 => Just(ESCAPE), 2 => prop::sample::select(b"xha".to_vec()), 1 => any::<u8>()]
    }

    proptest! {
        #[test]
        fn however_the_reads_fall_the_keys_mean_the_same(reads in prop::collection::vec(prop::collection::vec(key(), 0..5), 0..12)) {
            let (mut escapes, mut guest, mut meant) = (Escapes::default(), Vec::new(), Vec::new());
            for read in &reads {
                meant.extend(escapes.feed(read, &mut guest));
            }
            prop_assert_eq!((guest, meant), oracle(&reads.concat()));
        }
    }

    #[test]
    fn each_escape_does_what_the_help_says() {
        let fed = |typed: &[u8]| {
            let mut guest = Vec::new();
            let meant = Escapes::default().feed(typed, &mut guest);
            (guest, meant)
        };
        assert_eq!(fed(b"\x01x"), (vec![], vec![Escape::Quit]));
        assert_eq!(fed(b"\x01h"), (vec![], vec![Escape::Help]));
        assert_eq!(fed(b"\x01a\x01\x01"), (vec![1, 1], vec![]));
        assert_eq!(fed(b"x\x01\x01x"), (b"x\x01x".to_vec(), vec![]));
        assert_eq!(fed(b"\x01k"), (b"\x01k".to_vec(), vec![]));
    }
}
