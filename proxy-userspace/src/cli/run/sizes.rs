//! How large the maps are.

use clap::Args;
use proxy_common::abi::limits;

use crate::loader::sizes::Sizes;

/// A running node's maps can grow, not shrink.
#[derive(Args, Debug)]
#[command(next_help_heading = "Sizes of the maps, in entries (they can grow, not shrink)")]
pub(super) struct SizeArgs {
    #[arg(
        long,
        value_name = "N",
        value_parser = size(),
        help = entries("Addresses × ports × protocols that clients dial", limits::FRONTENDS)
    )]
    max_frontends: Option<u32>,
    #[arg(
        long,
        value_name = "N",
        value_parser = size(),
        help = entries("Addresses of frontends and of this node", limits::ADDRESSES)
    )]
    max_addresses: Option<u32>,
    #[arg(
        long,
        value_name = "N",
        value_parser = size(),
        help = entries("loadBalancerSourceRanges × service ports", limits::SOURCE_RANGES)
    )]
    max_source_ranges: Option<u32>,
    #[arg(
        long,
        value_name = "N",
        value_parser = size(),
        help = entries("ServiceCIDRs and networks of local pods", limits::NETWORKS)
    )]
    max_networks: Option<u32>,
    #[arg(
        long,
        value_name = "N",
        value_parser = size(),
        help = entries("Network devices of this node", limits::DEVICES)
    )]
    max_devices: Option<u32>,
    #[arg(
        long,
        value_name = "N",
        value_parser = size(),
        help = entries("Network namespaces of pods, for the socket edge", limits::CLIENTS)
    )]
    max_clients: Option<u32>,
    #[arg(
        long,
        value_name = "N",
        value_parser = size(),
        help = entries("Pods that the socket edge tells apart", limits::PODS)
    )]
    max_pods: Option<u32>,
    #[arg(
        long,
        value_name = "N",
        value_parser = size(),
        help = entries(
            "Backends of all frontends; an update needs room for old and new",
            limits::SLOTS
        )
    )]
    max_slots: Option<u32>,
    #[arg(
        long,
        value_name = "N",
        value_parser = size(),
        help = entries("Endpoints × service ports", limits::BACKENDS)
    )]
    max_backends: Option<u32>,
    #[arg(
        long,
        value_name = "N",
        value_parser = size(),
        help = entries("Service ports × families", limits::SERVICES)
    )]
    max_services: Option<u32>,
    /// Flow records, two for each conversation. If not given: a 400th of the memory.
    #[arg(long, value_name = "N", value_parser = size())]
    max_flows: Option<u32>,
    #[arg(
        long,
        value_name = "N",
        value_parser = size(),
        help = entries("Clients × service ports with session affinity", limits::AFFINITY)
    )]
    max_affinity: Option<u32>,
    #[arg(
        long,
        value_name = "N",
        value_parser = size(),
        help = entries("Datagrams in fragments at one time", limits::FRAGMENTS)
    )]
    max_fragments: Option<u32>,
    /// Sockets that are connected to Services. The default grows with the memory.
    #[arg(long, value_name = "N", value_parser = size())]
    max_sockets: Option<u32>,
    /// Records of UDP sockets that talk to Services without being connected, two for each. The
    /// default grows with the memory.
    #[arg(long, value_name = "N", value_parser = size())]
    max_datagrams: Option<u32>,
}

/// A text with the size that a map has if none is asked for.
fn entries(what: &str, default: u32) -> String {
    format!("{what} [default: {default}]")
}

/// What no map can hold is not worth asking the kernel for.
fn size() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=1 << 28)
}

impl From<SizeArgs> for Sizes {
    fn from(args: SizeArgs) -> Self {
        Self {
            frontends: args.max_frontends,
            addresses: args.max_addresses,
            source_ranges: args.max_source_ranges,
            networks: args.max_networks,
            devices: args.max_devices,
            clients: args.max_clients,
            pods: args.max_pods,
            slots: args.max_slots,
            backends: args.max_backends,
            services: args.max_services,
            flows: args.max_flows,
            affinity: args.max_affinity,
            fragments: args.max_fragments,
            sockets: args.max_sockets,
            datagrams: args.max_datagrams,
        }
    }
}
