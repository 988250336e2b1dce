//! A Kubernetes API server for tests: real HTTP list and watch over objects in memory.
//!
//! It knows Services, EndpointSlices, Nodes, Pods, ServiceCIDRs and Events, with resource versions,
//! pages, label and field selectors, bookmarks, and 410 Gone for versions that it has forgotten.
//! Objects are changed through its methods or with POST, PUT, PATCH and DELETE, and it misbehaves
//! on demand. Objects are not validated: tests also want malformed ones.
#![allow(dead_code, reason = "each test crate uses a part of it")]

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::stream::{self, Stream, StreamExt};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

/// No wait takes this long unless something is broken.
const PATIENCE: Duration = Duration::from_secs(30);

/// The kinds that are served: path segment, group and version, kind.
const KINDS: [(&str, &str, &str); 7] = [
    ("services", "v1", "Service"),
    ("nodes", "v1", "Node"),
    ("events", "v1", "Event"),
    ("events", "events.k8s.io/v1", "Event"),
    ("pods", "v1", "Pod"),
    ("endpointslices", "discovery.k8s.io/v1", "EndpointSlice"),
    ("servicecidrs", "networking.k8s.io/v1", "ServiceCIDR"),
];

/// What is done with a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verb {
    List,
    Watch,
    /// POST
    Create,
}

/// How a request goes wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Failure {
    /// It is answered with this HTTP status.
    Status(u16),
    /// It is answered with status 429, and that this many seconds are to pass.
    Busy(u64),
    /// It is answered with status 200 and this.
    Body(String),
    /// The connection is cut instead of an answer.
    Cut,
    /// It is answered properly, but late.
    Late(Duration),
}

/// How a client learns that the version it names is forgotten. API servers do both.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Gone {
    /// By the HTTP status.
    Status,
    /// By an event in the watch.
    Event,
}

/// A running API server. It stops when dropped.
pub(crate) struct ApiServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    listener: Option<JoinHandle<()>>,
    /// Moves on to cut all connections.
    cut: watch::Sender<()>,
}

struct Shared {
    state: Mutex<State>,
    /// Moves on with every change of the state and every request.
    changed: watch::Sender<()>,
}

struct State {
    version: u64,
    /// Versions before this one are forgotten.
    forgotten: u64,
    gone: Gone,
    /// By path segment, namespace and name.
    objects: BTreeMap<(String, String, String), Value>,
    log: Vec<Entry>,
    /// What is left of lists, by continue token.
    pages: HashMap<String, (u64, Vec<Value>)>,
    failures: Vec<(String, Verb, usize, Failure)>,
    requests: Vec<String>,
    /// The watches that are open, by path segment.
    watches: Vec<String>,
    /// How many watches have been opened.
    n_opened: usize,
    /// Watches that say nothing more: path segment, and which they are at most.
    silent: Vec<(String, usize)>,
    /// The bearer token that requests must have, if any.
    token: Option<String>,
    /// How new connections are secured, if they are.
    tls: Option<TlsAcceptor>,
}

/// Something that watches are told.
#[derive(Clone)]
struct Entry {
    version: u64,
    resource: String,
    what: What,
}

#[derive(Clone)]
enum What {
    Change {
        old: Option<Value>,
        new: Option<Value>,
    },
    Bookmark,
    /// To the watches that are open, as it stands.
    Line(String),
}

impl ApiServer {
    /// Starts one on a free loopback port.
    pub(crate) async fn start() -> Self {
        Self::bind("127.0.0.1:0".parse().unwrap()).await.unwrap()
    }

