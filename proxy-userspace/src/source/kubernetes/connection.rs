//! The connection to the API server, watched on the way.
//!
//! The watcher hides some of what matters here: that a watch that was cut is there again, how
//! often it is opened, and answers that never end.

use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use kube::Client;
use kube::client::Body;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until, timeout};

use super::feed::Feed;
use crate::source::ledger::Kind;

/// How long the API server may take to answer: the whole list, or the beginning of a watch.
const ANSWER: Duration = Duration::from_secs(60);
/// How long at least from one opening of a watch to the next: one that ends as soon as it has
/// begun is opened again without end.
const PACE: Duration = Duration::from_secs(1);

/// The same client for watching one kind of object, which tells `feed` when a watch stands.
pub(super) fn observed(client: Client, kind: Kind, feed: Arc<Feed>) -> Client {
    let namespace = client.default_namespace().to_owned();
    let opened = Arc::new(Mutex::new(None));
    let service = tower::service_fn(move |request: Request<Body>| {
        let (client, feed, opened) = (client.clone(), Arc::clone(&feed), Arc::clone(&opened));
        async move {
            let is_watch = is_watch(&request);
            if is_watch {
                pace(&opened).await;
            }
            let response = answer(&client, request, is_watch).await?;
            if is_watch && response.status().is_success() {
                feed.fine(kind).await;
            }
            Ok::<_, kube::Error>(response)
        }
    });
    Client::new(service, namespace)
}

fn is_watch(request: &Request<Body>) -> bool {
    let query = request.uri().query().unwrap_or_default();
    query.split('&').any(|parameter| parameter == "watch=true")
}

async fn pace(opened: &Mutex<Option<Instant>>) {
    let mut opened = opened.lock().await;
    if let Some(last) = *opened {
        sleep_until(last + PACE).await;
    }
    *opened = Some(Instant::now());
}

async fn answer(
    client: &Client,
    request: Request<Body>,
    is_watch: bool,
) -> Result<Response<Body>, kube::Error> {
    let answer = async {
        let response = client.send(request).await?;
        if is_watch {
            return Ok(response);
        }
        let (head, body) = response.into_parts();
        Ok(Response::from_parts(
            head,
            Body::from(body.collect_bytes().await?),
        ))
    };
    match timeout(ANSWER, answer).await {
        Ok(result) => result,
        Err(_) => Err(kube::Error::Service(
            format!("no answer within {ANSWER:?}").into(),
        )),
    }
}
