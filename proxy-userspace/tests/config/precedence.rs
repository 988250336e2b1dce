//! Which value of a setting wins, and what is said of those that do not.

use super::{BEELINE, Folder, notes, setting, shown};

const CONFIG: &str = "--config=config.conf";

#[test]
fn each_layer_wins_over_those_below() {
    let folder = Folder::with("bindAddressHardFail: true");
    let name = "bind-address-hard-fail";
    assert_eq!(folder.setting(&[], name), shown("false", "default"));
    let of_kube_proxy = shown("true", "config.conf: bindAddressHardFail");
    assert_eq!(folder.setting(&[CONFIG], name), of_kube_proxy);
    folder.write(
        "beeline.yaml",
        &format!("{BEELINE}bindAddressHardFail: false"),
    );
    let of_beeline = shown("false", "beeline.yaml: bindAddressHardFail");
    assert_eq!(folder.setting(&[CONFIG], name), of_beeline);
    assert_eq!(
        folder.setting(&["--bind-address-hard-fail"], name),
        shown("true", "--bind-address-hard-fail")
    );
}

#[test]
fn beelines_options_win_over_its_file() {
    let folder = Folder::new();
    folder.write(
        "own.yaml",
        &format!("{BEELINE}socketLb: host\nmaxFlows: 1000000"),
    );
    let config = folder.config(&["--beeline-config=own.yaml", "--socket-lb=off"]);
    assert_eq!(setting(&config, "socket-lb"), shown("off", "--socket-lb"));
    assert_eq!(
        setting(&config, "max-flows"),
        shown("1000000", "own.yaml: maxFlows")
    );
}

/// Flags that kube-proxy has a field for, each with something that it may say.
const NOT_COUNTED: [&str; 24] = [
    "--bind-address=192.0.2.1",
    "--bind-address-hard-fail",
    "--cluster-cidr=10.0.0.0/8",
    "--config-sync-period=1m",
    "--conntrack-max-per-core=1",
    "--conntrack-tcp-timeout-established=5s",
    "--detect-local-mode=NodeCIDR",
    "--feature-gates=A=true",
    "--healthz-bind-address=127.0.0.1:1",
    "--healthz-port=0",
    "--iptables-localhost-nodeports=false",
    "--iptables-sync-period=5s",
    "--ipvs-scheduler=rr",
    "--kube-api-qps=50",
    "--kubeconfig=other",
    "--masquerade-all",
    "--metrics-bind-address=127.0.0.1:2",
    "--nodeport-addresses=10.0.0.0/8",
    "--oom-score-adj=5",
    "--pod-bridge-interface=br0",
    "--pod-interface-name-prefix=veth",
    "--profiling",
    "--proxy-mode=nftables",
    "--show-hidden-metrics-for-version=1.30",
];

#[test]
fn beside_a_file_kube_proxys_flags_do_not_count_and_are_named_once() {
    let folder = Folder::with("nodePortAddresses: [primary]");
    let plain = folder.config(&[CONFIG]);
    assert_eq!(notes(&plain), [""; 0]);
    let config = folder.config(&[&[CONFIG], &NOT_COUNTED[..]].concat());
    assert_eq!(config["settings"], plain["settings"]);
    assert_eq!(config["kubeProxy"], plain["kubeProxy"]);
    let [note] = notes(&config)[..] else {
        panic!("{config:#}")
    };
    let mut names: Vec<_> = note
        .strip_prefix("do not count beside --config: ")
        .unwrap()
        .split(", ")
        .collect();
    names.sort_unstable();
    let expected = NOT_COUNTED.map(|flag| flag.split('=').next().unwrap());
    assert_eq!(names, expected);
}

