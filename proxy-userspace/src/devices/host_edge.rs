//! The host edge: `beeline0`, by which packets of this node's own processes to Services leave.
//!
//! One end of a pair of virtual Ethernet devices without ARP, so that packets leave by it without
//! asking for a neighbour; nothing ever arrives at the other end, `beeline1`. The pair outlives the
//! process, with the programs on it, until `beeline cleanup`.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use rtnetlink::{Handle, LinkUnspec, LinkVeth};

use super::monitor::{self, MonitorError};
use super::role::{Link, LinkKind};
use super::sysctls;

/// Names of devices that Beeline makes begin so.
pub(super) const OURS: &str = "beeline";
/// The device that Services are routed to.
pub const HOST_DEVICE: &str = "beeline0";
/// Its other end.
pub const PEER_DEVICE: &str = "beeline1";

/// MTU of a node that has no way out.
const DEFAULT_MTU: u32 = 1500;

/// The host edge cannot be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum HostEdgeError {
    /// rtnetlink is in trouble.
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    /// A device of this name is there, and is something else.
    #[error("device {name}: it is no veth pair, so it cannot be Beeline's; remove or rename it")]
    NotOurs {
        /// The device.
        name: &'static str,
    },
    /// The kernel refuses.
    #[error("device {HOST_DEVICE}: {action} failed: {source}")]
    Link {
        /// What was tried.
        action: &'static str,
        /// Why.
        source: Box<rtnetlink::Error>,
    },
    /// It was made and is not there.
    #[error("device {HOST_DEVICE}: somebody removed it again")]
    Vanished,
    /// A file of the state folder.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn link_error(action: &'static str) -> impl FnOnce(rtnetlink::Error) -> HostEdgeError {
    move |source| HostEdgeError::Link {
        action,
        source: Box::new(source),
    }
}

/// Sees to it that the pair is there and up, and its packets as large as those of the way out.
/// Says whether it was made.
///
/// # Errors
/// If the kernel refuses, or a device of that name is none of ours.
pub async fn ensure(netlink: &Handle) -> Result<bool, HostEdgeError> {
    let everything = monitor::read(netlink).await?;
    let uplinks = everything.links.iter();
    let uplinks = uplinks.filter(|link| everything.uplinks.contains(&link.device.index));
    let mtu = uplinks.map(|link| link.mtu).min().unwrap_or(DEFAULT_MTU);
    let present = ours(&everything.links)?;
    let is_new = present.is_empty();
    if is_new {
        let request = netlink
            .link()
            .add(LinkVeth::new(HOST_DEVICE, PEER_DEVICE).build());
        request.execute().await.map_err(link_error("making it"))?;
    }
    if !is_settled(&present, mtu) {
        configure(netlink, mtu).await?;
    }
    Ok(is_new)
}

/// Removes the pair, and with it the routes to it; says whether it was there.
///
/// # Errors
/// If the kernel refuses, or a device of that name is none of ours.
pub async fn remove(netlink: &Handle) -> Result<bool, HostEdgeError> {
    let everything = monitor::read(netlink).await?;
    let present = ours(&everything.links)?;
    let Some(link) = present.first() else {
        return Ok(false);
    };
    let request = netlink.link().del(link.device.index);
    request.execute().await.map_err(link_error("removing it"))?;
    Ok(true)
}

/// The ends that are there.
fn ours(links: &[Link]) -> Result<Vec<&Link>, HostEdgeError> {
    let mut present = Vec::new();
    for name in [HOST_DEVICE, PEER_DEVICE] {
        if let Some(link) = links.iter().find(|link| &*link.device.name == name) {
            if link.kind != LinkKind::Pair {
                return Err(HostEdgeError::NotOurs { name });
            }
            present.push(link);
        }
    }
    Ok(present)
}

fn is_settled(ends: &[&Link], mtu: u32) -> bool {
    ends.len() == 2 && ends.iter().all(|link| link.is_up && link.mtu == mtu)
}

async fn configure(netlink: &Handle, mtu: u32) -> Result<(), HostEdgeError> {
    quieten();
    let links = monitor::read(netlink).await?.links;
    let present = ours(&links)?;
    if present.len() != 2 {
        return Err(HostEdgeError::Vanished);
    }
    for link in present {
        // Flags take effect together, so no question for a neighbour ever leaves.
        let change = LinkUnspec::new_with_index(link.device.index)
            .arp(false)
            .mtu(mtu)
            .up()
            .build();
        let request = netlink.link().set(change);
        request
            .execute()
            .await
            .map_err(link_error("setting it up"))?;
    }
    Ok(())
}

