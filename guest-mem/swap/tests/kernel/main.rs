//! The swap on a real kernel: pages leave and come back under guests, strangers and failing stores.
//!
//! Each test names what it needs of the host: see `harness`. They share the host's switches and its LRU lists, and so run
//! one after another.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a test says what it saw")]

mod answers;
mod clock;
mod faults;
mod kept;
mod model;
mod stores;
mod strangers;
mod support;
mod swapper;

use std::process::ExitCode;

fn main() -> ExitCode {
    let all = [
        stores::tests(),
        swapper::tests(),
        answers::tests(),
        clock::tests(),
        faults::tests(),
        kept::tests(),
        model::tests(),
        strangers::tests(),
    ];
    harness::main("the swap on this kernel", all.into_iter().flatten().collect())
}