    /// Starts one at `address`.
    pub(crate) async fn bind(address: SocketAddr) -> io::Result<Self> {
        let state = State {
            version: 100,
            forgotten: 0,
            gone: Gone::Event,
            objects: BTreeMap::new(),
            log: Vec::new(),
            pages: HashMap::new(),
            failures: Vec::new(),
            requests: Vec::new(),
            watches: Vec::new(),
            n_opened: 0,
            silent: Vec::new(),
            token: None,
            tls: None,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: watch::Sender::new(()),
        });
        Self::serve(address, shared).await
    }

    /// Starts another one of the same cluster.
    pub(crate) async fn twin(&self) -> Self {
        self.twin_at(self.address.ip()).await
    }

    /// Starts another one of the same cluster at another address.
    pub(crate) async fn twin_at(&self, ip: IpAddr) -> Self {
        let shared = Arc::clone(&self.shared);
        Self::serve(SocketAddr::new(ip, 0), shared).await.unwrap()
    }

    async fn serve(address: SocketAddr, shared: Arc<Shared>) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let cut = watch::Sender::new(());
        let accept = accept(listener, Arc::clone(&shared), cut.clone());
        Ok(Self {
            address,
            shared,
            listener: Some(tokio::spawn(accept)),
            cut,
        })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A kubeconfig that leads here.
    pub(crate) fn kubeconfig(&self) -> String {
        let named = |kind: &str, content: Value| json!([{"name": "test", kind: content}]);
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": named("cluster", json!({"server": self.url()})),
            "users": named("user", json!({})),
            "contexts": named("context", json!({"cluster": "test", "user": "test"})),
        });
        kubeconfig.to_string()
    }

    /// Creates or replaces an object, given with `apiVersion`, `kind` and `metadata.name`, and
    /// returns its new version.
    pub(crate) fn apply(&self, object: Value) -> u64 {
        let resource = resource(&object).unwrap_or_else(|| panic!("not served: {object}"));
        self.shared.apply(resource, object)
    }

    /// Applies the objects of a manifest, YAML or JSON, that are of a kind served here, and
    /// returns how many they are.
    pub(crate) fn apply_manifest(&self, text: &str) -> Result<usize, serde_saphyr::Error> {
        let mut count = 0;
        let options = serde_saphyr::options! { budget: None };
        let mut objects: Vec<Value> = serde_saphyr::from_multiple_with_options(text, options)?;
        while let Some(mut object) = objects.pop() {
            if let Some(items) = object.get_mut("items").and_then(Value::as_array_mut) {
                objects.append(items);
            } else if resource(&object).is_some() {
                self.apply(object);
                count += 1;
            }
        }
        Ok(count)
    }

    /// Deletes an object, if it is there. The namespace of a Node is "".
    pub(crate) fn delete(&self, resource: &str, namespace: &str, name: &str) {
        self.shared.delete(resource, namespace, name);
    }

    /// Forgets all versions before the present one.
    pub(crate) fn forget(&self, gone: Gone) {
        let mut state = self.shared.state();
        state.forgotten = state.version;
        state.gone = gone;
        state.pages.clear();
    }

    /// Sends a bookmark to the watches of this resource.
    pub(crate) fn bookmark(&self, resource: &str) {
        self.shared.tell(resource, What::Bookmark);
    }

    /// Sends an event to the open watches of this resource without a change behind it: an old
    /// one, one again, a malformed one.
    pub(crate) fn send(&self, resource: &str, kind: &str, object: &Value) {
        self.shared.tell(resource, What::Line(event(kind, object)));
    }

    /// Lets the next `times` requests of this kind fail.
    pub(crate) fn fail(&self, resource: &str, verb: Verb, times: usize, failure: Failure) {
        self.shared
            .state()
            .failures
            .push((resource.into(), verb, times, failure));
    }

    /// Has the watches of this resource that are open say nothing more, as if all was well.
    pub(crate) fn silence(&self, resource: &str) {
        let mut state = self.shared.state();
        let last = state.n_opened;
        state.silent.push((resource.to_owned(), last));
    }

    /// Has requests need this bearer token from now on; watches that are open go on.
    pub(crate) fn require_token(&self, token: &str) {
        self.shared.state().token = Some(token.to_owned());
    }

    /// Secures connections from now on; those that are open go on.
    pub(crate) fn secure(&self, config: ServerConfig) {
        self.shared.state().tls = Some(TlsAcceptor::from(Arc::new(config)));
    }

    /// The objects of this resource as they are now.
    pub(crate) fn objects(&self, resource: &str) -> Vec<Value> {
        let state = self.shared.state();
        let objects = state.objects.iter().filter(|(key, _)| key.0 == resource);
        objects.map(|(_, object)| object.clone()).collect()
    }

    /// Waits until there are as many objects of this resource.
    pub(crate) async fn holds(&self, resource: &str, count: usize) {
        self.until(&format!("{count} {resource}"), |state| {
            state.objects.keys().filter(|key| key.0 == resource).count() == count
        })
        .await;
    }

    /// Cuts all connections.
    pub(crate) fn cut(&self) {
        self.cut.send_replace(());
    }

    /// Cuts all connections and refuses new ones.
    pub(crate) async fn down(&mut self) {
        if let Some(listener) = self.listener.take() {
            listener.abort();
            assert!(listener.await.unwrap_err().is_cancelled());
        }
        self.cut();
    }

    /// Accepts connections again.
    pub(crate) async fn up(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        let accept = accept(listener, Arc::clone(&self.shared), self.cut.clone());
        self.listener = Some(tokio::spawn(accept));
    }

    /// All requests so far: LIST, WATCH or the method, path and decoded query.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.shared.state().requests.clone()
    }

    /// Waits until a request with all these parts has come `times` times.
    pub(crate) async fn requested(&self, parts: &[&str], times: usize) {
        let what = format!("{times} requests with {parts:?}");
        self.until(&what, |state| {
            let has_all = |request: &&String| parts.iter().all(|part| request.contains(part));
            state.requests.iter().filter(has_all).count() >= times
        })
        .await;
    }

    /// Waits until this resource is watched.
    pub(crate) async fn watched(&self, resource: &str) {
        let what = format!("a watch of {resource}");
        self.until(&what, |state| {
            state.watches.iter().any(|watch| watch == resource)
        })
        .await;
    }

    async fn until(&self, what: &str, holds: impl Fn(&State) -> bool) {
        let mut changed = self.shared.changed.subscribe();
        let wait = async {
            while !holds(&self.shared.state()) {
                changed.changed().await.unwrap();
            }
        };
        if tokio::time::timeout(PATIENCE, wait).await.is_err() {
            panic!("no {what} within {PATIENCE:?}: {:#?}", self.requests());
        }
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if let Some(listener) = &self.listener {
            listener.abort();
        }
        self.cut();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn apply(&self, resource: &str, mut object: Value) -> u64 {
        let mut state = self.state();
        state.version += 1;
        let version = state.version;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        if resource != "nodes" && resource != "servicecidrs" {
            let namespace = &mut object["metadata"]["namespace"];
            if namespace.is_null() {
                *namespace = "default".into();
            }
        }
        let key = key(resource, &object["metadata"]);
        let old = state.objects.insert(key, object.clone());
        drop(state);
        self.tell(
            resource,
            What::Change {
                old,
                new: Some(object),
            },
        );
        version
    }

    fn delete(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        let mut state = self.state();
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        let old = state.objects.remove(&key)?;
        state.version += 1;
        drop(state);
        self.tell(
            resource,
            What::Change {
                old: Some(old.clone()),
                new: None,
            },
        );
        Some(old)
    }

    fn tell(&self, resource: &str, what: What) {
        let mut state = self.state();
        let version = state.version;
        state.log.push(Entry {
            version,
            resource: resource.into(),
            what,
        });
        drop(state);
        self.changed.send_replace(());
    }
}

