//! The binary under the name kube-proxy: its flags as those who start it give them.

use std::os::unix::process::ExitStatusExt as _;

use serde_json::Value;

use super::{Folder, said};

/// What is in force when kube-proxy is started with these flags, in the form of its file.
fn written(folder: &Folder, flags: &[&str]) -> Value {
    let output = folder.kube_proxy(&[flags, &["--write-config-to=written.yaml"]].concat());
    assert!(output.status.success(), "{flags:?}: {}", said(&output));
    serde_saphyr::from_str(&folder.read("written.yaml")).unwrap()
}

#[test]
fn without_flags_kube_proxys_defaults_are_written() {
    let folder = Folder::new();
    let written = written(&folder, &[]);
    for (path, expected) in [
        ("/apiVersion", "kubeproxy.config.k8s.io/v1alpha1"),
        ("/kind", "KubeProxyConfiguration"),
        ("/healthzBindAddress", "0.0.0.0:10256"),
        ("/configSyncPeriod", "15m0s"),
        ("/conntrack/tcpEstablishedTimeout", "24h0m0s"),
        ("/conntrack/tcpCloseWaitTimeout", "1h0m0s"),
        ("/iptables/syncPeriod", "30s"),
    ] {
        assert_eq!(written.pointer(path).unwrap(), expected, "{path}");
    }
    assert_eq!(written["nodePortAddresses"], Value::Null);
    assert_eq!(written["oomScoreAdj"], -999);
}

#[test]
fn what_is_written_is_read_again() {
    let folder = Folder::with("mode: nftables\nclusterCIDR: 10.0.0.0/8");
    let first = written(&folder, &["--config=config.conf", "--hostname-override=n"]);
    std::fs::rename(
        folder.path().join("written.yaml"),
        folder.path().join("config.conf"),
    )
    .unwrap();
    assert_eq!(written(&folder, &["--config=config.conf"]), first);
    assert_eq!(first["nodePortAddresses"], serde_json::json!(["primary"]));
}

#[test]
fn kubeadms_command_line() {
    let folder = Folder::with("clusterCIDR: 10.244.0.0/16");
    let path = folder.path().join("config.conf");
    let config = format!("--config={}", path.display());
    let written = written(&folder, &[&config, "--hostname-override=NODE-1"]);
    assert_eq!(written["hostnameOverride"], "node-1");
    assert_eq!(written["clusterCIDR"], "10.244.0.0/16");
}

#[test]
fn k3s_command_line() {
    let flags = [
        "--cluster-cidr=10.42.0.0/16",
        "--conntrack-max-per-core=0",
        "--conntrack-tcp-timeout-close-wait=0s",
        "--conntrack-tcp-timeout-established=0s",
        "--healthz-bind-address=127.0.0.1",
        "--hostname-override=k3s-1",
        "--kubeconfig=/var/lib/rancher/k3s/agent/kubeproxy.kubeconfig",
        "--proxy-mode=iptables",
    ];
    let written = written(&Folder::new(), &flags);
    assert_eq!(written["healthzBindAddress"], "127.0.0.1:10256");
    assert_eq!(written["conntrack"]["tcpEstablishedTimeout"], "0s");
    assert_eq!(written["clusterCIDR"], "10.42.0.0/16");
}

#[test]
fn flags_as_others_write_them() {
    let folder = Folder::new();
    let flags = [
        "--v",
        "2",
        "--cluster-cidr",
        "10.0.0.0/8,fd00::/8",
        "--masquerade-all",
        "--proxy_mode=nftables",
        "--oom-score-adj",
        "-998",
        "--feature-gates=A=true",
        "--feature-gates",
        "B=false,C=true",
        "--iptables-sync-period=1m",
        "--conntrack-udp-timeout-stream=10m",
        "--ipvs-exclude-cidrs=10.0.0.0/8,10.1.0.0/16",
        "--log_file_does_not_matter=x",
    ];
    let (unknown, known) = flags.split_last().unwrap();
    let written = written(&folder, known);
    assert_eq!(written["logging"]["verbosity"], 2);
    assert_eq!(written["nftables"]["masqueradeAll"], true);
    assert_eq!(written["nftables"]["syncPeriod"], "1m0s");
    assert_eq!(written["nodePortAddresses"], serde_json::json!(["primary"]));
    assert_eq!(written["oomScoreAdj"], -998);
    assert_eq!(
        written["featureGates"],
        serde_json::json!({"A": true, "B": false, "C": true})
    );
    assert_eq!(written["conntrack"]["udpStreamTimeout"], "10m0s");
    assert_eq!(
        written["ipvs"]["excludeCIDRs"],
        serde_json::json!(["10.0.0.0/8", "10.1.0.0/16"])
    );
    let output = folder.kube_proxy(&[unknown]);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("unexpected argument '--log-file-does-not-matter'"));
}

