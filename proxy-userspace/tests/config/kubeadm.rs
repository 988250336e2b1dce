//! What kubeadm 1.28 to 1.36 writes is read as it is, and means what it means to kube-proxy.

use std::path::PathBuf;

use serde_json::Value;

use super::Folder;

/// The files of the ConfigMap that kubeadm of this release writes, as a pod has them mounted.
fn mounted(release: &str) -> Folder {
    let map: Value = serde_saphyr::from_str(&fixture(release, "yaml")).unwrap();
    let folder = Folder::new();
    for (name, text) in map["data"].as_object().unwrap() {
        folder.write(name, text.as_str().unwrap());
    }
    folder
}

fn fixture(release: &str, kind: &str) -> String {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/config");
    std::fs::read_to_string(folder.join(format!("kubeadm-{release}.{kind}"))).unwrap()
}

/// All that `beeline config` shows of what is not a default of Beeline's.
fn set(folder: &Folder) -> String {
    let output = folder.beeline(&[
        "config",
        "--config=config.conf",
        "--hostname-override=Node-1",
    ]);
    assert!(output.status.success(), "{}", super::said(&output));
    assert_eq!(super::said(&output), "");
    let table = String::from_utf8(output.stdout).unwrap();
    let is_set = |line: &&str| !line.ends_with("  default");
    let lines = table.lines().filter(is_set).map(|line| format!("{line}\n"));
    lines.collect()
}

#[track_caller]
fn assert_in_force(release: &str) {
    let (found, expected) = (set(&mounted(release)), fixture(release, "txt"));
    assert_eq!(found, expected, "with kubeadm {release}:\n{found}");
}

#[test]
fn kubeadm_1_28_plain() {
    assert_in_force("1.28");
}

#[test]
fn kubeadm_1_29_without_pod_subnet() {
    assert_in_force("1.29");
}

#[test]
fn kubeadm_1_30_with_both_families() {
    assert_in_force("1.30");
}

#[test]
fn kubeadm_1_31_with_ipv6() {
    assert_in_force("1.31");
}

#[test]
fn kubeadm_1_32_with_ipvs() {
    assert_in_force("1.32");
}

#[test]
fn kubeadm_1_33_with_nftables() {
    assert_in_force("1.33");
}

#[test]
fn kubeadm_1_34_as_in_kind() {
    assert_in_force("1.34");
}

#[test]
fn kubeadm_1_35_with_node_cidrs_and_feature_gates() {
    assert_in_force("1.35");
}

#[test]
fn kubeadm_1_36_plain() {
    assert_in_force("1.36");
}
