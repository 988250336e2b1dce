//! What has arrived at pods.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use xtask::testbed::{Pod, on_network};

use super::super::server::Bulk;

/// Counts what arrives at the pods of a node.
pub(in super::super) struct Arrivals {
    /// What servers have read over TCP.
    bulk: Bulk,
    /// `/proc/net/dev` of each pod.
    devices: Vec<File>,
}

impl Arrivals {
    /// At these pods, whose servers count in `bulk` what they read.
    ///
    /// # Errors
    /// A pod's counters cannot be read.
    pub(in super::super) fn at(pods: &[Pod], bulk: Bulk) -> Result<Self> {
        let file = "/proc/thread-self/net/dev";
        let open = |pod: &Pod| on_network(&pod.namespace, || File::open(file));
        let devices = pods
            .iter()
            .map(|pod| open(pod).with_context(|| format!("pod {}: open {file}", pod.name)))
            .collect::<Result<_>>()?;
        Ok(Self { bulk, devices })
    }

    /// Bytes that servers have read over TCP.
    pub(super) fn bytes(&self) -> u64 {
        self.bulk.load(Ordering::Relaxed)
    }

    /// Packets that the pods' devices have received.
    pub(super) fn packets(&self) -> Result<u64> {
        let mut buffer = [0; 4096];
        let mut packets = 0;
        for device in &self.devices {
            let length = device.read_at(&mut buffer, 0).context("read net/dev")?;
            let text = String::from_utf8_lossy(&buffer[..length]);
            packets += received(&text).with_context(|| format!("net/dev: {text}"))?;
        }
        Ok(packets)
    }
}

/// The packets that `eth0` received: the second number behind its name.
fn received(devices: &str) -> Option<u64> {
    let mut lines = devices.lines();
    let counters = lines.find_map(|line| line.trim_start().strip_prefix("eth0:"))?;
    counters.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::received;

    #[test]
    fn packets_are_read_from_the_counters_of_devices() {
        let text = "Inter-|   Receive                                |  Transmit\n \
                    face |bytes    packets errs drop |bytes    packets errs\n    \
                    lo:     168       2    0    0      168       2    0\n  \
                    eth0: 9876543210 123456    0    0     1234      12    0\n";
        assert_eq!(received(text), Some(123_456));
        assert_eq!(received("lo: 1 2 3"), None);
    }
}
