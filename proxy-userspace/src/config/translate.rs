//! kube-proxy's settings as options of Beeline's, and back.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde_json::{Value, json};

use super::kube_proxy::{Settings, defaults, validate::texts, with_port};

/// An option's value, and the field that says so.
#[derive(Debug)]
pub(super) struct Translated {
    pub(super) option: &'static str,
    pub(super) value: String,
    pub(super) path: String,
}

/// Timeouts of kube-proxy's and the states that they are for.
const TIMEOUTS: [(&str, &[&str]); 4] = [
    ("conntrack.tcpEstablishedTimeout", &["tcp-established"]),
    ("conntrack.tcpCloseWaitTimeout", &["tcp-close-wait"]),
    // The kernel has one time for both, nf_conntrack_udp_timeout.
    ("conntrack.udpTimeout", &["udp-unreplied", "udp-replied"]),
    ("conntrack.udpStreamTimeout", &["udp-stream"]),
];

/// Options whose value is the field's, word by word.
const ALIKE: [(&str, &str); 8] = [
    ("kubeconfig", "clientConnection.kubeconfig"),
    ("healthz-bind-address", "healthzBindAddress"),
    ("metrics-bind-address", "metricsBindAddress"),
    ("bind-address-hard-fail", "bindAddressHardFail"),
    ("detect-local-mode", "detectLocalMode"),
    ("cluster-cidr", "clusterCIDR"),
    ("log-format", "logging.format"),
    ("oom-score-adj", "oomScoreAdj"),
];

/// Takes settings, and keeps in mind which have a meaning here.
struct Translator<'a> {
    settings: &'a Settings,
    used: RefCell<BTreeSet<String>>,
    done: Vec<Translated>,
}

/// The options that the settings stand for, kube-proxy's defaults included, and the paths of what
/// has a meaning here.
pub(super) fn options(settings: &Settings) -> (Vec<Translated>, BTreeSet<String>) {
    let mut translator = Translator {
        settings,
        used: RefCell::default(),
        done: Vec::new(),
    };
    translator.all();
    (translator.done, translator.used.into_inner())
}

impl Translator<'_> {
    fn get(&self, path: &str) -> &Value {
        self.uses(path);
        self.settings.get(path)
    }

    fn uses(&self, path: &str) {
        self.used.borrow_mut().extend([path.to_owned()]);
    }

    fn put(&mut self, option: &'static str, value: impl Into<String>, path: impl Into<String>) {
        self.done.push(Translated {
            option,
            value: value.into(),
            path: path.into(),
        });
    }

    fn all(&mut self) {
        for (option, path) in ALIKE {
            let value = plain(self.get(path));
            if !value.is_empty() {
                self.put(option, value, path);
            }
        }
        for name in ["syncPeriod", "minSyncPeriod", "masqueradeAll"] {
            let option = match name {
                "syncPeriod" => "sync-period",
                "minSyncPeriod" => "min-sync-period",
                _ => "masquerade-all",
            };
            let path = self.settings.section(name);
            let value = plain(self.get(&path));
            self.put(option, value, path);
        }
        self.node_name();
        self.node_ports();
        self.detect_local();
        self.timeouts();
        self.feature_gates();
        self.verbosity();
        self.without_option();
    }

    fn node_name(&mut self) {
        let name = plain(self.get("hostnameOverride"));
        if !name.is_empty() {
            self.put("node-name", name, "hostnameOverride");
        }
    }

    /// Without ranges every address accepts NodePorts, but in the mode nftables.
    fn node_ports(&mut self) {
        let path = "nodePortAddresses";
        let ranges = texts(self.get(path)).collect::<Vec<_>>().join(",");
        match (&*ranges, self.settings.mode()) {
            ("", "nftables") => self.put("nodeport-addresses", "primary", path),
            _ => self.put("nodeport-addresses", ranges, path),
        }
        let path = "iptables.localhostNodePorts";
        if self.settings.mode() == "iptables" {
            let value = plain(self.get(path));
            self.put("localhost-nodeports", value, path);
        } else {
            self.put("localhost-nodeports", "false", "mode");
        }
    }

    fn detect_local(&mut self) {
        let (option, path) = match self.settings.text("detectLocalMode") {
            "BridgeInterface" => ("pod-bridge-interface", "detectLocal.bridgeInterface"),
            "InterfaceNamePrefix" => (
                "pod-interface-name-prefix",
                "detectLocal.interfaceNamePrefix",
            ),
            _ => return,
        };
        let value = plain(self.get(path));
        self.put(option, value, path);
    }

    /// 0 leaves the kernel's time alone, and so ours.
    fn timeouts(&mut self) {
        for (path, states) in TIMEOUTS {
            self.uses(path);
            let time = self.settings.time(path).to_std().unwrap_or_default();
            let seconds = time.as_millis().div_ceil(1000);
            for state in states.iter().filter(|_| seconds > 0) {
                self.put("timeout", format!("{state}={seconds}s"), path);
            }
        }
    }

    fn feature_gates(&mut self) {
        let gates = self.get("featureGates").as_object();
        let gates = gates.into_iter().flatten();
        let gates: Vec<_> = gates
            .map(|(gate, is_on)| format!("{gate}={is_on}"))
            .collect();
        if !gates.is_empty() {
            self.put("feature-gates", gates.join(","), "featureGates");
        }
    }

    /// Up to 3, kube-proxy says little of what it does.
    fn verbosity(&mut self) {
        let log = match self.get("logging.verbosity").as_u64().unwrap_or_default() {
            0..=3 => "info",
            4..=5 => "debug",
            6.. => "trace",
        };
        self.put("log", log, "logging.verbosity");
    }

    /// What is as kube-proxy has it, whatever the value.
    fn without_option(&mut self) {
        let bind = self.settings.text("bindAddress").parse();
        let is_unspecified = bind.is_ok_and(|address: IpAddr| address.is_unspecified());
        // 0: nf_conntrack_max is left alone, which it is anyhow.
        let is_without_max = self.settings.get("conntrack.maxPerCore") == &json!(0);
        for (path, has_meaning) in [
            ("apiVersion", true),
            ("kind", true),
            ("mode", true),
            ("bindAddress", is_unspecified),
            ("conntrack.tcpBeLiberal", true),
            ("conntrack.maxPerCore", is_without_max),
            ("conntrack.min", is_without_max),
        ] {
            if has_meaning {
                self.uses(path);
            }
        }
    }
}

