//! Observations other than packets: HTTP and metrics, over real connections.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};
use xtask::testbed::{Testbed, in_namespace};

use crate::case::{Check, HttpCheck, HttpExpect, MetricCheck};
use crate::outcome::{Failure, Item, Place};

/// How long an answer may take, and how long a wrong one may last.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(20);
/// Where the daemon's metrics are.
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10_249);

/// Makes observations, and tells which are not as expected.
pub(super) fn failures(testbed: &Testbed, step: Option<usize>, checks: &[Check]) -> Vec<Failure> {
    let mut failures = Vec::new();
    for (index, check) in checks.iter().enumerate() {
        if let Err(error) = soon(|| observe(testbed, check)) {
            let item = Item::Check(index, check.name().to_owned());
            failures.push(Place { step, item }.fails(format!("{error:#}")));
        }
    }
    failures
}

fn observe(testbed: &Testbed, check: &Check) -> Result<()> {
    match check {
        Check::Http(check) => http(testbed, check),
        Check::Metric(check) => metric(testbed, check),
    }
}

/// Servers follow the daemon's loop a little later.
fn soon(mut observe: impl FnMut() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match observe() {
            Err(_) if Instant::now() < deadline => std::thread::sleep(PAUSE),
            result => return result,
        }
    }
}

fn http(testbed: &Testbed, check: &HttpCheck) -> Result<()> {
    let address = SocketAddr::new(check.ip, check.port);
    let result = in_namespace(testbed.outside(), || get(address, &check.path));
    let (status, headers, json) = match (&check.expect, &result) {
        (HttpExpect::Refused, Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            return Ok(());
        }
        (HttpExpect::Refused, Err(error)) => bail!("expected a refusal, but got: {error}"),
        (HttpExpect::Refused, Ok(answer)) => {
            bail!("expected a refusal, but got status {}", answer.status)
        }
        (
            HttpExpect::Answer {
                status,
                headers,
                json,
            },
            _,
        ) => (status, headers, json),
    };
    let answer = result.with_context(|| format!("GET {} of {address}", check.path))?;
    ensure!(
        answer.status == *status,
        "expected status {status}, but got {}: {}",
        answer.status,
        answer.body
    );
    for (name, value) in headers {
        let found = answer.headers.get(&name.to_lowercase());
        ensure!(
            found == Some(value),
            "expected the header {name}: {value}, but got {found:?}"
        );
    }
    json.as_ref().map_or(Ok(()), |json| has(&answer.body, json))
}

fn has(body: &str, members: &Map<String, Value>) -> Result<()> {
    let body: Map<String, Value> =
        serde_json::from_str(body).with_context(|| format!("read JSON of '{body}'"))?;
    for (name, value) in members {
        let found = body.get(name);
        ensure!(
            found == Some(value),
            "expected {name}: {value}, but got {found:?}"
        );
    }
    Ok(())
}

fn metric(testbed: &Testbed, check: &MetricCheck) -> Result<()> {
    let node = &testbed.node().namespace;
    let answer = in_namespace(node, || get(METRICS, "/metrics")).context("GET /metrics")?;
    ensure!(
        answer.status == 200,
        "/metrics has status {}",
        answer.status
    );
    let samples = answer.body.lines().filter_map(sample);
    let mut found =
        samples.filter(|sample| sample.name == check.metric && sample.labels == check.labels);
    let value = found.next().map_or(0.0, |sample| sample.value);
    ensure!(
        value == check.value,
        "expected {}{:?} to be {}, but got {value}",
        check.metric,
        check.labels,
        check.value
    );
    Ok(())
}

struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// Reads a line of the Prometheus text format.
fn sample(line: &str) -> Option<Sample> {
    let (name, rest) = match line.split_once('{') {
        Some((name, rest)) => (name, rest.rsplit_once('}')?),
        None => {
            let (name, value) = line.split_once(' ')?;
            (name, ("", value))
        }
    };
    let (labels, value) = rest;
    let labels = labels.split("\",").filter(|label| !label.is_empty());
    let labels = labels.map(|label| {
        let (name, value) = label.split_once("=\"")?;
        let value = value.strip_suffix('"').unwrap_or(value);
        Some((name.trim().to_owned(), value.to_owned()))
    });
    Some(Sample {
        name: name.to_owned(),
        labels: labels.collect::<Option<_>>()?,
        value: value.split_whitespace().next()?.parse().ok()?,
    })
}

struct Answer {
    status: u16,
    /// By name in lower case.
    headers: BTreeMap<String, String>,
    body: String,
}

fn get(address: SocketAddr, path: &str) -> io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )?;
    let mut text = String::new();
    let _len = stream.read_to_string(&mut text)?;
    read(&text).ok_or_else(|| io::Error::other(format!("no HTTP answer: '{text}'")))
}

fn read(text: &str) -> Option<Answer> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers = lines.filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_lowercase(), value.trim().to_owned()))
    });
    Some(Answer {
        status,
        headers: headers.collect(),
        body: body.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_with_all_labels() {
        let found = sample(r#"a_total{x="1",y="b, c"} 3 1700000000"#).unwrap();
        assert_eq!((&*found.name, found.value), ("a_total", 3.0));
        assert_eq!(found.labels["y"], "b, c");
        assert_eq!(sample("up 1").unwrap().labels.len(), 0);
        assert!(sample("# HELP up Is it?").is_none());
    }

    #[test]
    fn answers_are_read() {
        let answer = read("HTTP/1.1 503 No\r\nContent-Type: a/b\r\n\r\n{}").unwrap();
        assert_eq!((answer.status, &*answer.body), (503, "{}"));
        assert_eq!(answer.headers["content-type"], "a/b");
        assert!(read("nonsense").is_none());
    }
}
