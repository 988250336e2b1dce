//! Packets whose checksum was left to the device, once it has done its work.

use crate::abi::{Reply, Verdict};
use crate::testing::{Step, completed, scenes, verify};

#[test]
fn completed_packets_are_right() {
    let mut n_completed = 0;
    for scene in scenes() {
        for step in &scene.steps {
            if let Step::Packet {
                packet,
                is_partial: true,
                verdict,
                expected,
                ..
            } = step
                && !matches!(verdict, Verdict::Drop(_))
            {
                // Of these answers only those go out that no device completes.
                let frame = if *verdict == Verdict::Reply(Reply::TooLong) {
                    expected.clone()
                } else {
                    completed(packet, expected)
                };
                assert_eq!(verify(&frame), Ok(()), "{}", scene.name);
                n_completed += 1;
            }
        }
    }
    assert!(n_completed > 20);
}

/// Untouched, they were right as well: the scenes' own packets are what they should be.
#[test]
fn completed_packets_were_right_before() {
    for scene in scenes() {
        for step in &scene.steps {
            if let Step::Packet {
                packet,
                is_partial: true,
                ..
            } = step
            {
                assert_eq!(verify(&completed(packet, packet)), Ok(()), "{}", scene.name);
            }
        }
    }
}
