//! A thousand sockets, while endpoints come and go.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::libc;
use proxy_common::abi::Family;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::socket_world::{Backend, Edges, Port, SHOP, SocketWorld, Who, until};

const SOCKETS: usize = 1_000;
const CHANGES: usize = 100;
/// How long a socket lets its server rest.
const PAUSE: Duration = Duration::from_millis(400);
/// How long a datagram waits for its echo before it is sent again: a server may be too busy.
const AGAIN: Duration = Duration::from_secs(1);
/// Who has heard nothing for so long hangs.
const PATIENCE: Duration = Duration::from_secs(5);

/// How a socket is told. The last: a UDP socket was told while it did nothing, and has no peer any
/// more.
const ALLOWED: [i32; 5] = [
    libc::ECONNRESET,
    libc::ECONNABORTED,
    libc::ECONNREFUSED,
    libc::EPIPE,
    libc::EDESTADDRREQ,
];

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Speak {
    Tcp,
    /// Connected.
    Udp,
    /// Not connected: sends to an address.
    Open,
}

impl Speak {
    const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Open];
}

/// A socket that talks to an echo server.
enum Talk {
    Tcp(TcpStream),
    Udp(UdpSocket),
    Open(UdpSocket, SocketAddr),
}

impl Talk {
    async fn start(speak: Speak, server: SocketAddr) -> io::Result<Self> {
        let any = match server {
            SocketAddr::V4(_) => "0.0.0.0:0",
            SocketAddr::V6(_) => "[::]:0",
        };
        Ok(match speak {
            Speak::Tcp => {
                let mut stream = TcpStream::connect(server).await?;
                let mut name = [0; NAME.len()];
                let _length = stream.read_exact(&mut name).await?;
                Self::Tcp(stream)
            }
            Speak::Udp => {
                let socket = UdpSocket::bind(any).await?;
                socket.connect(server).await?;
                Self::Udp(socket)
            }
            Speak::Open => Self::Open(UdpSocket::bind(any).await?, server),
        })
    }

    /// Sends a number and waits until it is back.
    async fn echo(&mut self, number: u64) -> io::Result<()> {
        let message = number.to_be_bytes();
        if let Self::Tcp(stream) = self {
            stream.write_all(&message).await?;
            let mut back = [0; 8];
            let _length = stream.read_exact(&mut back).await?;
            assert_eq!(back, message);
            return Ok(());
        }
        loop {
            self.send(&message).await?;
            if let Ok(heard) = timeout(AGAIN, self.hear(&message)).await {
                return heard;
            }
        }
    }

    async fn send(&self, message: &[u8]) -> io::Result<()> {
        let sent = match self {
            Self::Tcp(_) => unreachable!("it sends no datagrams"),
            Self::Udp(socket) => socket.send(message).await?,
            Self::Open(socket, server) => socket.send_to(message, *server).await?,
        };
        assert_eq!(sent, message.len());
        Ok(())
    }

    /// Waits for the echo of this message; others are of messages that were sent again.
    async fn hear(&self, message: &[u8]) -> io::Result<()> {
        let mut back = [0; 100];
        loop {
            let length = match self {
                Self::Tcp(_) => unreachable!("it hears no datagrams"),
                Self::Udp(socket) => socket.recv(&mut back).await?,
                Self::Open(socket, server) => {
                    let (length, from) = socket.recv_from(&mut back).await?;
                    assert_eq!(from, *server);
                    length
                }
            };
            if back[..length].ends_with(message) {
                return Ok(());
            }
        }
    }
}

/// What an echo server says first, with a digit for the `0`.
const NAME: &str = "shop-0\n";

/// What sockets of one kind went through.
#[derive(Default, Debug)]
struct Tale {
    echoes: usize,
    /// System errors by number (-1: the connection's end), and how often.
    told: BTreeMap<i32, usize>,
    longest: Duration,
    hung: usize,
}

impl Tale {
    fn add(&mut self, other: Self) {
        self.echoes += other.echoes;
        self.hung += other.hung;
        self.longest = self.longest.max(other.longest);
        for (kind, times) in other.told {
            *self.told.entry(kind).or_default() += times;
        }
    }

    /// Whether it was done in time and well.
    fn note(&mut self, start: Instant, result: Option<io::Result<()>>) -> bool {
        self.longest = self.longest.max(start.elapsed());
        match result {
            Some(Ok(())) => return true,
            Some(Err(error)) => {
                let number = error.raw_os_error().unwrap_or(-1);
                *self.told.entry(number).or_default() += 1;
            }
            None => self.hung += 1,
        }
        false
    }
}

