//! The choice of a backend is even (rule R36) and a function of the flow.

use std::net::SocketAddr;

use crate::abi::{FlowKey, Port, Protocol, Side, Tuple};
use crate::datapath::select::{Asker, hash, select_backend};
use crate::testing::Memory;

const FLOWS: u32 = 10_000;

/// The n-th flow's source.
type Client = fn(u32) -> SocketAddr;

/// Clients as they come.
const CLIENTS: [(&str, Client); 6] = [
    ("one client, ports in order", |n| v4(0, n)),
    ("one client, even ports only, as Linux dials", |n| {
        v4(0, n * 2)
    }),
    ("a hundred clients, a hundred ports", |n| {
        v4(n / 100, 32_768 + n % 100)
    }),
    ("ten thousand clients, one port", |n| v4(n, 5_353)),
    ("one IPv6 client, ports in order", |n| v6(0, n)),
    ("ten thousand IPv6 clients, one port", |n| v6(n, 5_353)),
];

fn v4(host: u32, port: u32) -> SocketAddr {
    let [_, a, b, c] = host.to_be_bytes();
    ([10, a, b, c], port as u16).into()
}

fn v6(host: u32, port: u32) -> SocketAddr {
    (
        [0xfd00, 0, 0, 0, 0, 0, (host >> 16) as u16, host as u16],
        port as u16,
    )
        .into()
}

fn frontend() -> SocketAddr {
    "10.96.0.10:80".parse().expect("address and port")
}

fn backends(count: u16) -> Vec<SocketAddr> {
    (0..count)
        .map(|at| ([10, 0, 2, 7], 8_000 + at).into())
        .collect()
}

/// Which of `count` backends each flow gets, by position, for the Service with this id.
fn choices(count: u16, service: u32, client: Client) -> Vec<usize> {
    let mut memory = Memory::default();
    let _first = memory.serve(frontend(), Protocol::Tcp, &backends(count));
    let mut frontend = *memory.frontend_mut(frontend(), Protocol::Tcp);
    frontend.service = service;
    memory
        .backends
        .iter_mut()
        .for_each(|backend| backend.service = service);
    (0..FLOWS)
        .map(|n| {
            let client = client(n);
            let tuple = Tuple {
                src: client.ip().into(),
                dst: client.ip().into(),
                src_port: Port::new(client.port()),
                dst_port: Port::new(80),
            };
            let flow = FlowKey {
                tuple,
                protocol: Protocol::Tcp.number(),
                side: Side::Ingress as u8,
                _pad: 0,
            };
            let asker = Asker {
                client: &flow.tuple.src,
                hash: hash(&flow, frontend.service),
            };
            let chosen = select_backend(&memory, &frontend, false, asker, 0);
            chosen.expect("there are backends").id as usize
        })
        .collect()
}

/// Pearson's statistic of these cells against an even spread.
fn chi_square(cells: &[u32]) -> f64 {
    let total: u32 = cells.iter().sum();
    let expected = f64::from(total) / cells.len() as f64;
    cells
        .iter()
        .map(|&cell| (f64::from(cell) - expected).powi(2) / expected)
        .sum()
}

/// What the statistic stays below in all but 3 of 100,000 cases (Wilson and Hilferty, 4 sigma).
fn limit(cells: usize) -> f64 {
    let freedom = (cells - 1) as f64;
    let spread = 2.0 / (9.0 * freedom);
    freedom * (1.0 - spread + 4.0 * spread.sqrt()).powi(3)
}

#[test]
fn backends_get_equal_shares() {
    for (what, client) in CLIENTS {
        for count in [2, 3, 7, 100] {
            let mut cells = vec![0_u32; usize::from(count)];
            for chosen in choices(count, 1, client) {
                cells[chosen] += 1;
            }
            let chi_square = chi_square(&cells);
            let limit = limit(cells.len());
            assert!(
                chi_square < limit,
                "{what}, {count} backends: {chi_square} > {limit}"
            );
        }
    }
}

/// Else what one Service overloads, all do.
#[test]
fn services_choose_independently() {
    for (what, client) in CLIENTS {
        let mut cells = vec![0_u32; 49];
        for (one, other) in choices(7, 1, client).into_iter().zip(choices(7, 2, client)) {
            cells[one * 7 + other] += 1;
        }
        let chi_square = chi_square(&cells);
        let limit = limit(cells.len());
        assert!(chi_square < limit, "{what}: {chi_square} > {limit}");
    }
}

#[test]
fn the_same_flow_gets_the_same_backend() {
    for (_, client) in CLIENTS {
        assert_eq!(choices(7, 1, client), choices(7, 1, client));
    }
}
