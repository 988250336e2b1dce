//! What the daemon tells `beeline status` by a file in its state folder.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::clock::wall;
use crate::loader::attach::Method;
use crate::model::Problem;
use crate::node::NodeConfig;
use crate::sockets::Counts;
use crate::source::{ResourceState, SourceState};

/// The state of the daemon.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Beeline's version.
    pub version: String,
    /// The daemon's process id.
    pub pid: u32,
    /// When it started: seconds since 1970.
    pub started: u64,
    /// The name of this node.
    pub node: String,
    /// Where Services come from.
    pub source: String,
    /// What is heard of the source, by resource.
    #[serde(default)]
    pub resources: BTreeMap<String, ResourceStatus>,
    /// Whether everything that was known at first is in force, on all devices.
    pub synced: bool,
    /// The latest sync.
    pub last_sync: Option<LastSync>,
    /// What is not as it should be.
    pub problems: Vec<Problem>,
    /// How programs are attached.
    pub method: Method,
    /// The devices that lead to pods.
    pub devices: Vec<String>,
    /// The devices by which traffic enters and leaves the node.
    pub node_devices: Vec<String>,
    /// The devices by which this node's own processes reach Services.
    pub host_devices: Vec<String>,
    /// The socket edge.
    pub socket_edge: SocketEdgeStatus,
    /// This node's addresses.
    pub node_addresses: Vec<NodeAddress>,
    /// How traffic is treated: options and their values.
    pub modes: BTreeMap<String, String>,
    /// Seconds that flows may be silent, by state.
    pub timeouts: BTreeMap<String, u32>,
}

/// How the source gets on with one resource.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ResourceStatus {
    /// Whether it has been read whole.
    pub listed: bool,
    /// Whether changes are heard of.
    pub connected: bool,
    /// Since when that has been so: seconds since 1970.
    pub since: u64,
    /// How often the watch had to be begun anew, by reason; reasons that did not occur are left
    /// out.
    pub restarts: BTreeMap<String, u64>,
}

/// How the source gets on, by resource.
pub fn resources(state: &SourceState) -> BTreeMap<String, ResourceStatus> {
    let status = |state: &ResourceState| {
        let restarts = state.n_restarts.iter().filter(|(_, n)| **n > 0);
        ResourceStatus {
            listed: state.is_listed,
            connected: state.is_connected,
            since: unix_time().saturating_sub(state.since.elapsed().as_secs()),
            restarts: restarts.map(|(why, n)| ((*why).to_owned(), *n)).collect(),
        }
    };
    let all = state.resources.iter();
    all.map(|(name, state)| ((*name).to_owned(), status(state)))
        .collect()
}

/// The socket edge.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct SocketEdgeStatus {
    /// Whose sockets are to be served, as `--socket-lb` says.
    pub serves: String,
    /// The cgroup whose sockets are served; `None`: nobody's are.
    pub cgroup: Option<PathBuf>,
    /// Sockets that left backends that were gone, since the daemon was started.
    #[serde(default)]
    pub left: Counts,
    /// Pods, if some are to be left out.
    pub pods: Option<PodsStatus>,
}

/// What the socket edge makes of this node's pods.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PodsStatus {
    /// How many are served.
    pub served: usize,
    /// How many are left out, as it is wanted.
    pub left_out: usize,
    /// How many have no cgroup that could be found, or not yet; they are left out, too.
    pub not_found: usize,
}

/// An address of this node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodeAddress {
    /// The address.
    pub address: String,
    /// Whether it accepts NodePorts.
    pub node_ports: bool,
}

/// One sync.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LastSync {
    /// When it ended: seconds since 1970.
    pub at: u64,
    /// How many Services it looked at.
    pub services: usize,
    /// How many writes it made.
    pub writes: usize,
    /// How many Services are not in force as they should be.
    pub pending: usize,
    /// How long it took: microseconds.
    pub micros: u64,
}

