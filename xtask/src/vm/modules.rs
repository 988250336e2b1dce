//! Which kernel modules the machine gets.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};

/// Folders below `kernel/` that are taken whole: what pods, CNIs and kube-proxy itself may use.
const FOLDERS: [&str; 6] = [
    "net/bridge/",
    "net/ipv4/",
    "net/ipv6/",
    "net/netfilter/",
    "net/sched/",
    "net/sctp/",
];

/// Single modules; each must exist or be built in.
const MODULES: [&str; 8] = [
    "veth",
    "dummy",
    "vxlan",
    "tun",
    "crc32c_generic",
    "crc32c_intel",
    "libcrc32c",
    "sha256_generic",
];

/// The modules to take, as paths below the modules' folder, with all they depend on.
///
/// # Errors
/// When a module of our list is neither in `modules.dep` nor in `modules.builtin`.
pub(super) fn select(modules_dep: &str, modules_builtin: &str) -> Result<BTreeSet<String>> {
    let dependencies = parse_dependencies(modules_dep);
    let built_in: BTreeSet<String> = modules_builtin.lines().map(module_name).collect();
    let by_name: BTreeMap<String, &str> = dependencies
        .keys()
        .map(|path| (module_name(path), *path))
        .collect();

    let mut selected: BTreeSet<String> = BTreeSet::new();
    for name in MODULES {
        match by_name.get(name) {
            Some(path) => include(path, &dependencies, &mut selected),
            None if built_in.contains(name) => {}
            None => bail!("module {name}: not in this kernel"),
        }
    }
    for path in dependencies.keys().filter(|path| in_folders(path)) {
        include(path, &dependencies, &mut selected);
    }
    Ok(selected)
}

fn in_folders(path: &str) -> bool {
    let below = path.strip_prefix("kernel/").unwrap_or(path);
    FOLDERS.iter().any(|folder| below.starts_with(folder))
}

/// `modules.dep` lists for each module all modules it needs, already closed over.
fn include(path: &str, dependencies: &BTreeMap<&str, Vec<&str>>, selected: &mut BTreeSet<String>) {
    let needed = dependencies.get(path).into_iter().flatten().copied();
    selected.extend(needed.chain([path]).map(str::to_owned));
}

fn parse_dependencies(modules_dep: &str) -> BTreeMap<&str, Vec<&str>> {
    let entries = modules_dep.lines().filter_map(|line| line.split_once(':'));
    entries
        .map(|(path, needed)| (path, needed.split_whitespace().collect()))
        .collect()
}

/// A module's name as the kernel spells it: no folder, no suffix, `_` for `-`.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "\
kernel/drivers/net/veth.ko.xz:
kernel/drivers/net/dummy.ko.xz:
kernel/drivers/net/tun.ko.xz:
kernel/drivers/net/vxlan/vxlan.ko.xz: kernel/net/ipv6/ip6_udp_tunnel.ko.xz kernel/net/ipv4/udp_tunnel.ko.xz
kernel/arch/x86/crypto/crc32c-intel.ko.xz:
kernel/lib/libcrc32c.ko.xz:
kernel/net/sctp/sctp.ko.xz: kernel/lib/libcrc32c.ko.xz kernel/extra/needed.ko.xz
kernel/net/ipv6/ip6_udp_tunnel.ko.xz:
kernel/net/ipv4/udp_tunnel.ko.xz:
kernel/extra/needed.ko.xz:
kernel/fs/ext4/ext4.ko.xz: kernel/fs/jbd2/jbd2.ko.xz
";
    const BUILT_IN: &str = "kernel/crypto/crc32c_generic.ko\nkernel/crypto/sha256_generic.ko\n";

    #[test]
    fn folders_single_modules_and_their_dependencies_are_taken() {
        let selected = select(DEP, BUILT_IN).unwrap();
        assert!(selected.contains("kernel/arch/x86/crypto/crc32c-intel.ko.xz"));
        assert!(selected.contains("kernel/net/sctp/sctp.ko.xz"));
        assert!(selected.contains("kernel/extra/needed.ko.xz"));
        assert!(selected.contains("kernel/net/ipv4/udp_tunnel.ko.xz"));
        assert!(!selected.iter().any(|path| path.contains("ext4")));
    }

    #[test]
    fn a_module_that_the_kernel_lacks_is_named() {
        let error = select(DEP, "").unwrap_err();
        assert_eq!(
            error.to_string(),
            "module crc32c_generic: not in this kernel"
        );
    }

    #[test]
    fn names_as_the_kernel_spells_them() {
        assert_eq!(
            module_name("kernel/arch/x86/crypto/crc32c-intel.ko"),
            "crc32c_intel"
        );
        assert_eq!(module_name("kernel/net/sctp/sctp.ko.xz"), "sctp");
    }
}
