//! SCTP over raw IP sockets.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use proxy_common::abi::Family;
use socket2::{Domain, Protocol, SockFilter, SockRef, Type};

use super::MESSAGE;
use super::association::{Answer, Association, Door, State};
use super::packet::{DATA, HEADER, Packet, Unusable};

/// After this long without an answer a packet is sent again.
const RESEND: Duration = Duration::from_millis(300);

// Instructions of classic BPF: index = 4 * (low half of byte k); index = k; a = byte [index + k];
// skip the next instruction unless a == k; return k, the number of bytes to keep.
const BPF_LDX_MSH: u16 = (libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH) as u16;
const BPF_LDX_IMM: u16 = (libc::BPF_LDX | libc::BPF_W | libc::BPF_IMM) as u16;
const BPF_LD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_IND) as u16;
const BPF_JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const BPF_RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// A raw socket for SCTP packets of one family. It sees everybody's: who reads has to look
/// whom a packet is for. The library's UDP sockets do all that is needed of a raw one.
#[derive(Debug)]
pub(in super::super) struct Socket {
    socket: UdpSocket,
    address: SocketAddr,
}

impl Socket {
    /// A socket at an address. The port is for the caller to look at.
    pub(super) fn bind(address: SocketAddr) -> io::Result<Self> {
        let domain = match Family::of(address.ip()) {
            Family::Ipv4 => Domain::IPV4,
            Family::Ipv6 => Domain::IPV6,
        };
        let socket = socket2::Socket::new(domain, Type::RAW, Some(Protocol::SCTP))?;
        socket.bind(&without_port(address.ip()).into())?;
        Ok(Self {
            socket: socket.into(),
            address,
        })
    }

    /// Has ICMP errors reported, as a connected socket does.
    fn report_errors(&self) -> io::Result<()> {
        match Family::of(self.address.ip()) {
            Family::Ipv4 => setsockopt(&self.socket, sockopt::Ipv4RecvErr, &true)?,
            Family::Ipv6 => setsockopt(&self.socket, sockopt::Ipv6RecvErr, &true)?,
        }
        Ok(())
    }

    /// Lets nobody read packets that begin with data: they arrive, and that is all.
    pub(in super::super) fn drop_data(&self) -> io::Result<()> {
        // An IPv4 packet is seen with its header, whose length is a number of words in its first
        // byte, an IPv6 one without.
        let to_header = match Family::of(self.address.ip()) {
            Family::Ipv4 => SockFilter::new(BPF_LDX_MSH, 0, 0, 0),
            Family::Ipv6 => SockFilter::new(BPF_LDX_IMM, 0, 0, 0),
        };
        SockRef::from(&self.socket).attach_filter(&[
            to_header,
            SockFilter::new(BPF_LD_BYTE, 0, 0, HEADER as u32),
            SockFilter::new(BPF_JUMP_IF_EQUAL, 0, 1, DATA),
            SockFilter::new(BPF_RETURN, 0, 0, 0),
            SockFilter::new(BPF_RETURN, 0, 0, u32::MAX),
        ])
    }

    fn send(&self, packet: &Packet, to: IpAddr) -> io::Result<()> {
        self.socket
            .send_to(&packet.to_bytes(), without_port(to))
            .map(|_| ())
    }
}

/// Raw sockets have addresses without ports.
fn without_port(address: IpAddr) -> SocketAddr {
    SocketAddr::new(address, 0)
}

/// Reads what a raw socket shows: a packet with its IPv4 header, but without its IPv6 header.
fn parse(packet: &[u8], sender: IpAddr) -> Result<Packet, Unusable> {
    let header = match (sender, packet.first()) {
        (IpAddr::V4(_), Some(first)) => 4 * usize::from(first & 0xf),
        _ => 0,
    };
    Packet::parse(packet.get(header..).unwrap_or_default())
}

/// The side that opens.
#[derive(Debug)]
pub(super) struct Client {
    socket: Socket,
    server: IpAddr,
    /// The server's and the client's.
    ports: (u16, u16),
    association: Association,
    patience: Duration,
    /// Packets dropped because of their checksum: most likely why there was no answer.
    wrong_checksums: u32,
}

impl Client {
    pub(super) fn open(port: u16, server: SocketAddr, patience: Duration) -> io::Result<Self> {
        let port = if port == 0 { free_port() } else { port };
        let socket = Socket::bind(SocketAddr::new(Family::of(server.ip()).unspecified(), port))?;
        socket.report_errors()?;
        let mut client = Self {
            socket,
            server: server.ip(),
            ports: (server.port(), port),
            association: Association::client(port, server.port()),
            patience,
            wrong_checksums: 0,
        };
        client.talk_until(|association| *association.state() == State::Open)?;
        Ok(client)
    }

    pub(super) fn exchange(&mut self, message: &[u8]) -> io::Result<Vec<u8>> {
        self.association.send(message);
        let mut answer = None;
        self.talk_until(|association| {
            answer = answer.take().or_else(|| association.receive());
            answer.is_some() && association.is_confirmed()
        })?;
        answer.ok_or_else(|| ErrorKind::TimedOut.into())
    }

    /// The socket, connected to the server, and a packet with this message for it.
    pub(super) fn generator(&self, message: &[u8]) -> io::Result<(&UdpSocket, Vec<u8>)> {
        let socket = &self.socket.socket;
        socket.connect(without_port(self.server))?;
        Ok((socket, self.association.packet_of(message).to_bytes()))
    }

