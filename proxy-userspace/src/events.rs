//! Kubernetes Events about what a cluster's users should know: Services that could not be
//! programmed, objects that could not be read, servers that could not be started (rules R125, R190).
//!
//! The daemon's loop says what is wrong at the moment, and goes on at once. What follows from that
//! is decided by the [`Outbox`]: a problem is said once, however often its wording changes, and
//! never many at a time. The names of Events are made of what they are about, so that a daemon that
//! is started again and again finds the one that is there.

mod outbox;
mod recorder;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kube::Client;
use tokio::sync::watch;

use self::outbox::{Next, Outbox};
use self::recorder::{Recorder, Refusal};
use crate::model::{ObjectName, Problem};

/// Until an Event that could not be written is tried again.
const RETRY: Duration = Duration::from_secs(30);

/// What is wrong, and how that is worded.
pub type Causes = BTreeMap<Cause, String>;

/// What an Event is about. There is one for each.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Cause {
    /// Why it is written.
    pub reason: Reason,
    /// The object that it is written of.
    pub object: Object,
}

/// Why an Event is written.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Reason {
    /// The daemon has started.
    Starting,
    /// Something of a Service is not in force: no room, or an address that another one has.
    FailedToProgramService,
    /// Something of an object is not understood.
    FailedToReadObject,
    /// The port of a health check cannot be had.
    FailedToStartServiceHealthcheck,
    /// The address for load balancers cannot be had.
    FailedToStartProxierHealthcheck,
    /// The address for metrics cannot be had.
    FailedToStartMetricServer,
}

impl Reason {
    /// As users see it; where kube-proxy has the same, it is called the same.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "Starting",
            Self::FailedToProgramService => "FailedToProgramService",
            Self::FailedToReadObject => "FailedToReadObject",
            Self::FailedToStartServiceHealthcheck => "FailedToStartServiceHealthcheck",
            Self::FailedToStartProxierHealthcheck => "FailedToStartProxierHealthcheck",
            Self::FailedToStartMetricServer => "FailedToStartMetricServer",
        }
    }

    /// What was done, or tried.
    const fn action(self) -> &'static str {
        match self {
            Self::Starting => "StartBeeline",
            Self::FailedToProgramService => "ProgramService",
            Self::FailedToReadObject => "ReadObject",
            Self::FailedToStartServiceHealthcheck
            | Self::FailedToStartProxierHealthcheck
            | Self::FailedToStartMetricServer => "Listen",
        }
    }
}

/// The object that an Event is written of.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Object {
    /// This node.
    Node,
    /// A Service.
    Service(ObjectName),
    /// An EndpointSlice.
    EndpointSlice(ObjectName),
}

/// Who has trouble.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// The source, with an object.
    Source,
    /// A server, with its address.
    Server,
    /// The maps, with a Service.
    Maps,
}

impl Cause {
    /// What is to be written about a problem, if anything is: most are this node's own affair.
    pub fn of(trouble: Trouble, subject: &str) -> Option<Self> {
        let (kind, name) = subject.split_once(' ')?;
        let object = || {
            let (namespace, name) = name.split_once('/')?;
            Some(ObjectName {
                namespace: namespace.into(),
                name: name.into(),
            })
        };
        let (reason, object) = match (trouble, kind) {
            (Trouble::Source, "Service") => {
                (Reason::FailedToReadObject, Object::Service(object()?))
            }
            (Trouble::Source, "EndpointSlice") => {
                let slice = Object::EndpointSlice(object()?);
                (Reason::FailedToReadObject, slice)
            }
            (Trouble::Source, "Node") => (Reason::FailedToReadObject, Object::Node),
            (Trouble::Server, "Service") => {
                let service = Object::Service(object()?);
                (Reason::FailedToStartServiceHealthcheck, service)
            }
            (Trouble::Server, "healthz") => (Reason::FailedToStartProxierHealthcheck, Object::Node),
            (Trouble::Server, "metrics") => (Reason::FailedToStartMetricServer, Object::Node),
            (Trouble::Maps, "Service") => {
                (Reason::FailedToProgramService, Object::Service(object()?))
            }
            _ => return None,
        };
        Some(Self { reason, object })
    }
}