/// A field's value as an option's.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

/// The fields that are set to something else than kube-proxy's default, and have no meaning here.
pub(super) fn without_meaning<'a>(
    fields: impl Iterator<Item = &'a (String, Value)>,
    used: &BTreeSet<String>,
) -> Vec<&'a str> {
    let defaults = Settings::from(defaults());
    fields
        .filter(|(path, value)| !used.contains(path) && defaults.get(path) != value)
        .map(|(path, _)| &**path)
        .collect()
}

/// Puts an option's value into the settings, for others to see what is in force.
pub(super) fn put_back(settings: &mut Settings, option: &str, text: &str) {
    let is_on = || json!(text == "true");
    let section = |name| settings.section(name);
    let (path, value) = match option {
        "node-name" => (
            "hostnameOverride".to_owned(),
            json!(text.trim().to_lowercase()),
        ),
        "bind-address-hard-fail" => ("bindAddressHardFail".to_owned(), is_on()),
        "masquerade-all" => (section("masqueradeAll"), is_on()),
        "localhost-nodeports" => ("iptables.localhostNodePorts".to_owned(), is_on()),
        "sync-period" => (section("syncPeriod"), go_time(text)),
        "min-sync-period" => (section("minSyncPeriod"), go_time(text)),
        "pod-bridge-interface" => ("detectLocal.bridgeInterface".to_owned(), json!(text)),
        "pod-interface-name-prefix" => ("detectLocal.interfaceNamePrefix".to_owned(), json!(text)),
        "oom-score-adj" => ("oomScoreAdj".to_owned(), json!(text.parse::<i32>().ok())),
        "nodeport-addresses" => ("nodePortAddresses".to_owned(), list(text)),
        "feature-gates" => ("featureGates".to_owned(), gates(text)),
        "healthz-bind-address" => (
            "healthzBindAddress".to_owned(),
            json!(with_port(text, 10256)),
        ),
        "metrics-bind-address" => (
            "metricsBindAddress".to_owned(),
            json!(with_port(text, 10249)),
        ),
        _ => match ALIKE.iter().find(|(alike, _)| *alike == option) {
            Some((_, path)) => ((*path).to_owned(), json!(text)),
            None => return,
        },
    };
    settings.set(&path, value);
}

/// Puts the seconds of all states into the settings.
pub(super) fn put_back_timeouts(settings: &mut Settings, seconds: &BTreeMap<String, u32>) {
    for (path, states) in TIMEOUTS {
        let of_state = states.iter().find_map(|state| seconds.get(*state));
        // What kube-proxy leaves alone, 0, is the kernel's default and not told.
        if let Some(seconds) = of_state.filter(|_| !settings.time(path).is_zero()) {
            settings.set(path, go_time(&format!("{seconds}s")));
        }
    }
}

fn go_time(text: &str) -> Value {
    let time: Result<super::go::GoDuration, _> = text.parse();
    json!(time.unwrap_or_default())
}

/// What is between commas; null if nothing is.
fn list(text: &str) -> Value {
    let parts: Vec<_> = parts(text).collect();
    if parts.is_empty() {
        Value::Null
    } else {
        json!(parts)
    }
}

fn gates(text: &str) -> Value {
    let gates = parts(text).filter_map(|gate| gate.split_once('='));
    let gates = gates.map(|(gate, is_on)| (gate.to_owned(), json!(is_on == "true")));
    Value::Object(gates.collect())
}

fn parts(text: &str) -> impl Iterator<Item = &str> {
    text.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
}
