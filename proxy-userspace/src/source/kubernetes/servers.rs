//! The API servers of a cluster as one: the next one serves if one fails, credentials are those on
//! disk, and who is asked for patience is patient.

use std::sync::Arc;
use std::time::Duration;

use futures::stream;
use http::header::RETRY_AFTER;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Bytes;
use kube::client::Body;
use kube::{Client, Config};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until, timeout};
use tower::BoxError;
use tracing::{debug, warn};

use super::access::{Access, Sources, connect};
use super::{KubernetesError, jitter};

/// Nobody is waited for longer, whatever is asked for.
const MOST_PATIENCE: Duration = Duration::from_secs(60);

/// A body that has been read, or that is watched.
pub(super) type Answer = UnsyncBoxBody<Bytes, BoxError>;

/// There was no answer, or nothing was heard of a watch, for too long.
#[derive(Debug, thiserror::Error)]
#[error("nothing was heard for {0:?}")]
pub(super) struct Silence(Duration);

/// Which API server is asked, and how.
pub(super) struct Servers {
    access: Access,
    state: Mutex<State>,
}

struct State {
    client: Client,
    config: Config,
    sources: Sources,
    /// The credentials have not been accepted.
    is_refused: bool,
    /// Which of the servers is asked; counts on and on.
    turn: usize,
    /// The API server wants to be left alone until then.
    quiet: Option<Instant>,
    /// Why the configuration is not what the files say.
    trouble: Option<String>,
}

impl Servers {
    /// # Errors
    /// There is no usable configuration.
    pub(super) async fn new(access: Access) -> Result<Arc<Self>, KubernetesError> {
        let (config, sources) = access.read().await?;
        let client = client(&access, &config, 0)?;
        let state = State {
            client,
            config,
            sources,
            is_refused: false,
            turn: 0,
            quiet: None,
            trouble: None,
        };
        let state = Mutex::new(state);
        Ok(Arc::new(Self { access, state }))
    }

    /// All of them as one client.
    pub(super) async fn client(self: &Arc<Self>) -> Client {
        let namespace = self.state.lock().await.config.default_namespace.clone();
        let servers = Arc::clone(self);
        let service = tower::service_fn(move |request| {
            let servers = Arc::clone(&servers);
            async move { servers.send(request).await }
        });
        Client::new(service, namespace)
    }

