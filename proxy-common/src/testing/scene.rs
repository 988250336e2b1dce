//! Scenes: packets that go in, and what must come out, step by step.

use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{Frame, Memory, Sent, Skb};
use crate::abi::{Drop, Pass, Rewrite, Verdict};
use crate::datapath::{Hook, decide};

/// What happens at one edge, packet by packet.
pub struct Scene {
    /// What it shows, in a sentence.
    pub name: String,
    /// The maps before the first step.
    pub memory: Memory,
    /// What happens, in order.
    pub steps: Vec<Step>,
}

/// One step of a [`Scene`].
pub enum Step {
    /// A packet crosses the edge.
    Packet {
        /// Where.
        hook: Hook,
        /// The frame.
        packet: Vec<u8>,
        /// Its transport checksum is left to the device.
        is_partial: bool,
        /// What must be decided.
        verdict: Verdict,
        /// The frame afterwards; nothing if it is dropped.
        expected: Vec<u8>,
        /// Where it goes, if it is not dropped.
        sent: Sent,
    },
    /// Time passes: nanoseconds.
    Advance(u64),
    /// The sync changes its maps.
    Change(Box<dyn Fn(&mut Memory)>),
    /// The maps are looked at.
    Check(Box<dyn Fn(&Memory)>),
}

impl Scene {
    /// A scene without steps.
    pub fn new(name: impl Into<String>, memory: Memory) -> Self {
        Self {
            name: name.into(),
            memory,
            steps: Vec::new(),
        }
    }

    /// A packet comes in from the client's side.
    #[must_use]
    pub fn from_client(
        self,
        packet: impl Into<Vec<u8>>,
        verdict: Verdict,
        expected: impl Into<Vec<u8>>,
    ) -> Self {
        self.packet(
            Hook::PodIngress,
            packet.into(),
            false,
            verdict,
            expected.into(),
        )
    }

    /// A packet goes out to the client's side.
    #[must_use]
    pub fn to_client(
        self,
        packet: impl Into<Vec<u8>>,
        verdict: Verdict,
        expected: impl Into<Vec<u8>>,
    ) -> Self {
        self.packet(
            Hook::PodEgress,
            packet.into(),
            false,
            verdict,
            expected.into(),
        )
    }

    /// A packet whose checksum is left to the device crosses the edge.
    #[must_use]
    pub fn partial(
        self,
        hook: Hook,
        packet: &Frame,
        verdict: Verdict,
        expected: impl Into<Vec<u8>>,
    ) -> Self {
        self.packet(
            hook,
            packet.partial().bytes(),
            true,
            verdict,
            expected.into(),
        )
    }

    /// A packet comes in from the client's side and stays as it is.
    #[must_use]
    pub fn passes(self, packet: impl Into<Vec<u8>>, reason: Pass) -> Self {
        let packet = packet.into();
        self.from_client(packet.clone(), Verdict::Pass(reason), packet)
    }

    /// A packet goes out to the client's side as it is.
    #[must_use]
    pub fn passes_to_client(self, packet: impl Into<Vec<u8>>, reason: Pass) -> Self {
        let packet = packet.into();
        self.to_client(packet.clone(), Verdict::Pass(reason), packet)
    }

    /// A packet comes in from the client's side and goes no further.
    #[must_use]
    pub fn drops(self, packet: impl Into<Vec<u8>>, reason: Drop) -> Self {
        self.from_client(packet, Verdict::Drop(reason), [])
    }

    /// Time passes: nanoseconds.
    #[must_use]
    pub fn advance(self, nanoseconds: u64) -> Self {
        self.step(Step::Advance(nanoseconds))
    }

    /// The sync changes its maps.
    #[must_use]
    pub fn change(self, change: impl Fn(&mut Memory) + 'static) -> Self {
        self.step(Step::Change(Box::new(change)))
    }

    /// The maps are looked at.
    #[must_use]
    pub fn check(self, check: impl Fn(&Memory) + 'static) -> Self {
        self.step(Step::Check(Box::new(check)))
    }