    pub(super) fn close(&mut self) -> io::Result<()> {
        self.association.close();
        self.talk_until(|association| *association.state() == State::Closed)
    }

    fn talk_until(&mut self, mut done: impl FnMut(&mut Association) -> bool) -> io::Result<()> {
        let deadline = Instant::now() + self.patience;
        let mut resend = Instant::now();
        while !done(&mut self.association) {
            let now = Instant::now();
            if now >= deadline {
                let text = format!(
                    "no answer ({} packets had a wrong checksum)",
                    self.wrong_checksums
                );
                return Err(io::Error::new(ErrorKind::TimedOut, text));
            }
            if now >= resend {
                self.send_due()?;
                resend = now + RESEND;
            }
            let socket = &self.socket.socket;
            socket.set_read_timeout(Some(resend.min(deadline).duration_since(now)))?;
            if self.receive()? {
                resend = Instant::now();
            }
        }
        Ok(())
    }

    fn send_due(&self) -> io::Result<()> {
        self.association
            .due()
            .map_or(Ok(()), |packet| self.socket.send(&packet, self.server))
    }

    /// Handles a packet, if one comes in time and is ours.
    fn receive(&mut self) -> io::Result<bool> {
        let mut buffer = vec![0; MESSAGE];
        let (length, sender) = match self.socket.socket.recv_from(&mut buffer) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Ok(false);
            }
            other => other?,
        };
        if sender.ip() != self.server {
            return Ok(false);
        }
        match parse(&buffer[..length], self.server) {
            Ok(packet) if (packet.source, packet.destination) == self.ports => {
                let answer = self.association.handle(packet);
                if *self.association.state() == State::Aborted {
                    return Err(ErrorKind::ConnectionRefused.into());
                }
                answer.map_or(Ok(()), |answer| self.socket.send(&answer, self.server))?;
                Ok(true)
            }
            Ok(_) | Err(Unusable::Malformed) => Ok(false),
            Err(Unusable::Checksum) => {
                self.wrong_checksums += 1;
                Ok(false)
            }
        }
    }
}

/// An ephemeral port: nobody keeps a list of those in use, so one at random.
fn free_port() -> u16 {
    0xc000 | super::association::random() as u16 >> 2
}

/// Serves until it is dropped: answers each message with one that `answer` makes of it.
pub(in super::super) async fn serve(
    socket: Socket,
    answer: impl Fn(&[u8], IpAddr) -> Vec<u8>,
) -> io::Result<()> {
    let port = socket.address.port();
    let door = Door::new(port);
    socket.socket.set_nonblocking(true)?;
    let socket = tokio::net::UdpSocket::from_std(socket.socket)?;
    let mut guests: BTreeMap<(IpAddr, u16), Association> = BTreeMap::new();
    let mut buffer = vec![0; MESSAGE];
    loop {
        // Without guests nothing is to be sent again, and nobody need wake up for it.
        let patience = if guests.is_empty() {
            Duration::MAX
        } else {
            RESEND
        };
        match tokio::time::timeout(patience, socket.recv_from(&mut buffer)).await {
            Err(_elapsed) => {
                for ((guest, _), association) in &guests {
                    send_all(&socket, association.due(), *guest).await;
                }
            }
            Ok(received) => {
                let (length, guest) = received?;
                match parse(&buffer[..length], guest.ip()) {
                    Ok(packet) if packet.destination == port => {
                        let replies = handle(&door, &mut guests, packet, guest.ip(), &answer);
                        send_all(&socket, replies, guest.ip()).await;
                    }
                    // Others' packets, and those that no peer would take.
                    Ok(_) | Err(Unusable::Malformed | Unusable::Checksum) => {}
                }
            }
        }
    }
}

fn handle(
    door: &Door,
    guests: &mut BTreeMap<(IpAddr, u16), Association>,
    packet: Packet,
    guest: IpAddr,
    answer: &impl Fn(&[u8], IpAddr) -> Vec<u8>,
) -> Vec<Packet> {
    let key = (guest, packet.source);
    if !guests
        .get(&key)
        .is_some_and(|association| association.is_addressed(&packet))
    {
        match door.handle(&packet) {
            Answer::Reply(reply) => return vec![reply],
            Answer::Nothing => return Vec::new(),
            // In place of an older one, which the client has forgotten.
            Answer::Open(association) => drop(guests.insert(key, *association)),
        }
    }
    let Some(association) = guests.get_mut(&key) else {
        return Vec::new();
    };
    let reply = association.handle(packet);
    while let Some(message) = association.receive() {
        association.send(&answer(&message, guest));
    }
    let replies = reply.into_iter().chain(association.due()).collect();
    if matches!(association.state(), State::Closed | State::Aborted) {
        guests.remove(&key);
    }
    replies
}

/// Sends packets; one that cannot be sent is lost, as packets may be.
async fn send_all(
    socket: &tokio::net::UdpSocket,
    packets: impl IntoIterator<Item = Packet>,
    to: IpAddr,
) {
    for packet in packets {
        if let Err(error) = socket.send_to(&packet.to_bytes(), without_port(to)).await {
            eprintln!("SCTP answer to {to}: {error}");
        }
    }
}
