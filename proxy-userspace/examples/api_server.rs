//! The API server of the tests on its own, for a daemon to follow: without a cluster, on an
//! address in whatever network namespace it is started in.
//!
//! Objects come from manifests, and are changed by POST, PUT and DELETE.

#[path = "../tests/support/api_server.rs"]
mod api_server;

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context;
use api_server::ApiServer;
use clap::Parser;

/// Serves Services, EndpointSlices, Nodes, ServiceCIDRs and Events as a Kubernetes API server
/// does, without validation and without authentication.
#[derive(Parser)]
struct Arguments {
    /// Address and port to listen on; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Where to write a kubeconfig that leads here.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// Manifests of the objects that are there at the start.
    manifests: Vec<PathBuf>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let server = ApiServer::bind(arguments.listen)
        .await
        .with_context(|| format!("listening on {}", arguments.listen))?;
    for path in &arguments.manifests {
        let load = || anyhow::Ok(server.apply_manifest(&std::fs::read_to_string(path)?)?);
        let count = load().with_context(|| format!("manifest {}", path.display()))?;
        eprintln!("{}: {count} objects", path.display());
    }
    if let Some(path) = &arguments.kubeconfig {
        std::fs::write(path, server.kubeconfig())
            .with_context(|| format!("kubeconfig {}", path.display()))?;
    }
    println!("{}", server.url());
    std::future::pending().await
}