/// The path segment for objects of this kind, if it is served.
fn resource(object: &Value) -> Option<&'static str> {
    KINDS
        .iter()
        .find(|(_, version, kind)| object["apiVersion"] == *version && object["kind"] == *kind)
        .map(|(resource, ..)| *resource)
}

fn key(resource: &str, metadata: &Value) -> (String, String, String) {
    let text = |field: &str| metadata[field].as_str().unwrap_or_default().to_owned();
    (resource.into(), text("namespace"), text("name"))
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, cut: watch::Sender<()>) {
    while let Ok((connection, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        let mut cut = cut.subscribe();
        let tls = shared.state().tls.clone();
        tokio::spawn(async move {
            let serve = async {
                match tls {
                    None => serve(connection, shared).await,
                    Some(tls) => {
                        if let Ok(connection) = tls.accept(connection).await {
                            serve(connection, shared).await;
                        }
                    }
                }
            };
            tokio::select! {
                () = serve => {}
                _ = cut.changed() => {}
            }
        });
    }
}

async fn serve(connection: impl AsyncRead + AsyncWrite + Unpin, shared: Arc<Shared>) {
    let service = service_fn(move |request| respond(request, Arc::clone(&shared)));
    let connection = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(connection), service);
    // However it ends, the client has noticed.
    drop(connection.await);
}

