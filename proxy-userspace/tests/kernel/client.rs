//! What clients do: to be called inside a pod.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

/// How long a client waits for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// A connection to an echo server.
#[derive(Debug)]
pub(crate) struct Connection {
    /// The socket.
    pub(crate) stream: TcpStream,
    /// Who answered.
    pub(crate) backend: String,
}

impl Connection {
    /// Connects, and reads the server's name.
    pub(crate) fn open(server: SocketAddr) -> std::io::Result<Self> {
        Self::greet(TcpStream::connect_timeout(&server, PATIENCE)?)
    }

    /// Reads the server's name from a new connection.
    pub(crate) fn greet(stream: TcpStream) -> std::io::Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut name = String::new();
        // Byte by byte: what follows the name is not for this reader.
        BufReader::with_capacity(1, &stream).read_line(&mut name)?;
        Ok(Self {
            stream,
            backend: name.trim_end().to_owned(),
        })
    }

    /// Sends a message and waits until it is back.
    pub(crate) fn echo(&mut self, message: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(message)?;
        let mut back = vec![0; message.len()];
        self.stream.read_exact(&mut back)?;
        if back == message {
            Ok(())
        } else {
            Err(std::io::Error::other("another message came back"))
        }
    }
}

/// A UDP socket of the right family, connected to a server, from `port` (0: any).
pub(crate) fn udp(port: u16, server: SocketAddr) -> std::io::Result<UdpSocket> {
    let local: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((local, port))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Sends a datagram to an echo server and returns who answered. The answer must be right.
pub(crate) fn udp_echo(socket: &UdpSocket, message: &[u8]) -> std::io::Result<String> {
    socket.send(message)?;
    let mut answer = vec![0; 65_536];
    let length = socket.recv(&mut answer)?;
    let end = answer[..length].iter().position(|&byte| byte == b'\n');
    match end.map(|end| answer[..length].split_at(end)) {
        Some((name, rest)) if rest[1..] == *message => Ok(String::from_utf8_lossy(name).into()),
        _ => Err(std::io::Error::other(format!(
            "a wrong answer of {length} bytes"
        ))),
    }
}
