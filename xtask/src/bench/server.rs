//! Servers that do next to nothing, in a pod: the cost of a request is the network's.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use proxy_common::abi::Family;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use xtask::testbed::Pod;

use super::manifests::{ECHO, SINK, STREAM};
use super::processor;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1_024;
/// How long a server waits for the byte of a client that has connected.
const PATIENCE: Duration = Duration::from_secs(1);

/// Starts the servers of a pod, each in a thread that runs until the process ends. When this
/// returns, they listen.
pub(super) fn start(pod: &Pod, family: Family) -> Result<()> {
    let address = pod.address(family);
    serve(pod, address, |address| {
        let listener = listen(SocketAddr::new(address, STREAM.target))?;
        Ok(move || stream(&listener))
    })?;
    serve(pod, address, |address| {
        let echo_socket = UdpSocket::bind(SocketAddr::new(address, ECHO.target))?;
        let sink = UdpSocket::bind(SocketAddr::new(address, SINK.target))?;
        Ok(move || {
            // Nobody reads from it: once it is full, a datagram is dropped when it arrives.
            let _full = &sink;
            echo(&echo_socket)
        })
    })
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
    told.recv()
        .map_err(|_| anyhow!("its thread died"))
        .flatten()
        .with_context(|| format!("start a server in pod {}", pod.name))
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

/// One byte each way, one connection after the other.
fn stream(listener: &TcpListener) -> io::Error {
    // Inherited by the sockets of connections.
    if let Err(error) = SockRef::from(listener).set_read_timeout(Some(PATIENCE)) {
        return error;
    }
    loop {
        let connection = match listener.accept() {
            Ok((connection, _)) => connection,
            // A client that gave up, or none for a while.
            Err(error) if is_passing(&error) => continue,
            Err(error) => return error,
        };
        let socket = SockRef::from(&connection);
        let mut byte = [0];
        // An error is the client's to notice.
        if matches!(io::Read::read(&mut &connection, &mut byte), Ok(1))
            && let Err(error) = socket.send(&byte)
            && !is_passing(&error)
        {
            return error;
        }
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