type Answer = Response<BoxBody<Bytes, Infallible>>;

/// An answer, or an error that cuts the connection.
async fn respond(request: Request<Incoming>, shared: Arc<Shared>) -> Result<Answer, io::Error> {
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let mut query = Query::of(request.uri().query().unwrap_or_default());
    query.note_form(&request);
    let token = request.headers().get("authorization").cloned();
    let body = request
        .into_body()
        .collect()
        .await
        .map_err(io::Error::other)?
        .to_bytes();
    let Some(place) = Place::of(&path) else {
        return Ok(status(404, "no such path"));
    };
    let (verb, word) = match (query.get("watch"), &place.name) {
        ("true", _) => (Verb::Watch, "WATCH"),
        (_, None) if method == Method::GET => (Verb::List, "LIST"),
        _ if method == Method::POST => (Verb::Create, "POST"),
        _ => (Verb::List, method.as_str()),
    };
    let (failure, is_known) = {
        let mut state = shared.state();
        state.requests.push(format!("{word} {path} {query}"));
        let wanted = state.token.as_ref().map(|token| format!("Bearer {token}"));
        let is_known = wanted.is_none_or(|wanted| token.is_some_and(|it| it == wanted));
        (state.failure(&place.resource, verb), is_known)
    };
    shared.changed.send_replace(());
    if !is_known {
        return Ok(status(401, "Unauthorized"));
    }
    match failure {
        Some(Failure::Status(code)) => return Ok(status(code, "as the test wants it")),
        Some(Failure::Busy(seconds)) => {
            let mut answer = status(429, "too many requests");
            answer.headers_mut().insert("retry-after", seconds.into());
            return Ok(answer);
        }
        Some(Failure::Body(body)) => return Ok(answer(200, body)),
        Some(Failure::Cut) => return Err(io::ErrorKind::ConnectionAborted.into()),
        Some(Failure::Late(delay)) => tokio::time::sleep(delay).await,
        None => {}
    }
    Ok(match (method, &place.name) {
        (Method::GET, None) if verb == Verb::Watch => watch_events(shared, &place, &query),
        (Method::GET, None) => list(&shared, &place, &query),
        (Method::GET, Some(name)) => {
            let key = (
                place.resource.clone(),
                place.namespace.clone(),
                name.clone(),
            );
            found(shared.state().objects.get(&key).cloned())
        }
        (Method::POST, None) | (Method::PUT, Some(_)) => match serde_json::from_slice(&body) {
            Ok(object) => write(&shared, &place, object),
            Err(error) => status(400, &error.to_string()),
        },
        (Method::PATCH, Some(name)) => match serde_json::from_slice(&body) {
            Ok(patch) => merge(&shared, &place, name, &patch),
            Err(error) => status(400, &error.to_string()),
        },
        (Method::DELETE, Some(name)) => {
            found(shared.delete(&place.resource, &place.namespace, name))
        }
        _ => status(405, "not served"),
    })
}

fn write(shared: &Shared, place: &Place, mut object: Value) -> Answer {
    if !object["metadata"]["name"].is_string() {
        return status(422, "metadata.name: missing");
    }
    if !place.namespace.is_empty() {
        object["metadata"]["namespace"] = place.namespace.clone().into();
    }
    let key = key(&place.resource, &object["metadata"]);
    if place.name.is_none() && shared.state().objects.contains_key(&key) {
        return status(409, "already exists");
    }
    let version = shared.apply(&place.resource, object.clone());
    object["metadata"]["resourceVersion"] = version.to_string().into();
    answer(200, object.to_string())
}

