//! Small servers that answer in their pod's name.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::node::Pod;
use super::{dns, namespace, sctp};

/// Longest datagram and size of other buffers, in bytes.
const BUFFER: usize = 65_536;

/// What a server speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Serve {
    /// HTTP/1.0 over TCP: every answer is the pod's name and a line feed.
    Http,
    /// TCP: the pod's name and a line feed, then all that is sent to it comes back. UDP: each
    /// datagram comes back behind the pod's name and a line feed.
    Echo,
    /// DNS over UDP and TCP; knows one name.
    Dns,
    /// SCTP: each message comes back behind the pod's name and a line feed.
    Sctp,
    /// SCTP over raw sockets: associations are opened and closed, data is dropped as it arrives.
    /// Where the kernel has SCTP, it answers too, and no association comes about.
    SctpSink,
}

/// A running server. Dropping it stops it and closes all its connections.
#[derive(Debug)]
pub struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts a server at both addresses of a pod, which tells clients where it sees them if it
    /// `is_witness`. When this returns, it listens.
    pub(super) fn start(pod: &Pod, what: Serve, port: u16, is_witness: bool) -> Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let (tell, told) = mpsc::channel();
        let namespace = pod.namespace.clone();
        let name = Name {
            pod: pod.name.as_str().into(),
            is_witness,
        };
        let addresses = [IpAddr::V4(pod.ipv4), IpAddr::V6(pod.ipv6)];
        let thread = std::thread::Builder::new()
            .name(format!("{}:{port}", name.pod))
            .spawn(move || {
                let result = namespace::enter(&namespace).and_then(|()| runtime());
                let serving = result.and_then(|runtime| {
                    let mut tasks = JoinSet::new();
                    for address in addresses {
                        let address = SocketAddr::new(address, port);
                        runtime
                            .block_on(listen(&mut tasks, what, address, &name))
                            .with_context(|| {
                                format!("{what:?} server {} at {address}", name.pod)
                            })?;
                    }
                    Ok((runtime, tasks))
                });
                let running = serving.map(|(runtime, tasks)| (tell.send(Ok(())), runtime, tasks));
                match running {
                    // The runtime ends with all its tasks when the server is dropped.
                    Ok((_, runtime, mut tasks)) => runtime.block_on(async {
                        tokio::select! {
                            _ = stopped => {}
                            Some(Ok(Err(error))) = tasks.join_next() => {
                                eprintln!("server {} at port {port}: {error}", name.pod);
                            }
                        }
                    }),
                    Err(error) => drop(tell.send(Err(error))),
                }
            })
            .context("start a thread")?;
        told.recv()
            .map_err(|_| anyhow!("server thread of pod {} died", pod.name))??;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Waking it fails if it has ended by itself.
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("a server panicked");
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start tokio")
}

/// What a server calls itself.
#[derive(Clone, Debug)]
struct Name {
    pod: Arc<str>,
    /// The client's address follows.
    is_witness: bool,
}

impl Name {
    fn told_to(&self, client: IpAddr) -> Arc<str> {
        if self.is_witness {
            format!("{} {client}", self.pod).into()
        } else {
            Arc::clone(&self.pod)
        }
    }
}

type Tasks = JoinSet<io::Result<()>>;

async fn listen(
    tasks: &mut Tasks,
    what: Serve,
    address: SocketAddr,
    name: &Name,
) -> io::Result<()> {
    let name = name.clone();
    match what {
        Serve::Http => {
            tasks.spawn(accept(TcpListener::bind(address).await?, name, http));
        }
        Serve::Echo => {
            tasks.spawn(accept(
                TcpListener::bind(address).await?,
                name.clone(),
                echo,
            ));
            let answer =
                move |datagram: &[u8], client| Some(named(&name.told_to(client), datagram));
            tasks.spawn(datagrams(UdpSocket::bind(address).await?, answer));
        }
        Serve::Dns => {
            tasks.spawn(accept(
                TcpListener::bind(address).await?,
                name.clone(),
                dns_stream,
            ));
            let answer =
                move |datagram: &[u8], client| dns::answer(datagram, &name.told_to(client));
            tasks.spawn(datagrams(UdpSocket::bind(address).await?, answer));
        }
        Serve::SctpSink => {
            let socket = sctp::Listener::bind_sink(address)?;
            tasks.spawn(sctp::serve_raw(socket, |_, _| Vec::new()));
        }
        Serve::Sctp => match sctp::Listener::bind(address)? {
            sctp::Listener::Kernel(listener) => {
                let listener = TcpListener::from_std(listener)?;
                tasks.spawn(accept(listener, name, sctp_messages));
            }
            sctp::Listener::Raw(socket) => {
                let answer = move |message: &[u8], client| named(&name.told_to(client), message);
                tasks.spawn(sctp::serve_raw(socket, answer));
            }
        },
    }
    Ok(())
}

fn named(name: &str, message: &[u8]) -> Vec<u8> {
    [name.as_bytes(), b"\n", message].concat()
}

async fn accept<F>(
    listener: TcpListener,
    name: Name,
    serve: fn(TcpStream, Arc<str>) -> F,
) -> io::Result<()>
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        let (stream, client) = listener.accept().await?;
        connections.spawn(serve(stream, name.told_to(client.ip())));
        // A connection that ends with an error is the client's to notice.
        while connections.try_join_next().is_some() {}
    }
}

async fn http(mut stream: TcpStream, name: Arc<str>) -> io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        if request.len() > BUFFER || stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let length = name.len() + 1;
    let head = "HTTP/1.0 200 OK\r\nContent-Type: text/plain";
    let answer = format!("{head}\r\nContent-Length: {length}\r\n\r\n{name}\n");
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

async fn echo(mut stream: TcpStream, name: Arc<str>) -> io::Result<()> {
    stream.write_all(&named(&name, b"")).await?;
    let (mut from, mut to) = stream.split();
    let mut buffer = vec![0; BUFFER];
    loop {
        match from.read(&mut buffer).await? {
            0 => return to.shutdown().await,
            length => to.write_all(&buffer[..length]).await?,
        }
    }
}

async fn dns_stream(mut stream: TcpStream, name: Arc<str>) -> io::Result<()> {
    loop {
        let length = match stream.read_u16().await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        };
        let mut question = vec![0; length.into()];
        stream.read_exact(&mut question).await?;
        let Some(answer) = dns::answer(&question, &name) else {
            return Ok(());
        };
        let length = (answer.len() as u16).to_be_bytes();
        stream.write_all(&[&length[..], &answer].concat()).await?;
    }
}

/// The kernel's SCTP sockets: one read is one message, and so is one write.
async fn sctp_messages(mut stream: TcpStream, name: Arc<str>) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return stream.shutdown().await,
            length => {
                let answer = named(&name, &buffer[..length]);
                if stream.write(&answer).await? != answer.len() {
                    return Err(io::Error::other("a message was cut"));
                }
            }
        }
    }
}

async fn datagrams(
    socket: UdpSocket,
    answer: impl Fn(&[u8], IpAddr) -> Option<Vec<u8>>,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        // Errors are those of earlier answers: a client that has gone.
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        if let Some(answer) = answer(&buffer[..length], client.ip())
            && let Err(error) = socket.send_to(&answer, client).await
        {
            eprintln!("answer to {client}: {error}");
        }
    }
}