/// Writes Events in the background. Dropped, it ends.
pub struct Events {
    causes: watch::Sender<Causes>,
}

impl Events {
    /// Begins with the Event that the daemon of this node has started. To be called within the
    /// asynchronous runtime.
    pub fn start(client: Client, node: &str) -> Self {
        let (causes, told) = watch::channel(Causes::new());
        drop(tokio::spawn(write(Recorder::new(client, node), told)));
        Self { causes }
    }

    /// Says what is wrong now; never waits.
    pub fn tell<'a>(&self, problems: impl IntoIterator<Item = (Trouble, &'a [Problem])>) {
        let mut now = Causes::new();
        for (trouble, problems) in problems {
            let causes = problems.iter().filter_map(|problem| {
                let cause = Cause::of(trouble, &problem.subject)?;
                Some((cause, problem.message.clone()))
            });
            now.extend(causes);
        }
        self.causes.send_if_modified(|known| {
            let is_news = *known != now;
            *known = now;
            is_news
        });
    }
}

/// Writes what is due until nobody says anything any more.
async fn write(recorder: Recorder, mut told: watch::Receiver<Causes>) {
    let mut outbox = Outbox::new(Instant::now());
    let mut is_allowed = true;
    loop {
        let pause = match outbox.next(Instant::now()) {
            Next::Write(letter) => match recorder.record(&letter).await {
                Ok(()) => continue,
                Err(Refusal::Forbidden(message)) => {
                    if std::mem::take(&mut is_allowed) {
                        tracing::warn!("Kubernetes Events cannot be written: {message}");
                    }
                    continue;
                }
                Err(Refusal::Invalid(message)) => {
                    tracing::debug!("a Kubernetes Event is refused: {message}");
                    continue;
                }
                Err(Refusal::Away(message)) => {
                    tracing::debug!("a Kubernetes Event has to wait: {message}");
                    outbox.put_back(letter);
                    Some(RETRY)
                }
            },
            Next::Wait(pause) => Some(pause),
            Next::Nothing => None,
        };
        let pause = async {
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = told.changed() => match changed {
                Ok(()) => outbox.update(&told.borrow_and_update(), Instant::now()),
                Err(_) => return,
            },
            () = pause => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_users_can_do_something_about_is_written() {
        let of = |trouble, subject| {
            let cause = Cause::of(trouble, subject)?;
            Some((cause.reason.name(), format!("{:?}", cause.object)))
        };
        let name = r#"ObjectName { namespace: "shop", name: "web" }"#;
        let service = format!("Service({name})");
        let slice = format!("EndpointSlice({name})");
        for (trouble, subject, expected) in [
            (
                Trouble::Maps,
                "Service shop/web",
                Some(("FailedToProgramService", &*service)),
            ),
            (
                Trouble::Source,
                "Service shop/web",
                Some(("FailedToReadObject", &service)),
            ),
            (
                Trouble::Source,
                "EndpointSlice shop/web",
                Some(("FailedToReadObject", &slice)),
            ),
            (
                Trouble::Source,
                "Node n1",
                Some(("FailedToReadObject", "Node")),
            ),
            (
                Trouble::Server,
                "Service shop/web",
                Some(("FailedToStartServiceHealthcheck", &service)),
            ),
            (
                Trouble::Server,
                "healthz address 0.0.0.0:10256",
                Some(("FailedToStartProxierHealthcheck", "Node")),
            ),
            (
                Trouble::Server,
                "metrics address 127.0.0.1:10249",
                Some(("FailedToStartMetricServer", "Node")),
            ),
            (Trouble::Maps, "maps", None),
            (Trouble::Source, "API server", None),
            (Trouble::Source, "Pod shop/web", None),
            (Trouble::Source, "Service without-namespace", None),
            (Trouble::Server, "socket edge", None),
        ] {
            let expected = expected.map(|(reason, object)| (reason, object.to_owned()));
            assert_eq!(of(trouble, subject), expected, "{subject}");
        }
    }
}
