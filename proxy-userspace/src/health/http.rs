//! Small HTTP servers that no client can tie up.
//!
//! A connection carries one request and ends after a few seconds, whatever the client does. There
//! is a limit of connections; beyond it the oldest is cut, so that those who hold theirs open
//! can't keep others out.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{self, BoxFuture};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, LOCATION, X_CONTENT_TYPE_OPTIONS};
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinHandle};

use super::Problems;

/// How long a connection may take, if the server has no other limit; and for how long its head may
/// be waited for in any case.
pub(super) const DEADLINE: Duration = Duration::from_secs(5);
/// Until an address that could not be bound is tried again.
pub(super) const RETRY: Duration = Duration::from_secs(2);
/// Bytes of a request's head; hyper has no lower limit.
const MAX_HEAD: usize = 8192;
/// Header fields of a request.
const MAX_HEADERS: usize = 64;
/// Bytes of a request's body that are read, only to be thrown away.
const MAX_BODY: usize = 64 << 10;
/// Connections that the kernel keeps until they are accepted.
const BACKLOG: i32 = 128;

/// An answer to a request.
pub type Answer = Response<Full<Bytes>>;
/// What makes answers. It does not block.
pub(crate) type Handler = Arc<dyn Fn(Parts) -> BoxFuture<'static, Answer> + Send + Sync>;

/// A handler that has its answers at once.
pub(crate) fn at_once(handler: impl Fn(&Parts) -> Answer + Send + Sync + 'static) -> Handler {
    Arc::new(move |parts| future::ready(handler(&parts)).boxed())
}

/// Where a server listens, from a command line: `ADDRESS:PORT`, or empty for nowhere.
///
/// As with kube-proxy, an unspecified address of either family stands for all addresses of both.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bind(pub Option<SocketAddr>);

impl std::str::FromStr for Bind {
    type Err = std::net::AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "" => Ok(Self(None)),
            _ => text.parse().map(|address| Self(Some(address))),
        }
    }
}

/// Which addresses the unspecified address stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unspecified {
    /// All of its own family.
    OneFamily,
    /// All of both, as far as the node has them (rule R155).
    BothFamilies,
}

/// Opens a listener. To be called within the asynchronous runtime.
pub(super) fn listen(address: SocketAddr, unspecified: Unspecified) -> io::Result<TcpListener> {
    let has_both = unspecified == Unspecified::BothFamilies && address.ip().is_unspecified();
    if !has_both {
        return open(address, true);
    }
    let port = address.port();
    match open((Ipv6Addr::UNSPECIFIED, port).into(), false) {
        Err(error) if lacks_family(&error) => open((Ipv4Addr::UNSPECIFIED, port).into(), false),
        opened => opened,
    }
}

