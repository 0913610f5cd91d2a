//! The PID namespace of this process.

/// `PROC_PID_INIT_INO`, the number of the initial PID namespace on every kernel.
const INITIAL: u64 = 0xEFFF_FFFC;

/// The number of this process's PID namespace; 0 on a kernel without namespaces.
pub(crate) fn pid_namespace() -> u64 {
    let link = std::fs::read_link("/proc/self/ns/pid").ok();
    let number = link.and_then(|link| link.to_str()?.strip_prefix("pid:[")?.strip_suffix(']')?.parse().ok());
    number.unwrap_or(0)
}

/// Whether this is the initial PID namespace, whose numbers of threads are the kernel's own.
pub fn in_initial_pid_namespace() -> bool {
    pid_namespace() == INITIAL
}