/// Before the pair comes up: no addresses by itself, no questions for routers.
fn quieten() {
    let root = sysctls::root();
    // What cannot be set here makes a little noise inside the pair, no more.
    for (sysctl, value) in [
        ("net/ipv6/conf/beeline1/disable_ipv6", "1"),
        ("net/ipv6/conf/beeline0/addr_gen_mode", "1"),
        ("net/ipv6/conf/beeline0/accept_ra", "0"),
        ("net/ipv6/conf/beeline0/autoconf", "0"),
        ("net/ipv6/conf/beeline0/accept_dad", "0"),
        ("net/ipv6/conf/beeline0/router_solicitations", "0"),
        // What came through the pair untranslated must not go round for ever.
        ("net/ipv4/conf/beeline1/forwarding", "0"),
    ] {
        if let Err(error) = std::fs::write(root.join(sysctl), value) {
            tracing::debug!("cannot set {sysctl} to {value}: {error}");
        }
    }
}

/// A kernel setting that the host edge needs.
struct Need {
    /// Its path below `/proc/sys`.
    sysctl: &'static str,
    value: &'static str,
    /// Whether it belongs to the node rather than to our own devices, and is to be put back.
    is_shared: bool,
    /// What does not work without it.
    without: &'static str,
}

const NEEDS: [Need; 5] = [
    Need {
        sysctl: "net/ipv4/conf/lo/accept_local",
        value: "1",
        is_shared: true,
        without: "processes of this node get no answers at NodePorts and external IPs that are \
                  this node's own addresses",
    },
    Need {
        sysctl: "net/ipv4/conf/lo/route_localnet",
        value: "1",
        is_shared: true,
        without: "processes of this node get no answers at sockets that are bound to 127.0.0.0/8",
    },
    Need {
        sysctl: "net/ipv4/conf/beeline0/forwarding",
        value: "1",
        is_shared: false,
        without: "processes of this node get no answers from Services by IPv4",
    },
    Need {
        sysctl: "net/ipv6/conf/beeline0/disable_ipv6",
        value: "0",
        is_shared: false,
        without: "processes of this node cannot reach Services by IPv6",
    },
    Need {
        sysctl: "net/ipv6/conf/beeline0/forwarding",
        value: "1",
        is_shared: false,
        without: "processes of this node get no answers from Services by IPv6",
    },
];

/// Sees to it that the kernel's settings are as the host edge needs them, and says what does not
/// work where they cannot be. What was there before of settings that are not about our own devices
/// is kept in the state folder, for [`put_back`].
///
/// # Errors
/// If the state folder cannot be read or written.
pub fn set_sysctls(state_dir: &Path) -> Result<Vec<String>, HostEdgeError> {
    set_below(sysctls::root(), state_dir)
}

/// Whether this node speaks IPv6 at all.
pub fn has_ipv6() -> bool {
    speaks_ipv6(sysctls::root())
}

fn speaks_ipv6(root: &Path) -> bool {
    let disabled = read_value(&root.join("net/ipv6/conf/all/disable_ipv6"));
    disabled.is_ok_and(|value| value == "0")
}

fn set_below(root: &Path, state_dir: &Path) -> Result<Vec<String>, HostEdgeError> {
    let mut missing = Vec::new();
    let has_ipv6 = speaks_ipv6(root);
    for need in NEEDS {
        if need.sysctl.starts_with("net/ipv6") && !has_ipv6 {
            continue;
        }
        let path = root.join(need.sysctl);
        let value = read_value(&path);
        if value.as_ref().is_ok_and(|value| value == need.value) {
            continue;
        }
        if let (true, Ok(value)) = (need.is_shared, &value) {
            remember(state_dir, need.sysctl, value)?;
        }
        if let Err(error) = std::fs::write(&path, need.value) {
            let (name, wanted) = (need.sysctl.replace('/', "."), need.value);
            missing.push(format!(
                "cannot set {name} to {wanted} ({error}): {}",
                need.without
            ));
        }
    }
    Ok(missing)
}

fn read_value(path: &Path) -> io::Result<String> {
    Ok(std::fs::read_to_string(path)?.trim().to_owned())
}

/// Where the values are kept that settings had before.
pub fn memory(state_dir: &Path) -> PathBuf {
    state_dir.join("sysctls.json")
}

