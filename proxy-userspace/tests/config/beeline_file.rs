//! Beeline's own file: every option is a field of it.

use std::collections::BTreeMap;

use super::{BEELINE, Folder, setting, shown};

/// A value for an option by the name of its value, as YAML, and as it is shown.
fn example(option: &str, value_name: &str) -> (&'static str, &'static str) {
    match (option, value_name) {
        ("source", _) => ("file", "file"),
        ("attach", _) => ("clsact", "clsact"),
        ("tcp-mid-flow", _) => ("adopt", "adopt"),
        ("log-format", _) => ("json", "json"),
        ("source-nat", _) => ("like-kube-proxy", "like-kube-proxy"),
        ("gone-backends", _) => ("keep", "keep"),
        ("socket-lb", _) => ("all", "all"),
        ("detect-local-mode", _) => ("BridgeInterface", "BridgeInterface"),
        // Goes with another mode only.
        ("pod-interface-name-prefix", _) => ("\"\"", ""),
        ("oom-score-adj", _) => ("-5", "-5"),
        ("sync-period", _) => ("1m", "1m"),
        ("min-sync-period", _) => ("2s", "2s"),
        (_, "BOOL") => ("true", "true"),
        (_, "N") => ("7", "7"),
        (_, "PATH") => ("[a, b]", "a,b"),
        (_, "FILE" | "DIR" | "NAME" | "TEXT") => ("x", "x"),
        (_, "FILTER") => ("debug", "debug"),
        (_, "PATTERN,…") => ("[\"veth*\", \"!eth0\"]", "veth*,!eth0"),
        (_, "RANGE,…") => ("[10.0.0.0/8, \"fd00::/8\"]", "10.0.0.0/8,fd00::/8"),
        (_, "RANGE") => ("[10.96.0.0/12, \"fd01::/112\"]", "10.96.0.0/12,fd01::/112"),
        (_, "ADDRESS:PORT") => ("127.0.0.1:1", "127.0.0.1:1"),
        (_, "FIRST-LAST") => ("2000-3000", "2000-3000"),
        (_, "GATE=BOOL,…") => ("{A: true, B: false}", "A=true,B=false"),
        (_, "NAMESPACE,…") => ("[a, b]", "a,b"),
        (_, "SELECTOR") => ("[\"a in (b,c)\", d]", "a in (b,c),d"),
        (option, value_name) => panic!("what may --{option} <{value_name}> be?"),
    }
}

/// The options that `beeline run --help` has, with the names of their values.
pub(super) fn options(folder: &Folder) -> BTreeMap<String, String> {
    let help = folder.beeline(&["run", "--help"]);
    let help = String::from_utf8(help.stdout).unwrap();
    let option = |line: &str| {
        let (name, rest) = line.strip_prefix("      --")?.split_once([' ', '['])?;
        let value = rest.split(['<', '>']).nth(1).unwrap_or_default();
        Some((name.to_owned(), value.to_owned()))
    };
    let (help, _) = help.split_once("kube-proxy's flags").unwrap();
    help.lines().filter_map(option).collect()
}

#[test]
fn every_option_is_a_field() {
    let folder = Folder::new();
    let mut options = options(&folder);
    // They name files, or belong to all commands.
    for option in ["config", "beeline-config", "bpffs", "state-dir"] {
        assert!(options.remove(option).is_some(), "no --{option}");
    }
    drop(options.remove("help"));
    // It has a setting for each state.
    assert_eq!(options.remove("timeout").as_deref(), Some("STATE=TIME"));
    assert!(options.len() > 35, "{options:?}");
    let mut text = BEELINE.to_owned();
    for (option, value_name) in &options {
        let (yaml, _) = example(option, value_name);
        text += &format!("{}: {yaml}\n", beeline::config::field_name(option));
    }
    folder.write("own.yaml", &text);
    let config = folder.config(&["--beeline-config=own.yaml"]);
    for (option, value_name) in &options {
        let (_, value) = example(option, value_name);
        let (found, from) = setting(&config, option);
        assert_eq!(found.as_deref(), Some(value), "{option}");
        let field = beeline::config::field_name(option);
        assert!(
            from.starts_with(&format!("own.yaml: {field}")),
            "{option}: {from}"
        );
    }
}

#[test]
fn it_is_found_beside_kube_proxys() {
    let folder = Folder::with("");
    folder.write("beeline.yaml", &format!("{BEELINE}socketLb: host"));
    let of_file = shown("host", "beeline.yaml: socketLb");
    assert_eq!(
        folder.setting(&["--config=config.conf"], "socket-lb"),
        of_file
    );
    let default = shown("all", "default");
    assert_eq!(folder.setting(&[], "socket-lb"), default);
    folder.write("other.yaml", BEELINE);
    let other = ["--config=config.conf", "--beeline-config=other.yaml"];
    assert_eq!(folder.setting(&other, "socket-lb"), default);
}

#[test]
fn it_may_say_what_kube_proxys_cannot() {
    let folder = Folder::with("clusterCIDR: 10.0.0.0/8\nnodePortAddresses: [primary]");
    folder.write(
        "beeline.yaml",
        &format!("{BEELINE}detectLocalMode: PodDevices"),
    );
    let of_file = shown("PodDevices", "beeline.yaml: detectLocalMode");
    assert_eq!(
        folder.setting(&["--config=config.conf"], "detect-local-mode"),
        of_file
    );
}

#[test]
fn what_is_wrong_in_it_is_named() {
    for (text, expected) in [
        ("socketLB: all", "socketLB: unknown field"),
        ("config: x", "config: unknown field"),
        ("ipvsScheduler: rr", "ipvsScheduler: unknown field"),
        (
            "socketLb: some",
            "socketLb: invalid value \"some\", expected one of all, host, off",
        ),
        (
            "masqueradeAll: \"yes\"",
            "masqueradeAll: invalid type: \"yes\", expected true or false",
        ),
        (
            "maxFlows: many",
            "maxFlows: invalid type: \"many\", expected a number",
        ),
        (
            "maxFlows: 0",
            "maxFlows: invalid value \"0\": 0 is not in 1..=268435456",
        ),
        ("nodeName: 5", "nodeName: invalid type: 5, expected a text"),
        (
            "nodeName: [a]",
            "nodeName: invalid type: [\"a\"], expected a text",
        ),
        (
            "serviceCidr: [10.0.0.0/8, 5]",
            "serviceCidr[1]: invalid type: 5, expected a text",
        ),
        (
            "serviceCidr: [10.0.0.0/8, x]",
            "serviceCidr[1]: invalid value \"x\": invalid IP address syntax",
        ),
        (
            "timeout: {tcp-established: 1h, tcp: 5s}",
            "timeout.tcp: invalid value \"tcp=5s\": there is no state \"tcp\"; the states are \
             tcp-syn-sent, ",
        ),
        (
            "timeout: {tcp-close: [1s]}",
            "timeout.tcp-close: invalid type: [\"1s\"], expected a single value",
        ),
        ("kind: Other", "duplicate mapping key: kind"),
    ] {
        let folder = Folder::new();
        folder.write("own.yaml", &format!("{BEELINE}{text}"));
        let refusal = folder.refusal(&["--beeline-config=own.yaml"]);
        assert!(refusal.starts_with("error: own.yaml: "), "{refusal}");
        assert!(refusal.contains(expected), "no {expected:?} in {refusal}");
    }
}
