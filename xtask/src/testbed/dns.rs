//! Enough of DNS (RFC 1035) for `dig` to be content, and name server identification (RFC 5001)
//! to learn which backend answered.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The only name that there is: every cluster has it.
pub const NAME: &str = "kubernetes.default.svc.cluster.local";
/// Its address.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// Its IPv6 address.
pub const ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 1);

const HEADER: usize = 12;
const A: u16 = 1;
const AAAA: u16 = 28;
const OPT: u16 = 41;
const NSID: u16 = 3;
const INTERNET: u16 = 1;
const UDP_SIZE: u16 = 1232;
const TIME_TO_LIVE: u32 = 5;

/// What an answer says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// The number of the question.
    pub id: u16,
    /// 0 if all is well, 3 if there is no such name.
    pub code: u8,
    /// The address asked for.
    pub address: Option<IpAddr>,
    /// Who answered.
    pub server: Option<String>,
}

/// A question for the address of a name in a family; asks for the server's name, too.
pub fn question(id: u16, name: &str, ipv6: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Recursion desired; one question, one additional record.
    put(&mut bytes, &[id, 0x0100, 1, 0, 0, 1]);
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.bytes());
    }
    bytes.push(0);
    put(&mut bytes, &[if ipv6 { AAAA } else { A }, INTERNET]);
    put_identification(&mut bytes, "");
    bytes
}

/// Answers a question in the name of `server`; `None` if it cannot be understood.
pub(super) fn answer(question: &[u8], server: &str) -> Option<Vec<u8>> {
    let mut reader = Reader {
        bytes: question,
        at: 0,
    };
    let [id, flags, questions, answers, authorities, additional] = reader.words()?;
    if (questions, answers, authorities) != (1, 0, 0) {
        return None;
    }
    let name = reader.name()?;
    let [kind, class] = reader.words()?;
    let asked = question.get(HEADER..reader.at)?;
    let wants_server = additional > 0 && reader.extended_options()?.contains(&NSID);

    let known = class == INTERNET && name.eq_ignore_ascii_case(NAME);
    let data: Option<Vec<u8>> = match kind {
        A if known => Some(ADDRESS.octets().to_vec()),
        AAAA if known => Some(ADDRESS_V6.octets().to_vec()),
        _ => None,
    };
    // An answer with authority, recursion available; "no such name" where there is none.
    let flags = 0x8480 | flags & 0x0100 | if known { 0 } else { 3 };
    let mut bytes = Vec::new();
    put(
        &mut bytes,
        &[
            id,
            flags,
            1,
            data.is_some().into(),
            0,
            (additional > 0).into(),
        ],
    );
    bytes.extend(asked);
    if let Some(data) = data {
        // The name is the one at offset 12.
        put(&mut bytes, &[0xc00c, kind, INTERNET]);
        bytes.extend(TIME_TO_LIVE.to_be_bytes());
        put(&mut bytes, &[data.len() as u16]);
        bytes.extend(data);
    }
    match additional {
        0 => {}
        _ if wants_server => put_identification(&mut bytes, server),
        _ => put_extension(&mut bytes, &[]),
    }
    Some(bytes)
}

/// Reads an answer to a question of [`question`]; `None` if it is malformed.
pub fn read_answer(bytes: &[u8]) -> Option<Answer> {
    let mut reader = Reader { bytes, at: 0 };
    let [id, flags, questions, answers, ..] = reader.words::<6>()?;
    if questions != 1 {
        return None;
    }
    reader.name()?;
    reader.words::<2>()?;
    let mut address = None;
    for _ in 0..answers {
        let [_name, kind, _class, _ttl, _ttl_low, length] = reader.words()?;
        let data = reader.take(length.into())?;
        address = match kind {
            A => Some(<[u8; 4]>::try_from(data).ok()?.into()),
            AAAA => Some(<[u8; 16]>::try_from(data).ok()?.into()),
            _ => address,
        };
    }
    let server = reader.identification();
    Some(Answer {
        id,
        code: (flags & 0xf) as u8,
        address,
        server,
    })
}

fn put(bytes: &mut Vec<u8>, words: &[u16]) {
    bytes.extend(words.iter().flat_map(|word| word.to_be_bytes()));
}

fn put_identification(bytes: &mut Vec<u8>, server: &str) {
    let mut option = Vec::new();
    put(&mut option, &[NSID, server.len() as u16]);
    option.extend(server.bytes());
    put_extension(bytes, &option);
}

/// The additional record that says what else the sender understands (RFC 6891).
fn put_extension(bytes: &mut Vec<u8>, options: &[u8]) {
    bytes.push(0);
    put(bytes, &[OPT, UDP_SIZE, 0, 0, options.len() as u16]);
    bytes.extend(options);
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
        Some(taken)
    }

    fn words<const N: usize>(&mut self) -> Option<[u16; N]> {
        let bytes = self.take(2 * N)?;
        Some(std::array::from_fn(|at| {
            u16::from_be_bytes([bytes[2 * at], bytes[2 * at + 1]])
        }))
    }

    fn name(&mut self) -> Option<String> {
        let mut labels = Vec::new();
        loop {
            let length = self.take(1)?.first().copied()?;
            match length {
                0 => return Some(labels.join(".")),
                1..64 => labels.push(str::from_utf8(self.take(length.into())?).ok()?),
                64.. => return None,
            }
        }
    }

    /// The numbers of the options in the record of RFC 6891.
    fn extended_options(&mut self) -> Option<Vec<u16>> {
        let mut numbers = Vec::new();
        self.each_option(|number, _| numbers.push(number))?;
        Some(numbers)
    }

    fn identification(&mut self) -> Option<String> {
        let mut server = None;
        self.each_option(|number, data| {
            if number == NSID {
                server = String::from_utf8(data.to_vec()).ok();
            }
        })?;
        server
    }

    fn each_option(&mut self, mut with: impl FnMut(u16, &[u8])) -> Option<()> {
        self.name()?;
        let [kind, _size, _code, _flags, length] = self.words()?;
        let mut options = Reader {
            bytes: self.take(length.into())?,
            at: 0,
        };
        while kind == OPT && options.at < options.bytes.len() {
            let [number, length] = options.words()?;
            with(number, options.take(length.into())?);
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(name: &str, ipv6: bool) -> Option<Answer> {
        read_answer(&answer(&question(7, name, ipv6), "dns-1")?)
    }

    #[test]
    fn the_known_name_has_both_addresses() {
        let expected = |address| Answer {
            id: 7,
            code: 0,
            address,
            server: Some("dns-1".into()),
        };
        assert_eq!(ask(NAME, false), Some(expected(Some(ADDRESS.into()))));
        assert_eq!(
            ask("KUBERNETES.default.svc.cluster.local", true),
            Some(expected(Some(ADDRESS_V6.into())))
        );
    }

    #[test]
    fn other_names_do_not_exist() {
        let answer = ask("example.com", false).unwrap();
        assert_eq!((answer.code, answer.address), (3, None));
    }

    #[test]
    fn nothing_short_is_answered() {
        let whole = question(7, NAME, false);
        for length in 0..whole.len() {
            assert_eq!(answer(&whole[..length], "x"), None, "{length} bytes");
        }
    }
}
