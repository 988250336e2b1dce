//! What clients do: to be called inside a pod.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use proxy_common::abi::Family;
use socket2::{Domain, Protocol, Socket, Type};

use crate::socket_option::send_ip_options;

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

/// Connects with an IPv4 option or an IPv6 extension header in every packet.
pub(crate) fn connect_with_options(server: SocketAddr) -> TcpStream {
    let (domain, protocol) = (Domain::for_address(server), Some(Protocol::TCP));
    let socket = Socket::new(domain, Type::STREAM, protocol).unwrap();
    send_ip_options(&socket, Family::of(server.ip())).unwrap();
    socket.connect_timeout(&server.into(), PATIENCE).unwrap();
    socket.into()
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

/// Sends `bytes` bytes to an echo server and checks that the same come back, in order.
pub(crate) fn transfer(connection: &Connection, bytes: u64) -> std::io::Result<()> {
    transfer_while(connection, |blocks| blocks < bytes / Block::LENGTH as u64).map(drop)
}

/// Sends blocks to an echo server as long as `go_on` (given how many there were) says so, and
/// checks that the same come back, in order. Returns how many there were.
pub(crate) fn transfer_while(
    connection: &Connection,
    go_on: impl Fn(u64) -> bool + Send,
) -> std::io::Result<u64> {
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| send_blocks(&connection.stream, go_on));
        let received = receive_blocks(&connection.stream)?;
        let sent = sender
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        if sent == received {
            return Ok(sent);
        }
        Err(std::io::Error::other(format!(
            "{sent} blocks sent, {received} came back"
        )))
    })
}

fn send_blocks(mut to: &TcpStream, go_on: impl Fn(u64) -> bool) -> std::io::Result<u64> {
    let (mut block, mut number) = (Block::new(), 0);
    while go_on(number) {
        to.write_all(block.numbered(number))?;
        number += 1;
    }
    to.shutdown(std::net::Shutdown::Write)?;
    Ok(number)
}

fn receive_blocks(from: &TcpStream) -> std::io::Result<u64> {
    let (mut expected, mut received, mut number) = (Block::new(), Vec::new(), 0);
    loop {
        received.clear();
        match from.take(Block::LENGTH as u64).read_to_end(&mut received)? {
            0 => return Ok(number),
            _ if received == expected.numbered(number) => number += 1,
            length => {
                let what = format!("block {number} is wrong ({length} bytes)");
                return Err(std::io::Error::other(what));
            }
        }
    }
}

/// A piece of a transfer: noise, and its own number, so that none can stand in for another.
struct Block(Vec<u8>);

impl Block {
    const LENGTH: usize = 1 << 16;

    fn new() -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let noise = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_ne_bytes()
        });
        Self(noise.take(Self::LENGTH / 8).flatten().collect())
    }

    fn numbered(&mut self, number: u64) -> &[u8] {
        self.0[..8].copy_from_slice(&number.to_be_bytes());
        &self.0
    }
}
