//! How readily the kernel kills the daemon if memory is short.

/// Sets the score, if one is given. To lower it takes `CAP_SYS_RESOURCE`; without, as with
/// kube-proxy, all goes on.
pub(super) fn adjust(score: Option<i32>) {
    let Some(score) = score else { return };
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", score.to_string()) {
        tracing::info!("--oom-score-adj {score}: {error}");
    }
}
