//! The scenes, played on the host.

use std::collections::BTreeSet;

use crate::testing::{Skb, scenes};

fn play(lay_out: impl Fn(Skb) -> Skb) {
    let failures: Vec<_> = scenes()
        .iter()
        .filter_map(|scene| scene.play(&lay_out).err())
        .collect();
    assert!(
        failures.is_empty(),
        "{} scenes\n{}",
        failures.len(),
        failures.join("\n")
    );
}

#[test]
fn scenes_come_out_as_written() {
    play(|skb| skb);
}

#[test]
fn scenes_do_not_depend_on_how_packets_lie_in_memory() {
    play(Skb::scattered);
}

#[test]
fn scenes_have_names_of_their_own() {
    let scenes = scenes();
    let names: BTreeSet<_> = scenes.iter().map(|scene| &scene.name).collect();
    assert_eq!(names.len(), scenes.len());
}
