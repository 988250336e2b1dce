//! How `beeline run` reaches the API server.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use http::Uri;

use crate::conntrack_gc::parse_seconds;
use crate::source::kubernetes::{Access, Timing};

/// The API server, with --source kubernetes.
#[derive(Args, Debug)]
#[command(next_help_heading = "The API server, with --source kubernetes")]
pub(super) struct KubernetesArgs {
    /// The API server, in place of the one that the kubeconfig or the pod's surroundings name; their
    /// certificates and credentials count. May be given several times, for API servers of one
    /// cluster: when one fails, the next one is asked.
    #[arg(long, value_name = "URL", value_parser = server)]
    kubernetes_server: Vec<Uri>,
    /// How long a watch may say nothing, until it is cut and opened anew: 10s to 1h. API servers
    /// say something every minute.
    #[arg(long, value_name = "TIME", default_value = "150s", value_parser = idle)]
    kubernetes_idle: Duration,
}

impl KubernetesArgs {
    /// Whether something is set that counts for API servers only.
    pub(super) fn is_set(&self) -> bool {
        !self.kubernetes_server.is_empty()
    }

    pub(super) fn access(self, kubeconfig: Option<PathBuf>) -> Access {
        Access {
            kubeconfig,
            servers: self.kubernetes_server,
            timing: Timing {
                idle: self.kubernetes_idle,
                ..Timing::default()
            },
        }
    }
}

/// Where an API server may be: no path, since none of its own would come after it.
fn server(text: &str) -> Result<Uri, String> {
    let uri: Uri = text.parse().map_err(|error| format!("{error}"))?;
    match (uri.scheme_str(), uri.host()) {
        (Some("http" | "https"), Some(_)) => Ok(uri),
        _ => Err("neither http://HOST:PORT nor https://HOST:PORT".to_owned()),
    }
}

fn idle(text: &str) -> Result<Duration, String> {
    match parse_seconds(text) {
        Some(seconds @ 10..=3600) => Ok(Duration::from_secs(seconds)),
        Some(_) | None => Err("not a time such as 150s from 10s to 1h".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_checked() {
        for good in [
            "https://10.0.0.1:6443",
            "http://localhost",
            "https://[fd00::1]:6443/",
        ] {
            assert!(server(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "10.0.0.1:6443",
            "ftp://a",
            "https://",
            "/a",
            "https://a b",
        ] {
            assert!(server(bad).is_err(), "{bad}");
        }
        assert_eq!(idle("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(idle("3m"), Ok(Duration::from_secs(180)));
        assert_eq!(idle("1h"), Ok(Duration::from_secs(3600)));
        for bad in ["", "9s", "2h", "s", "5x", "-10s", "99999999999999999999s"] {
            assert!(idle(bad).is_err(), "{bad}");
        }
    }
}
