//! Whole conversations: how far each has come, and how its records age.

use super::stage::{
    ABORT, ACK, COOKIE_ACK, COOKIE_ECHO, DATA, FIN_ACK, FORWARD, INIT, INIT_ACK, NEW_FLOW,
    PROTOCOLS, REVERSE, RST, RST_ACK, SECOND, SHUTDOWN, SHUTDOWN_ACK, SHUTDOWN_COMPLETE, STAGES,
    SYN, SYN_ACK, Stage, all_in,
};
use crate::abi::{FlowState, Protocol};
use crate::testing::{Frame, Memory, Scene};

pub(super) fn scenes() -> Vec<Scene> {
    let mut scenes = Vec::new();
    for stage in STAGES {
        scenes.extend([
            tcp_client_closes(stage),
            tcp_backend_closes(stage),
            tcp_closes_at_once(stage),
            tcp_refused(stage),
            tcp_reset(stage),
            tcp_after_time_wait(stage),
            tcp_repeats_itself(stage),
            udp(stage),
            udp_without_answer(stage),
            sctp(stage),
            sctp_aborts(stage),
            sctp_backend_aborts(stage),
        ]);
        for protocol in PROTOCOLS {
            scenes.extend([
                twins_age_together(stage, protocol),
                no_needless_writes(stage, protocol),
            ]);
        }
    }
    scenes
}

/// One conversation, told step by step.
struct Conversation {
    stage: Stage,
    protocol: Protocol,
    scene: Scene,
}

fn conversation(stage: Stage, protocol: Protocol, what: &str) -> Conversation {
    let name = format!("{protocol} over {}: {what}", stage.family);
    Conversation {
        stage,
        protocol,
        scene: Scene::new(name, stage.serving(protocol)),
    }
}

impl Conversation {
    /// A packet with these TCP flags, or this SCTP chunk.
    fn packet(&self, what: u8, from: &str, to: &str) -> Frame {
        match self.protocol {
            Protocol::Tcp => Frame::tcp(what, from, to),
            Protocol::Udp => Frame::udp(from, to),
            Protocol::Sctp => Frame::sctp(what, from, to),
        }
    }

    /// The client's first packet.
    fn opens(mut self, what: u8, state: FlowState) -> Self {
        let packet = self.packet(what, self.stage.client, self.stage.frontend);
        let expected = self.stage.forward(&packet);
        self.scene = self
            .scene
            .from_client(&packet, NEW_FLOW, &expected)
            .check(all_in(state));
        self
    }

    /// Another packet from the client.
    fn client(mut self, what: u8, state: FlowState) -> Self {
        let packet = self.packet(what, self.stage.client, self.stage.frontend);
        let expected = self.stage.forward(&packet);
        self.scene = self
            .scene
            .from_client(&packet, FORWARD, &expected)
            .check(all_in(state));
        self
    }

    /// A packet from the backend.
    fn backend(mut self, what: u8, state: FlowState) -> Self {
        let packet = self.packet(what, self.stage.backend, self.stage.client);
        let expected = self.stage.reverse(&packet);
        self.scene = self
            .scene
            .to_client(&packet, REVERSE, &expected)
            .check(all_in(state));
        self
    }

    fn advance(mut self, nanoseconds: u64) -> Self {
        self.scene = self.scene.advance(nanoseconds);
        self
    }

    /// An established TCP connection.
    fn tcp_opens(self) -> Self {
        self.opens(SYN, FlowState::TcpSynSent)
            .backend(SYN_ACK, FlowState::TcpSynRecv)
            .client(ACK, FlowState::TcpEstablished)
    }

    /// An established SCTP association.
    fn sctp_opens(self) -> Self {
        self.opens(INIT, FlowState::SctpCookieWait)
            .backend(INIT_ACK, FlowState::SctpCookieWait)
            .client(COOKIE_ECHO, FlowState::SctpCookieEchoed)
            .backend(COOKIE_ACK, FlowState::SctpEstablished)
    }
}