/// One socket that talks until all is done, and another one in its place after each error.
async fn talks(speak: Speak, server: SocketAddr, done: Arc<AtomicBool>, phase: Duration) -> Tale {
    let mut tale = Tale::default();
    let (mut talk, mut number) = (None, 0);
    sleep(phase).await;
    while !done.load(Ordering::Relaxed) {
        let start = Instant::now();
        number += 1;
        let round = async {
            let socket = match &mut talk {
                Some(socket) => socket,
                none => none.insert(Talk::start(speak, server).await?),
            };
            socket.echo(number).await
        };
        let result = timeout(PATIENCE, round).await.ok();
        if tale.note(start, result) {
            tale.echoes += 1;
            sleep(PAUSE).await;
        } else {
            talk = None;
        }
    }
    tale
}

/// All sockets of one client.
fn crowd(done: &Arc<AtomicBool>) -> BTreeMap<Speak, Tale> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().unwrap();
    let kinds: Vec<_> = Family::ALL
        .into_iter()
        .flat_map(|family| Speak::ALL.map(|speak| (speak, SHOP.cluster(Port::Echo, family))))
        .collect();
    runtime.block_on(async {
        let mut sockets = JoinSet::new();
        let n_sockets = SOCKETS / Who::ALL.len();
        for at in 0..n_sockets {
            let (speak, server) = kinds[at % kinds.len()];
            let phase = PAUSE.mul_f64(at as f64 / n_sockets as f64);
            let done = Arc::clone(done);
            let _handle =
                sockets.spawn(async move { (speak, talks(speak, server, done, phase).await) });
        }
        let mut tales = BTreeMap::<_, Tale>::new();
        for (speak, tale) in sockets.join_all().await {
            tales.entry(speak).or_default().add(tale);
        }
        tales
    })
}

/// Has nothing that a pod sends arrive anywhere (`add`), or all of it (`delete`).
fn change_routes(backend: &Backend, verb: &str) {
    // Wider than routes to other pods, narrower than the one to everywhere.
    let to = ["0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"];
    let commands = to.map(|range| format!("route {verb} {range} dev lo"));
    backend.pod.namespace.ip(commands).unwrap();
}

/// Two of four, always others. Who is taken away is at once not there at all.
fn change_endpoints(world: &SocketWorld) {
    let mut serving = vec![0, 1, 2, 3];
    for change in 0..CHANGES {
        let next = [change % 4, (change + 1 + change / 4 % 3) % 4];
        let differ = |these: &[usize], from: &[usize]| {
            let others = these.iter().filter(|at| !from.contains(at)).copied();
            others.collect::<Vec<_>>()
        };
        for at in differ(&next, &serving) {
            change_routes(&world.backends[at], "delete");
        }
        world.apply(SHOP, &next);
        for at in differ(&serving, &next) {
            change_routes(&world.backends[at], "add");
        }
        serving = next.to_vec();
    }
}

/// What the sockets of all clients go through while endpoints change.
fn tales(world: &SocketWorld) -> Vec<BTreeMap<Speak, Tale>> {
    let done = Arc::new(AtomicBool::new(false));
    std::thread::scope(|scope| {
        let done = &done;
        let crowds = Who::ALL.map(|who| scope.spawn(move || world.run(who, || crowd(done))));
        let changed = catch_unwind(AssertUnwindSafe(|| change_endpoints(world)));
        done.store(true, Ordering::Relaxed);
        let tales = crowds.map(|it| it.join().unwrap()).into();
        changed.unwrap_or_else(|panic| resume_unwind(panic));
        tales
    })
}

#[test]
fn none_of_a_thousand_sockets_hangs() {
    let world = SocketWorld::new(Edges::Sockets, 4, &[]);
    let counted = ["connect", "datagram"].map(|reason| world.count(reason));
    let tales = tales(&world);
    for tales in tales {
        for (speak, tale) in tales {
            assert_eq!(tale.hung, 0, "{speak:?}: {tale:?}");
            assert!(
                tale.echoes > SOCKETS,
                "too little to show anything: {tale:?}"
            );
            let strange = tale.told.keys().find(|error| !ALLOWED.contains(error));
            assert_eq!(strange, None, "{speak:?}: {tale:?}");
        }
    }
    // A thousand at first, and one in place of each that was told.
    for (reason, before) in ["connect", "datagram"].into_iter().zip(counted) {
        let counted = world.count(reason) - before;
        assert!(counted > SOCKETS as u64 / 3, "{reason}: {counted}");
    }
    until("closed sockets forgotten", PATIENCE, || {
        world.entries("SOCKETS") == 0
    });
}
