//! Servers that do next to nothing, in a pod: the cost of a request is the network's.

use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use proxy_common::abi::Family;
use socket2::{Domain, Protocol, SockFilter, SockRef, Socket, Type};
use xtask::testbed::{Pod, Serve, Server};

use super::manifests::{ASSOCIATION, BULK, ECHO, SINK, STREAM, TALK};
use super::processor;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1_024;
/// How long a server waits for a client that has connected. Each server that nobody dials wakes up
/// as often, which is processor time of whatever is measured.
const PATIENCE: Duration = Duration::from_secs(5);
/// How much of a bulk is read at a time, in bytes.
const PIECE: usize = 256 * 1024;

/// Bytes that servers of bulk have read.
pub(super) type Bulk = Arc<AtomicU64>;

/// Starts the server of a pod that is dialled for connections only, in a thread that runs until
/// the process ends. When this returns, it listens.
pub(super) fn start_stream(pod: &Pod, family: Family) -> Result<()> {
    serve(pod, pod.address(family), |address| {
        let listener = listen(SocketAddr::new(address, STREAM.target))?;
        Ok(move || each_connection(&listener, stream))
    })
}

/// Starts all servers of a pod, likewise; that of SCTP runs until it is dropped.
pub(super) fn start(pod: &Pod, family: Family, read: &Bulk) -> Result<Server> {
    start_stream(pod, family)?;
    let address = pod.address(family);
    serve(pod, address, |address| {
        let listener = listen(SocketAddr::new(address, TALK.target))?;
        Ok(move || each_connection(&listener, talk))
    })?;
    let read = Arc::clone(read);
    serve(pod, address, move |address| {
        let listener = listen(SocketAddr::new(address, BULK.target))?;
        let mut buffer = vec![0; PIECE];
        Ok(move || each_connection(&listener, |connection| bulk(connection, &mut buffer, &read)))
    })?;
    serve(pod, address, |address| {
        let echo_socket = UdpSocket::bind(SocketAddr::new(address, ECHO.target))?;
        let sink = UdpSocket::bind(SocketAddr::new(address, SINK.target))?;
        // Datagrams are dropped as they arrive.
        SockRef::from(&sink).attach_filter(&[return_nothing()])?;
        Ok(move || {
            let _bound = &sink;
            echo(&echo_socket)
        })
    })?;
    pod.serve(Serve::SctpSink, ASSOCIATION.target)
}

fn serve<F: FnOnce() -> io::Error>(
    pod: &Pod,
    address: IpAddr,
    bind: impl FnOnce(IpAddr) -> io::Result<F> + Send + 'static,
) -> Result<()> {
    let (tell, told) = mpsc::channel();
    let (name, inside) = (pod.name.clone(), pod.clone());
    let run = move || {
        inside.run(move || match bind(address) {
            Ok(serve) => {
                let ready = processor::pin();
                let is_ready = ready.is_ok();
                if tell.send(ready).is_ok() && is_ready {
                    eprintln!("server {name}: {}", serve());
                }
            }
            Err(error) => drop(tell.send(Err(error.into()))),
        });
    };
    let thread = thread::Builder::new().name(pod.name.clone()).spawn(run);
    drop(thread.context("start a thread")?);
    let ready = told.recv().map_err(|_| anyhow!("its thread died"));
    let _processor = ready
        .flatten()
        .with_context(|| format!("start a server in pod {}", pod.name))?;
    Ok(())
}

/// An instruction of classic BPF: keep no byte.
fn return_nothing() -> SockFilter {
    SockFilter::new((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, 0)
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Serves one connection after the other.
fn each_connection(
    listener: &TcpListener,
    mut serve: impl FnMut(&TcpStream) -> io::Result<()>,
) -> io::Error {
    // Inherited by the sockets of connections.
    if let Err(error) = SockRef::from(listener).set_read_timeout(Some(PATIENCE)) {
        return error;
    }
    loop {
        let served = listener
            .accept()
            .and_then(|(connection, _)| serve(&connection));
        match served {
            // A client that gave up, or none for a while: an error is the client's to notice.
            Err(error) if !is_passing(&error) => return error,
            Ok(()) | Err(_) => {}
        }
    }
}

/// One byte each way.
fn stream(mut connection: &TcpStream) -> io::Result<()> {
    let mut byte = [0];
    if connection.read(&mut byte)? == 1 {
        SockRef::from(connection).send(&byte)?;
    }
    Ok(())
}

/// The same until the client closes.
fn talk(mut connection: &TcpStream) -> io::Result<()> {
    let mut byte = [0];
    while connection.read(&mut byte)? == 1 {
        SockRef::from(connection).send(&byte)?;
    }
    Ok(())
}

/// Reads until the client closes.
fn bulk(mut connection: &TcpStream, buffer: &mut [u8], read: &Bulk) -> io::Result<()> {
    loop {
        match connection.read(buffer)? {
            0 => return Ok(()),
            length => read.fetch_add(length as u64, Ordering::Relaxed),
        };
    }
}

fn is_passing(error: &io::Error) -> bool {
    [
        io::ErrorKind::WouldBlock,
        io::ErrorKind::Interrupted,
        io::ErrorKind::ConnectionAborted,
        io::ErrorKind::ConnectionReset,
        io::ErrorKind::BrokenPipe,
    ]
    .contains(&error.kind())
}

fn echo(socket: &UdpSocket) -> io::Error {
    let mut buffer = [0; 64];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((length, client)) => {
                // A client that has gone is no matter.
                drop(socket.send_to(&buffer[..length], client));
            }
            // What became of earlier answers.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) => return error,
        }
    }
}
