//! One packet of a client, its answer, and what they show.

use std::net::{IpAddr, SocketAddr};

use proxy_common::abi::{Drop, Verdict as Decision};
use proxy_common::testing::Memory;

use super::network::{End, Lost, Network, Way};
use super::speech::{self, Ends, Round};

/// What became of a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    /// It reached a backend, which sees this source.
    Forward {
        backend: SocketAddr,
        source: SocketAddr,
    },
    /// Its sender learnt that nobody takes it.
    Reject,
    /// Nothing was heard of it again.
    Drop,
    /// It went on as it was.
    Pass,
}

/// A client at its place, sending to one address.
#[derive(Clone, Copy)]
pub(super) struct Client<'a> {
    pub(super) network: &'a Network,
    pub(super) memory: &'a Memory,
    /// The client's address and port, and those that it dials.
    pub(super) ends: Ends,
    pub(super) place: End,
}

impl Client<'_> {
    /// Asks one question.
    ///
    /// # Errors
    /// What no expectation allows: the packet was damaged, or came out at the wrong place.
    pub(super) fn ask(&self, round: &Round) -> Result<Fate, String> {
        let question = round.question(self.ends);
        let way = self.send(question.clone(), self.place);
        let is_answer = way
            .verdicts
            .iter()
            .any(|it| matches!(it, Decision::Reply(_)));
        match &way.end {
            Err(Lost::Dropped(reason)) if is_by_rule(*reason) => Ok(Fate::Drop),
            Err(Lost::Dropped(reason)) => Err(format!("dropped: {}", reason.name())),
            Err(Lost::Refused(reason)) => Err(format!("lost: {reason}{}", told(&way))),
            Ok(end) if is_answer => {
                speech::refuses(&question, &way.bytes)?;
                self.came_out(self.ends.from.ip(), *end, &way)?;
                Ok(Fate::Reject)
            }
            Ok(end) if speech::ends(&way.bytes) == self.ends => {
                speech::same(&question, &way.bytes)?;
                self.came_out(self.ends.to.ip(), *end, &way)?;
                Ok(Fate::Pass)
            }
            Ok(end) => {
                let Ends { from, to } = speech::ends(&way.bytes);
                speech::same(&round.question(Ends { from, to }), &way.bytes)?;
                self.came_out(to.ip(), *end, &way)?;
                Ok(Fate::Forward {
                    backend: to,
                    source: from,
                })
            }
        }
    }

    /// Sends the backend's answer, which must reach the client from where it sent its question.
    ///
    /// # Errors
    /// It does not.
    pub(super) fn answer(
        &self,
        round: &Round,
        backend: SocketAddr,
        source: SocketAddr,
    ) -> Result<(), String> {
        let seen = Ends {
            from: backend,
            to: source,
        };
        let way = self.send(round.answer(seen), self.place_of(backend.ip()));
        let wrong = |what: String| format!("the reply of {backend}: {what}{}", told(&way));
        match &way.end {
            Err(Lost::Dropped(reason)) => Err(wrong(format!("dropped: {}", reason.name()))),
            Err(Lost::Refused(reason)) => Err(wrong(format!("lost: {reason}"))),
            Ok(end) => {
                let expected = round.answer(self.ends.swapped());
                speech::same(&expected, &way.bytes).map_err(wrong)?;
                self.came_out(self.ends.from.ip(), *end, &way)
                    .map_err(wrong)
            }
        }
    }

    fn send(&self, bytes: Vec<u8>, from: End) -> Way {
        let client = (self.ends.from.ip(), self.place);
        self.network.send(self.memory, bytes, from, client)
    }

    fn place_of(&self, ip: IpAddr) -> End {
        self.network.place(ip, (self.ends.from.ip(), self.place))
    }

    fn came_out(&self, ip: IpAddr, end: End, way: &Way) -> Result<(), String> {
        if end == self.place_of(ip) {
            return Ok(());
        }
        Err(format!(
            "it came out at {end:?}, while {ip} is at {:?}{}",
            self.place_of(ip),
            told(way)
        ))
    }
}

/// What programs said about a packet, for reports.
fn told(way: &Way) -> String {
    let names: Vec<_> = way.verdicts.iter().map(|verdict| verdict.name()).collect();
    format!(" (decided on the way: {})", names.join(", "))
}

/// Whether rules ask for a drop for this reason; others are malfunctions.
const fn is_by_rule(reason: Drop) -> bool {
    matches!(
        reason,
        Drop::NoLocalEndpoint | Drop::SourceRange | Drop::Unallocated
    )
}
