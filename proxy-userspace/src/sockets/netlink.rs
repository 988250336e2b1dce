//! Questions to netlink from a thread that waits for the answer.

use std::io;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use rtnetlink::packet_core::{
    DecodeError, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use rtnetlink::sys::{Socket, SocketAddr};

/// How long the kernel may take for one part of an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Opens a socket for the netlink protocol of this number, in the caller's network namespace.
///
/// # Errors
/// If the kernel refuses.
pub(super) fn open(protocol: isize) -> io::Result<Socket> {
    let socket = Socket::new(protocol)?;
    let patience = TimeVal::new(PATIENCE.as_secs().cast_signed(), 0);
    setsockopt(&socket, sockopt::ReceiveTimeout, &patience)?;
    Ok(socket)
}

/// Sends a request with these flags, and hands every part of the answer to `each`.
///
/// The flags must ask for a dump or an acknowledgement, which ends the answer.
///
/// # Errors
/// If the kernel refuses, or says something that is not understood.
pub(super) fn ask<Q, A>(
    socket: &Socket,
    request: Q,
    flags: u16,
    mut each: impl FnMut(A),
) -> io::Result<()>
where
    Q: NetlinkSerializable,
    A: NetlinkDeserializable,
{
    let mut message = NetlinkMessage::new(
        NetlinkHeader::default(),
        NetlinkPayload::InnerMessage(request),
    );
    message.header.flags = NLM_F_REQUEST | flags;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    let _length = socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        if read(&bytes, &mut each)? {
            return Ok(());
        }
    }
}

/// Reads the messages of one datagram; says whether the answer ends with it.
fn read<A: NetlinkDeserializable>(bytes: &[u8], each: &mut impl FnMut(A)) -> io::Result<bool> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let message = NetlinkMessage::<A>::deserialize(rest).map_err(garbled)?;
        let length = (message.header.length as usize).next_multiple_of(4);
        if let NetlinkPayload::InnerMessage(part) = message.payload {
            each(part);
        } else if let NetlinkPayload::Done(done) = message.payload {
            return result(done.code).map(|()| true);
        } else if let NetlinkPayload::Error(error) = message.payload {
            return result(error.code.map_or(0, i32::from)).map(|()| true);
        } else if let NetlinkPayload::Overrun(_) = message.payload {
            return Err(io::Error::other("netlink has lost a part of the answer"));
        }
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(false)
}

fn result(code: i32) -> io::Result<()> {
    if code == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(-code))
    }
}

fn garbled(error: DecodeError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