fn tcp_client_closes(stage: Stage) -> Scene {
    conversation(stage, Protocol::Tcp, "a connection that the client closes")
        .tcp_opens()
        .client(ACK, FlowState::TcpEstablished)
        .backend(ACK, FlowState::TcpEstablished)
        .client(FIN_ACK, FlowState::TcpFinWait)
        .backend(ACK, FlowState::TcpFinWait)
        .backend(FIN_ACK, FlowState::TcpTimeWait)
        .client(ACK, FlowState::TcpTimeWait)
        .scene
}

fn tcp_backend_closes(stage: Stage) -> Scene {
    conversation(stage, Protocol::Tcp, "a connection that the backend closes")
        .tcp_opens()
        .backend(FIN_ACK, FlowState::TcpCloseWait)
        .client(ACK, FlowState::TcpCloseWait)
        .client(FIN_ACK, FlowState::TcpTimeWait)
        .backend(ACK, FlowState::TcpTimeWait)
        .scene
}

fn tcp_closes_at_once(stage: Stage) -> Scene {
    conversation(
        stage,
        Protocol::Tcp,
        "a connection that is closed while it opens",
    )
    .opens(SYN, FlowState::TcpSynSent)
    .backend(SYN_ACK, FlowState::TcpSynRecv)
    .client(FIN_ACK, FlowState::TcpFinWait)
    .backend(FIN_ACK, FlowState::TcpTimeWait)
    .scene
}

fn tcp_refused(stage: Stage) -> Scene {
    conversation(stage, Protocol::Tcp, "a refused connection is tried again")
        .opens(SYN, FlowState::TcpSynSent)
        .backend(RST_ACK, FlowState::TcpClose)
        .opens(SYN, FlowState::TcpSynSent)
        .scene
}

fn tcp_reset(stage: Stage) -> Scene {
    conversation(stage, Protocol::Tcp, "a reset ends a connection")
        .tcp_opens()
        .client(RST, FlowState::TcpClose)
        .backend(ACK, FlowState::TcpClose)
        .opens(SYN, FlowState::TcpSynSent)
        .backend(SYN_ACK, FlowState::TcpSynRecv)
        .scene
}

fn tcp_after_time_wait(stage: Stage) -> Scene {
    conversation(stage, Protocol::Tcp, "a SYN opens a closed connection anew")
        .tcp_opens()
        .client(FIN_ACK, FlowState::TcpFinWait)
        .backend(FIN_ACK, FlowState::TcpTimeWait)
        .client(ACK, FlowState::TcpTimeWait)
        .tcp_opens()
        .client(ACK, FlowState::TcpEstablished)
        .scene
}

fn tcp_repeats_itself(stage: Stage) -> Scene {
    conversation(stage, Protocol::Tcp, "segments sent twice change nothing")
        .opens(SYN, FlowState::TcpSynSent)
        .client(SYN, FlowState::TcpSynSent)
        .backend(SYN_ACK, FlowState::TcpSynRecv)
        .backend(SYN_ACK, FlowState::TcpSynRecv)
        .client(SYN, FlowState::TcpSynRecv)
        .client(ACK, FlowState::TcpEstablished)
        .backend(SYN_ACK, FlowState::TcpEstablished)
        .client(SYN, FlowState::TcpEstablished)
        .client(FIN_ACK, FlowState::TcpFinWait)
        .client(FIN_ACK, FlowState::TcpFinWait)
        .client(SYN, FlowState::TcpFinWait)
        .scene
}

fn udp(stage: Stage) -> Scene {
    conversation(
        stage,
        Protocol::Udp,
        "a stream is what has gone both ways for two seconds",
    )
    .opens(0, FlowState::UdpUnreplied)
    .client(0, FlowState::UdpUnreplied)
    .backend(0, FlowState::UdpReplied)
    .client(0, FlowState::UdpReplied)
    .advance(3 * SECOND)
    .client(0, FlowState::UdpStream)
    .backend(0, FlowState::UdpStream)
    .scene
}

