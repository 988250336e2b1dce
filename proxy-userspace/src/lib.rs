//! Beeline's control plane: from Services and EndpointSlices to BPF maps.
//!
//! ```text
//! Kubernetes API ─┐
//!                 ├─ source ─► model ─► desired ─► sync ─► BPF maps ─► datapath
//! manifest files ─┘  (events)  (state)  (pure)    (delta)  (pinned)    (in kernel)
//! ```

mod causes;
pub mod cli;
pub mod clock;
pub mod config;
pub mod conntrack_gc;
pub mod desired;
pub mod devices;
pub mod events;
pub mod hand_back;
pub mod health;
pub mod kube_proxy;
pub mod loader;
pub mod maps;
pub mod metrics;
pub mod model;
pub mod node;
pub mod pods;
pub mod privileges;
pub mod run;
pub mod setting;
pub mod sockets;
pub mod source;
pub mod status;
pub mod sync;
