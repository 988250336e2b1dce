//! `/healthz`, `/livez` and `/readyz`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::StatusCode;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::http::{
    Answer, BindError, DEADLINE, FixedServer, Service, at_once, not_found, redirect, text, verdict,
};
use super::{Health, Problems, ProxyHealth};
use crate::clock::wall;
use crate::metrics::{Metrics, Probe};

const SERVICE: Service = Service {
    name: "healthz",
    option: "--healthz-bind-address",
    deadline: DEADLINE,
};

/// The time of what never was, as kube-proxy writes it.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// The proxy's own health on one address (rules R130 to R135). It stops when dropped.
#[derive(Debug)]
pub struct Server(FixedServer);

impl Server {
    /// Serves at `bind`, at once if the address can be had, else as soon as it can; `problems`
    /// says so meanwhile. An unspecified address stands for all of both families.
    ///
    /// The answers are those of `health` by its clock, and counted in `metrics`. Only
    /// `currentTime` and `lastUpdated` are told by the system's clock. To be called within the
    /// asynchronous runtime.
    pub fn start(
        bind: SocketAddr,
        health: Health,
        metrics: Arc<Metrics>,
        problems: Problems,
    ) -> Self {
        let handler = move |parts: &http::request::Parts| match parts.uri.path() {
            "/healthz" => count(&metrics, Probe::Healthz, healthz(&proxy(&health))),
            "/livez" => count(&metrics, Probe::Livez, livez(&proxy(&health))),
            "/readyz" => readyz(health.unready().as_deref()),
            _ => redirect(&parts.uri).unwrap_or_else(not_found),
        };
        Self(FixedServer::start(
            SERVICE,
            bind,
            at_once(handler),
            problems,
        ))
    }

    /// The same server, if it listens since its start.
    ///
    /// # Errors
    /// If the address could not be had then.
    pub fn at_once(self) -> Result<Self, BindError> {
        self.0.at_once().map(Self)
    }

    /// Where it listens; `None` if the address was taken when it started.
    pub fn address(&self) -> Option<SocketAddr> {
        self.0.address()
    }
}

fn proxy(health: &Health) -> ProxyHealth {
    health.look(|state, now| state.proxy(now))
}

fn count(metrics: &Metrics, probe: Probe, answer: Answer) -> Answer {
    metrics.count_probe(probe, answer.status());
    answer
}

/// What `/healthz` says (rules R130, R134, R135).
pub fn healthz(proxy: &ProxyHealth) -> Answer {
    let is_good = proxy.is_healthy && proxy.is_node_eligible;
    let mut body = body(proxy, is_good, wall());
    body.insert("nodeEligible".to_owned(), proxy.is_node_eligible.into());
    verdict(is_good, &body.into())
}

/// What `/livez` says (rules R131, R135).
pub fn livez(proxy: &ProxyHealth) -> Answer {
    let body = body(proxy, proxy.is_healthy, wall());
    verdict(proxy.is_healthy, &body.into())
}

/// What `/readyz` says, which kube-proxy does not have: whether what is in force follows the
/// cluster. It is no reason to keep traffic away.
pub fn readyz(unready: Option<&str>) -> Answer {
    match unready {
        None => text(StatusCode::OK, "ok"),
        Some(reason) => text(StatusCode::SERVICE_UNAVAILABLE, &format!("{reason}\n")),
    }
}

/// The members that both have (rule R135).
fn body(proxy: &ProxyHealth, is_good: bool, now: SystemTime) -> Map<String, Value> {
    let status = proxy.families.iter().map(|(family, &(is_healthy, age))| {
        let family_status = json!({"lastUpdated": before(now, age), "healthy": is_healthy});
        (family.name().to_owned(), family_status)
    });
    Map::from_iter([
        ("lastUpdated".to_owned(), before(now, proxy.age()).into()),
        (
            "currentTime".to_owned(),
            before(now, Some(Duration::ZERO)).into(),
        ),
        ("healthy".to_owned(), is_good.into()),
        ("status".to_owned(), status.collect::<Map<_, _>>().into()),
    ])
}

/// The time that was `age` ago, by RFC 3339.
fn before(now: SystemTime, age: Option<Duration>) -> String {
    let then = age.and_then(|age| now.checked_sub(age));
    let then = then.and_then(|then| Timestamp::try_from(then).ok());
    then.map_or_else(|| NEVER.to_owned(), |then| then.to_string())
}