    fn packet(
        self,
        hook: Hook,
        packet: Vec<u8>,
        is_partial: bool,
        verdict: Verdict,
        expected: Vec<u8>,
    ) -> Self {
        let is_returned = matches!(
            verdict,
            Verdict::Reply(_) | Verdict::Rewrite(Rewrite::HairpinForward | Rewrite::HairpinReverse)
        );
        let sent = if is_returned {
            Sent::Out(Skb::DEVICE)
        } else {
            Sent::Stack
        };
        self.step(Step::Packet {
            hook,
            packet,
            is_partial,
            verdict,
            expected,
            sent,
        })
    }

    /// The packet of the last step goes there.
    #[must_use]
    pub fn sent(mut self, to: Sent) -> Self {
        if let Some(Step::Packet { sent, .. }) = self.steps.last_mut() {
            *sent = to;
        }
        self
    }

    /// A packet is seen at a hook of the device [`Skb::DEVICE`].
    #[must_use]
    pub fn seen(
        self,
        hook: Hook,
        packet: impl Into<Vec<u8>>,
        verdict: Verdict,
        expected: impl Into<Vec<u8>>,
    ) -> Self {
        self.packet(hook, packet.into(), false, verdict, expected.into())
    }

    fn step(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// Plays the scene on the host. `lay_out` says how packets lie in memory.
    ///
    /// # Errors
    ///
    /// Which step came out differently, and how.
    pub fn play(&self, lay_out: impl Fn(Skb) -> Skb) -> Result<(), String> {
        let mut memory = self.memory.clone();
        for (number, step) in self.steps.iter().enumerate() {
            match step {
                Step::Packet {
                    hook,
                    packet,
                    is_partial,
                    verdict,
                    expected,
                    sent,
                } => {
                    let mut skb = Skb {
                        is_partial: *is_partial,
                        routes: memory.routes.clone(),
                        ..lay_out(Skb::new(packet.clone()))
                    };
                    let got = decide(&mut skb, &memory, *hook);
                    compare((*verdict, expected, *sent), (got, &skb.bytes, skb.sent))
                        .map_err(|wrong| format!("{}, step {number}: {wrong}", self.name))?;
                }
                Step::Advance(nanoseconds) => memory.advance(*nanoseconds),
                Step::Change(change) => change(&mut memory),
                Step::Check(check) => {
                    let looked = catch_unwind(AssertUnwindSafe(|| check(&memory)));
                    looked.map_err(|_| format!("{}, step {number}: see above", self.name))?;
                }
            }
        }
        Ok(())
    }
}

/// Compares verdict, frame and way; those of a dropped packet do not matter.
fn compare(expected: (Verdict, &[u8], Sent), got: (Verdict, &[u8], Sent)) -> Result<(), String> {
    if expected.0 != got.0 {
        return Err(format!("{:?}, not {:?}", got.0, expected.0));
    }
    if matches!(got.0, Verdict::Drop(_)) {
        return Ok(());
    }
    if expected.1 != got.1 {
        return Err(difference(expected.1, got.1));
    }
    if expected.2 != got.2 {
        return Err(format!("goes {:?}, not {:?}", got.2, expected.2));
    }
    Ok(())
}

/// Two frames side by side, sixteen bytes a line, those lines that differ.
pub fn difference(expected: &[u8], got: &[u8]) -> String {
    let mut text = format!("{} bytes, not {}", got.len(), expected.len());
    for at in (0..expected.len().max(got.len())).step_by(16) {
        let row = |bytes: &[u8]| {
            let end = bytes.len().min(at + 16);
            let bytes = bytes.get(at..end).unwrap_or_default();
            bytes
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>()
        };
        let (expected, got) = (row(expected), row(got));
        if expected != got {
            write!(text, "\n{at:5}: {got}\n  not: {expected}").expect("a string takes all");
        }
    }
    text
}
