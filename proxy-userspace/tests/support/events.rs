//! What a source yields, as lines.
#![allow(dead_code, reason = "each test crate uses a part of it")]

use std::time::Duration;

use beeline::model::Event;
use tokio::sync::mpsc;

/// No event takes this long unless something is broken.
const PATIENCE: Duration = Duration::from_secs(30);

/// The receiving end of a source.
pub(crate) struct Events(mpsc::Receiver<Event>);

impl Events {
    /// A small channel, so that sources also meet a consumer that is slow.
    pub(crate) fn channel() -> (mpsc::Sender<Event>, Self) {
        let (sender, receiver) = mpsc::channel(4);
        (sender, Self(receiver))
    }

    /// One that nobody has to wait for.
    pub(crate) fn wide_channel() -> (mpsc::Sender<Event>, Self) {
        let (sender, receiver) = mpsc::channel(10_000);
        (sender, Self(receiver))
    }

    /// The next event.
    pub(crate) async fn next(&mut self) -> String {
        match tokio::time::timeout(PATIENCE, self.0.recv()).await {
            Ok(Some(event)) => line(&event),
            Ok(None) => panic!("the source has ended"),
            Err(_) => panic!("no event within {PATIENCE:?}"),
        }
    }

    /// The next `n` events in the order of their lines: what comes first is not always said.
    pub(crate) async fn sorted(&mut self, n: usize) -> Vec<String> {
        let mut lines = Vec::with_capacity(n);
        for _ in 0..n {
            lines.push(self.next().await);
        }
        lines.sort();
        lines
    }

    /// All events up to the one that starts like this.
    pub(crate) async fn until(&mut self, start: &str) -> Vec<String> {
        let mut lines = Vec::new();
        while !lines
            .last()
            .is_some_and(|line: &String| line.starts_with(start))
        {
            lines.push(self.next().await);
        }
        lines
    }
}

/// An event in one line.
fn line(event: &Event) -> String {
    match event {
        Event::Service(service) => {
            let addresses: Vec<String> = service
                .cluster_ips
                .iter()
                .map(ToString::to_string)
                .collect();
            format!("Service {} {}", service.name, addresses.join(","))
        }
        Event::ServiceGone(name) => format!("ServiceGone {name}"),
        Event::Slice(slice) => {
            let addresses: Vec<String> = slice
                .endpoints
                .iter()
                .map(|endpoint| endpoint.address.to_string())
                .collect();
            format!("Slice {} {}", slice.name, addresses.join(","))
        }
        Event::SliceGone(name) => format!("SliceGone {name}"),
        Event::Node(node) => format!("Node {} {}", node.name, node.zone.as_deref().unwrap_or("-")),
        Event::ServiceCidrs(ranges) => {
            let ranges: Vec<_> = ranges.iter().map(ToString::to_string).collect();
            format!("ServiceCidrs {}", ranges.join(","))
        }
        Event::Pod(pod) => {
            let labels = pod.labels.iter();
            let labels: Vec<_> = labels
                .map(|(key, value)| format!("{key}={value}"))
                .collect();
            format!("Pod {} {} {}", pod.name, pod.uid, labels.join(","))
        }
        Event::PodGone(name) => format!("PodGone {name}"),
        Event::PodsKnown => "PodsKnown".into(),
        Event::Synced => "Synced".into(),
        Event::Problem(problem) => format!("Problem {}: {}", problem.subject, problem.message),
        Event::Solved(subject) => format!("Solved {subject}"),
    }
}