/// Merges fields of an object, two levels deep at most.
fn merge(shared: &Shared, place: &Place, name: &str, patch: &Value) -> Answer {
    let key = (
        place.resource.clone(),
        place.namespace.clone(),
        name.to_owned(),
    );
    let Some(mut object) = shared.state().objects.get(&key).cloned() else {
        return status(404, "not found");
    };
    for (field, value) in patch.as_object().into_iter().flatten() {
        match (object[field].as_object_mut(), value.as_object()) {
            (Some(old), Some(new)) => old.extend(new.clone()),
            _ => object[field] = value.clone(),
        }
    }
    shared.apply(&place.resource, object.clone());
    answer(200, object.to_string())
}

fn found(object: Option<Value>) -> Answer {
    match object {
        Some(object) => answer(200, object.to_string()),
        None => status(404, "not found"),
    }
}

fn answer(code: u16, body: String) -> Answer {
    let body = Full::new(Bytes::from(body)).boxed();
    let response = Response::builder()
        .status(code)
        .header("content-type", "application/json");
    response.body(body).unwrap()
}

fn status(code: u16, message: &str) -> Answer {
    answer(code, status_object(code, message).to_string())
}

fn status_object(code: u16, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": if code == 410 { "Expired" } else { "" }, "code": code,
    })
}

impl State {
    /// The failure that awaits this request.
    fn failure(&mut self, resource: &str, verb: Verb) -> Option<Failure> {
        let waits = |(r, v, times, _): &(String, Verb, usize, Failure)| {
            r == resource && *v == verb && *times > 0
        };
        let at = self.failures.iter().position(waits)?;
        let (_, _, times, failure) = &mut self.failures[at];
        *times -= 1;
        Some(failure.clone())
    }
}

fn list(shared: &Shared, place: &Place, query: &Query) -> Answer {
    let filter = match Filter::of(place, query) {
        Ok(filter) => filter,
        Err(message) => return status(400, &message),
    };
    let mut state = shared.state();
    let wanted = query.get("resourceVersion").parse().unwrap_or(0);
    if wanted > state.version {
        return status(504, "Too large resource version");
    }
    let token = query.get("continue");
    let (version, mut items) = if token.is_empty() {
        let objects = state
            .objects
            .iter()
            .filter(|(key, _)| key.0 == place.resource);
        let items = objects
            .map(|(_, object)| object)
            .filter(|object| filter.holds(object));
        (state.version, items.cloned().collect())
    } else {
        match state.pages.remove(token) {
            Some(page) => page,
            None => return status(410, "the continue token is too old"),
        }
    };
    let limit = query
        .get("limit")
        .parse()
        .ok()
        .filter(|&limit| limit > 0)
        .unwrap_or(usize::MAX);
    let rest = items.split_off(limit.min(items.len()));
    let mut metadata = json!({"resourceVersion": version.to_string()});
    if !rest.is_empty() {
        let token = format!("page-{}", state.requests.len());
        metadata["continue"] = token.clone().into();
        metadata["remainingItemCount"] = rest.len().into();
        state.pages.insert(token, (version, rest));
    }
    drop(state);
    // Items of a typed list don't repeat their type.
    for item in items.iter_mut().filter_map(Value::as_object_mut) {
        item.remove("kind");
        item.remove("apiVersion");
    }
    let kind = format!("{}List", place.kind);
    let list =
        json!({"kind": kind, "apiVersion": place.version, "metadata": metadata, "items": items});
    answer(200, list.to_string())
}

fn watch_events(shared: Arc<Shared>, place: &Place, query: &Query) -> Answer {
    let filter = match Filter::of(place, query) {
        Ok(filter) => filter,
        Err(message) => return status(400, &message),
    };
    let Ok(since) = query.get("resourceVersion").parse::<u64>() else {
        return status(
            400,
            "resourceVersion: only watches from a version are served",
        );
    };
    let state = shared.state();
    if since < state.forgotten {
        let message = format!("too old resource version: {since} ({})", state.forgotten);
        return match state.gone {
            Gone::Status => status(410, &message),
            Gone::Event => {
                let object = status_object(410, &message);
                answer(
                    200,
                    format!("{}\n", json!({"type": "ERROR", "object": object})),
                )
            }
        };
    }
    let next = state.log.partition_point(|entry| entry.version <= since);
    drop(state);
    let watch = Watch {
        changed: shared.changed.subscribe(),
        open: Open::new(shared, place.resource.clone()),
        next,
        kind: (place.version, place.kind),
        filter,
        bookmarks: query.get("allowWatchBookmarks") == "true",
    };
    let limit = query.get("timeoutSeconds").parse().unwrap_or(3600);
    let end = tokio::time::sleep(Duration::from_secs(limit));
    let lines = watch.lines().take_until(end);
    let frames = lines.map(|line| Ok::<_, Infallible>(Frame::data(Bytes::from(line + "\n"))));
    let response = Response::builder().header("content-type", "application/json");
    response
        .body(BodyExt::boxed(StreamBody::new(frames)))
        .unwrap()
}