    /// Asks the server whose turn it is, and the others in turn while there is no answer at all.
    async fn send(
        self: Arc<Self>,
        request: Request<Body>,
    ) -> Result<Response<Answer>, kube::Error> {
        let is_watch = is_watch(&request);
        let (head, body) = request.into_parts();
        let body = body.collect_bytes().await?;
        let mut tries = self.access.servers.len().max(1);
        loop {
            let request = Request::from_parts(head.clone(), Body::from(body.clone()));
            let (client, turn) = self.ready().await;
            match self.answer(&client, request, is_watch).await {
                Ok(response) => {
                    self.judge(response.status(), patience(&response), turn)
                        .await;
                    return Ok(response.map(|body| self.observe(body, is_watch, turn)));
                }
                Err(error) => {
                    self.failed(turn).await;
                    tries -= 1;
                    if tries == 0 {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// The client to ask, once nobody wants to be left alone.
    async fn ready(&self) -> (Client, usize) {
        let quiet = self.state.lock().await.quiet;
        if let Some(quiet) = quiet {
            sleep_until(quiet).await;
        }
        let mut state = self.state.lock().await;
        if state.is_refused || state.sources.have_changed() {
            state.reread(&self.access).await;
        }
        (state.client.clone(), state.turn)
    }

    /// The answer to a request; that to a watch as soon as it begins.
    async fn answer(
        &self,
        client: &Client,
        request: Request<Body>,
        is_watch: bool,
    ) -> Result<Response<Answer>, kube::Error> {
        let answer = async {
            let response = client.send(request).await?;
            let (head, body) = response.into_parts();
            let body = if is_watch && head.status.is_success() {
                body.map_err(BoxError::from).boxed_unsync()
            } else {
                let body = Full::new(body.collect_bytes().await?);
                body.map_err(|never| match never {}).boxed_unsync()
            };
            Ok(Response::from_parts(head, body))
        };
        let patience = self.access.timing.answer;
        match timeout(patience, answer).await {
            Ok(result) => result,
            Err(_) => Err(kube::Error::Service(Silence(patience).into())),
        }
    }

    /// Takes note of what an answer says of its server, which wants to be left alone for
    /// `pause`.
    async fn judge(&self, status: StatusCode, pause: Option<Duration>, turn: usize) {
        if status == StatusCode::UNAUTHORIZED {
            self.state.lock().await.is_refused = true;
        }
        if status.is_server_error() {
            self.failed(turn).await;
        }
        let is_busy = match status {
            StatusCode::TOO_MANY_REQUESTS => true,
            // Another server may not be.
            StatusCode::SERVICE_UNAVAILABLE => self.access.servers.len() < 2,
            _ => false,
        };
        if let Some(pause) = pause.filter(|_| is_busy) {
            debug!(?pause, "the API server is busy");
            self.state.lock().await.quiet = Some(Instant::now() + pause + jitter(pause / 4));
        }
    }

    /// It is the next server's turn, unless that has been noticed already.
    async fn failed(&self, turn: usize) {
        let mut state = self.state.lock().await;
        if state.turn != turn || self.access.servers.len() < 2 {
            return;
        }
        match client(&self.access, &state.config, turn + 1) {
            Ok(client) => {
                state.client = client;
                state.turn += 1;
                let server = &self.access.servers[state.turn % self.access.servers.len()];
                debug!(%server, "the next API server's turn");
            }
            Err(error) => debug!(%error, "the next API server cannot be asked"),
        }
    }

    /// The same body, which ends with an error if nothing comes of a watch for too long.
    fn observe(self: &Arc<Self>, body: Answer, is_watch: bool, turn: usize) -> Answer {
        if !is_watch {
            return body;
        }
        let idle = self.access.timing.idle;
        let open = Some((Arc::clone(self), body));
        let frames = stream::unfold(open, move |open| async move {
            let (servers, mut body) = open?;
            match timeout(idle, body.frame()).await {
                Ok(frame) => Some((frame?, Some((servers, body)))),
                Err(_) => {
                    servers.failed(turn).await;
                    Some((Err(Silence(idle).into()), None))
                }
            }
        });
        StreamBody::new(Box::pin(frames)).boxed_unsync()
    }
}

impl State {
    /// Goes by what the files say now. If that cannot be used, what they said before stays.
    async fn reread(&mut self, access: &Access) {
        let read = access.read().await;
        let made = read.and_then(|(config, sources)| {
            Ok((client(access, &config, self.turn)?, config, sources))
        });
        match made {
            Ok((client, config, sources)) => {
                debug!("credentials are read again");
                (self.client, self.config, self.sources) = (client, config, sources);
                (self.is_refused, self.trouble) = (false, None);
            }
            Err(error) => {
                let message = error.to_string();
                if self.trouble.as_ref() != Some(&message) {
                    warn!("{message}; what was read before stays in use");
                    self.trouble = Some(message);
                }
            }
        }
    }
}

fn client(access: &Access, config: &Config, turn: usize) -> Result<Client, KubernetesError> {
    let mut config = config.clone();
    if !access.servers.is_empty() {
        config.cluster_url = access.servers[turn % access.servers.len()].clone();
    }
    connect(config).map_err(KubernetesError::Client)
}

/// Whether this opens a watch.
pub(super) fn is_watch<B>(request: &Request<B>) -> bool {
    let query = request.uri().query().unwrap_or_default();
    query.split('&').any(|parameter| parameter == "watch=true")
}

/// For how long the API server wants to be left alone.
fn patience<B>(response: &Response<B>) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?;
    Some(Duration::from_secs(seconds.trim().parse().ok()?).min(MOST_PATIENCE))
}
