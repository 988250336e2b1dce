//! Where Services come from.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use kube::Client;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::events::Events;
use crate::model::Event;
use crate::source::kubernetes::Access;
use crate::source::{FileSource, KubernetesSource, SourceState, kubernetes};

/// Events that may be on their way.
const CAPACITY: usize = 4096;
/// The one resource of manifest files.
const FILES: &str = "files";

/// Where Services come from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// Manifest files and folders of them.
    Files(Vec<PathBuf>),
    /// The Kubernetes API.
    Kubernetes(Access),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Files(paths) => {
                let paths: Vec<_> = paths
                    .iter()
                    .map(|path| path.display().to_string())
                    .collect();
                write!(f, "manifests in {}", paths.join(", "))
            }
            Self::Kubernetes(access) => access.fmt(f),
        }
    }
}

/// A source that runs.
pub(super) struct Source {
    events: mpsc::Receiver<Event>,
    first: Option<Event>,
    task: JoinHandle<anyhow::Result<()>>,
    /// For Events, if they can be written.
    client: Option<Client>,
    state: watch::Receiver<SourceState>,
}

impl Source {
    /// Starts the source, which tells of Pods too if `pods` says so; returns early if it cannot
    /// work at all.
    pub(super) async fn start(origin: &Origin, node: Arc<str>, pods: bool) -> anyhow::Result<Self> {
        let (sender, events) = mpsc::channel(CAPACITY);
        let state = match origin {
            Origin::Files(_) => watch::Sender::new(SourceState::new([FILES], Instant::now())),
            Origin::Kubernetes(_) => kubernetes::state(pods),
        };
        let told = state.subscribe();
        match origin {
            Origin::Files(paths) => {
                let source = FileSource {
                    paths: paths.clone(),
                    node,
                    pods,
                };
                let task = tokio::spawn(async { Ok(source.run(sender).await?) });
                let mut source = Self {
                    events,
                    first: None,
                    task,
                    client: None,
                    state: told,
                };
                // Files answer at once, or never will.
                source.first = Some(source.next().await?);
                SourceState::listed(&state, FILES);
                SourceState::connected(&state, FILES, true);
                Ok(source)
            }
            Origin::Kubernetes(access) => {
                let client = kubernetes::client(access).await?;
                let for_events = client.clone();
                let source = KubernetesSource {
                    client,
                    timing: access.timing.clone(),
                    node,
                    pods,
                    state,
                };
                let task = tokio::spawn(async {
                    source.run(sender).await;
                    Ok(())
                });
                // What is in force serves on, however long the API server is away.
                Ok(Self {
                    events,
                    first: None,
                    task,
                    client: Some(for_events),
                    state: told,
                })
            }
        }
    }

    /// Begins to write Events about this node, if there is where to.
    pub(super) fn events(&self, node: &str) -> Option<Events> {
        let client = self.client.clone()?;
        Some(Events::start(client, node))
    }

    /// How the source is getting on.
    pub(super) fn state(&self) -> watch::Receiver<SourceState> {
        self.state.clone()
    }

    async fn next(&mut self) -> anyhow::Result<Event> {
        match self.events.recv().await {
            Some(event) => Ok(event),
            None => Err(self.end().await),
        }
    }

    /// Waits for events and takes all that are there, at most `limit`.
    pub(super) async fn take(
        &mut self,
        batch: &mut Vec<Event>,
        limit: usize,
    ) -> anyhow::Result<()> {
        if let Some(first) = self.first.take() {
            batch.push(first);
            return Ok(());
        }
        match self.events.recv_many(batch, limit).await {
            0 => Err(self.end().await),
            _ => Ok(()),
        }
    }

    /// Why the source ended.
    async fn end(&mut self) -> anyhow::Error {
        match (&mut self.task).await {
            Ok(Ok(())) => anyhow::anyhow!("the source of Services ended"),
            Ok(Err(error)) => error,
            Err(error) => anyhow::Error::from(error).context("the source of Services failed"),
        }
    }
}