/// A line of a watch, with the type first, as the real one has it.
fn event(kind: &str, object: &Value) -> String {
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}")
}

/// An open watch, entered in the state.
struct Open {
    shared: Arc<Shared>,
    resource: String,
    number: usize,
}

impl Open {
    fn new(shared: Arc<Shared>, resource: String) -> Self {
        let mut state = shared.state();
        state.watches.push(resource.clone());
        state.n_opened += 1;
        let number = state.n_opened;
        drop(state);
        shared.changed.send_replace(());
        Self {
            shared,
            resource,
            number,
        }
    }

    fn is_silent(&self) -> bool {
        let state = self.shared.state();
        let mut silent = state.silent.iter();
        silent.any(|(resource, last)| *resource == self.resource && self.number <= *last)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        if let Some(at) = state
            .watches
            .iter()
            .position(|watch| *watch == self.resource)
        {
            state.watches.swap_remove(at);
        }
    }
}

struct Watch {
    changed: watch::Receiver<()>,
    open: Open,
    /// The next entry of the log to look at.
    next: usize,
    kind: (&'static str, &'static str),
    filter: Filter,
    bookmarks: bool,
}

impl Watch {
    fn lines(self) -> impl Stream<Item = String> + Send + Sync {
        stream::unfold(self, |mut watch| async {
            loop {
                if watch.open.is_silent() {
                    return std::future::pending().await;
                }
                let entry = watch.open.shared.state().log.get(watch.next).cloned();
                match entry {
                    Some(entry) => {
                        watch.next += 1;
                        if let Some(line) = watch.line(entry) {
                            return Some((line, watch));
                        }
                    }
                    None => watch.changed.changed().await.ok()?,
                }
            }
        })
    }

    fn line(&self, entry: Entry) -> Option<String> {
        if entry.resource != self.open.resource {
            return None;
        }
        let (kind, mut object) = match entry.what {
            What::Line(line) => return Some(line),
            What::Bookmark if self.bookmarks => ("BOOKMARK", json!({"metadata": {}})),
            What::Bookmark => return None,
            What::Change { old, new } => {
                // An object that is not selected any more is gone for this watch.
                let old = old.filter(|object| self.filter.holds(object));
                let new = new.filter(|object| self.filter.holds(object));
                match (old, new) {
                    (None, None) => return None,
                    (None, Some(new)) => ("ADDED", new),
                    (Some(_), Some(new)) => ("MODIFIED", new),
                    (Some(old), None) => ("DELETED", old),
                }
            }
        };
        (object["apiVersion"], object["kind"]) = (self.kind.0.into(), self.kind.1.into());
        object["metadata"]["resourceVersion"] = entry.version.to_string().into();
        Some(event(kind, &object))
    }
}

/// What a path leads to.
struct Place {
    version: &'static str,
    kind: &'static str,
    resource: String,
    /// "" for all, and for objects without one.
    namespace: String,
    name: Option<String>,
}

impl Place {
    fn of(path: &str) -> Option<Self> {
        let path = path
            .strip_prefix("/apis/")
            .or_else(|| path.strip_prefix("/api/"))?;
        let (resource, version, kind, rest) =
            KINDS.iter().find_map(|(resource, version, kind)| {
                let rest = path.strip_prefix(version)?.strip_prefix('/')?;
                rest.split('/')
                    .any(|part| part == *resource)
                    .then_some((resource, version, kind, rest))
            })?;
        let mut parts = rest.split('/');
        let mut part = parts.next()?;
        let mut namespace = "";
        if part == "namespaces" {
            namespace = parts.next()?;
            part = parts.next()?;
        }
        let name = parts.next().map(str::to_owned);
        (part == *resource && parts.next().is_none()).then(|| Self {
            version,
            kind,
            resource: part.to_owned(),
            namespace: namespace.to_owned(),
            name,
        })
    }
}

