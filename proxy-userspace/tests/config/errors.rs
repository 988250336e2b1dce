//! What is wrong in a file is said with file and path.

use super::{BEELINE, Folder, KUBE_PROXY};

#[track_caller]
fn assert_complaint(text: &str, expected: &str) {
    let complaint = Folder::complaint(text);
    assert_eq!(
        complaint,
        format!("error: config.conf: {expected}"),
        "{text}"
    );
}

#[test]
fn unknown_fields_are_named_at_any_depth() {
    assert_complaint("clusterCidr: 10.0.0.0/8", "clusterCidr: unknown field");
    assert_complaint(
        "iptables: {syncPeriods: 1s}",
        "iptables.syncPeriods: unknown field",
    );
    assert_complaint(
        "logging: {options: {json: {infoBuffer: 4Ki}}}",
        "logging.options.json.infoBuffer: unknown field",
    );
    assert_complaint(
        "logging: {vmodule: [{filePattern: a, verbosity: 2}, {file: b}]}",
        "logging.vmodule[1].file: unknown field",
    );
    assert_complaint("conntrack: {max: null}", "conntrack.max: unknown field");
    // Of kube-proxy before 1.28, and after 1.36.
    assert_complaint("udpIdleTimeout: 250ms", "udpIdleTimeout: unknown field");
}

#[test]
fn wrong_types_are_named() {
    for (text, expected) in [
        (
            "oomScoreAdj: low",
            "oomScoreAdj: invalid type: string \"low\", expected i32",
        ),
        (
            "bindAddressHardFail: 1",
            "bindAddressHardFail: invalid type: integer `1`, expected a boolean",
        ),
        (
            "conntrack: {min: 1.5}",
            "conntrack.min: invalid type: floating point `1.5`, expected i32",
        ),
        (
            "conntrack: {min: 3000000000}",
            "conntrack.min: invalid value: integer `3000000000`, expected i32",
        ),
        (
            "nodePortAddresses: primary",
            "nodePortAddresses: invalid type: string \"primary\", expected a sequence",
        ),
        (
            "nodePortAddresses: [10.0.0.0/8, 5]",
            "nodePortAddresses[1]: invalid type: integer `5`, expected a string",
        ),
        (
            "iptables: {syncPeriod: 30}",
            "iptables.syncPeriod: invalid type: integer `30`, expected a string",
        ),
        (
            "iptables: {syncPeriod: soon}",
            "iptables.syncPeriod: \"soon\" is no time such as 30s or 1h30m",
        ),
        (
            "featureGates: {A: maybe}",
            "featureGates.A: invalid type: string \"maybe\", expected a boolean",
        ),
        (
            "logging: {flushFrequency: soon}",
            "logging.flushFrequency: neither a time such as 5s nor a number of nanoseconds",
        ),
        (
            "ipvs: true",
            "ipvs: invalid type: boolean `true`, expected struct Ipvs",
        ),
    ] {
        assert_complaint(text, expected);
    }
}

#[test]
fn what_kube_proxy_would_not_take_is_named() {
    for (text, expected) in [
        (
            "iptables: {masqueradeBit: 32}",
            "iptables.masqueradeBit: 32 is not from 0 to 31",
        ),
        (
            "oomScoreAdj: -1001",
            "oomScoreAdj: -1001 is not from -1000 to 1000",
        ),
        (
            "conntrack: {maxPerCore: -1}",
            "conntrack.maxPerCore: -1 is not from 0 to 2147483647",
        ),
        (
            "mode: userspace",
            "mode: \"userspace\" is none of [\"iptables\", \"ipvs\", \"nftables\"]",
        ),
        (
            "iptables: {syncPeriod: 500ms}",
            "iptables.minSyncPeriod: 1s is more than iptables.syncPeriod, which is 500ms",
        ),
        (
            "iptables: {minSyncPeriod: -1s}",
            "iptables.minSyncPeriod: -1s is below 0s",
        ),
        (
            "configSyncPeriod: -1s",
            "configSyncPeriod: -1s is not more than 0s",
        ),
        (
            "conntrack: {tcpEstablishedTimeout: -5s}",
            "conntrack.tcpEstablishedTimeout: -5s is below 0s",
        ),
        (
            "conntrack: {tcpEstablishedTimeout: 9000h}",
            "conntrack.tcpEstablishedTimeout: invalid value \"tcp-established=32400000s\": \
             tcp-established: 32400000s is out of bounds; 1 second to 365 days are possible",
        ),
        (
            "bindAddress: here",
            "bindAddress: \"here\" is no IP address",
        ),
        (
            "healthzBindAddress: here:10256",
            "healthzBindAddress: \"here:10256\" is no IP address with port, such as 0.0.0.0:10256",
        ),
        (
            "clusterCIDR: 10.0.0.0/8,10.1.0.0/16",
            "clusterCIDR: \"10.0.0.0/8,10.1.0.0/16\" has two IPv4 ranges; at most one of each \
             family is possible",
        ),
        (
            "nodePortAddresses: [primary, 10.0.0.0/8]",
            "nodePortAddresses: `primary` cannot be combined with ranges, as in \
             \"primary,10.0.0.0/8\"",
        ),
        (
            "detectLocalMode: BridgeInterface",
            "detectLocal.bridgeInterface: empty, but the mode is BridgeInterface",
        ),
        (
            "detectLocalMode: Magic",
            "detectLocalMode: \"Magic\" is none of [\"ClusterCIDR\", \"NodeCIDR\", \
             \"BridgeInterface\", \"InterfaceNamePrefix\"]",
        ),
        (
            "ipvs: {excludeCIDRs: [x]}",
            "ipvs.excludeCIDRs: \"x\" is no range of addresses such as 10.0.0.0/8 or fd00::/64",
        ),
        (
            "logging: {format: xml}",
            "logging.format: \"xml\" is none of [\"text\", \"json\"]",
        ),
    ] {
        assert_complaint(text, expected);
    }
}

