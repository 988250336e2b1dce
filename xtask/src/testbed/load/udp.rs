//! Datagrams.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::clock::Clock;
use super::{Client, MESSAGE, backend, in_time, message};

/// Longest answer, in bytes.
const ANSWER: usize = 1_000;

/// Sends a datagram from a new socket and waits for its answer.
pub(super) async fn short(client: Client, number: u64, due: Instant) {
    let result = async {
        let socket = open(client.to).await?;
        exchange(&client, &socket, number).await
    };
    match result.await {
        Ok(backend) => {
            client.opened(due, &backend);
            client.exchanged(due);
        }
        Err(error) => client.failed("datagram", &error),
    }
}

/// Keeps a socket, and opens another one in place of a broken one.
pub(super) async fn long(client: Client, mut clock: Clock) {
    let (mut dialogue, mut number) = (None, 0);
    while let Some(due) = clock.tick(&client).await {
        number += 1;
        let result = match &mut dialogue {
            Some(dialogue) => Dialogue::go_on(dialogue, &client, number).await,
            none => {
                client.shared.tally().begun(due);
                let begun = Dialogue::begin(&client, number, due).await;
                begun.map(|begun| *none = Some(begun))
            }
        };
        match result {
            Ok(()) => client.exchanged(due),
            Err(error) if dialogue.is_some() => {
                client.broken("datagram", &error);
                dialogue = None;
            }
            Err(error) => client.failed("datagram", &error),
        }
    }
}

/// A socket that has had an answer.
struct Dialogue {
    socket: UdpSocket,
    backend: String,
}

impl Dialogue {
    async fn begin(client: &Client, number: u64, due: Instant) -> io::Result<Self> {
        let socket = open(client.to).await?;
        let backend = exchange(client, &socket, number).await?;
        client.opened(due, &backend);
        Ok(Self { socket, backend })
    }

    async fn go_on(&mut self, client: &Client, number: u64) -> io::Result<()> {
        let backend = exchange(client, &self.socket, number).await?;
        if backend != self.backend {
            client.shared.tally().moved += 1;
            self.backend = backend;
        }
        Ok(())
    }
}

async fn open(to: SocketAddr) -> io::Result<UdpSocket> {
    let socket = match to {
        SocketAddr::V4(_) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?,
        SocketAddr::V6(_) => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).await?,
    };
    socket.connect(to).await?;
    Ok(socket)
}

/// Sends a datagram, and once more if it has to; who answered. An error that the socket is told
/// is final.
async fn exchange(client: &Client, socket: &UdpSocket, number: u64) -> io::Result<String> {
    let patience = client.patience;
    send(socket, number, 0).await?;
    if let Ok(answer) = timeout(patience.resend, answer(socket, number)).await {
        return answer.map(|(backend, _)| backend);
    }
    send(socket, number, 1).await?;
    let left = patience.answer.saturating_sub(patience.resend);
    let (backend, attempt) = in_time(left, answer(socket, number)).await?;
    let mut tally = client.shared.tally();
    match attempt {
        0 => tally.late += 1,
        _ => tally.lost += 1,
    }
    Ok(backend)
}

async fn send(socket: &UdpSocket, number: u64, attempt: u8) -> io::Result<()> {
    match socket.send(&message(number, attempt)).await? {
        MESSAGE => Ok(()),
        length => Err(io::Error::other(format!("cut to {length} bytes"))),
    }
}

/// Waits for the answer to this number, whichever try: others are of earlier ones. Who answered
/// which try.
async fn answer(socket: &UdpSocket, number: u64) -> io::Result<(String, u8)> {
    let mut answer = [0; ANSWER];
    loop {
        let length = socket.recv(&mut answer).await?;
        let answer = &answer[..length];
        let tries = [0, 1].into_iter();
        let attempt = tries
            .into_iter()
            .find(|attempt| answer.ends_with(&message(number, *attempt)));
        if let Some(attempt) = attempt {
            return Ok((backend(&answer[..length - MESSAGE]), attempt));
        }
    }
}
