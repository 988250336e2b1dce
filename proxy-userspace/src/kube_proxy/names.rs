//! Which chains of iptables are kube-proxy's.

/// Chains that kube-proxy makes once, in whichever table (its own clean-up removes the same).
const FIXED: [&str; 8] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    MARKED,
    MARKS,
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
    "KUBE-PROXY-CANARY",
];

/// What chains of Services and endpoints begin with.
const PREFIXES: [&str; 6] = [
    "KUBE-SVC-",
    "KUBE-SVL-",
    "KUBE-SEP-",
    "KUBE-FW-",
    "KUBE-EXT-",
    "KUBE-XLB-",
];

/// Marks a packet that is to get an address of the node.
pub(super) const MARKS: &str = "KUBE-MARK-MASQ";
/// Gives marked packets an address of the node.
pub(super) const MARKED: &str = "KUBE-POSTROUTING";

/// A chain that is there while kube-proxy's iptables mode serves.
pub(super) const SIGN: &str = "KUBE-SERVICES";

/// The table of kube-proxy's nftables mode, in each family.
pub(super) const NFTABLES: &str = "kube-proxy";

/// The tables that kube-proxy's iptables mode has chains in; the first decides who serves.
pub(super) const TABLES: [&str; 3] = ["nat", "filter", "mangle"];

/// The device that holds the addresses of Services in kube-proxy's ipvs mode.
pub(super) const IPVS_DEVICE: &str = "kube-ipvs0";

/// Whether a chain of this name is kube-proxy's. The kubelet's are not: `KUBE-FIREWALL`,
/// `KUBE-KUBELET-CANARY`, `KUBE-MARK-DROP`.
pub(super) fn is_kube_proxys(chain: &str) -> bool {
    FIXED.contains(&chain) || PREFIXES.iter().any(|prefix| chain.starts_with(prefix))
}
