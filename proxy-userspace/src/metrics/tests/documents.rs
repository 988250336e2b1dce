//! What is written about the metrics names those that there are.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::exposition::{self, Family, Text};
use super::promql::uses;
use super::{filled, label_names};
use crate::metrics::Format;

/// Labels that Prometheus gives to what it scrapes, not Beeline.
const OF_TARGETS: [&str; 4] = ["instance", "job", "node", "cluster"];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    let path = repository().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn families() -> BTreeMap<String, Family> {
    exposition::read(&filled().text_as(Format::Plain), Text::Plain)
}

type Described = BTreeMap<String, (String, BTreeSet<String>)>;

/// The rows of all tables with a metric in their first column: name, type, labels.
fn documented() -> Described {
    let text = read("docs/metrics.md");
    let rows = text.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split(" | ");
        let name = cells.next()?.strip_suffix('`')?.to_owned();
        let (kind, labels) = (cells.next()?.to_owned(), cells.next()?);
        let labels = labels
            .split(['`', ',', ' ', '–'])
            .filter(|it| !it.is_empty());
        let is_whole = cells.count() == 2;
        assert!(is_whole, "{line}");
        Some((name, (kind, labels.map(str::to_owned).collect())))
    });
    let mut all = Described::new();
    for (name, row) in rows {
        assert!(all.insert(name.clone(), row).is_none(), "{name} twice");
    }
    all
}

#[test]
fn every_metric_is_documented_and_no_other() {
    let there: Described = families()
        .into_iter()
        .map(|(name, family)| (name, (family.kind.clone(), label_names(&family))))
        .collect();
    let documented = documented();
    for (name, row) in &there {
        assert_eq!(documented.get(name), Some(row), "{name}");
    }
    let made_up: Vec<_> = documented
        .keys()
        .filter(|it| !there.contains_key(*it))
        .collect();
    assert_eq!(made_up, Vec::<&String>::new());
}

/// Where an expression stands, and itself.
type Expressions = Vec<(String, String)>;

fn check(expressions: &Expressions) {
    let families = families();
    assert!(!expressions.is_empty());
    for (place, expression) in expressions {
        let found = uses(expression);
        let mut known: BTreeSet<String> = OF_TARGETS.map(str::to_owned).into();
        for (name, labels) in &found.metrics {
            // Of every target, by Prometheus itself.
            if name == "up" {
                continue;
            }
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| {
                let base = families.get(name.strip_suffix(suffix)?)?;
                (base.kind == "histogram").then_some(base)
            });
            let family = families
                .get(name)
                .filter(|it| it.kind != "histogram")
                .or(base);
            let family = family.unwrap_or_else(|| panic!("{place}: {name} in {expression}"));
            known.extend(label_names(family));
            if name.ends_with("_bucket") {
                known.insert("le".to_owned());
            }
            for label in labels {
                let is_there =
                    label_names(family).contains(label) || OF_TARGETS.contains(&&**label);
                assert!(is_there, "{place}: label {label} of {name}");
            }
        }
        for label in &found.labels {
            assert!(
                known.contains(label),
                "{place}: label {label} in {expression}"
            );
        }
    }
}

/// All values under this name, at any depth.
fn collect(value: &Value, name: &str, place: &str, found: &mut Expressions) {
    match value {
        Value::Object(fields) => {
            let title = fields.get("title").or_else(|| fields.get("alert"));
            let place = title.and_then(Value::as_str).unwrap_or(place);
            for (key, value) in fields {
                match value.as_str().filter(|_| key == name) {
                    Some(text) => found.push((place.to_owned(), text.to_owned())),
                    None => collect(value, name, place, found),
                }
            }
        }
        Value::Array(items) => items
            .iter()
            .for_each(|item| collect(item, name, place, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn dashboard() -> Value {
    serde_json::from_str(&read("deploy/monitoring/dashboard.json")).unwrap()
}

fn yaml(path: &str) -> Value {
    serde_saphyr::from_str(&read(path)).unwrap()
}

#[test]
fn the_dashboard_uses_metrics_and_labels_that_exist() {
    let mut found = Vec::new();
    collect(&dashboard(), "expr", "", &mut found);
    assert!(found.len() > 20, "{}", found.len());
    let mut variables = Vec::new();
    collect(&dashboard()["templating"], "definition", "", &mut variables);
    for (place, definition) in variables {
        let inside = definition.strip_prefix("label_values(").unwrap();
        let (metric, label) = inside.strip_suffix(')').unwrap().split_once(", ").unwrap();
        found.push((place, format!("count by ({label}) ({metric})")));
    }
    check(&found);
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = panels.iter().map(|it| it["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len());
}

#[test]
fn the_alerts_use_metrics_and_labels_that_exist() {
    let mut found = Vec::new();
    collect(
        &yaml("deploy/monitoring/alerts.yaml"),
        "expr",
        "",
        &mut found,
    );
    check(&found);
}

#[test]
fn every_alert_says_what_to_do_where_it_stands() {
    let rules = yaml("deploy/monitoring/alerts.yaml");
    let groups = rules["groups"].as_array().unwrap();
    let alerts = groups.iter().flat_map(|it| it["rules"].as_array().unwrap());
    let names = ["summary", "description", "runbook_url"];
    for alert in alerts {
        let name = &alert["alert"];
        for field in names {
            assert!(alert["annotations"][field].is_string(), "{name}: {field}");
        }
        assert!(
            ["critical", "warning"]
                .map(Value::from)
                .contains(&alert["labels"]["severity"])
        );
        let url = alert["annotations"]["runbook_url"].as_str().unwrap();
        let (path, anchor) = url.split_once('#').expect(url);
        let path = path
            .split_once("docs/")
            .map(|(_, path)| format!("docs/{path}"));
        let text = read(&path.expect(url));
        let headings = text.lines().filter(|line| line.starts_with('#'));
        let mut anchors = headings.map(anchor_of);
        assert!(anchors.any(|it| it == anchor), "{name}: {url}");
    }
}

/// As GitHub makes it.
fn anchor_of(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn the_rule_object_has_the_same_rules() {
    let object = yaml("deploy/monitoring/prometheus-rule.yaml");
    assert_eq!(object["kind"], "PrometheusRule");
    let rules = yaml("deploy/monitoring/alerts.yaml");
    assert_eq!(object["spec"]["groups"], rules["groups"]);
}
