//! Guest memory on a real kernel: what it gives, what it announces, what it takes away, and how it answers.
//!
//! Each test names what it needs of the host: see `harness`. They share the host's swap, its switches and its LRU lists,
//! and so run one after another.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a test says what it saw")]

mod backings;
mod hugetlb;
mod lru;
mod needs;
mod operations;
mod pressure;
mod stores;
mod support;
mod swapper;
mod swapper_answers;
mod swapper_clock;
mod swapper_faults;
mod swapper_kept;
mod swapper_model;
mod swapper_strangers;
mod userfault;
mod zapping;

use std::process::ExitCode;

/// Declares the tests of a module, with what each needs.
#[macro_export]
macro_rules! tests {
    ($($tests:tt)*) => { harness::tests! { $crate::needs::Need; $($tests)* } };
}

fn main() -> ExitCode {
    let all = [
        backings::tests(),
        hugetlb::tests(),
        operations::tests(),
        zapping::tests(),
        lru::tests(),
        pressure::tests(),
        stores::tests(),
        userfault::errors::tests(),
        userfault::events::tests(),
        userfault::faults::tests(),
        userfault::moves::tests(),
        userfault::waiting::tests(),
        swapper::tests(),
        swapper_answers::tests(),
        swapper_clock::tests(),
        swapper_faults::tests(),
        swapper_kept::tests(),
        swapper_model::tests(),
        swapper_strangers::tests(),
    ];
    harness::main("guest memory on this kernel", all.into_iter().flatten().collect())
}
