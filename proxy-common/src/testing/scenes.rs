//! What the datapath does, packet by packet: one list for the host library and the programs.

mod addresses;
mod affinity;
mod backends;
mod checksums;
mod clashes;
mod departures;
mod flows;
mod fragments;
mod hairpin;
mod hand_back;
mod headers;
mod icmp;
mod mid_flow;
mod node_clients;
mod passes;
mod policies;
mod refusals;
mod site;
mod source_nat;
mod stage;
mod states;

use super::Scene;

/// All scenes.
pub fn scenes() -> Vec<Scene> {
    [
        flows::scenes(),
        checksums::scenes(),
        headers::scenes(),
        fragments::scenes(),
        passes::scenes(),
        mid_flow::scenes(),
        refusals::scenes(),
        backends::scenes(),
        clashes::scenes(),
        affinity::scenes(),
        hairpin::scenes(),
        icmp::scenes(),
        states::scenes(),
        policies::scenes(),
        addresses::scenes(),
        departures::scenes(),
        source_nat::scenes(),
        node_clients::scenes(),
        hand_back::scenes(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
