//! Whether the ports of rewritten sources are apart from the node's own.

use crate::node::SourcePorts;

/// Warns if a connection of this node's own may get a port that is given to another's: answers
/// would go astray.
pub(super) fn check_source_ports(ports: SourcePorts) {
    const FOLDER: &str = "/proc/sys/net/ipv4";
    let read = |name| std::fs::read_to_string(format!("{FOLDER}/{name}")).unwrap_or_default();
    let (own, reserved) = (read("ip_local_port_range"), read("ip_local_reserved_ports"));
    if let Some(own) = own_ports(&own, &reserved, ports) {
        tracing::warn!(
            "--source-ports {ports}: this node's own connections get their ports from {own}, so \
             one may clash with a client's whose source is rewritten; choose others, narrow \
             net.ipv4.ip_local_port_range, or add them to net.ipv4.ip_local_reserved_ports"
        );
    }
}

/// The range that this node's own connections get their ports from, if some of `ports` are in it
/// and not reserved.
fn own_ports(own: &str, reserved: &str, ports: SourcePorts) -> Option<SourcePorts> {
    let mut numbers = own.split_whitespace().map(str::parse);
    let (first, last) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    let own = SourcePorts { first, last };
    let reserved: Vec<(u16, u16)> = reserved
        .trim()
        .split(',')
        .filter_map(reserved_ports)
        .collect();
    let is_reserved = |port| {
        reserved
            .iter()
            .any(|(first, last)| (*first..=*last).contains(&port))
    };
    let mut both = ports.first.max(own.first)..=ports.last.min(own.last);
    both.any(|port| !is_reserved(port)).then_some(own)
}

fn reserved_ports(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some((first.parse().ok()?, last.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_this_nodes_own_connections_are_noticed_unless_they_are_reserved() {
        let ports = SourcePorts::default();
        for (own, reserved, is_clash) in [
            ("32768\t60999\n", "\n", false),
            ("", "", false),
            ("1024\t65535\n", "\n", true),
            ("1024\t65535\n", "10000-29999\n", false),
            ("1024\t65535\n", "8080,10000-20000,20001-29998\n", true),
            ("20000\t20001\n", "20000,20001\n", false),
        ] {
            let clash = own_ports(own, reserved, ports);
            assert_eq!(clash.is_some(), is_clash, "{own:?} {reserved:?}");
        }
    }
}
