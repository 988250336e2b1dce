//! KVM, where the processor has it.

use std::fs::{self, File};
use std::path::Path;

/// Whether KVM runs stock kernels here.
///
/// A `/dev/kvm` without the processor's own flag is a nested one that does not.
pub(super) fn works() -> bool {
    let cpu_info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    has_virtualization_flag(&cpu_info) && opens_for_writing(Path::new("/dev/kvm"))
}

fn has_virtualization_flag(cpu_info: &str) -> bool {
    cpu_info
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| {
            line.split_whitespace()
                .any(|flag| flag == "vmx" || flag == "svm")
        })
}

fn opens_for_writing(path: &Path) -> bool {
    File::options().read(true).write(true).open(path).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_needs_the_flag_as_a_whole_word() {
        assert!(has_virtualization_flag(
            "processor\t: 0\nflags\t\t: fpu vmx sse\n"
        ));
        assert!(has_virtualization_flag("flags\t\t: svm\n"));
        assert!(!has_virtualization_flag(
            "flags\t\t: fpu svm_lock\nbugs\t\t: vmx\n"
        ));
    }
}
