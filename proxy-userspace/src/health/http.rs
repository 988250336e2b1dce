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

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinHandle};

use super::Problems;

/// How long a connection may take.
const DEADLINE: Duration = Duration::from_secs(5);
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
pub(crate) type Handler = Arc<dyn Fn(&Parts) -> Answer + Send + Sync>;

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
pub(super) async fn serve(listener: TcpListener, handler: Handler, connections: Arc<Connections>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => connections.admit(converse(stream, Arc::clone(&handler))),
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
async fn converse(stream: TcpStream, handler: Handler) {
    let service = service_fn(move |request: Request<Incoming>| {
        let handler = Arc::clone(&handler);
        async move {
            let (parts, body) = request.into_parts();
            discard(body).await;
            Ok::<_, Infallible>(handler(&parts))
        }
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .timer(TokioTimer::new())
        .header_read_timeout(DEADLINE)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(DEADLINE, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!("serving a connection: {error}"),
        Err(_) => tracing::debug!("serving a connection took too long"),
    }
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

/// A server on one address, tried again and again until the address can be had. It stops when
/// dropped.
#[derive(Debug)]
pub(crate) struct FixedServer {
    address: Option<SocketAddr>,
    task: JoinHandle<()>,
}

impl FixedServer {
    /// Connections that each server may have.
    const CONNECTIONS: usize = 128;

    /// Listens at once if it can. `name` is how `problems` calls it.
    pub(crate) fn start(
        name: &'static str,
        bind: SocketAddr,
        handler: Handler,
        problems: Problems,
    ) -> Self {
        let connections = Connections::new(Self::CONNECTIONS);
        let subject = format!("{name} address {bind}");
        let first = listen(bind, Unspecified::BothFamilies);
        let address = first.as_ref().ok().and_then(|it| it.local_addr().ok());
        let task = async move {
            let mut opened = first;
            let listener = loop {
                match opened {
                    Ok(listener) => break listener,
                    Err(error) => problems.set(&subject, Some(format!("cannot listen: {error}"))),
                }
                tokio::time::sleep(RETRY).await;
                opened = listen(bind, Unspecified::BothFamilies);
            };
            problems.set(&subject, None);
            tracing::info!("listening at the {subject}");
            serve(listener, handler, connections).await;
        };
        Self {
            address,
            task: tokio::spawn(task),
        }
    }

    /// Where it listens since its start.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.address
    }
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
