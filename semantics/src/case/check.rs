//! Observations other than packets.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;
use serde_json::{Map, Value};

/// An observation other than a packet.
#[derive(Clone, Deserialize, Debug)]
#[serde(try_from = "RawCheck")]
pub enum Check {
    /// A GET.
    Http(HttpCheck),
    /// A sample of a metric.
    Metric(MetricCheck),
}

impl Check {
    /// For reports.
    pub fn name(&self) -> &str {
        match self {
            Self::Http(check) => &check.name,
            Self::Metric(check) => &check.name,
        }
    }
}

/// A GET from outside the node to an address of it.
#[derive(Clone, Debug)]
pub struct HttpCheck {
    /// For reports.
    pub name: String,
    /// The node's address.
    pub ip: IpAddr,
    /// The port.
    pub port: u16,
    /// Begins with a slash.
    pub path: String,
    /// What comes of it.
    pub expect: HttpExpect,
}

/// What comes of a GET.
#[derive(Clone, PartialEq, Debug)]
pub enum HttpExpect {
    /// Nothing listens there.
    Refused,
    /// An answer.
    Answer {
        /// The status code.
        status: u16,
        /// All of these are there with exactly these values; others may be.
        headers: BTreeMap<String, String>,
        /// The body is an object with at least these members.
        json: Option<Map<String, Value>>,
    },
}

/// A sample of a metric, 0 if absent.
#[derive(Clone, Debug)]
pub struct MetricCheck {
    /// For reports.
    pub name: String,
    /// The metric, as kube-proxy calls it.
    pub metric: String,
    /// Exactly these.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCheck {
    kind: Kind,
    name: String,
    #[serde(default)]
    to: Option<To>,
    #[serde(default)]
    metric: Option<String>,
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
    expect: RawExpect,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Http,
    Metric,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct To {
    ip: IpAddr,
    port: u16,
    path: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawExpect {
    #[serde(default)]
    connect: Option<Connect>,
    #[serde(default)]
    status: Option<u16>,
    #[serde(default)]
    headers: Option<BTreeMap<String, String>>,
    #[serde(default)]
    json: Option<Map<String, Value>>,
    #[serde(default)]
    value: Option<f64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Connect {
    Refused,
}

impl TryFrom<RawCheck> for Check {
    type Error = String;

    fn try_from(raw: RawCheck) -> Result<Self, String> {
        match raw.kind {
            Kind::Http => raw.http().map(Self::Http),
            Kind::Metric => raw.metric().map(Self::Metric),
        }
    }
}

impl RawCheck {
    fn http(self) -> Result<HttpCheck, String> {
        refuse(self.metric.is_some(), "metric")?;
        refuse(self.labels.is_some(), "labels")?;
        let to = require(self.to, "to")?;
        Ok(HttpCheck {
            name: self.name,
            ip: to.ip,
            port: to.port,
            path: to.path,
            expect: self.expect.http()?,
        })
    }

    fn metric(self) -> Result<MetricCheck, String> {
        refuse(self.to.is_some(), "to")?;
        Ok(MetricCheck {
            name: self.name,
            metric: require(self.metric, "metric")?,
            labels: self.labels.unwrap_or_default(),
            value: self.expect.metric()?,
        })
    }
}

impl RawExpect {
    fn http(self) -> Result<HttpExpect, String> {
        refuse(self.value.is_some(), "expect.value")?;
        if self.connect.is_none() {
            return Ok(HttpExpect::Answer {
                status: require(self.status, "expect.status")?,
                headers: self.headers.unwrap_or_default(),
                json: self.json,
            });
        }
        refuse(self.status.is_some(), "expect.status")?;
        refuse(self.headers.is_some(), "expect.headers")?;
        refuse(self.json.is_some(), "expect.json")?;
        Ok(HttpExpect::Refused)
    }

    fn metric(self) -> Result<f64, String> {
        refuse(self.connect.is_some(), "expect.connect")?;
        refuse(self.status.is_some(), "expect.status")?;
        refuse(self.headers.is_some(), "expect.headers")?;
        refuse(self.json.is_some(), "expect.json")?;
        require(self.value, "expect.value")
    }
}

fn require<T>(value: Option<T>, field: &str) -> Result<T, String> {
    value.ok_or_else(|| format!("missing field `{field}` for this kind"))
}

fn refuse(is_there: bool, field: &str) -> Result<(), String> {
    if is_there {
        Err(format!("field `{field}` has no meaning here"))
    } else {
        Ok(())
    }
}
