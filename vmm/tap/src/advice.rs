//! The advice of a `madvise`: the kernel's numbers, from `<asm-generic/mman-common.h>`, and their names.

/// All of Linux 6.18, in order of number.
const NAMES: [(u32, &str); 27] = [
    (0, "NORMAL"),
    (1, "RANDOM"),
    (2, "SEQUENTIAL"),
    (3, "WILLNEED"),
    (4, "DONTNEED"),
    (8, "FREE"),
    (9, "REMOVE"),
    (10, "DONTFORK"),
    (11, "DOFORK"),
    (12, "MERGEABLE"),
    (13, "UNMERGEABLE"),
    (14, "HUGEPAGE"),
    (15, "NOHUGEPAGE"),
    (16, "DONTDUMP"),
    (17, "DODUMP"),
    (18, "WIPEONFORK"),
    (19, "KEEPONFORK"),
    (20, "COLD"),
    (21, "PAGEOUT"),
    (22, "POPULATE_READ"),
    (23, "POPULATE_WRITE"),
    (24, "DONTNEED_LOCKED"),
    (25, "COLLAPSE"),
    (100, "HWPOISON"),
    (101, "SOFT_OFFLINE"),
    (102, "GUARD_INSTALL"),
    (103, "GUARD_REMOVE"),
];

/// The name of an advice without its `MADV_`.
pub fn advice_name(advice: u32) -> Option<&'static str> {
    NAMES.iter().find(|(number, _)| *number == advice).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers and names of these constants of libc.
    macro_rules! of_libc {
        ($($name:ident)*) => { [$((libc::$name, stringify!($name))),*] };
    }

    #[test]
    fn every_advice_of_libc_has_its_name() {
        let known = of_libc!(
            MADV_NORMAL MADV_RANDOM MADV_SEQUENTIAL MADV_WILLNEED MADV_DONTNEED MADV_FREE MADV_REMOVE MADV_DONTFORK
            MADV_DOFORK MADV_MERGEABLE MADV_UNMERGEABLE MADV_HUGEPAGE MADV_NOHUGEPAGE MADV_DONTDUMP MADV_DODUMP
            MADV_WIPEONFORK MADV_KEEPONFORK MADV_COLD MADV_PAGEOUT MADV_POPULATE_READ MADV_POPULATE_WRITE
            MADV_DONTNEED_LOCKED MADV_COLLAPSE MADV_HWPOISON MADV_SOFT_OFFLINE
        );
        for (number, name) in known {
            assert_eq!(advice_name(number as u32), name.strip_prefix("MADV_"), "{number}");
        }
        assert_eq!(known.len() + 2, NAMES.len(), "libc lacks the newest two");
        assert!(NAMES.windows(2).all(|pair| pair[0].0 < pair[1].0), "they are in order, each once");
        assert_eq!(advice_name(104), None);
    }
}