fn remembered(state_dir: &Path) -> Result<BTreeMap<String, String>, HostEdgeError> {
    let path = memory(state_dir);
    match std::fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map_err(io_error("make sense of", &path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(io_error("read", &path)(error)),
    }
}

/// Keeps the value of before the first change.
fn remember(state_dir: &Path, sysctl: &str, value: &str) -> Result<(), HostEdgeError> {
    let mut all = remembered(state_dir)?;
    let _first = all
        .entry(sysctl.to_owned())
        .or_insert_with(|| value.to_owned());
    let path = memory(state_dir);
    let text = serde_json::to_vec(&all).map_err(io_error("write", &path))?;
    std::fs::write(&path, text).map_err(io_error("write", &path))
}

fn io_error<E: Into<io::Error>>(
    action: &'static str,
    path: &Path,
) -> impl FnOnce(E) -> HostEdgeError {
    let path = path.to_owned();
    move |source| HostEdgeError::Io {
        action,
        path,
        source: source.into(),
    }
}

/// Gives settings the values that they had before, unless somebody has changed them since. Says
/// which ones.
///
/// # Errors
/// If the state folder cannot be read, or a setting not be written.
pub fn put_back(state_dir: &Path) -> Result<Vec<String>, HostEdgeError> {
    put_back_below(sysctls::root(), state_dir)
}

fn put_back_below(root: &Path, state_dir: &Path) -> Result<Vec<String>, HostEdgeError> {
    let mut changed = Vec::new();
    for (sysctl, before) in remembered(state_dir)? {
        let path = root.join(&sysctl);
        let ours = NEEDS.iter().find(|need| need.sysctl == sysctl);
        let is_ours = |value: &String| ours.is_some_and(|need| need.value == value);
        if read_value(&path).is_ok_and(|value| is_ours(&value)) {
            std::fs::write(&path, &before).map_err(io_error("write", &path))?;
            changed.push(format!("{} = {before}", sysctl.replace('/', ".")));
        }
    }
    let path = memory(state_dir);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error("remove", &path)(error))
        }
        _ => Ok(changed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder like `/proc/sys`, with these settings.
    fn sysctls(all: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, value) in all {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, format!("{value}\n")).unwrap();
        }
        folder
    }

    const ACCEPT_LOCAL: &str = "net/ipv4/conf/lo/accept_local";
    const V4: [(&str, &str); 2] = [
        (ACCEPT_LOCAL, "0"),
        ("net/ipv4/conf/beeline0/forwarding", "0"),
    ];

    fn value(root: &tempfile::TempDir, path: &str) -> String {
        read_value(&root.path().join(path)).unwrap()
    }

    #[test]
    fn what_is_not_ours_is_put_back() {
        let (root, state) = (sysctls(&V4), tempfile::tempdir().unwrap());
        for _ in 0..2 {
            let missing = set_below(root.path(), state.path()).unwrap();
            assert_eq!(missing, Vec::<String>::new());
            assert_eq!(value(&root, ACCEPT_LOCAL), "1");
            assert_eq!(value(&root, "net/ipv4/conf/beeline0/forwarding"), "1");
        }
        let changed = put_back_below(root.path(), state.path()).unwrap();
        assert_eq!(changed, ["net.ipv4.conf.lo.accept_local = 0"]);
        assert_eq!(value(&root, ACCEPT_LOCAL), "0");
        assert!(!memory(state.path()).exists());
        assert!(
            put_back_below(root.path(), state.path())
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn what_was_right_or_was_changed_again_stays() {
        let (root, state) = (sysctls(&V4), tempfile::tempdir().unwrap());
        std::fs::write(root.path().join(ACCEPT_LOCAL), "1").unwrap();
        assert!(set_below(root.path(), state.path()).unwrap().is_empty());
        assert!(
            put_back_below(root.path(), state.path())
                .unwrap()
                .is_empty()
        );
        assert_eq!(value(&root, ACCEPT_LOCAL), "1");

        std::fs::write(root.path().join(ACCEPT_LOCAL), "0").unwrap();
        assert!(set_below(root.path(), state.path()).unwrap().is_empty());
        std::fs::write(root.path().join(ACCEPT_LOCAL), "2").unwrap();
        assert!(
            put_back_below(root.path(), state.path())
                .unwrap()
                .is_empty()
        );
        assert_eq!(value(&root, ACCEPT_LOCAL), "2");
    }

    #[test]
    fn a_setting_that_cannot_be_set_is_said_with_what_it_is_for() {
        let (root, state) = (sysctls(&V4[..1]), tempfile::tempdir().unwrap());
        let missing = set_below(root.path(), state.path()).unwrap();
        assert_eq!(missing.len(), 1, "{missing:?}");
        assert!(
            missing[0].contains("net.ipv4.conf.beeline0.forwarding")
                && missing[0].contains("by IPv4"),
            "{missing:?}"
        );
    }

    #[test]
    fn without_ipv6_nothing_of_it_is_missed() {
        const DISABLED: &str = "net/ipv6/conf/all/disable_ipv6";
        let state = tempfile::tempdir().unwrap();
        for settings in [vec![], vec![(DISABLED, "1")]] {
            let root = sysctls(&[&V4[..], &settings].concat());
            assert!(set_below(root.path(), state.path()).unwrap().is_empty());
        }
        let root = sysctls(&[&V4[..], &[(DISABLED, "0")]].concat());
        assert_eq!(set_below(root.path(), state.path()).unwrap().len(), 2);
    }
}
