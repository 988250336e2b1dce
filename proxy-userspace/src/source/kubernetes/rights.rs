//! What Beeline asks of the API server, for whoever grants it.

/// A right that Beeline needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Right {
    /// The API group; "" for the core one.
    pub group: &'static str,
    /// The plural name.
    pub resource: &'static str,
    /// What is done with it.
    pub verbs: &'static [&'static str],
    /// The option that it is needed for; `None`: always.
    pub option: Option<&'static str>,
}

/// All of them (rule R185). Nothing else is asked for.
pub const RIGHTS: &[Right] = &[
    followed("", "services"),
    followed("discovery.k8s.io", "endpointslices"),
    followed("", "nodes"),
    followed("networking.k8s.io", "servicecidrs"),
    Right {
        option: Some("--socket-lb-skip-namespaces, --socket-lb-skip-pods"),
        ..followed("", "pods")
    },
    Right {
        group: "events.k8s.io",
        resource: "events",
        verbs: &["create", "patch"],
        option: None,
    },
];

const fn followed(group: &'static str, resource: &'static str) -> Right {
    Right {
        group,
        resource,
        verbs: &["list", "watch"],
        option: None,
    }
}
