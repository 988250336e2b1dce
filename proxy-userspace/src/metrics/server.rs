//! `/metrics` and what else is at its address (rule R137).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future;
use http::StatusCode;
use http::request::Parts;
use serde_json::Value;
use tokio::sync::Mutex;

use super::{Format, Metrics};
use crate::health::http::{Answer, FixedServer, Handler, Service, answer, not_found, text};
use crate::health::{BindError, Problems};

/// What `/proxyMode` says.
const MODE: &str = "beeline";

/// Many Services make a long answer.
const SERVICE: Service = Service {
    name: "metrics",
    option: "--metrics-bind-address",
    deadline: Duration::from_secs(30),
};

/// The metrics on one address. It stops when dropped.
#[derive(Debug)]
pub struct Server(FixedServer);

impl Server {
    /// Serves at `bind`, at once if the address can be had, else as soon as it can; `problems`
    /// says so meanwhile. `/configz` shows `configz`. To be called within the asynchronous
    /// runtime.
    pub fn start(
        bind: SocketAddr,
        metrics: Arc<Metrics>,
        configz: &Value,
        problems: Problems,
    ) -> Self {
        let handler = handler(metrics, configz.to_string());
        Self(FixedServer::start(SERVICE, bind, handler, problems))
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

/// Any method will do, as with kube-proxy; paths are taken as they are.
fn handler(metrics: Arc<Metrics>, configz: String) -> Handler {
    let turn = Arc::new(Mutex::new(()));
    Arc::new(move |parts: Parts| {
        if parts.uri.path() == "/metrics" {
            let format = Format::asked(&parts.headers);
            return exposition(Arc::clone(&metrics), Arc::clone(&turn), format).boxed();
        }
        future::ready(match parts.uri.path() {
            "/healthz" => healthz(&parts),
            // The one check that there is.
            "/healthz/ping" => text(StatusCode::OK, "ok"),
            "/proxyMode" => text(StatusCode::OK, MODE),
            "/configz" => answer(StatusCode::OK, "application/json", configz.clone()),
            _ => not_found(),
        })
        .boxed()
    })
}

/// Says more if it is asked to.
fn healthz(parts: &Parts) -> Answer {
    let query = parts.uri.query().unwrap_or_default();
    let names = query.split('&').map(|pair| pair.split('=').next());
    let is_verbose = names.into_iter().any(|name| name == Some("verbose"));
    let body = if is_verbose {
        "[+]ping ok\nhealthz check passed\n"
    } else {
        "ok"
    };
    text(StatusCode::OK, body)
}

/// Reads and writes everything on a thread that may block, one request after the other.
async fn exposition(metrics: Arc<Metrics>, turn: Arc<Mutex<()>>, format: Format) -> Answer {
    let turn = turn.lock_owned().await;
    let read = tokio::task::spawn_blocking(move || {
        metrics.refresh();
        let text = metrics.text_as(format);
        drop(turn);
        text
    });
    match read.await {
        Ok(text) => answer(StatusCode::OK, format.kind(), text),
        Err(error) => {
            tracing::warn!("metrics: {error}");
            text(
                StatusCode::INTERNAL_SERVER_ERROR,
                "cannot read the metrics\n",
            )
        }
    }
}
