//! What kube-proxy's file may have.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Number, Value, json};

use super::{API_VERSION, KIND};
use crate::config::document::{self, File, FileError};
use crate::config::go::GoDuration;

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
