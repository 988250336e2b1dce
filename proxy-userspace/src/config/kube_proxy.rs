//! kube-proxy's configuration file: `KubeProxyConfiguration`, `kubeproxy.config.k8s.io/v1alpha1`
//! (rule R180), with every field of kube-proxy 1.28 to 1.36.
//!
//! The types say what a file may have. Once a file has been read, its values are a JSON object,
//! merged with kube-proxy's defaults; a field is named by its path, such as
//! `conntrack.tcpEstablishedTimeout`.

pub(super) mod validate;

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Number, Value, json};

use super::document::{self, File, FileError};
use super::go::GoDuration;

/// `apiVersion` of kube-proxy's file.
pub const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
/// `kind` of kube-proxy's file.
pub const KIND: &str = "KubeProxyConfiguration";

/// A file's fields. Absent and null are the same.
#[derive(Deserialize, Serialize, Default, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct KubeProxyConfiguration {
    api_version: Option<String>,
    kind: Option<String>,
    feature_gates: Option<BTreeMap<String, bool>>,
    client_connection: Option<ClientConnection>,
    logging: Option<Logging>,
    hostname_override: Option<String>,
    bind_address: Option<String>,
    healthz_bind_address: Option<String>,
    metrics_bind_address: Option<String>,
    bind_address_hard_fail: Option<bool>,
    enable_profiling: Option<bool>,
    show_hidden_metrics_for_version: Option<String>,
    mode: Option<String>,
    iptables: Option<Iptables>,
    ipvs: Option<Ipvs>,
    nftables: Option<Nftables>,
    winkernel: Option<Winkernel>,
    detect_local_mode: Option<String>,
    detect_local: Option<DetectLocal>,
    #[serde(rename = "clusterCIDR")]
    cluster_cidr: Option<String>,
    node_port_addresses: Option<Vec<String>>,
    oom_score_adj: Option<i32>,
    conntrack: Option<Conntrack>,
    config_sync_period: Option<GoDuration>,
    port_range: Option<String>,
    windows_run_as_service: Option<bool>,
}

#[derive(Deserialize, Serialize, Default, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct ClientConnection {
    kubeconfig: Option<String>,
    accept_content_types: Option<String>,
    content_type: Option<String>,
    qps: Option<Number>,
    burst: Option<i32>,
}

#[derive(Deserialize, Serialize, Default, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Logging {
    format: Option<String>,
    flush_frequency: Option<FlushFrequency>,
    verbosity: Option<u32>,
    vmodule: Option<Vec<VModule>>,
    options: Option<FormatOptions>,
}

/// A time, or a number of nanoseconds as of old.
#[derive(Deserialize, Serialize, Debug)]
#[serde(
    untagged,
    expecting = "neither a time such as 5s nor a number of nanoseconds"
)]
enum FlushFrequency {
    Nanos(i64),
    Time(GoDuration),
}

#[derive(Deserialize, Serialize, Default, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct VModule {
    file_pattern: Option<String>,
    verbosity: Option<u32>,
}

#[derive(Deserialize, Serialize, Default, Debug)]
#[serde(deny_unknown_fields, default)]
struct FormatOptions {
    text: Option<OutputRouting>,
    json: Option<OutputRouting>,
}

#[derive(Deserialize, Serialize, Default, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct OutputRouting {
    split_stream: Option<bool>,
    info_buffer_size: Option<Quantity>,
}

/// A number of bytes, maybe with a unit.
#[derive(Deserialize, Serialize, Debug)]
#[serde(untagged, expecting = "neither a number nor a text such as 4Ki")]
enum Quantity {
    Number(u64),
    Text(String),
}

#[derive(Deserialize, Serialize, Default, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Iptables {
    masquerade_bit: Option<i32>,
    masquerade_all: Option<bool>,
    localhost_node_ports: Option<bool>,
    sync_period: Option<GoDuration>,
    min_sync_period: Option<GoDuration>,
}

#[derive(Deserialize, Serialize, Default, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Ipvs {
    sync_period: Option<GoDuration>,
    min_sync_period: Option<GoDuration>,
    scheduler: Option<String>,
    #[serde(rename = "excludeCIDRs")]
    exclude_cidrs: Option<Vec<String>>,
    #[serde(rename = "strictARP")]
    strict_arp: Option<bool>,
    tcp_timeout: Option<GoDuration>,
    tcp_fin_timeout: Option<GoDuration>,
    udp_timeout: Option<GoDuration>,
}

#[derive(Deserialize, Serialize, Default, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Nftables {
    masquerade_bit: Option<i32>,
    masquerade_all: Option<bool>,
    sync_period: Option<GoDuration>,
    min_sync_period: Option<GoDuration>,
}

#[derive(Deserialize, Serialize, Default, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Winkernel {
    network_name: Option<String>,
    source_vip: Option<String>,
    #[serde(rename = "enableDSR")]
    enable_dsr: Option<bool>,
    root_hns_endpoint_name: Option<String>,
    forward_health_check_vip: Option<bool>,
}

#[derive(Deserialize, Serialize, Default, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct DetectLocal {
    bridge_interface: Option<String>,
    interface_name_prefix: Option<String>,
}

#[derive(Deserialize, Serialize, Default, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Conntrack {
    max_per_core: Option<i32>,
    min: Option<i32>,
    tcp_established_timeout: Option<GoDuration>,
    tcp_close_wait_timeout: Option<GoDuration>,
    tcp_be_liberal: Option<bool>,
    udp_timeout: Option<GoDuration>,
    udp_stream_timeout: Option<GoDuration>,
}

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

/// Fields whose zero is a value, not the want of one.
const WITH_ZERO: [&str; 8] = [
    "iptables.masqueradeBit",
    "iptables.localhostNodePorts",
    "nftables.masqueradeBit",
    "oomScoreAdj",
    "conntrack.maxPerCore",
    "conntrack.min",
    "conntrack.tcpEstablishedTimeout",
    "conntrack.tcpCloseWaitTimeout",
];

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

/// The fields that a file sets, by path, but for those that leave the default in force.
///
/// # Errors
/// If it is no such file, or a field is unknown or has a wrong type.
pub fn fields(file: &File) -> Result<Vec<(String, Value)>, FileError> {
    let object = file.object(API_VERSION, KIND)?;
    let typed: KubeProxyConfiguration = document::typed(&file.path, &object)?;
    let mut fields = Vec::new();
    collect("", json!(typed), &mut fields);
    fields.retain(|(path, value)| !is_unset(path, value));
    Ok(fields)
}

/// The values below `path` that are no objects themselves. Feature gates are one value.
fn collect(path: &str, value: Value, fields: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(object) if path != "featureGates" => {
            for (name, value) in object {
                let dot = if path.is_empty() { "" } else { "." };
                collect(&format!("{path}{dot}{name}"), value, fields);
            }
        }
        Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_)
        | Value::Array(_)
        | Value::Object(_) => fields.push((path.to_owned(), value)),
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

/// Whether a value of a file leaves the default in force.
fn is_unset(path: &str, value: &Value) -> bool {
    match value {
        Value::Null => true,
        _ if WITH_ZERO.contains(&path) => false,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty() || text == "0s",
        Value::Array(elements) => elements.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}
