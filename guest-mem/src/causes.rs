//! The text of an error with all its causes, and the remedy if a limit of this process was reached.

use std::error::Error;
use std::io;

use rustix::io::Errno;

use crate::remedy;

/// An error and all its causes in one line; and the remedy, if the innermost is a limit of this process.
pub fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut innermost = error;
    while let Some(cause) = innermost.source() {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        innermost = cause;
    }
    let remedy = errno_of(innermost).and_then(remedy::of_limit).filter(|remedy| !text.contains(remedy));
    if let Some(remedy) = remedy {
        text.push_str(": ");
        text.push_str(remedy);
    }
    text
}

fn errno_of(error: &(dyn Error + 'static)) -> Option<Errno> {
    let io = error.downcast_ref::<io::Error>().and_then(Errno::from_io_error);
    let of_ioctl = || error.downcast_ref::<vmm_sys_util::errno::Error>().map(|error| error.errno());
    io.or_else(|| error.downcast_ref::<Errno>().copied()).or_else(|| of_ioctl().map(Errno::from_raw_os_error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("opening the door")]
    struct Outer<E: Error + 'static>(#[source] E);

    #[test]
    fn causes_follow_in_order() {
        assert!(with_causes(&Outer(std::fmt::Error)).starts_with("opening the door: an error"));
    }

    #[test]
    fn a_limit_of_this_process_is_named_whoever_met_it() {
        let ending = |errno: Errno| {
            let of_io = with_causes(&Outer(Outer(io::Error::from(errno))));
            assert_eq!(of_io, with_causes(&Outer(Outer(errno))));
            let of_ioctl = vmm_sys_util::errno::Error::new(errno.raw_os_error());
            assert_eq!(of_io, with_causes(&Outer(Outer(of_ioctl))));
            of_io
        };
        assert!(ending(Errno::MFILE).ends_with("(os error 24): raise `ulimit -n`"));
        assert!(ending(Errno::NFILE).ends_with("(os error 23): raise `sysctl fs.file-max`"));
        assert!(ending(Errno::FBIG).ends_with("(os error 27): raise `ulimit -f`"));
        assert!(ending(Errno::ACCESS).ends_with("(os error 13)"));
    }
}
