//! The PID namespace this process is in.

/// Whether threads have the numbers by which the kernel itself knows them.
pub fn in_initial_pid_namespace() -> bool {
    /// `PROC_PID_INIT_INO`, the same on every kernel.
    const INITIAL: &str = "pid:[4026531836]";
    std::fs::read_link("/proc/self/ns/pid").is_ok_and(|namespace| namespace.as_os_str() == INITIAL)
}