/// Every flag of kube-proxy 1.28 to 1.36, with a value that it takes.
const ALL: &str = "--bind-address=0.0.0.0 --bind-address-hard-fail --cluster-cidr=10.0.0.0/8 \
    --config-sync-period=15m --conntrack-max-per-core=32768 --conntrack-min=131072 \
    --conntrack-tcp-be-liberal --conntrack-tcp-timeout-close-wait=1h \
    --conntrack-tcp-timeout-established=24h --conntrack-udp-timeout=0s \
    --conntrack-udp-timeout-stream=0s --detect-local-mode=ClusterCIDR --feature-gates=A=true \
    --healthz-bind-address=0.0.0.0:10256 --healthz-port=10256 --hostname-override=n \
    --init-only=false --cleanup=false --iptables-localhost-nodeports --iptables-masquerade-bit=14 \
    --iptables-min-sync-period=1s --iptables-sync-period=30s --ipvs-exclude-cidrs=10.0.0.0/8 \
    --ipvs-min-sync-period=0s --ipvs-scheduler=rr --ipvs-strict-arp --ipvs-sync-period=30s \
    --ipvs-tcp-timeout=0s --ipvs-tcpfin-timeout=0s --ipvs-udp-timeout=0s --kube-api-burst=10 \
    --kube-api-content-type=application/vnd.kubernetes.protobuf --kube-api-qps=5 --kubeconfig=k \
    --log-flush-frequency=5s --log-json-info-buffer-size=0 --log-json-split-stream \
    --log-text-info-buffer-size=0 --log-text-split-stream --logging-format=text --masquerade-all \
    --metrics-bind-address=127.0.0.1:10249 --metrics-port=10249 --nodeport-addresses=primary \
    --oom-score-adj=-999 --pod-bridge-interface= --pod-interface-name-prefix= --profiling \
    --proxy-mode=iptables --proxy-port-range= --show-hidden-metrics-for-version= -v=2 \
    --version=false --vmodule= --boot-id-file=b --machine-id-file=m";

#[test]
fn every_flag_is_taken() {
    let flags: Vec<_> = ALL.split_whitespace().collect();
    drop(written(&Folder::new(), &flags));
    let apart = ALL.replace('=', " ");
    // A value may stand apart, but for what is on or off, and for what begins with a dash or is
    // nothing.
    let is_apart = |flag: &str| apart.contains(flag);
    assert!(is_apart("--ipvs-scheduler rr"));
    drop(written(
        &Folder::new(),
        &["--ipvs-scheduler", "rr", "--conntrack-min", "5"],
    ));
}

#[test]
fn version_and_help() {
    let folder = Folder::new();
    for flags in [&["--version"][..], &["--version=raw", "--config=missing"]] {
        let output = folder.kube_proxy(flags);
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text, format!("kube-proxy {}\n", env!("CARGO_PKG_VERSION")));
    }
    let help = folder.kube_proxy(&["--help"]);
    assert!(help.status.success());
    assert!(
        String::from_utf8(help.stdout)
            .unwrap()
            .contains("--config <FILE>")
    );
}

#[test]
fn cleanup_and_init_only_do_no_more_than_that() {
    let folder = Folder::new();
    let state = folder.path().join("state");
    let state = format!("--state-dir={}", state.display());
    let bpffs = format!("--bpffs={}", folder.path().display());
    for job in ["--cleanup", "--init-only"] {
        let output = folder.kube_proxy(&[job, &state, &bpffs]);
        // With root or without, it comes to its end and has not begun to serve.
        assert_eq!(output.status.signal(), None);
        assert!(!said(&output).contains("synced"), "{}", said(&output));
        assert!(!folder.path().join("state").exists());
    }
}

#[test]
fn there_are_no_arguments() {
    let output = Folder::new().kube_proxy(&["run"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).starts_with("error: unexpected argument 'run'"));
}
