//! Messages to and from the kernel's netfilter: `nfnetlink`, attributes, dumps and batches.

use std::io;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

/// How long the kernel may take for one part of an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of netlink's own header.
const NETLINK_HEADER: usize = 16;
/// Bytes of a header together with nfnetlink's.
const HEADER: usize = NETLINK_HEADER + 4;
/// An attribute holds attributes.
const NESTED: u16 = 1 << 15;
/// What of an attribute's type is its type.
const TYPE: u16 = 0x3fff;
/// Names the generation that a batch was made for.
const NFNL_BATCH_GENID: u16 = 1;

/// Attributes that are being put together.
#[derive(Clone, Default, Debug)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    /// One more attribute.
    #[must_use]
    pub(super) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = (4 + value.len()) as u16;
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// One with a name or text.
    #[must_use]
    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// One with a number.
    #[must_use]
    pub(super) fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// One that holds others.
    #[must_use]
    pub(super) fn nest(self, kind: u16, inner: Self) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }
}

/// The attributes in `bytes`: type and value; what is cut off is left out.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & TYPE;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The attribute of this type.
pub(super) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(its_kind, value)| (its_kind == kind).then_some(value))
}

/// What is found by going down through attributes of these types.
pub(super) fn nested<'a>(bytes: &'a [u8], kinds: &[u16]) -> Option<&'a [u8]> {
    kinds
        .iter()
        .try_fold(bytes, |inner, kind| attribute(inner, *kind))
}

/// The name or text that is an attribute's value.
pub(super) fn text(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value.split(|byte| *byte == 0).next()?).ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?.try_into().ok()?;
    Some(u16::from_ne_bytes(bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(u32::from_ne_bytes(bytes))
}

/// A request.
#[derive(Clone, Debug)]
pub(super) struct Message {
    /// Subsystem and what is wanted of it.
    pub(super) kind: u16,
    /// Beside `NLM_F_REQUEST`.
    pub(super) flags: u16,
    /// The family as nfnetlink numbers it.
    pub(super) family: u8,
    /// What it is about.
    pub(super) attributes: Attributes,
}

impl Message {
    /// Appends the message with this number.
    fn write(&self, bytes: &mut Vec<u8>, number: u32, resource: u16) {
        let length = (HEADER + self.attributes.0.len()) as u32;
        bytes.extend(length.to_ne_bytes());
        bytes.extend(self.kind.to_ne_bytes());
        bytes.extend((self.flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        bytes.extend(number.to_ne_bytes());
        bytes.extend(0_u32.to_ne_bytes());
        bytes.extend([self.family, libc::NFNETLINK_V0 as u8]);
        bytes.extend(resource.to_be_bytes());
        bytes.extend(&self.attributes.0);
    }
}

/// A conversation with netfilter, in the network namespace of the thread that began it.
pub(super) struct Netfilter(Socket);

impl Netfilter {
    /// Begins one.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(super) fn open() -> io::Result<Self> {
        let socket = Socket::new(NETLINK_NETFILTER)?;
        let patience = TimeVal::new(PATIENCE.as_secs().cast_signed(), 0);
        setsockopt(&socket, sockopt::ReceiveTimeout, &patience)?;
        Ok(Self(socket))
    }

    /// Hands every part of the answer to a question to `each`, without its headers.
    ///
    /// # Errors
    /// If the kernel refuses; `Interrupted` if what was asked for changed meanwhile.
    pub(super) fn ask(&self, question: &Message, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        let mut bytes = Vec::new();
        question.write(&mut bytes, 1, 0);
        let _length = self.0.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
        let mut is_consistent = true;
        let mut is_done = false;
        while !is_done {
            let (bytes, _) = self.0.recv_from_full()?;
            for part in parts(&bytes) {
                let part = part?;
                is_consistent &= part.flags & libc::NLM_F_DUMP_INTR as u16 == 0;
                match part.result()? {
                    Some(()) => is_done = true,
                    None => each(part.body.get(HEADER - NETLINK_HEADER..).unwrap_or_default()),
                }
                is_done |= question.flags & libc::NLM_F_DUMP as u16 == 0
                    && part.flags & libc::NLM_F_MULTI as u16 == 0
                    && question.flags & libc::NLM_F_ACK as u16 == 0;
            }
        }
        if is_consistent {
            Ok(())
        } else {
            Err(io::ErrorKind::Interrupted.into())
        }
    }

    /// Does all of `messages` to nf_tables, or nothing; nothing, too, if `generation` is over.
    ///
    /// # Errors
    /// If the kernel refuses one of them: `ERESTART` if another change came before.
    pub(super) fn change(&self, generation: u32, messages: &[Message]) -> io::Result<()> {
        let Some((last, others)) = messages.split_last() else {
            return Ok(());
        };
        let mut last = last.clone();
        last.flags |= libc::NLM_F_ACK as u16;
        let frame = |kind: libc::c_int, attributes| Message {
            kind: kind as u16,
            flags: 0,
            family: libc::AF_UNSPEC as u8,
            attributes,
        };
        let generation = Attributes::default().number(NFNL_BATCH_GENID, generation);
        let begin = frame(libc::NFNL_MSG_BATCH_BEGIN, generation);
        let end = frame(libc::NFNL_MSG_BATCH_END, Attributes::default());
        let mut bytes = Vec::new();
        let nf_tables = libc::NFNL_SUBSYS_NFTABLES as u16;
        begin.write(&mut bytes, 0, nf_tables);
        let mut number = 0;
        for message in others.iter().chain([&last]) {
            number += 1;
            message.write(&mut bytes, number, 0);
        }
        end.write(&mut bytes, number + 1, nf_tables);
        setsockopt(&self.0, sockopt::SndBufForce, &(2 * bytes.len() + 65_536))?;
        let _length = self.0.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
        self.answered(number)
    }

    /// Waits until message `last` of a batch is answered for.
    fn answered(&self, last: u32) -> io::Result<()> {
        loop {
            let (bytes, _) = self.0.recv_from_full()?;
            for part in parts(&bytes) {
                let part = part?;
                // The first error is the cause of all others.
                if part.result()?.is_some() && part.number == last {
                    return Ok(());
                }
            }
        }
    }
}

/// A message of the kernel's.
struct Part<'a> {
    kind: u16,
    flags: u16,
    number: u32,
    body: &'a [u8],
}

impl Part<'_> {
    /// Whether it ends the answer, and how; `None`: it is a part of it.
    fn result(&self) -> io::Result<Option<()>> {
        let is_end = [libc::NLMSG_DONE, libc::NLMSG_ERROR].contains(&i32::from(self.kind));
        if !is_end {
            return Ok(None);
        }
        match u32_at(self.body, 0).map_or(0, u32::cast_signed) {
            0 => Ok(Some(())),
            code => Err(io::Error::from_raw_os_error(-code)),
        }
    }
}