/// The parameters of a request.
struct Query(BTreeMap<String, String>);

impl Query {
    fn of(query: &str) -> Self {
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        Self(
            pairs
                .map(|(key, value)| (key.to_owned(), decoded(value)))
                .collect(),
        )
    }

    /// Notes in what form objects are asked for, such as `PartialObjectMetadata`. They are served
    /// whole all the same: clients pass over what they do not know.
    fn note_form(&mut self, request: &Request<Incoming>) {
        let accept = request.headers().get("accept");
        let accept = accept.and_then(|value| value.to_str().ok());
        let mut parts = accept.unwrap_or_default().split(';');
        if let Some(form) = parts.find_map(|part| part.strip_prefix("as=")) {
            self.0.insert("as".to_owned(), form.to_owned());
        }
    }

    fn get(&self, key: &str) -> &str {
        self.0.get(key).map_or("", String::as_str)
    }
}

impl std::fmt::Display for Query {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (key, value) in &self.0 {
            write!(f, "[{key}={value}]")?;
        }
        Ok(())
    }
}

/// Undoes percent encoding.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        bytes.push(match (first, tail) {
            (b'%', [high, low, tail @ ..]) => {
                rest = tail;
                let digits = [*high, *low];
                u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
            }
            (b'+', _) => b' ',
            (other, _) => *other,
        });
    }
    String::from_utf8(bytes).unwrap()
}

/// The selectors of a request.
struct Filter {
    namespace: String,
    tests: Vec<Test>,
}

/// One requirement of a selector.
struct Test {
    is_label: bool,
    key: String,
    /// The value that it must have; `None` for any.
    value: Option<String>,
    /// Whether it must be so, or must not.
    holds: bool,
}

impl Filter {
    fn of(place: &Place, query: &Query) -> Result<Self, String> {
        let mut tests = Vec::new();
        for (parameter, is_label) in [("labelSelector", true), ("fieldSelector", false)] {
            for text in query
                .get(parameter)
                .split(',')
                .filter(|text| !text.is_empty())
            {
                tests.push(Test::of(text, is_label));
            }
        }
        // As strict as the real one.
        let known = [
            "metadata.name",
            "metadata.namespace",
            "spec.clusterIP",
            "spec.type",
            "spec.nodeName",
            "status.phase",
        ];
        let unknown = |test: &&Test| !test.is_label && !known.contains(&test.key.as_str());
        match tests.iter().find(unknown) {
            Some(test) => Err(format!("field label not supported: {}", test.key)),
            None => Ok(Self {
                namespace: place.namespace.clone(),
                tests,
            }),
        }
    }

    fn holds(&self, object: &Value) -> bool {
        let in_namespace =
            self.namespace.is_empty() || object["metadata"]["namespace"] == self.namespace.as_str();
        in_namespace && self.tests.iter().all(|test| test.passes(object))
    }
}

impl Test {
    fn of(text: &str, is_label: bool) -> Self {
        let (key, value, holds) = if let Some((key, value)) = text.split_once("!=") {
            (key, Some(value), false)
        } else if let Some((key, value)) = text.split_once('=') {
            (key, Some(value.trim_start_matches('=')), true)
        } else if let Some(key) = text.strip_prefix('!') {
            (key, None, false)
        } else {
            (text, None, true)
        };
        Self {
            is_label,
            key: key.into(),
            value: value.map(str::to_owned),
            holds,
        }
    }

    fn passes(&self, object: &Value) -> bool {
        let actual = if self.is_label {
            object["metadata"]["labels"].get(&self.key)
        } else {
            object.pointer(&format!("/{}", self.key.replace('.', "/")))
        };
        let actual = actual.and_then(Value::as_str);
        let so = match &self.value {
            None => actual.is_some(),
            // An absent field reads as "", an absent label as unequal to all.
            Some(value) if self.is_label => actual == Some(value),
            Some(value) => actual.unwrap_or_default() == value,
        };
        so == self.holds
    }
}