/// Whether the node does not know the address family at all.
pub(super) fn lacks_family(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

fn open(address: SocketAddr, is_v6_only: bool) -> io::Result<TcpListener> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
    // Connections of an earlier daemon that linger don't keep this one out.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(is_v6_only)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// The open connections of one or more servers.
#[derive(Debug)]
pub(super) struct Connections {
    limit: usize,
    open: Mutex<VecDeque<AbortHandle>>,
}

impl Connections {
    /// None yet, and never more than `limit`.
    pub(super) fn new(limit: usize) -> Arc<Self> {
        let open = Mutex::default();
        Arc::new(Self { limit, open })
    }

    /// Makes room by cutting the oldest.
    fn admit(&self, converse: impl Future<Output = ()> + Send + 'static) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|it| !it.is_finished());
        if open.len() >= self.limit
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        open.push_back(tokio::spawn(converse).abort_handle());
    }
}

/// Answers what comes to `listener`, for ever.
///
/// A conversation may take as long as `deadline` says.
pub(super) async fn serve(
    listener: TcpListener,
    handler: Handler,
    connections: Arc<Connections>,
    deadline: Duration,
) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                connections.admit(converse(stream, Arc::clone(&handler), deadline));
            }
            // The client is gone again, or there is no file descriptor left: then others must end
            // first.
            Err(error) => {
                tracing::debug!("accepting a connection failed: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// One request and its answer.
async fn converse(stream: TcpStream, handler: Handler, deadline: Duration) {
    let service = service_fn(move |request: Request<Incoming>| {
        let handler = Arc::clone(&handler);
        async move {
            let (parts, body) = request.into_parts();
            discard(body).await;
            if is_about_all(&parts) {
                return Ok::<_, Infallible>(Answer::default());
            }
            Ok(handler(parts).await)
        }
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .timer(TokioTimer::new())
        .header_read_timeout(DEADLINE)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(deadline, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!("serving a connection: {error}"),
        Err(_) => tracing::debug!("serving a connection took too long"),
    }
}

/// `OPTIONS *`, which Go's servers answer by themselves.
fn is_about_all(parts: &Parts) -> bool {
    parts.method == Method::OPTIONS && parts.uri.path() == "*"
}

/// The answer to a path that Go's `ServeMux` would clean: where it is found instead.
pub(crate) fn redirect(uri: &Uri) -> Option<Answer> {
    let path = uri.path();
    let clean = clean(path);
    if clean == path {
        return None;
    }
    let query = uri.query().map(|query| format!("?{query}"));
    let location = clean + &query.unwrap_or_default();
    // Anything else than ASCII is encoded in a URI, and so are quotes and brackets.
    let value = HeaderValue::try_from(&location).ok()?;
    let kind = "text/html; charset=utf-8";
    let body = format!("<a href=\"{location}\">Moved Permanently</a>.\n\n");
    let mut answer = answer(StatusCode::MOVED_PERMANENTLY, kind, body);
    let headers = answer.headers_mut();
    let _nosniff = headers.remove(X_CONTENT_TYPE_OPTIONS);
    headers.insert(LOCATION, value);
    Some(answer)
}

/// A path without empty, `.` and `..` segments. A slash at its end stays.
fn clean(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(kept.pop()),
            segment => kept.push(segment),
        }
    }
    let end = if kept.is_empty() || !path.ends_with('/') {
        ""
    } else {
        "/"
    };
    format!("/{}{end}", kept.join("/"))
}

/// Reads a body, since closing a socket with unread bytes would reset the connection under the
/// answer.
async fn discard(mut body: Incoming) {
    let mut n_read = 0;
    while n_read <= MAX_BODY && !body.is_end_stream() {
        match body.frame().await {
            Some(Ok(frame)) => n_read += frame.data_ref().map_or(0, Bytes::len),
            Some(Err(_)) | None => return,
        }
    }
}

/// An address that can't be listened at.
#[derive(Debug, thiserror::Error)]
#[error("{option}: cannot listen at the {name} address {address}")]
pub struct BindError {
    /// Whose address it is.
    name: &'static str,
    /// The option that gave it.
    option: &'static str,
    address: SocketAddr,
    source: io::Error,
}

/// What a server on one address is called and how long its conversations may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Service {
    /// As problems call it.
    pub(crate) name: &'static str,
    /// The option that gives its address.
    pub(crate) option: &'static str,
    /// How long a connection may take.
    pub(crate) deadline: Duration,
}

/// A server on one address, tried again and again until the address can be had. It stops when
/// dropped.
#[derive(Debug)]
pub(crate) struct FixedServer {
    address: Result<SocketAddr, BindError>,
    task: JoinHandle<()>,
}

impl FixedServer {
    /// Connections that each server may have.
    const CONNECTIONS: usize = 128;

    /// Listens at once if it can.
    pub(crate) fn start(
        service: Service,
        bind: SocketAddr,
        handler: Handler,
        problems: Problems,
    ) -> Self {
        let connections = Connections::new(Self::CONNECTIONS);
        let subject = format!("{} address {bind}", service.name);
        let (first, address) = match listen_at(bind) {
            Ok((listener, address)) => (Ok(listener), Ok(address)),
            Err(error) => (Err(error.to_string()), Err(service.refused(bind, error))),
        };
        let task = async move {
            let mut opened = first;
            let listener = loop {
                match opened {
                    Ok(listener) => break listener,
                    Err(error) => problems.set(&subject, Some(format!("cannot listen: {error}"))),
                }
                tokio::time::sleep(RETRY).await;
                opened = listen_at(bind)
                    .map(|(listener, _)| listener)
                    .map_err(|error| error.to_string());
            };
            problems.set(&subject, None);
            tracing::info!("listening at the {subject}");
            serve(listener, handler, connections, service.deadline).await;
        };
        Self {
            address,
            task: tokio::spawn(task),
        }
    }

    /// Where it listens since its start.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.address.as_ref().ok().copied()
    }

    /// The same server, if it listens since its start.
    ///
    /// # Errors
    /// If the address could not be had then.
    pub(crate) fn at_once(mut self) -> Result<Self, BindError> {
        match std::mem::replace(&mut self.address, Ok(([0; 4], 0).into())) {
            Ok(address) => {
                self.address = Ok(address);
                Ok(self)
            }
            Err(error) => Err(error),
        }
    }
}

impl Service {
    fn refused(self, address: SocketAddr, source: io::Error) -> BindError {
        BindError {
            name: self.name,
            option: self.option,
            address,
            source,
        }
    }
}

fn listen_at(bind: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = listen(bind, Unspecified::BothFamilies)?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

impl Drop for FixedServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A body of this type that no browser takes for another.
pub(crate) fn answer(status: StatusCode, kind: &'static str, body: String) -> Answer {
    let mut answer = Response::new(Full::from(body));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

/// A verdict: 200 or 503 (rules R123, R135).
pub(super) fn verdict(is_good: bool, body: &Value) -> Answer {
    let status = if is_good {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    answer(status, "application/json", body.to_string())
}

/// Adds a header with a number.
pub(super) fn with_number(mut answer: Answer, name: &'static str, number: u32) -> Answer {
    let name = HeaderName::from_static(name);
    answer.headers_mut().insert(name, HeaderValue::from(number));
    answer
}

/// A line of text.
pub(crate) fn text(status: StatusCode, line: &str) -> Answer {
    answer(status, "text/plain; charset=utf-8", line.to_owned())
}

/// There is nothing at this path.
pub fn not_found() -> Answer {
    text(StatusCode::NOT_FOUND, "404 page not found\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_as_gos_mux_does() {
        let location = |uri: &str| {
            let answer = redirect(&uri.parse().unwrap())?;
            assert_eq!(answer.status(), 301);
            let location = answer.headers()[LOCATION].to_str().unwrap();
            Some(location.to_owned())
        };
        for uri in ["/", "/livez", "/livez/", "/a/b?c=//d", "/..a"] {
            assert_eq!(location(uri), None, "{uri}");
        }
        for (uri, expected) in [
            ("//livez", "/livez"),
            ("/./livez", "/livez"),
            ("/a/../livez?x=1", "/livez?x=1"),
            ("/../..", "/"),
            ("/a//", "/a/"),
        ] {
            assert_eq!(location(uri).as_deref(), Some(expected), "{uri}");
        }
    }
}
