//! Numbers of one to ten bytes: LEB128, and zigzag for those that may be negative.

/// Appends a number, seven bits a byte, the lowest first.
pub(super) fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends `now - before`, which may be negative.
pub(super) fn put_difference(out: &mut Vec<u8>, now: u64, before: u64) {
    let difference = now.wrapping_sub(before) as i64;
    put(out, (difference.wrapping_shl(1) ^ (difference >> 63)) as u64);
}

/// Takes a number from the front of `bytes`; `None` if it is cut short or has more than 64 bits.
pub(super) fn take(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let bits = u64::from(byte & 0x7f);
        if bits << shift >> shift != bits {
            return None;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Takes what [`put_difference`] put, and returns the number that `before` becomes by it.
pub(super) fn take_after(bytes: &mut &[u8], before: u64) -> Option<u64> {
    let zigzag = take(bytes)?;
    let difference = (zigzag >> 1) as i64 ^ -((zigzag & 1) as i64);
    before.checked_add_signed(difference)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_and_differences_come_back(value: u64, a in 0u64..1 << 62, b in 0u64..1 << 62) {
            let mut out = Vec::new();
            put(&mut out, value);
            put_difference(&mut out, b, a);
            let mut bytes = out.as_slice();
            prop_assert_eq!(take(&mut bytes), Some(value));
            prop_assert_eq!(take_after(&mut bytes, a), Some(b));
            prop_assert!(bytes.is_empty());
        }
    }

    #[test]
    fn what_is_cut_short_or_too_long_is_no_number() {
        assert_eq!(take(&mut [].as_slice()), None);
        assert_eq!(take(&mut [0x80].as_slice()), None);
        assert_eq!(take(&mut [0xff; 10].as_slice()), None);
        let most = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
        assert_eq!(take(&mut most.as_slice()), Some(u64::MAX));
        let mut minus_one = vec![];
        put_difference(&mut minus_one, 4, 5);
        assert_eq!(take_after(&mut minus_one.as_slice(), 0), None, "below zero there is no page");
    }
}
