//! What the daemon is configured by: kube-proxy's file and flags, Beeline's own file and options,
//! and what comes of them.

mod beeline;
mod dangers;
mod document;
mod fields;
mod flags;
pub mod go;
pub mod kube_proxy;
mod layers;
mod translate;
mod watch;

pub use self::beeline::field_name;
pub use self::document::{File, FileError};
pub use self::flags::{HEADING, KubeProxyFlags, switch};
pub use self::layers::{Asked, ConfigError, Resolved};
pub use self::watch::{Seen, Watch};

use serde::Serialize;
use serde_json::{Map, Value, json};

/// The one feature gate that there is a choice about (rule R45).
pub const SAME_NODE_HINTS: &str = "PreferSameTrafficDistribution";

/// The configuration in force, value by value.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct InForce {
    /// Beeline's options.
    pub settings: Vec<Setting>,
    /// kube-proxy's, with the values that are in force here.
    pub kube_proxy: kube_proxy::Settings,
    /// What somebody should know: what has no meaning here, and what is dangerous.
    pub notes: Vec<String>,
    /// The files that it was read from, or would be if they were there.
    pub files: Vec<Seen>,
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
    /// Says what was found out where nothing was given.
    pub fn found(&mut self, name: &str, value: &str) {
        if self.setting(name).is_some_and(|it| it.value.is_none()) {
            self.show(name, value);
        }
    }

    /// Shows this as a setting's value.
    pub fn show(&mut self, name: &str, value: &str) {
        let mut settings = self.settings.iter_mut();
        if let Some(setting) = settings.find(|it| it.setting == name) {
            setting.value = Some(value.to_owned());
        }
    }

    /// The setting of this name.
    pub fn setting(&self, name: &str) -> Option<&Setting> {
        self.settings.iter().find(|it| it.setting == name)
    }

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