/// The messages of one datagram.
fn parts(mut bytes: &[u8]) -> impl Iterator<Item = io::Result<Part<'_>>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let length = u32_at(bytes, 0).map_or(0, |length| length as usize);
        let part = bytes.get(NETLINK_HEADER..length).and_then(|body| {
            Some(Part {
                kind: u16_at(bytes, 4)?,
                flags: u16_at(bytes, 6)?,
                number: u32_at(bytes, 8)?,
                body,
            })
        });
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        if part.is_none() {
            bytes = &[];
        }
        Some(part.ok_or_else(|| io::ErrorKind::InvalidData.into()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_were_written() {
        let inner = Attributes::default().text(1, "abc").number(2, 0x0102_0304);
        let Attributes(bytes) = Attributes::default().bytes(7, &[9]).nest(3, inner);
        assert_eq!(bytes.len(), 8 + 4 + 8 + 8);
        assert_eq!(attribute(&bytes, 7), Some(&[9][..]));
        assert_eq!(nested(&bytes, &[3, 1]).and_then(text), Some("abc"));
        assert_eq!(nested(&bytes, &[3, 2]), Some(&[1, 2, 3, 4][..]));
        assert_eq!(nested(&bytes, &[3, 4]), None);
        assert_eq!(attributes(&bytes[..bytes.len() - 1]).count(), 1);
    }

    #[test]
    fn a_cut_message_is_an_error_and_ends_the_reading() {
        let message = Message {
            kind: 5,
            flags: 0,
            family: 2,
            attributes: Attributes::default().text(1, "abc"),
        };
        let mut bytes = Vec::new();
        message.write(&mut bytes, 4, 0);
        let kinds: Vec<_> = parts(&bytes).map(|part| part.unwrap().number).collect();
        assert_eq!(kinds, [4]);
        let results: Vec<_> = parts(&bytes[..bytes.len() - 1])
            .map(|part| part.is_ok())
            .collect();
        assert_eq!(results, [false]);
    }
}
