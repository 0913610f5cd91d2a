//! The quirk by which a slot's zap drops everything.

use kvm_bindings::{KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_SLOT_ZAP_ALL};
use kvm_ioctls::VmFd;

/// Its name.
pub const SLOT_ZAP_QUIRK: &str = "KVM_X86_QUIRK_SLOT_ZAP_ALL";

/// The quirks of KVM that can be disabled, or what the question for them failed with.
pub fn quirks(vm: &VmFd) -> i32 {
    vm.check_extension_raw(KVM_CAP_DISABLE_QUIRKS2.into())
}

/// Whether a slot's zap can be limited to the slot, by [`quirks`].
pub fn can_be_limited(quirks: i32) -> bool {
    u32::try_from(quirks).is_ok_and(|quirks| quirks & KVM_X86_QUIRK_SLOT_ZAP_ALL != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zap_is_limited_where_kvm_has_that_quirk() {
        for (quirks, can) in [(-1, false), (-libc::EINVAL, false), (0, false), (0x7f, false), (0x80, true)] {
            assert_eq!(can_be_limited(quirks), can, "{quirks:#x}");
        }
        assert!(can_be_limited(0xff));
    }
}