/// A whole file, and what is said of it.
#[track_caller]
fn assert_file_complaint(text: &str, expected: &str) {
    let folder = Folder::new();
    folder.write("config.conf", text);
    let complaint = folder.refusal(&["--config=config.conf"]);
    assert!(complaint.starts_with("error: config.conf: "), "{complaint}");
    assert!(
        complaint.contains(expected),
        "no {expected:?} in {complaint}"
    );
}

#[test]
fn a_file_is_one_object_of_the_right_kind() {
    assert_file_complaint("", "empty; KubeProxyConfiguration is expected");
    assert_file_complaint(
        "---\n# nothing\n",
        "empty; KubeProxyConfiguration is expected",
    );
    assert_file_complaint("just words", "no object, but a mere value");
    assert_file_complaint("mode: iptables", "apiVersion: missing");
    assert_file_complaint(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\n",
        "kind: missing; \"KubeProxyConfiguration\" is expected",
    );
    assert_file_complaint(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeletConfiguration",
        "kind: \"KubeletConfiguration\" is given, \"KubeProxyConfiguration\" is expected",
    );
    assert_file_complaint(
        "apiVersion: kubeproxy.config.k8s.io/v1\nkind: KubeProxyConfiguration",
        "apiVersion: \"kubeproxy.config.k8s.io/v1\" is given",
    );
    assert_file_complaint(BEELINE, "\"beeline.io/v1alpha1\" is given");
    assert_file_complaint(
        &format!("{KUBE_PROXY}---\n{KUBE_PROXY}"),
        "several documents; one is expected",
    );
    assert_file_complaint("a: [", "line");
    assert_file_complaint(
        &format!("{KUBE_PROXY}mode: iptables\nmode: ipvs"),
        "duplicate mapping key: mode",
    );
}

#[test]
fn documents_that_are_empty_do_not_matter_and_json_is_yaml() {
    let folder = Folder::new();
    folder.write("config.conf", &format!("---\n{KUBE_PROXY}---\n"));
    drop(folder.config(&["--config=config.conf"]));
    folder.write(
        "config.conf",
        r#"{"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration"}"#,
    );
    drop(folder.config(&["--config=config.conf"]));
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let folder = Folder::new();
    let missing = "error: cannot read missing.conf: No such file or directory (os error 2)";
    assert_eq!(folder.refusal(&["--config=missing.conf"]), missing);
    assert_eq!(folder.refusal(&["--beeline-config=missing.conf"]), missing);
}

#[test]
fn flags_are_named_too() {
    let folder = Folder::new();
    for (flag, expected) in [
        (
            "--iptables-masquerade-bit=40",
            "error: --iptables-masquerade-bit: 40 is not from 0 to 31",
        ),
        (
            "--proxy-mode=userspace",
            "error: --proxy-mode: \"userspace\" is none of",
        ),
        (
            "--conntrack-min=many",
            "error: invalid value 'many' for '--conntrack-min <N>'",
        ),
        (
            "--profiling=perhaps",
            "error: invalid value 'perhaps' for '--profiling",
        ),
        (
            "--sync-period=0s",
            "error: --sync-period 0s is not possible",
        ),
        (
            "--min-sync-period=1m",
            "error: --min-sync-period is more than --sync-period",
        ),
        (
            "--master=http://192.0.2.1",
            "error: --master: not possible; name the API server in",
        ),
    ] {
        let refusal = folder.refusal(&[flag]);
        assert!(refusal.starts_with(expected), "{refusal}");
    }
}
