//! Guest memory on a real kernel: what it gives, what it announces, what it takes away, and how it answers.
//!
//! Each test names what it needs of the host: see `harness`. They share the host's swap, its switches and its LRU lists,
//! and so run one after another.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a test says what it saw")]

mod backings;
mod hugetlb;
mod lru;
mod operations;
mod pressure;
mod zapping;

use std::process::ExitCode;

fn main() -> ExitCode {
    let all = [
        backings::tests(),
        hugetlb::tests(),
        operations::tests(),
        zapping::tests(),
        lru::tests(),
        pressure::tests(),
    ];
    harness::main("guest memory on this kernel", all.into_iter().flatten().collect())
}