#[test]
fn beside_a_file_the_nodes_name_and_logging_count() {
    let folder = Folder::with("hostnameOverride: of-file\nlogging: {format: json, verbosity: 2}");
    let config = folder.config(&[
        CONFIG,
        "--hostname-override=OF-FLAG",
        "-v=4",
        "--logging-format=text",
    ]);
    assert_eq!(
        setting(&config, "node-name"),
        shown("of-flag", "--node-name")
    );
    assert_eq!(setting(&config, "log"), shown("debug", "--v"));
    assert_eq!(
        setting(&config, "log-format"),
        shown("text", "--logging-format")
    );
    assert_eq!(config["kubeProxy"]["logging"]["verbosity"], 4);
    let config = folder.config(&[CONFIG, "--log=error", "--v=9"]);
    assert_eq!(
        setting(&config, "node-name"),
        shown("of-file", "config.conf: hostnameOverride")
    );
    assert_eq!(setting(&config, "log"), shown("error", "--log"));
    assert_eq!(
        setting(&config, "log-format"),
        shown("json", "config.conf: logging.format")
    );
}

#[test]
fn beside_a_file_the_api_servers_flag_counts() {
    let folder = Folder::with("nodePortAddresses: [primary]");
    let master = "--master=https://192.0.2.1:6443";
    let config = folder.config(&[CONFIG, master]);
    let server = shown("https://192.0.2.1:6443", "--master");
    assert_eq!(setting(&config, "kubernetes-server"), server);
    assert_eq!(notes(&config), [""; 0]);
    let own = "--kubernetes-server=https://192.0.2.2:6443";
    let server = shown("https://192.0.2.2:6443", "--kubernetes-server");
    assert_eq!(folder.setting(&[master, own], "kubernetes-server"), server);
}

#[test]
fn without_a_file_flags_stand_for_fields() {
    let folder = Folder::new();
    let config = folder.config(&[
        "--conntrack-tcp-timeout-established=1h30m",
        "--conntrack-tcp-timeout-close-wait=0",
        "--conntrack-udp-timeout=1500ms",
        "--iptables-sync-period=1m",
        "--iptables-localhost-nodeports=false",
        "--healthz-bind-address=127.0.0.1",
        "--healthz-port=12345",
        "--metrics-port=0",
        "--nodeport-addresses=10.0.0.0/8",
        "--nodeport-addresses=fd00::/8",
        "--kube-api-burst=100",
    ]);
    for (name, value, from) in [
        (
            "timeout tcp-established",
            "5400s",
            "--conntrack-tcp-timeout-established",
        ),
        ("timeout tcp-close-wait", "60s", "default"),
        ("timeout udp-unreplied", "2s", "--conntrack-udp-timeout"),
        ("timeout udp-replied", "2s", "--conntrack-udp-timeout"),
        ("sync-period", "1m0s", "--iptables-sync-period"),
        (
            "localhost-nodeports",
            "false",
            "--iptables-localhost-nodeports",
        ),
        ("healthz-bind-address", "127.0.0.1:12345", "--healthz-port"),
        ("metrics-bind-address", "", "--metrics-port"),
        (
            "nodeport-addresses",
            "10.0.0.0/8,fd00::/8",
            "--nodeport-addresses",
        ),
        // kube-proxy's own default is not asked for.
        ("timeout sctp-closed", "10s", "default"),
        ("min-sync-period", "1s", "default"),
    ] {
        assert_eq!(setting(&config, name), shown(value, from), "{name}");
    }
    assert_eq!(notes(&config), ["without meaning here: --kube-api-burst"]);
    let kube_proxy = &config["kubeProxy"];
    assert_eq!(kube_proxy["conntrack"]["tcpEstablishedTimeout"], "1h30m0s");
    assert_eq!(kube_proxy["healthzBindAddress"], "127.0.0.1:12345");
    assert_eq!(kube_proxy["clientConnection"]["burst"], 100);
}

#[test]
fn each_state_has_its_own_time() {
    let folder = Folder::with("conntrack: {udpStreamTimeout: 5m}");
    let own = "timeout: {udp-stream: 4m, sctp-established: 1h}";
    folder.write("beeline.yaml", &format!("{BEELINE}{own}"));
    let config = folder.config(&[CONFIG, "--timeout=sctp-established=2h"]);
    for (name, value, from) in [
        (
            "timeout udp-stream",
            "240s",
            "beeline.yaml: timeout.udp-stream",
        ),
        ("timeout sctp-established", "7200s", "--timeout"),
        ("timeout tcp-established", "86400s", "kube-proxy's default"),
        ("timeout tcp-close-wait", "3600s", "kube-proxy's default"),
        ("timeout tcp-close", "10s", "default"),
    ] {
        assert_eq!(setting(&config, name), shown(value, from), "{name}");
    }
    let shown_by_kube_proxy = &config["kubeProxy"]["conntrack"]["udpStreamTimeout"];
    assert_eq!(*shown_by_kube_proxy, "4m0s");
}

