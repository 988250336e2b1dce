//! kube-proxy's configuration file: `KubeProxyConfiguration`, `kubeproxy.config.k8s.io/v1alpha1`
//! (rule R180), with every field of kube-proxy 1.28 to 1.36.
//!
//! The types say what a file may have. Once a file has been read, its values are a JSON object,
//! merged with kube-proxy's defaults; a field is named by its path, such as
//! `conntrack.tcpEstablishedTimeout`.

mod file;
pub(super) mod validate;

use std::net::IpAddr;

use serde_json::{Map, Value, json};

pub use self::file::fields;
use super::go::GoDuration;

/// `apiVersion` of kube-proxy's file.
pub const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
/// `kind` of kube-proxy's file.
pub const KIND: &str = "KubeProxyConfiguration";

/// Every field with kube-proxy's default (rules R181 to R187).
pub fn defaults() -> Value {
    json!({
        "apiVersion": API_VERSION,
        "kind": KIND,
        "featureGates": {},
        "clientConnection": {
            "kubeconfig": "",
            "acceptContentTypes": "",
            "contentType": "application/vnd.kubernetes.protobuf",
            "qps": 5,
            "burst": 10,
        },
        "logging": {
            "format": "text",
            "flushFrequency": "5s",
            "verbosity": 0,
            "options": {"json": {"infoBufferSize": "0"}, "text": {"infoBufferSize": "0"}},
        },
        "hostnameOverride": "",
        "bindAddress": "0.0.0.0",
        "healthzBindAddress": "0.0.0.0:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "bindAddressHardFail": false,
        "enableProfiling": false,
        "showHiddenMetricsForVersion": "",
        "mode": "",
        "iptables": {
            "masqueradeBit": 14,
            "masqueradeAll": false,
            "localhostNodePorts": true,
            "syncPeriod": "30s",
            "minSyncPeriod": "1s",
        },
        "ipvs": {
            "syncPeriod": "30s",
            "minSyncPeriod": "0s",
            "scheduler": "",
            "excludeCIDRs": null,
            "strictARP": false,
            "tcpTimeout": "0s",
            "tcpFinTimeout": "0s",
            "udpTimeout": "0s",
        },
        "nftables": {
            "masqueradeBit": 14,
            "masqueradeAll": false,
            "syncPeriod": "30s",
            "minSyncPeriod": "1s",
        },
        "winkernel": {
            "networkName": "",
            "sourceVip": "",
            "enableDSR": false,
            "rootHnsEndpointName": "",
            "forwardHealthCheckVip": false,
        },
        "detectLocalMode": "",
        "detectLocal": {"bridgeInterface": "", "interfaceNamePrefix": ""},
        "clusterCIDR": "",
        "nodePortAddresses": null,
        "oomScoreAdj": -999,
        "conntrack": {
            "maxPerCore": 32_768,
            "min": 131_072,
            "tcpEstablishedTimeout": "24h0m0s",
            "tcpCloseWaitTimeout": "1h0m0s",
            "tcpBeLiberal": false,
            "udpTimeout": "0s",
            "udpStreamTimeout": "0s",
        },
        "configSyncPeriod": "15m0s",
        "portRange": "",
    })
}

/// kube-proxy's settings: what somebody set, on top of its defaults.
#[derive(Clone, PartialEq, Debug)]
pub struct Settings {
    values: Value,
}

impl Default for Settings {
    fn default() -> Self {
        Self { values: defaults() }
    }
}

impl From<Value> for Settings {
    fn from(values: Value) -> Self {
        Self { values }
    }
}

impl Settings {
    /// Those that are set, on top of kube-proxy's defaults. An address without port gets it.
    pub fn new(fields: &[(String, Value)]) -> Self {
        let mut settings = Self::default();
        let bind = fields.iter().find(|(path, _)| path == "bindAddress");
        let bind = bind.and_then(|(_, address)| address.as_str()?.parse().ok());
        if let Some(IpAddr::V6(_)) = bind {
            settings.set("healthzBindAddress", json!("[::]:10256"));
            settings.set("metricsBindAddress", json!("[::1]:10249"));
        }
        for (path, value) in fields {
            settings.set(path, value.clone());
        }
        for (path, port) in [("healthzBindAddress", 10256), ("metricsBindAddress", 10249)] {
            let address = with_port(settings.text(path), port);
            settings.set(path, json!(address));
        }
        settings
    }

    /// The value at a path such as `conntrack.min`; null if nothing is there.
    pub fn get(&self, path: &str) -> &Value {
        const NOTHING: &Value = &Value::Null;
        let value = path.split('.').try_fold(&self.values, Value::get);
        value.unwrap_or(NOTHING)
    }

    /// The text at a path; empty if there is none.
    pub fn text(&self, path: &str) -> &str {
        self.get(path).as_str().unwrap_or_default()
    }

    /// The time at a path; none if there is none.
    pub fn time(&self, path: &str) -> GoDuration {
        self.text(path).parse().unwrap_or_default()
    }

    /// Sets a value.
    pub fn set(&mut self, path: &str, value: Value) {
        let parts: Vec<_> = path.split('.').collect();
        if let Some((last, parents)) = parts.split_last() {
            let mut place = &mut self.values;
            for parent in parents {
                place = &mut place[*parent];
                if !place.is_object() {
                    *place = json!({});
                }
            }
            place[*last] = value;
        }
    }

