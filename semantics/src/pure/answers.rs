//! Health servers and metrics against what is expected of them.

use std::collections::BTreeMap;

use beeline::health::{self, Answer};
use beeline::metrics::Probe;
use futures::executor::block_on;
use http_body_util::BodyExt as _;
use proxy_common::abi::Family;
use serde_json::{Map, Value};

use super::proxy::Proxy;
use crate::case::{Check, HttpCheck, HttpExpect, MetricCheck};

/// Where the proxy's own health is asked for, on every address.
const HEALTHZ_PORT: u16 = 10_256;

/// Makes a check.
///
/// # Errors
/// What is not as expected.
pub(super) fn check(proxy: &Proxy, check: &Check) -> Result<(), String> {
    match check {
        Check::Http(check) => http(proxy, check),
        Check::Metric(check) => metric(proxy, check),
    }
}

fn http(proxy: &Proxy, check: &HttpCheck) -> Result<(), String> {
    match (get(proxy, check), &check.expect) {
        (None, HttpExpect::Refused) => Ok(()),
        (None, HttpExpect::Answer { .. }) => Err("nothing listens there".into()),
        (Some(_), HttpExpect::Refused) => Err("something listens there".into()),
        (
            Some(answer),
            HttpExpect::Answer {
                status,
                headers,
                json,
            },
        ) => compare(answer, *status, headers, json.as_ref()),
    }
}

/// What a GET yields; nothing if nobody listens.
fn get(proxy: &Proxy, check: &HttpCheck) -> Option<Answer> {
    let now = proxy.now();
    if check.port == HEALTHZ_PORT {
        let health = proxy.health.proxy(now);
        return Some(match check.path.as_str() {
            "/healthz" => counted(proxy, Probe::Healthz, health::healthz(&health)),
            "/livez" => counted(proxy, Probe::Livez, health::livez(&health)),
            _ => health::not_found(),
        });
    }
    let family = Family::of(check.ip);
    let listener = proxy.health.listeners().into_iter().find(|it| {
        let ip = it.address.ip();
        let is_there = ip == check.ip || (ip.is_unspecified() && Family::of(ip) == family);
        is_there && it.address.port() == check.port
    })?;
    let answer = proxy.health.check(&listener.service, family, now);
    Some(health::check_answer(&listener.service, answer))
}

fn counted(proxy: &Proxy, probe: Probe, answer: Answer) -> Answer {
    proxy.metrics.count_probe(probe, answer.status());
    answer
}

fn compare(
    answer: Answer,
    status: u16,
    headers: &BTreeMap<String, String>,
    json: Option<&Map<String, Value>>,
) -> Result<(), String> {
    if answer.status().as_u16() != status {
        let found = answer.status().as_u16();
        return Err(format!("expected status {status}, found {found}"));
    }
    for (name, expected) in headers {
        let found = answer.headers().get(name).and_then(|it| it.to_str().ok());
        if found != Some(expected) {
            let found = found.unwrap_or("none");
            return Err(format!("expected header {name}: {expected}, found {found}"));
        }
    }
    let Some(members) = json else {
        return Ok(());
    };
    let body = block_on(answer.into_body().collect())
        .unwrap_or_else(|never| match never {})
        .to_bytes();
    let body: Value =
        serde_json::from_slice(&body).map_err(|error| format!("the body is no JSON: {error}"))?;
    for (name, expected) in members {
        let found = body.get(name);
        if found != Some(expected) {
            let found = found.map_or("none".into(), Value::to_string);
            return Err(format!(
                "expected \"{name}\": {expected} in the body, found {found}"
            ));
        }
    }
    Ok(())
}

fn metric(proxy: &Proxy, check: &MetricCheck) -> Result<(), String> {
    proxy.metrics.set_no_local(proxy.no_local.total());
    let found = sample(&proxy.metrics.text(), &check.metric, &check.labels);
    let expected = check.value;
    if found == expected {
        Ok(())
    } else {
        Err(format!("expected {expected}, found {found}"))
    }
}

/// The sample with exactly these labels in a text of metrics, 0 if there is none.
fn sample(text: &str, metric: &str, labels: &BTreeMap<String, String>) -> f64 {
    let samples = text.lines().filter_map(|line| {
        let (key, value) = line.rsplit_once(' ')?;
        let (name, found) = match key.split_once('{') {
            Some((name, rest)) => (name, labels_of(rest.strip_suffix('}')?)?),
            None => (key, BTreeMap::new()),
        };
        let is_it = name == metric
            && found.len() == labels.len()
            && labels
                .iter()
                .all(|(name, value)| found.get(name.as_str()) == Some(&value.as_str()));
        is_it.then_some(value)
    });
    let mut values = samples.filter_map(|value| value.parse().ok());
    values.next().unwrap_or(0.0)
}

/// Labels without commas and quotes in their values.
fn labels_of(text: &str) -> Option<BTreeMap<&str, &str>> {
    let parts = text.split(',').filter(|part| !part.is_empty());
    parts.map(label).collect()
}

/// Name and value of `name="value"`.
fn label(text: &str) -> Option<(&str, &str)> {
    let (name, value) = text.split_once('=')?;
    Some((name, value.strip_prefix('"')?.strip_suffix('"')?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_found_by_name_and_exactly_their_labels() {
        let text = "# TYPE a gauge\na{x=\"1\",y=\"2\"} 7\na{x=\"1\"} 3\nb 2.5\n# EOF\n";
        let labels = |pairs: &[(&str, &str)]| {
            let owned = pairs
                .iter()
                .map(|(name, value)| (name.to_string(), value.to_string()));
            owned.collect::<BTreeMap<_, _>>()
        };
        assert_eq!(sample(text, "a", &labels(&[("y", "2"), ("x", "1")])), 7.0);
        assert_eq!(sample(text, "a", &labels(&[("x", "1")])), 3.0);
        assert_eq!(sample(text, "a", &labels(&[("x", "2")])), 0.0);
        assert_eq!(sample(text, "a", &labels(&[])), 0.0);
        assert_eq!(sample(text, "b", &labels(&[])), 2.5);
    }
}
