//! What the test targets of all crates share: needs, deadlines, and the report of a test that hangs.
//!
//! A target with `harness = false` declares its tests by [`tests!`], each with what it needs of the host, and hands them
//! to [`main`]. A test whose need is not met does not run. It is counted as ignored, and listed at the end with the
//! reason. [`could_not_run`] is for what no probe can promise; a test that says it about something the host has, fails.
//!
//! Each test has a deadline ([`PATIENCE`], or what it declares by `within`). One that misses it ends the process with a
//! report of every thread and child: what it waits for, in the test's words ([`waiting`]) and in the kernel's. Targets of
//! the libtest kind get the same by [`watch_libtest!`].

mod suite;
mod threads;
mod waits;
mod watchdog;

pub use suite::{Need, Test, could_not_run, main};
pub use waits::{Waiting, join, receive, until, waiting};
pub use watchdog::{PATIENCE, arm_for_libtest, watched};

/// Declares the tests of a module, as a function `tests()`. First the type of the needs, then the tests: a name, what is
/// needed, and a deadline in seconds where the usual one is too short. A test with cases is one test for each of them.
///
/// ```text
/// harness::tests! {
///     Need;
///     a_run_leaves_nothing: [Kvm, Zram],
///     a_kernel_boots: [Kvm] within 900,
///     toggles_keep_content(backing in backings()): [Has(backing)],
/// }
/// ```
#[macro_export]
macro_rules! tests {
    ($need:ty; $($name:ident $(($case:ident in $cases:expr))?: [$($needed:expr),*] $(within $seconds:literal)?),+ $(,)?) => {
        /// The tests of this module.
        pub fn tests() -> Vec<$crate::Test> {
            #[allow(unused_imports, reason = "not every module needs something")]
            use $need::*;
            let mut tests = Vec::new();
            $($crate::tests!(@add tests, $need, $name, [$($needed),*], [$($case in $cases)?], [$($seconds)?]);)+
            tests
        }
    };
    (@add $tests:ident, $need:ty, $name:ident, [$($needed:expr),*], [], [$($seconds:literal)?]) => {
        let needs: &[$need] = &[$($needed),*];
        let test = $crate::Test::new(concat!(module_path!(), "::", stringify!($name)), needs, $name);
        $tests.push(test$(.within($seconds))?);
    };
    (@add $tests:ident, $need:ty, $name:ident, [$($needed:expr),*], [$case:ident in $cases:expr], [$($seconds:literal)?]) => {
        for $case in $cases {
            let needs: &[$need] = &[$($needed),*];
            let name = format!("{}::{}({})", module_path!(), stringify!($name), $case);
            let test = $crate::Test::new(&name, needs, move || $name($case));
            $tests.push(test$(.within($seconds))?);
        }
    };
}

/// Gives every test of a libtest target a deadline: libtest itself only says that a test takes long.
#[macro_export]
macro_rules! watch_libtest {
    () => {
        /// Run before `main`, since libtest has no place of its own for it.
        // SAFETY: a function of the type that the loader calls from this section, in a program with a C library that is
        // set up by then.
        #[used]
        #[unsafe(link_section = ".init_array")]
        static WATCHDOG: extern "C" fn() = $crate::arm_for_libtest;
    };
}