    /// Sets the mode of telling local pods; one that kube-proxy does not have is none.
    pub fn set_detect_local(&mut self, mode: &str) {
        let is_known = validate::DETECT_LOCAL.contains(&mode);
        self.set("detectLocalMode", json!(if is_known { mode } else { "" }));
    }

    /// All of them, as kube-proxy's file has them.
    pub fn values(&self) -> &Value {
        &self.values
    }

    /// The mode; that which kube-proxy takes if none is given.
    pub fn mode(&self) -> &str {
        match self.text("mode") {
            "" => "iptables",
            mode => mode,
        }
    }

    /// The part of the file that the mode goes by; ipvs shares `masqueradeAll` with iptables.
    pub fn section(&self, name: &str) -> String {
        let section = match (self.mode(), name) {
            ("ipvs", "masqueradeAll") => "iptables",
            (mode, _) => mode,
        };
        format!("{section}.{name}")
    }

    /// As kube-proxy shows it at `/configz`: under the names of its internal type, which has what
    /// depends on the mode and on the system in places of its own.
    pub fn configz(&self) -> Value {
        let take = |names: &[(&str, &str)]| -> Map<String, Value> {
            let entry = |(name, path): &(&str, &str)| ((*name).to_owned(), self.get(path).clone());
            names.iter().map(entry).collect()
        };
        let mut shown = take(&[
            ("FeatureGates", "featureGates"),
            ("Logging", "logging"),
            ("HostnameOverride", "hostnameOverride"),
            ("BindAddress", "bindAddress"),
            ("HealthzBindAddress", "healthzBindAddress"),
            ("MetricsBindAddress", "metricsBindAddress"),
            ("BindAddressHardFail", "bindAddressHardFail"),
            ("EnableProfiling", "enableProfiling"),
            ("ShowHiddenMetricsForVersion", "showHiddenMetricsForVersion"),
            ("DetectLocalMode", "detectLocalMode"),
            ("NodePortAddresses", "nodePortAddresses"),
            ("SyncPeriod", &self.section("syncPeriod")),
            ("MinSyncPeriod", &self.section("minSyncPeriod")),
            ("ConfigSyncPeriod", "configSyncPeriod"),
        ]);
        let client_connection = take(&[
            ("Kubeconfig", "clientConnection.kubeconfig"),
            ("AcceptContentTypes", "clientConnection.acceptContentTypes"),
            ("ContentType", "clientConnection.contentType"),
            ("QPS", "clientConnection.qps"),
            ("Burst", "clientConnection.burst"),
        ]);
        let iptables = take(&[
            ("MasqueradeBit", "iptables.masqueradeBit"),
            ("LocalhostNodePorts", "iptables.localhostNodePorts"),
        ]);
        let ipvs = take(&[
            ("Scheduler", "ipvs.scheduler"),
            ("ExcludeCIDRs", "ipvs.excludeCIDRs"),
            ("StrictARP", "ipvs.strictARP"),
            ("TCPTimeout", "ipvs.tcpTimeout"),
            ("TCPFinTimeout", "ipvs.tcpFinTimeout"),
            ("UDPTimeout", "ipvs.udpTimeout"),
        ]);
        let winkernel = take(&[
            ("NetworkName", "winkernel.networkName"),
            ("SourceVip", "winkernel.sourceVip"),
            ("EnableDSR", "winkernel.enableDSR"),
            ("RootHnsEndpointName", "winkernel.rootHnsEndpointName"),
            ("ForwardHealthCheckVip", "winkernel.forwardHealthCheckVip"),
        ]);
        let conntrack = take(&[
            ("MaxPerCore", "conntrack.maxPerCore"),
            ("Min", "conntrack.min"),
            ("TCPEstablishedTimeout", "conntrack.tcpEstablishedTimeout"),
            ("TCPCloseWaitTimeout", "conntrack.tcpCloseWaitTimeout"),
            ("TCPBeLiberal", "conntrack.tcpBeLiberal"),
            ("UDPTimeout", "conntrack.udpTimeout"),
            ("UDPStreamTimeout", "conntrack.udpStreamTimeout"),
        ]);
        let cluster_cidrs = self.text("clusterCIDR").split(',');
        let cluster_cidrs: Vec<_> = cluster_cidrs.filter(|cidr| !cidr.is_empty()).collect();
        let run_as_service = self.get("windowsRunAsService") == &Value::Bool(true);
        let others = json!({
            "Linux": {
                "Conntrack": conntrack,
                "MasqueradeAll": self.get(&self.section("masqueradeAll")),
                "OOMScoreAdj": self.get("oomScoreAdj"),
            },
            "Windows": {"RunAsService": run_as_service},
            "ClientConnection": client_connection,
            "Mode": self.mode(),
            "IPTables": iptables,
            "IPVS": ipvs,
            "NFTables": {"MasqueradeBit": self.get("nftables.masqueradeBit")},
            "Winkernel": winkernel,
            "DetectLocal": {
                "BridgeInterface": self.get("detectLocal.bridgeInterface"),
                "ClusterCIDRs": cluster_cidrs,
                "InterfaceNamePrefix": self.get("detectLocal.interfaceNamePrefix"),
            },
        });
        if let Value::Object(others) = others {
            shown.extend(others);
        }
        Value::Object(shown)
    }
}

/// The address with `port` if it has none.
pub fn with_port(address: &str, port: u16) -> String {
    match address.parse() {
        Ok(IpAddr::V4(address)) => format!("{address}:{port}"),
        Ok(IpAddr::V6(address)) => format!("[{address}]:{port}"),
        Err(_) => address.to_owned(),
    }
}
