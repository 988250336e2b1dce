//! What kube-proxy's settings may be.

use std::net::{IpAddr, SocketAddr};

use serde_json::Value;

use super::Settings;
use crate::config::go::GoDuration;
use crate::node;

/// kube-proxy's ways of telling local pods.
pub(super) const DETECT_LOCAL: [&str; 5] = [
    "",
    "ClusterCIDR",
    "NodeCIDR",
    "BridgeInterface",
    "InterfaceNamePrefix",
];

/// The first field whose value kube-proxy would not take, and what is wrong with it.
type Fault = (String, String);

impl Settings {
    /// Whether kube-proxy would take them.
    ///
    /// # Errors
    /// The path of the first field that it would not, and what is wrong with its value.
    pub fn validate(&self) -> Result<(), (String, String)> {
        self.words()?;
        self.numbers()?;
        self.times()?;
        self.addresses()
    }

    fn words(&self) -> Result<(), Fault> {
        let modes = ["", "iptables", "ipvs", "nftables"];
        self.one_of("mode", &modes)?;
        self.one_of("detectLocalMode", &DETECT_LOCAL)?;
        self.one_of("logging.format", &["text", "json"])?;
        for (mode, path) in [
            ("BridgeInterface", "detectLocal.bridgeInterface"),
            ("InterfaceNamePrefix", "detectLocal.interfaceNamePrefix"),
        ] {
            let is_missing = self.text("detectLocalMode") == mode && self.text(path).is_empty();
            check(!is_missing, path, || {
                format!("empty, but the mode is {mode}")
            })?;
        }
        Ok(())
    }

    fn one_of(&self, path: &str, words: &[&str]) -> Result<(), Fault> {
        let text = self.text(path);
        check(words.contains(&text), path, || {
            let words: Vec<_> = words.iter().filter(|word| !word.is_empty()).collect();
            format!("{text:?} is none of {words:?}")
        })
    }

    fn numbers(&self) -> Result<(), Fault> {
        for (path, least, most) in [
            ("iptables.masqueradeBit", 0, 31),
            ("nftables.masqueradeBit", 0, 31),
            ("oomScoreAdj", -1000, 1000),
            ("conntrack.maxPerCore", 0, i32::MAX.into()),
            ("conntrack.min", 0, i32::MAX.into()),
            ("clientConnection.burst", 0, i32::MAX.into()),
        ] {
            let number = self.get(path).as_i64().unwrap_or_default();
            check((least..=most).contains(&number), path, || {
                format!("{number} is not from {least} to {most}")
            })?;
        }
        Ok(())
    }

    fn times(&self) -> Result<(), Fault> {
        const NOTHING: GoDuration = GoDuration::from_secs(0);
        let sync_period = self.section("syncPeriod");
        for path in [&*sync_period, "configSyncPeriod"] {
            let time = self.time(path);
            check(time > NOTHING, path, || {
                format!("{time} is not more than 0s")
            })?;
        }
        let min_sync_period = self.section("minSyncPeriod");
        for path in [
            &*min_sync_period,
            "conntrack.tcpEstablishedTimeout",
            "conntrack.tcpCloseWaitTimeout",
            "conntrack.udpTimeout",
            "conntrack.udpStreamTimeout",
            "ipvs.tcpTimeout",
            "ipvs.tcpFinTimeout",
            "ipvs.udpTimeout",
        ] {
            let time = self.time(path);
            check(time >= NOTHING, path, || format!("{time} is below 0s"))?;
        }
        let (least, most) = (self.time(&min_sync_period), self.time(&sync_period));
        check(least <= most, &min_sync_period, || {
            format!("{least} is more than {sync_period}, which is {most}")
        })
    }

    fn addresses(&self) -> Result<(), Fault> {
        let bind = self.text("bindAddress");
        check(bind.parse::<IpAddr>().is_ok(), "bindAddress", || {
            format!("{bind:?} is no IP address")
        })?;
        for path in ["healthzBindAddress", "metricsBindAddress"] {
            let text = self.text(path);
            let is_good = text.parse().is_ok_and(|it: SocketAddr| it.port() > 0);
            // Only a flag can leave a server out.
            check(is_good || text.is_empty(), path, || {
                format!("{text:?} is no IP address with port, such as 0.0.0.0:10256")
            })?;
        }
        node::cluster_cidrs(self.text("clusterCIDR"))
            .map_err(|error| ("clusterCIDR".to_owned(), error.to_string()))?;
        let ranges: Vec<_> = texts(self.get("nodePortAddresses")).collect();
        let read = ranges.join(",").parse::<node::NodePortAddresses>();
        let read = read.map_err(|error| ("nodePortAddresses".to_owned(), error.to_string()));
        drop(read?);
        for range in texts(self.get("ipvs.excludeCIDRs")) {
            drop(node::networks(range).map_err(|it| ("ipvs.excludeCIDRs".into(), it.to_string()))?);
        }
        Ok(())
    }
}

/// The texts of a list.
pub(in crate::config) fn texts(list: &Value) -> impl Iterator<Item = &str> {
    let elements = list.as_array().into_iter().flatten();
    elements.filter_map(Value::as_str)
}

fn check(is_good: bool, path: &str, complaint: impl FnOnce() -> String) -> Result<(), Fault> {
    match is_good {
        true => Ok(()),
        false => Err((path.to_owned(), complaint())),
    }
}
