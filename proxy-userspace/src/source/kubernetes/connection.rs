//! The watch of one kind of object, observed on the way to the API server.
//!
//! The watcher hides some of what matters here: that a watch that was cut is there again, how
//! often it is opened, and that an answer is late. And its lists would all be read from etcd,
//! which a cluster of many nodes cannot bear when all of them list at once.

use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, StatusCode, Uri};
use kube::Client;
use kube::client::Body;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, sleep_until};

use super::access::Timing;
use super::feed::{Closed, Feed};
use super::jitter;
use super::servers::is_watch;
use crate::source::ledger::Kind;

/// After how long the API server is to end a watch; as much comes on top at random, so that not
/// all nodes come back at once. That is client-go's rule.
const WATCH: Duration = Duration::from_secs(300);

/// The same client for watching one kind of object, which tells `feed` when a watch stands.
pub(super) fn observed(client: Client, kind: Kind, feed: Arc<Feed>, timing: Timing) -> Client {
    let namespace = client.default_namespace().to_owned();
    let line = Arc::new(Line {
        client,
        kind,
        feed,
        timing,
        opened: Mutex::new(None),
        lists: Mutex::default(),
    });
    let service = tower::service_fn(move |request| {
        let line = Arc::clone(&line);
        async move { line.send(request).await }
    });
    Client::new(service, namespace)
}

/// What requests for one kind of object go through.
struct Line {
    client: Client,
    kind: Kind,
    feed: Arc<Feed>,
    timing: Timing,
    /// When the watch was opened last.
    opened: Mutex<Option<Instant>>,
    lists: Mutex<Lists>,
}

impl Line {
    async fn send(&self, mut request: Request<Body>) -> Result<Response<Body>, kube::Error> {
        let is_watch = is_watch(&request);
        if is_watch {
            self.pace().await;
            self.lists.lock().await.watched(request.uri());
            let seconds = (WATCH + jitter(WATCH)).as_secs().to_string();
            edit(request.uri_mut(), &[("timeoutSeconds", &seconds)]);
        } else {
            self.lists.lock().await.prepare(request.uri_mut());
        }
        let response = self.answer(request).await?;
        if is_watch && response.status().is_success() {
            self.feed.fine(self.kind).await;
        } else if !is_watch {
            self.lists.lock().await.answered(response.status());
        }
        Ok(response)
    }

    async fn pace(&self) {
        let mut opened = self.opened.lock().await;
        if let Some(last) = *opened {
            sleep_until(last + self.timing.pace).await;
        }
        *opened = Some(Instant::now());
    }

    /// The answer; that it is late is reported meanwhile.
    async fn answer(&self, request: Request<Body>) -> Result<Response<Body>, kube::Error> {
        let answer = self.client.send(request);
        tokio::pin!(answer);
        tokio::select! {
            answer = &mut answer => return answer,
            () = sleep(self.timing.slow) => {}
        }
        let message = format!("no answer for {:?}", self.timing.slow);
        // If nobody listens any more, the next event of the watch tells.
        let (Ok(()) | Err(Closed)) = self.feed.trouble(self.kind, message).await;
        answer.await
    }
}

/// How fresh a list must be.
///
/// As with client-go, any state will do at first, and none that is older than what is known
/// later; both are served from the API server's memory. Only if it cannot do that is etcd asked.
#[derive(Default)]
struct Lists {
    /// The version that was watched from last.
    known: Option<String>,
    /// Whether the API server has refused to go by a version.
    is_exact: bool,
}

impl Lists {
    fn watched(&mut self, uri: &Uri) {
        let version = parameter(uri, "resourceVersion").filter(|version| *version != "0");
        self.known = version.map(str::to_owned).or_else(|| self.known.take());
    }

    fn prepare(&self, uri: &mut Uri) {
        // The pages of a list have the version of the first.
        if self.is_exact || parameter(uri, "continue").is_some() {
            return;
        }
        match &self.known {
            None => edit(uri, &[("resourceVersion", "0")]),
            // A limit would have it read from etcd.
            Some(version) => edit(uri, &[("resourceVersion", version), ("limit", "")]),
        }
    }

    fn answered(&mut self, status: StatusCode) {
        let is_refused = [StatusCode::GONE, StatusCode::GATEWAY_TIMEOUT].contains(&status);
        self.is_exact = is_refused && !self.is_exact;
    }
}

fn parameter<'a>(uri: &'a Uri, name: &str) -> Option<&'a str> {
    let mut pairs = uri.query()?.split('&').filter_map(|it| it.split_once('='));
    pairs.find_map(|(key, value)| (key == name).then_some(value))
}

/// Sets parameters of the query; those that are to be empty are left out.
fn edit(uri: &mut Uri, parameters: &[(&str, &str)]) {
    let query = uri.query().unwrap_or_default().split('&');
    let is_kept = |pair: &&str| {
        let name = pair.split('=').next().unwrap_or_default();
        !name.is_empty() && parameters.iter().all(|(key, _)| *key != name)
    };
    let mut pairs: Vec<String> = query.filter(is_kept).map(str::to_owned).collect();
    let set = parameters.iter().filter(|(_, value)| !value.is_empty());
    pairs.extend(set.map(|(key, value)| format!("{key}={value}")));
    let path = format!("{}?{}", uri.path(), pairs.join("&"));
    let mut parts = uri.clone().into_parts();
    // What was an URI before is one with other values, too.
    parts.path_and_query = path.parse().ok().or(parts.path_and_query);
    if let Ok(edited) = Uri::from_parts(parts) {
        *uri = edited;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The query of a list after `lists` has had its say.
    fn list(lists: &Lists, query: &str) -> String {
        let mut uri: Uri = format!("/api/v1/services?{query}").parse().unwrap();
        lists.prepare(&mut uri);
        assert_eq!(uri.path(), "/api/v1/services");
        uri.query().unwrap().to_owned()
    }

    #[test]
    fn lists_are_read_from_memory_and_never_go_back_in_time() {
        let mut lists = Lists::default();
        let page = "limit=500&fieldSelector=a%21%3Db";
        assert_eq!(list(&lists, page), format!("{page}&resourceVersion=0"));
        let next = "limit=500&continue=abc";
        assert_eq!(list(&lists, next), next);
        lists.answered(StatusCode::OK);
        lists.watched(&"/x?watch=true&resourceVersion=17".parse().unwrap());
        let later = "fieldSelector=a%21%3Db&resourceVersion=17";
        assert_eq!(list(&lists, page), later);
        // The version is from another life of the cluster, or forgotten.
        for status in [410, 504] {
            lists.answered(StatusCode::from_u16(status).unwrap());
            assert_eq!(list(&lists, page), page);
            lists.answered(StatusCode::OK);
            assert_eq!(list(&lists, page), later);
        }
        // Nor does that work: once the one, once the other.
        lists.answered(StatusCode::GONE);
        lists.answered(StatusCode::GONE);
        assert_eq!(list(&lists, page), later);
        // Trouble of another kind says nothing about versions.
        lists.answered(StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(list(&lists, page), later);
    }

    #[test]
    fn parameters_are_replaced() {
        let mut uri: Uri = "https://a:1/x?watch=true&timeoutSeconds=290&a=b"
            .parse()
            .unwrap();
        edit(&mut uri, &[("timeoutSeconds", "400")]);
        assert_eq!(uri, "https://a:1/x?watch=true&a=b&timeoutSeconds=400");
    }
}
