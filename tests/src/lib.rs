//! Fixtures of the tests of the whole: what the host offers, machines to test on, images of hostile guests, and the
//! program itself as a child process.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a test says what it could not do")]

pub mod built;
pub mod bzimage;
pub mod code;
pub mod console;
pub mod elf;
pub mod host;
pub mod hugetlb;
pub mod kernel;
pub mod machine;
pub mod naive;
pub mod nobody;
pub mod place;
pub mod program;
pub mod pty;
pub mod record;
pub mod running;
pub mod scenario;
pub mod stand_in;
pub mod swaps;
pub mod xz;