fn udp_without_answer(stage: Stage) -> Scene {
    let what = "datagrams one way are no stream, however long";
    conversation(stage, Protocol::Udp, what)
        .opens(0, FlowState::UdpUnreplied)
        .advance(3 * SECOND)
        .client(0, FlowState::UdpUnreplied)
        .advance(3 * SECOND)
        .client(0, FlowState::UdpUnreplied)
        .scene
}

fn sctp(stage: Stage) -> Scene {
    conversation(
        stage,
        Protocol::Sctp,
        "an association from INIT to SHUTDOWN COMPLETE",
    )
    .sctp_opens()
    .client(DATA, FlowState::SctpEstablished)
    .backend(DATA, FlowState::SctpEstablished)
    .client(SHUTDOWN, FlowState::SctpShutdown)
    .backend(SHUTDOWN_ACK, FlowState::SctpShutdown)
    .client(SHUTDOWN_COMPLETE, FlowState::SctpClosed)
    .sctp_opens()
    .backend(SHUTDOWN, FlowState::SctpShutdown)
    .client(SHUTDOWN_ACK, FlowState::SctpShutdown)
    .backend(SHUTDOWN_COMPLETE, FlowState::SctpClosed)
    .scene
}

fn sctp_aborts(stage: Stage) -> Scene {
    conversation(
        stage,
        Protocol::Sctp,
        "the client aborts an association and begins another",
    )
    .sctp_opens()
    .client(ABORT, FlowState::SctpClosed)
    .sctp_opens()
    .scene
}

fn sctp_backend_aborts(stage: Stage) -> Scene {
    conversation(
        stage,
        Protocol::Sctp,
        "the backend aborts what is about to open",
    )
    .opens(INIT, FlowState::SctpCookieWait)
    .backend(ABORT, FlowState::SctpClosed)
    .opens(INIT, FlowState::SctpCookieWait)
    .scene
}

/// Both records were last seen now.
fn all_seen_now(memory: &Memory) {
    let flows = memory.flows.borrow();
    assert_eq!(flows.len(), 2);
    assert!(
        flows
            .values()
            .all(|flow| flow.last_seen == memory.now.get())
    );
}

/// Either direction keeps both records alive.
fn twins_age_together(stage: Stage, protocol: Protocol) -> Scene {
    let (opening, answer) = (stage.opening(protocol), stage.answer(protocol));
    let opening_seen = stage.forward(&opening);
    Scene::new(
        format!(
            "{protocol} over {}: either direction keeps both records young",
            stage.family
        ),
        stage.serving(protocol),
    )
    .from_client(&opening, NEW_FLOW, &opening_seen)
    .check(all_seen_now)
    .advance(5 * SECOND)
    .to_client(&answer, REVERSE, &stage.reverse(&answer))
    .check(all_seen_now)
    .advance(3 * SECOND)
    .from_client(&opening, FORWARD, &opening_seen)
    .check(all_seen_now)
    .advance(3 * SECOND)
    .to_client(&answer, REVERSE, &stage.reverse(&answer))
    .check(all_seen_now)
}

/// For a while no record is written unless the flow's state changes.
fn no_needless_writes(stage: Stage, protocol: Protocol) -> Scene {
    let more = match protocol {
        Protocol::Udp => stage.opening(protocol),
        Protocol::Tcp | Protocol::Sctp => stage.more(protocol),
    };
    let opening = stage.opening(protocol);
    Scene::new(
        format!(
            "{protocol} over {}: records are not written for every packet",
            stage.family
        ),
        stage.serving(protocol),
    )
    .from_client(&opening, NEW_FLOW, &stage.forward(&opening))
    .advance(SECOND / 5)
    .from_client(&more, FORWARD, &stage.forward(&more))
    .check(|memory| {
        let flows = memory.flows.borrow();
        assert!(flows.values().all(|flow| flow.last_seen == 0));
    })
}