/// How `config` has traffic treated, by option.
pub fn modes(config: &NodeConfig) -> BTreeMap<String, String> {
    let every = |text: String| {
        if text.is_empty() {
            "every address".to_owned()
        } else {
            text
        }
    };
    let given = |networks: &[IpNet]| {
        let texts: Vec<_> = networks.iter().map(IpNet::to_string).collect();
        texts.join(",")
    };
    let mut modes = BTreeMap::from([
        (
            "nodeport-addresses",
            every(config.node_port_addresses.to_string()),
        ),
        (
            "localhost-nodeports",
            config.localhost_node_ports.to_string(),
        ),
        ("detect-local-mode", config.detect_local.to_string()),
        ("masquerade-all", config.masquerade_all.to_string()),
        ("source-nat", config.source_nat.name().to_owned()),
        ("source-ports", config.source_ports.to_string()),
        ("gone-backends", config.gone_backends.name().to_owned()),
        ("tcp-mid-flow", config.mid_flow.name().to_owned()),
    ]);
    if !config.service_cidrs.is_empty() {
        let _none = modes.insert("service-cidr", given(&config.service_cidrs));
    }
    if !config.same_node_hints {
        let off = "PreferSameTrafficDistribution=false".to_owned();
        let _none = modes.insert("feature-gates", off);
    }
    let owned = |(option, value): (&str, String)| (option.to_owned(), value);
    modes.into_iter().map(owned).collect()
}

/// The file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// The file system refuses.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not what this version writes.
    #[error("cannot make sense of {}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

/// The file in the state folder.
pub fn file(state_dir: &Path) -> PathBuf {
    state_dir.join("status.json")
}

/// The file that the daemon locks.
pub fn lock_file(state_dir: &Path) -> PathBuf {
    state_dir.join("lock")
}

/// Seconds since 1970.
pub fn unix_time() -> u64 {
    wall()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs()
}

impl Status {
    /// Writes the file in one step: readers see the old content or the new one.
    ///
    /// # Errors
    /// If the file system refuses.
    pub fn write(&self, state_dir: &Path) -> Result<(), StatusError> {
        let path = file(state_dir);
        let new = state_dir.join("status.json.new");
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| StatusError::Io {
                action,
                path,
                source,
            }
        };
        let text = serde_json::to_string_pretty(self).map_err(|source| StatusError::Format {
            path: path.clone(),
            source,
        })?;
        let mut file = File::create(&new).map_err(failed("create", &new))?;
        file.write_all(text.as_bytes())
            .map_err(failed("write", &new))?;
        std::fs::rename(&new, &path).map_err(failed("replace", &path))
    }

    /// Reads the file; `None` if there is none.
    ///
    /// # Errors
    /// If it cannot be read, or another version wrote it.
    pub fn read(state_dir: &Path) -> Result<Option<Self>, StatusError> {
        let path = file(state_dir);
        match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|source| StatusError::Format { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StatusError::Io {
                action: "read",
                path,
                source,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn the_file_says_what_was_written() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Status::read(folder.path()).unwrap(), None);
        let status = Status {
            version: "1".to_owned(),
            pid: 7,
            started: 3,
            node: "n".to_owned(),
            source: "file".to_owned(),
            resources: resources(&SourceState::new(["files"], Instant::now())),
            synced: true,
            last_sync: Some(LastSync {
                at: 1,
                services: 2,
                writes: 3,
                pending: 0,
                micros: 4,
            }),
            problems: vec![Problem {
                subject: "s".to_owned(),
                message: "m".to_owned(),
            }],
            method: Method::Tcx,
            devices: vec!["veth1".to_owned()],
            node_devices: vec!["eth0".to_owned()],
            host_devices: vec!["beeline0".to_owned(), "lo".to_owned()],
            socket_edge: SocketEdgeStatus {
                serves: "all".to_owned(),
                cgroup: Some("/sys/fs/cgroup".into()),
                left: Counts {
                    udp_closed: 1,
                    udp_moved: 2,
                    tcp_closed: 3,
                },
                pods: Some(PodsStatus {
                    served: 3,
                    left_out: 2,
                    not_found: 1,
                }),
            },
            node_addresses: vec![NodeAddress {
                address: "192.0.2.1".to_owned(),
                node_ports: true,
            }],
            modes: modes(&NodeConfig::new("n")),
            timeouts: BTreeMap::from([("tcp-close".to_owned(), 10)]),
        };
        status.write(folder.path()).unwrap();
        assert_eq!(Status::read(folder.path()).unwrap(), Some(status));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn another_versions_file_is_an_error_not_a_guess() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(file(folder.path()), "{}").unwrap();
        assert!(matches!(
            Status::read(folder.path()),
            Err(StatusError::Format { .. })
        ));
    }
}
