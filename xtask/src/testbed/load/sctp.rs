//! SCTP associations.

use std::io;
use std::time::Instant;

use super::super::sctp::Association;
use super::{Client, MESSAGE, backend, message};

/// Opens an association, exchanges one message and ends it.
pub(super) async fn short(client: Client, number: u64, due: Instant) {
    // Clients for it wait for everything.
    let work = tokio::task::spawn_blocking(move || converse(&client, number, due));
    if let Err(error) = work.await {
        eprintln!("load: {error}");
    }
}

fn converse(client: &Client, number: u64, due: Instant) {
    let mut association = match Association::open(0, client.to, client.patience.answer) {
        Ok(association) => association,
        Err(error) => return client.failed("associate", &error),
    };
    match exchange(&mut association, number) {
        Ok(backend) => {
            client.opened(due, &backend);
            client.exchanged(due);
        }
        Err(error) => return client.broken("exchange", &error),
    }
    if let Err(error) = association.close() {
        client.broken("end", &error);
    }
}

fn exchange(association: &mut Association, number: u64) -> io::Result<String> {
    let message = message(number, 0);
    let answer = association.exchange(&message)?;
    if answer.ends_with(&message) {
        Ok(backend(&answer[..answer.len() - MESSAGE]))
    } else {
        Err(io::Error::other("another message came back"))
    }
}
