//! TCP connections.

use std::io;
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::clock::Clock;
use super::{Client, MESSAGE, backend, in_time, message};

/// Longest name of a server, in bytes.
const NAME: usize = 300;

/// Connects, exchanges one message and ends the connection.
pub(super) async fn short(client: Client, number: u64, due: Instant) {
    let Some(mut stream) = open(&client, due).await else {
        return;
    };
    match exchange(&client, &mut stream, number).await {
        Ok(()) => client.exchanged(due),
        Err(error) => return client.broken("exchange", &error),
    }
    if let Err(error) = in_time(client.patience.answer, close(stream)).await {
        client.broken("end", &error);
    }
}

/// Keeps a connection, and opens another one in place of a broken one.
pub(super) async fn long(client: Client, mut clock: Clock) {
    let (mut stream, mut number) = (None, 0);
    while let Some(due) = clock.tick(&client).await {
        if stream.is_none() {
            client.shared.tally().begun(due);
            stream = open(&client, due).await;
        }
        let Some(open) = &mut stream else { continue };
        number += 1;
        match exchange(&client, open, number).await {
            Ok(()) => client.exchanged(due),
            Err(error) => {
                client.broken("exchange", &error);
                stream = None;
            }
        }
    }
    if let Some(stream) = stream
        && let Err(error) = in_time(client.patience.answer, close(stream)).await
    {
        client.broken("end", &error);
    }
}

/// Connects, and reads the server's name.
async fn open(client: &Client, due: Instant) -> Option<TcpStream> {
    let patience = client.patience.answer;
    let start = Instant::now();
    let mut stream = match in_time(patience, TcpStream::connect(client.to)).await {
        Ok(stream) => {
            client.connected(start.elapsed());
            stream
        }
        Err(error) => {
            client.failed("connect", &error);
            return None;
        }
    };
    match in_time(patience, name(&mut stream)).await {
        Ok(name) => client.opened(due, &backend(&name)),
        Err(error) => {
            client.broken("greeting", &error);
            return None;
        }
    }
    Some(stream)
}

/// Byte by byte: what follows the name is not for this reader.
async fn name(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut name = Vec::new();
    loop {
        match stream.read_u8().await? {
            b'\n' => return Ok(name),
            _ if name.len() == NAME => return Err(io::Error::other("no name")),
            byte => name.push(byte),
        }
    }
}

async fn exchange(client: &Client, stream: &mut TcpStream, number: u64) -> io::Result<()> {
    let message = message(number, 0);
    let exchange = async {
        stream.write_all(&message).await?;
        let mut back = [0; MESSAGE];
        let _length = stream.read_exact(&mut back).await?;
        if back == message {
            Ok(())
        } else {
            Err(io::Error::other("another message came back"))
        }
    };
    in_time(client.patience.answer, exchange).await
}

/// Ends a connection with the server's consent.
async fn close(mut stream: TcpStream) -> io::Result<()> {
    stream.shutdown().await?;
    match stream.read(&mut [0; 1]).await? {
        0 => Ok(()),
        _ => Err(io::Error::other("something after the end")),
    }
}
