//! How the kubelet names the cgroups of pods. Pure.
//!
//! ```text
//! systemd   kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid with _>.slice
//! cgroupfs  kubepods/burstable/pod<uid>
//! ```
//!
//! Pods of the class *guaranteed* lie in `kubepods` itself. Around it there may be others, and with
//! systemd its name then begins with theirs: `kubelet.slice/kubelet-kubepods.slice`.

/// Whether a cgroup of this name holds those of all pods.
pub(super) fn is_pods(name: &str) -> bool {
    let stem = stem(name);
    stem == "kubepods" || stem.ends_with("-kubepods") && stem != name
}

/// Whether a cgroup of this name, in that of all pods, holds those of one class.
pub(super) fn is_class(name: &str) -> bool {
    let stem = stem(name);
    let class = if stem == name {
        name
    } else {
        stem.rsplit('-').next().unwrap_or_default()
    };
    matches!(class, "burstable" | "besteffort")
}

/// The uid of the pod whose cgroup has this name, in that of all pods or of a class.
pub(super) fn pod_uid(name: &str) -> Option<String> {
    let stem = stem(name);
    let uid = if stem == name {
        name.strip_prefix("pod")?
    } else {
        // systemd takes a dash for a step down in the tree.
        stem.rsplit_once("-pod")?.1
    };
    (!uid.is_empty()).then(|| uid.replace('_', "-"))
}

fn stem(name: &str) -> &str {
    name.strip_suffix(".slice").unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "8dbc76c9-d1f4-4b7e-a6e2-6c4a7d2a0c11";

    #[test]
    fn pods_by_both_drivers() {
        let escaped = UID.replace('-', "_");
        for name in [
            format!("pod{UID}"),
            format!("kubepods-pod{escaped}.slice"),
            format!("kubepods-besteffort-pod{escaped}.slice"),
            format!("kubelet-kubepods-burstable-pod{escaped}.slice"),
        ] {
            assert_eq!(pod_uid(&name).as_deref(), Some(UID), "{name}");
        }
        // A static pod's uid is a hash.
        assert_eq!(
            pod_uid("kubepods-burstable-pod0fd1a1.slice").as_deref(),
            Some("0fd1a1")
        );
        for name in [
            "pod",
            "kubepods.slice",
            "kubepods-pod.slice",
            "cri-containerd-1f.scope",
            "burstable",
            "cgroup.procs",
        ] {
            assert_eq!(pod_uid(name), None, "{name}");
        }
    }

    #[test]
    fn what_holds_pods() {
        for name in ["kubepods", "kubepods.slice", "kubelet-kubepods.slice"] {
            assert!(is_pods(name), "{name}");
        }
        for name in [
            "kubepods-burstable.slice",
            "my-kubepods",
            "kubelet.slice",
            "pods",
        ] {
            assert!(!is_pods(name), "{name}");
        }
    }

    #[test]
    fn classes() {
        for name in [
            "burstable",
            "besteffort",
            "kubepods-burstable.slice",
            "kubelet-kubepods-besteffort.slice",
        ] {
            assert!(is_class(name), "{name}");
        }
        for name in [
            "guaranteed",
            "kubepods.slice",
            "kubepods-pod1.slice",
            "x-burstable",
        ] {
            assert!(!is_class(name), "{name}");
        }
    }
}
