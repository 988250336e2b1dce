//! Looking for kube-proxy itself.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// What the program is called.
const NAME: &str = "kube-proxy";

/// A process that is kube-proxy's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Process {
    /// Its id.
    pub pid: u32,
}

/// kube-proxy's processes in this network namespace, as far as they can be seen: from within a
/// container only with the machine's process ids (`hostPID`).
///
/// Beeline itself may go by that name: who runs the same file as the caller is not meant.
pub fn processes() -> Vec<Process> {
    let own = Path::new("/proc/thread-self");
    let Some(network) = identity(&own.join("ns/net")) else {
        return Vec::new();
    };
    let own_file = identity(&own.join("exe"));
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let is_meant = |folder: &Path| {
        let comm = fs::read_to_string(folder.join("comm")).unwrap_or_default();
        comm.trim_end() == NAME
            && identity(&folder.join("ns/net")) == Some(network)
            && identity(&folder.join("exe")).is_none_or(|file| Some(file) != own_file)
    };
    entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            is_meant(&entry.path()).then_some(Process { pid })
        })
        .collect()
}

/// What tells files apart.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let file = fs::metadata(path).ok()?;
    Some((file.dev(), file.ino()))
}
