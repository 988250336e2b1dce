//! Problems by what is in trouble.

/// What is in trouble.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProblemKind {
    /// A Service.
    Service,
    /// An EndpointSlice.
    EndpointSlice,
    /// The Node object.
    Node,
    /// The API server, or a manifest file or folder.
    Source,
    /// The maps, or this node's tables.
    Maps,
    /// The address of a server.
    Address,
    /// The socket edge.
    SocketEdge,
    /// A device, a route or a kernel setting.
    Devices,
    /// What is left of kube-proxy.
    TakeOver,
    /// Anything else.
    Other,
}

impl ProblemKind {
    /// All of them, in order.
    pub const ALL: [Self; 10] = [
        Self::Service,
        Self::EndpointSlice,
        Self::Node,
        Self::Source,
        Self::Maps,
        Self::Address,
        Self::SocketEdge,
        Self::Devices,
        Self::TakeOver,
        Self::Other,
    ];

    /// The stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::EndpointSlice => "endpoint-slice",
            Self::Node => "node",
            Self::Source => "source",
            Self::Maps => "maps",
            Self::Address => "address",
            Self::SocketEdge => "socket-edge",
            Self::Devices => "devices",
            Self::TakeOver => "take-over",
            Self::Other => "other",
        }
    }

    /// The kind of a problem's subject, by how it begins.
    pub fn of(subject: &str) -> Self {
        let beginnings = [
            ("Service ", Self::Service),
            ("EndpointSlice ", Self::EndpointSlice),
            ("Node ", Self::Node),
            ("API server", Self::Source),
            ("file ", Self::Source),
            ("folder ", Self::Source),
            ("start", Self::Source),
            ("kube-proxy", Self::TakeOver),
            ("maps", Self::Maps),
            ("this node's tables", Self::Maps),
            ("healthz address", Self::Address),
            ("metrics address", Self::Address),
            ("socket edge", Self::SocketEdge),
            ("device", Self::Devices),
            ("routes", Self::Devices),
            ("kernel settings", Self::Devices),
        ];
        let found = beginnings
            .into_iter()
            .find(|(start, _)| subject.starts_with(start));
        found.map_or(Self::Other, |(_, kind)| kind)
    }
}
