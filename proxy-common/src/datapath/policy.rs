//! Who the client is, which endpoints it may get, and whether they see its address.

use super::{Hook, Tables};
use crate::abi::{
    Addr, AddressFlags, Backend, BackendFlags, DeviceFlags, Frontend, FrontendFlags, NetworkFlags,
    SettingsFlags,
};

/// The kinds of client that rules tell apart (rule R50).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Client {
    /// A local pod by the configured method (rule R51).
    LocalPod,
    /// This node.
    Node,
    /// Anybody else.
    Outside,
}

/// Who sent a packet that is seen at `hook` of `device`.
///
/// Only what leaves this node can come from the node itself.
#[inline(always)]
pub fn client<T: Tables>(tables: &T, hook: Hook, device: u32, src: &Addr) -> Client {
    let flags = tables.settings().flags;
    if flags.contains(detection_of(src)) {
        if tables.network(src).contains(NetworkFlags::LOCAL_PODS) {
            return Client::LocalPod;
        }
    } else if flags.contains(SettingsFlags::DETECT_DEVICE)
        && tables
            .device(device)
            .is_some_and(|device| device.flags.contains(DeviceFlags::LOCAL_PODS))
    {
        return Client::LocalPod;
    }
    if hook == Hook::NodeEgress {
        Client::Node
    } else {
        Client::Outside
    }
}

#[inline(always)]
const fn detection_of(addr: &Addr) -> SettingsFlags {
    if addr.is_v4() {
        SettingsFlags::DETECT_V4
    } else {
        SettingsFlags::DETECT_V6
    }
}

/// Whether only local endpoints may be chosen. Pods and the node get all of them at external
/// addresses, as if they had gone out to the load balancer (rules R52 to R61).
#[inline(always)]
pub fn is_local_only(frontend: &Frontend, client: Client) -> bool {
    frontend.flags.contains(FrontendFlags::LOCAL_ONLY)
        && (client == Client::Outside || !frontend.flags.contains(FrontendFlags::EXTERNAL))
}

/// Whether a pod's or an outside client's address is replaced by one of this node, when its packet
/// goes to `backend`, which is not in this node's own network namespace (rule R80).
///
/// kube-proxy does so by rules R75 to R78, which a setting asks for. By default it is done where
/// the reply would not come back through here otherwise, and for `masqueradeAll`: a local pod's
/// reply passes this node anyway, and a pod that is a client gets it at its own device.
#[inline(always)]
pub fn hides_client<T: Tables>(
    tables: &T,
    hook: Hook,
    frontend: &Frontend,
    (client, src): (Client, &Addr),
    backend: &Backend,
) -> bool {
    let flags = tables.settings().flags;
    let is_external = frontend.flags.contains(FrontendFlags::EXTERNAL);
    if backend.addr == *src || (!is_external && flags.contains(SettingsFlags::MASQUERADE_ALL)) {
        return true;
    }
    if !flags.contains(SettingsFlags::SOURCE_NAT_LIKE_KUBE_PROXY) {
        return hook == Hook::NodeIngress && !backend.flags.contains(BackendFlags::IS_LOCAL);
    }
    if is_external {
        !frontend.flags.contains(FrontendFlags::LOCAL_ONLY)
    } else {
        let detects =
            flags.contains(detection_of(src)) || flags.contains(SettingsFlags::DETECT_DEVICE);
        detects && client != Client::LocalPod
    }
}

/// Whether an address is in this node's own network namespace.
#[inline(always)]
pub fn is_here<T: Tables>(tables: &T, addr: &Addr) -> bool {
    tables.address(addr).contains(AddressFlags::NODE)
}

/// Whether a packet that leaves was sent by this node itself: its source is an address of it.
#[inline(always)]
pub fn is_own<T: Tables>(tables: &T, src: &Addr) -> bool {
    src.is_loopback() || is_here(tables, src)
}