#[test]
fn what_depends_on_the_mode_is_taken_from_its_section() {
    let both = "iptables: {syncPeriod: 10s, masqueradeAll: true}\n\
                nftables: {syncPeriod: 20s}\n\
                ipvs: {syncPeriod: 40s}\n";
    for (mode, sync_period, masquerade_all, node_ports, localhost) in [
        ("iptables", "10s", "true", "", "true"),
        ("nftables", "20s", "false", "primary", "false"),
        ("ipvs", "40s", "true", "", "false"),
    ] {
        let folder = Folder::with(&format!("mode: {mode}\n{both}"));
        let config = folder.config(&[CONFIG]);
        let value = |name| setting(&config, name).0.unwrap();
        assert_eq!(value("sync-period"), sync_period, "{mode}");
        assert_eq!(value("masquerade-all"), masquerade_all, "{mode}");
        assert_eq!(value("nodeport-addresses"), node_ports, "{mode}");
        assert_eq!(value("localhost-nodeports"), localhost, "{mode}");
    }
}

#[test]
fn what_has_no_meaning_is_named_once() {
    let folder = Folder::with(
        "bindAddress: 192.0.2.1\n\
         enableProfiling: true\n\
         nodePortAddresses: [primary]\n\
         iptables: {masqueradeBit: 15}\n\
         ipvs: {strictARP: true, tcpTimeout: 0s}\n\
         conntrack: {maxPerCore: 65536, tcpBeLiberal: true}\n\
         clientConnection: {qps: 20, burst: 10}\n\
         winkernel: {networkName: x}\n\
         logging: {flushFrequency: 0, vmodule: [{filePattern: a, verbosity: 5}]}\n\
         featureGates: {TopologyAwareHints: true, PreferSameTrafficDistribution: true}\n",
    );
    let config = folder.config(&[CONFIG, "--vmodule=x=3"]);
    let [note] = notes(&config)[..] else {
        panic!("{config:#}")
    };
    let names = note.strip_prefix("without meaning here: ").unwrap();
    let mut names: Vec<_> = names.split(", ").collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "--vmodule",
            "bindAddress",
            "clientConnection.qps",
            "conntrack.maxPerCore",
            "enableProfiling",
            "iptables.masqueradeBit",
            "ipvs.strictARP",
            "the feature gate TopologyAwareHints",
            "winkernel.networkName",
        ]
    );
}

#[test]
fn r189_what_is_dangerous_is_said() {
    let dangers = |text: &str| {
        let config = Folder::with(text).config(&[CONFIG]);
        notes(&config)
            .into_iter()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let unset = "nodeport-addresses is unset: NodePorts are accepted at all addresses of this \
                 node; consider `primary`";
    assert_eq!(dangers(""), [unset]);
    assert_eq!(dangers("mode: nftables"), [""; 0]);
    assert_eq!(
        dangers("clusterCIDR: 10.0.0.0/8,fd00::/8\nnodePortAddresses: [192.0.2.0/24]"),
        [
            "nodeport-addresses has no IPv6 range, and the cluster has IPv6: NodePorts are accepted \
          at all IPv6 addresses of this node"
        ]
    );
    assert_eq!(
        dangers("clusterCIDR: 10.0.0.0/8\nnodePortAddresses: [192.0.2.0/24]"),
        [""; 0]
    );
    assert_eq!(
        dangers("detectLocalMode: ClusterCIDR\nnodePortAddresses: [primary]"),
        [
            "detect-local-mode is ClusterCIDR, and there is no cluster-cidr: no client is taken for \
          a pod of this node"
        ]
    );
}
