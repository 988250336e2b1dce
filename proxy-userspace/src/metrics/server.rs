//! `/metrics` and what else is at its address (rule R137).

use std::net::SocketAddr;
use std::sync::Arc;

use http::StatusCode;
use http::header::ACCEPT;
use http::request::Parts;

use super::Metrics;
use crate::health::Problems;
use crate::health::http::{Answer, FixedServer, answer, not_found, text};

/// What `/proxyMode` says.
const MODE: &str = "beeline";

/// The metrics on one address. It stops when dropped.
#[derive(Debug)]
pub struct Server(FixedServer);

impl Server {
    /// Serves at `bind`, at once if the address can be had, else as soon as it can; `problems`
    /// says so meanwhile. To be called within the asynchronous runtime.
    pub fn start(bind: SocketAddr, metrics: Arc<Metrics>, problems: Problems) -> Self {
        let handler = move |parts: &Parts| match parts.uri.path() {
            "/metrics" => exposition(&metrics, parts),
            "/healthz" => text(StatusCode::OK, "ok"),
            "/proxyMode" => text(StatusCode::OK, MODE),
            _ => not_found(),
        };
        let server = FixedServer::start("metrics", bind, Arc::new(handler), problems);
        Self(server)
    }

    /// Where it listens; `None` if the address was taken when it started.
    pub fn address(&self) -> Option<SocketAddr> {
        self.0.address()
    }
}

/// The older text format reads the same lines, but for the type of counters, which it takes for
/// unknown.
fn exposition(metrics: &Metrics, parts: &Parts) -> Answer {
    let accepts = parts.headers.get_all(ACCEPT).iter();
    let knows_open_metrics = accepts
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.contains("application/openmetrics-text"));
    let kind = if knows_open_metrics {
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    } else {
        "text/plain; version=0.0.4; charset=utf-8"
    };
    answer(StatusCode::OK, kind, metrics.text())
}
