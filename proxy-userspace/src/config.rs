//! What the daemon is configured by: kube-proxy's file and flags, Beeline's own file and options,
//! and what comes of them.

pub mod go;
pub mod kube_proxy;

use serde::Serialize;
use serde_json::{Map, Value, json};

/// The configuration in force, value by value.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct InForce {
    /// Beeline's options.
    pub settings: Vec<Setting>,
    /// kube-proxy's, with the values that are in force here.
    pub kube_proxy: kube_proxy::Settings,
}

/// One value.
#[derive(Clone, PartialEq, Eq, Serialize, Debug)]
pub struct Setting {
    /// The option's name, without dashes; the state's follows that of a time-out.
    pub setting: String,
    /// As text; `None`: found out by the daemon.
    pub value: Option<String>,
    /// Where it comes from.
    pub from: String,
}

impl InForce {
    /// What `/configz` shows: kube-proxy's configuration as kube-proxy does, and Beeline's options
    /// by name. It has names of files, not what is in them.
    pub fn configz(&self) -> Value {
        let entry = |it: &Setting| (it.setting.clone(), json!(it.value));
        let settings: Map<String, Value> = self.settings.iter().map(entry).collect();
        json!({
            "kubeproxy.config.k8s.io": self.kube_proxy.configz(),
            "beeline.io": settings,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configz_has_kube_proxys_names() {
        let configz = InForce::default().configz();
        let shown = &configz["kubeproxy.config.k8s.io"];
        assert_eq!(shown["HealthzBindAddress"], "0.0.0.0:10256");
        assert_eq!(shown["Linux"]["Conntrack"]["TCPCloseWaitTimeout"], "1h0m0s");
        assert_eq!(shown["SyncPeriod"], "30s");
        assert_eq!(shown["Mode"], "iptables");
    }
}
