//! Addresses and ranges in the syntax of old objects (rule R27).

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

/// The address in `text`. Leading zeros are decimal; a v4-mapped address is an IPv4 address, as
/// everywhere in Kubernetes.
pub(super) fn address(text: &str) -> Result<IpAddr, String> {
    lenient(text).ok_or_else(|| format!("'{text}' is not an IP address"))
}

/// The range in `text`, which may have blanks around it and bits set behind the prefix.
pub(super) fn range(text: &str) -> Result<IpNet, String> {
    let parsed = text.trim().split_once('/').and_then(|(address, length)| {
        let address = lenient(address)?;
        if length.is_empty() || !length.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        IpNet::new(address, length.parse().ok()?).ok()
    });
    match parsed {
        Some(range) => Ok(range.trunc()),
        None => Err(format!("'{text}' is not an address range")),
    }
}

fn lenient(text: &str) -> Option<IpAddr> {
    // The dotted part is the whole address, or the end of a v4-mapped one.
    let dotted = text.rfind(':').map_or(0, |colon| colon + 1);
    let (head, tail) = text.split_at_checked(dotted)?;
    if !tail.contains('.') {
        return text.parse().ok();
    }
    let tail = dotted_quad(tail)?;
    let whole: IpAddr = format!("{head}{tail}").parse().ok()?;
    Some(whole.to_canonical())
}

fn dotted_quad(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        *octet = part.parse().ok()?;
    }
    parts.next().is_none().then(|| octets.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (text, expected) in [
            ("10.0.0.1", Some("10.0.0.1")),
            ("010.008.000.001", Some("10.8.0.1")),
            ("0000000000010.0.0.1", Some("10.0.0.1")),
            ("fd00::1", Some("fd00::1")),
            ("FD00:0:0::0001", Some("fd00::1")),
            ("::ffff:10.0.0.1", Some("10.0.0.1")),
            ("::ffff:010.0.0.1", Some("10.0.0.1")),
            ("2001:db8::1.2.3.4", Some("2001:db8::102:304")),
            ("", None),
            ("None", None),
            ("10.0.0", None),
            ("10.0.0.256", None),
            ("10.0.0.1.", None),
            ("10.0.0.+1", None),
            ("10.0.0.1/32", None),
            (" 10.0.0.1", None),
            ("fe80::1%eth0", None),
            ("é.0.0.1", None),
        ] {
            let expected = expected.map(|ip| ip.parse::<IpAddr>().unwrap());
            assert_eq!(address(text).ok(), expected, "{text}");
        }
        assert_eq!(address("x").unwrap_err(), "'x' is not an IP address");
    }

    #[test]
    fn ranges() {
        for (text, expected) in [
            ("10.0.0.0/8", Some("10.0.0.0/8")),
            (" 010.1.2.3/08\t", Some("10.0.0.0/8")),
            ("fd00::1/64", Some("fd00::/64")),
            ("0.0.0.0/0", Some("0.0.0.0/0")),
            ("10.0.0.0", None),
            ("10.0.0.0/", None),
            ("10.0.0.0/+8", None),
            ("10.0.0.0/33", None),
            ("fd00::/129", None),
            ("10.0.0.0/8/8", None),
        ] {
            let expected = expected.map(|net| net.parse::<IpNet>().unwrap());
            assert_eq!(range(text).ok(), expected, "{text}");
        }
        assert_eq!(range(" x ").unwrap_err(), "' x ' is not an address range");
    }
}
