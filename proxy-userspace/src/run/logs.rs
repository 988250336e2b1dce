//! What the kernel programs log: a sample of the packets that they drop.

use std::time::Duration;

use aya_log::EbpfLogger;

use crate::loader::Programs;

const INTERVAL: Duration = Duration::from_millis(200);

/// Passes the programs' log records on to ours.
pub(super) fn forward(programs: &Programs) {
    let [program, ..] = &programs.all;
    let Ok(mut logger) = EbpfLogger::init_from_id(program.id) else {
        return;
    };
    let follow = async move {
        let mut ticks = tokio::time::interval(INTERVAL);
        loop {
            let _tick = ticks.tick().await;
            logger.flush();
        }
    };
    drop(tokio::spawn(follow));
}
