//! The servers of the health check node ports.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use proxy_common::abi::Family;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::http::{
    Answer, Connections, DEADLINE, Handler, RETRY, Unspecified, at_once, lacks_family, listen,
    serve, verdict, with_number,
};
use super::{CheckAnswer, Health, Listener, Problems};
use crate::model::ObjectName;

/// Connections that all of them may have together.
const CONNECTIONS: usize = 512;

/// A server for each listener that the state asks for (rules R120 to R127). They stop when this
/// is dropped.
pub struct NodePorts {
    health: Health,
    problems: Problems,
    changes: watch::Receiver<u64>,
    connections: Arc<Connections>,
    open: BTreeMap<Listener, JoinHandle<()>>,
    /// Services with a listener that could not be opened, and why.
    failed: BTreeMap<ObjectName, String>,
}

impl NodePorts {
    /// Opens nothing yet.
    pub fn new(health: Health, problems: Problems) -> Self {
        Self {
            changes: health.listeners(),
            health,
            problems,
            connections: Connections::new(CONNECTIONS),
            open: BTreeMap::new(),
            failed: BTreeMap::new(),
        }
    }

    /// Follows the state for ever; what could not be opened is tried again now and then.
    pub async fn run(mut self) {
        loop {
            self.settle().await;
            let has_failed = !self.failed.is_empty();
            tokio::select! {
                changed = self.changes.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(RETRY), if has_failed => {}
            }
        }
    }

    /// Opens and closes what the state asks for now; what is open and still wanted is left alone
    /// (rule R125). When this returns, what is closed refuses connections.
    ///
    /// A listener that can't be opened is one of the problems until it can.
    pub async fn settle(&mut self) {
        self.changes.mark_unchanged();
        let wanted = self.health.look(|state, _| state.listeners());
        self.close_others(&wanted).await;
        let failed_before = std::mem::take(&mut self.failed);
        for listener in wanted {
            if !self.open.contains_key(&listener) {
                self.start(listener);
            }
        }
        for service in failed_before.keys() {
            if !self.failed.contains_key(service) {
                self.problems.set(&subject(service), None);
            }
        }
        for (service, message) in &self.failed {
            self.problems.set(&subject(service), Some(message.clone()));
        }
    }

    async fn close_others(&mut self, wanted: &BTreeSet<Listener>) {
        let (kept, others) = std::mem::take(&mut self.open)
            .into_iter()
            .partition::<BTreeMap<_, _>, _>(|(listener, _)| wanted.contains(listener));
        self.open = kept;
        for (listener, task) in others {
            task.abort();
            // Its socket is closed once it has ended, by the abort or otherwise.
            drop(task.await);
            tracing::debug!(
                "health check of Service {}: {} closed",
                listener.service,
                listener.address
            );
        }
    }

    fn start(&mut self, listener: Listener) {
        let address = listener.address;
        match listen(address, Unspecified::OneFamily) {
            Ok(socket) => {
                tracing::debug!(
                    "health check of Service {}: {address} open",
                    listener.service
                );
                let handler = handler(self.health.clone(), &listener);
                let task = serve(socket, handler, Arc::clone(&self.connections), DEADLINE);
                self.open.insert(listener, tokio::spawn(task));
            }
            // There is nobody who could ask (rule R155).
            Err(error) if lacks_family(&error) => {}
            Err(error) => self.fail(listener, &error),
        }
    }

    fn fail(&mut self, listener: Listener, error: &io::Error) {
        let (ip, port) = (listener.address.ip(), listener.address.port());
        let message = format!(
            "field spec.healthCheckNodePort: cannot listen on port {port} of {ip}: {error}"
        );
        let known = self.failed.entry(listener.service).or_default();
        if !known.is_empty() {
            known.push_str("; ");
        }
        known.push_str(&message);
    }
}

impl Drop for NodePorts {
    fn drop(&mut self) {
        for task in self.open.values() {
            task.abort();
        }
    }
}

fn subject(service: &ObjectName) -> String {
    format!("Service {service}")
}

/// Answers for the endpoints of the listener's own family (rule R126), whatever is asked (rule
/// R122).
fn handler(health: Health, listener: &Listener) -> Handler {
    let service = listener.service.clone();
    let family = Family::of(listener.address.ip());
    at_once(move |_| {
        let check = health.look(|state, now| state.check(&service, family, now));
        check_answer(&service, check)
    })
}

/// What a health check node port says of a Service (rule R123).
pub fn check_answer(service: &ObjectName, check: CheckAnswer) -> Answer {
    let body = json!({
        "service": {"namespace": *service.namespace, "name": *service.name},
        "localEndpoints": check.n_local,
        "serviceProxyHealthy": check.is_proxy_healthy,
    });
    let answer = verdict(check.is_good(), &body);
    with_number(answer, "x-load-balancing-endpoint-weight", check.n_local)
}
