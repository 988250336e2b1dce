//! Writing Events to the API server.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ObjectReference, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::events::v1::{Event, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kube::core::PartialObjectMeta;
use kube::{Client, Resource};
use serde_json::json;

use super::outbox::Letter;
use super::{Object, Reason};
use crate::clock::wall;
use crate::model::ObjectName;

/// Who writes them. kube-proxy's own name would say what is not so; reasons are the same.
const CONTROLLER: &str = "beeline";
/// Where Events about objects without namespace are.
const NAMESPACE: &str = "default";
/// What fits into a note, and into the other texts.
const NOTE: usize = 1024;
const TEXT: usize = 128;
/// What fits into a name, beside a hash.
const NAME: usize = 253 - 17;

/// Writes Events of one node.
pub(super) struct Recorder {
    client: Client,
    node: String,
}

/// Why an Event is not written.
#[derive(Debug)]
pub(super) enum Refusal {
    /// There is no right to.
    Forbidden(String),
    /// This one is not accepted.
    Invalid(String),
    /// Nobody is there, or has time.
    Away(String),
}

impl From<kube::Error> for Refusal {
    fn from(error: kube::Error) -> Self {
        let message = error.to_string();
        let code = if let kube::Error::Api(status) = error {
            Some(status.code)
        } else {
            None
        };
        match code {
            None | Some(401 | 429 | 500..) => Self::Away(message),
            Some(403) => Self::Forbidden(message),
            Some(_) => Self::Invalid(message),
        }
    }
}

impl Recorder {
    pub(super) fn new(client: Client, node: &str) -> Self {
        Self {
            client,
            node: node.to_owned(),
        }
    }

    /// Writes it, unless its object is gone.
    pub(super) async fn record(&self, letter: &Letter) -> Result<(), Refusal> {
        let Some(regarding) = self.regarding(&letter.cause.object).await? else {
            return Ok(());
        };
        let namespace = regarding.namespace.as_deref().unwrap_or(NAMESPACE);
        let api: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        let event = self.event(letter, &regarding);
        match api.create(&PostParams::default(), &event).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 => {
                if letter.is_again {
                    let name = event.metadata.name.unwrap_or_default();
                    self.count(&api, &name).await?;
                }
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Counts one more of an Event that is there. What is there is not to be read, but an empty
    /// change of it tells: the right to read Events would be one more.
    async fn count(&self, api: &Api<Event>, name: &str) -> Result<(), kube::Error> {
        let parameters = PatchParams::default();
        let known = api
            .patch(name, &parameters, &Patch::Merge(json!({})))
            .await?;
        let series = EventSeries {
            count: known
                .series
                .map_or(1, |series| series.count)
                .saturating_add(1),
            last_observed_time: MicroTime(now()),
        };
        let change = json!({ "series": series });
        api.patch(name, &parameters, &Patch::Merge(change)).await?;
        Ok(())
    }

    fn event(&self, letter: &Letter, regarding: &ObjectReference) -> Event {
        let reason = letter.cause.reason;
        let is_normal = reason == Reason::Starting;
        let age = SignedDuration::try_from(letter.since.elapsed()).unwrap_or_default();
        let time = now().checked_sub(age).unwrap_or_else(|_| now());
        Event {
            metadata: ObjectMeta {
                name: Some(self.name(letter, regarding)),
                namespace: regarding.namespace.clone().or(Some(NAMESPACE.to_owned())),
                ..ObjectMeta::default()
            },
            event_time: Some(MicroTime(time)),
            type_: Some(if is_normal { "Normal" } else { "Warning" }.to_owned()),
            reason: Some(reason.name().to_owned()),
            action: Some(reason.action().to_owned()),
            note: Some(start(&format!("node {}: {}", self.node, letter.note), NOTE)),
            regarding: Some(regarding.clone()),
            reporting_controller: Some(CONTROLLER.to_owned()),
            reporting_instance: Some(start(&format!("{CONTROLLER}-{}", self.node), TEXT)),
            ..Event::default()
        }
    }

    /// The same for the same, whoever asks.
    fn name(&self, letter: &Letter, regarding: &ObjectReference) -> String {
        let parts = [
            Some(&self.node),
            regarding.kind.as_ref(),
            regarding.name.as_ref(),
            regarding.uid.as_ref(),
        ];
        let parts = parts.into_iter().flatten().map(String::as_str);
        let hash = fnv(parts.chain([letter.cause.reason.name()]));
        let name = regarding.name.as_deref().unwrap_or_default();
        format!("{}.{hash:016x}", start(name, NAME))
    }

    /// The object as Events name it; `None` if it is gone.
    async fn regarding(&self, object: &Object) -> Result<Option<ObjectReference>, kube::Error> {
        match object {
            // As the kubelet and kube-proxy have it: `kubectl describe` looks for that.
            Object::Node => Ok(Some(ObjectReference {
                kind: Some("Node".to_owned()),
                name: Some(self.node.clone()),
                uid: Some(self.node.clone()),
                ..ObjectReference::default()
            })),
            Object::Service(name) => self.find::<Service>(name).await,
            Object::EndpointSlice(name) => self.find::<EndpointSlice>(name).await,
        }
    }

    /// Asks for the uid, which `kubectl describe` looks for. Nobody else needs it, so nobody has
    /// it. The right to list is there already, that to get is not.
    async fn find<K>(&self, name: &ObjectName) -> Result<Option<ObjectReference>, kube::Error>
    where
        K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope> + Clone,
        PartialObjectMeta<K>: std::fmt::Debug,
    {
        let api: Api<PartialObjectMeta<K>> = Api::namespaced(self.client.clone(), &name.namespace);
        let this = ListParams::default()
            .fields(&format!("metadata.name={}", name.name))
            .at("0");
        let found = api.list(&this).await?.items.into_iter().next();
        Ok(found.map(|found| ObjectReference {
            api_version: Some(K::api_version(&()).into_owned()),
            kind: Some(K::kind(&()).into_owned()),
            namespace: Some(name.namespace.to_string()),
            name: Some(name.name.to_string()),
            uid: found.metadata.uid,
            ..ObjectReference::default()
        }))
    }
}

fn now() -> Timestamp {
    Timestamp::try_from(wall()).unwrap_or_default()
}

/// The beginning of a text, of so many bytes at most.
fn start(text: &str, most: usize) -> String {
    let ends = text.char_indices().map(|(at, it)| at + it.len_utf8());
    let end = ends.take_while(|end| *end <= most).last();
    text[..end.unwrap_or_default()].to_owned()
}

/// FNV-1a: the standard library's hashes are not the same in another process.
fn fnv<'a>(parts: impl Iterator<Item = &'a str>) -> u64 {
    let bytes = parts.flat_map(|part| part.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(start("abc", 5), "abc");
        assert_eq!(start("añb", 2), "a");
    }

    #[test]
    fn hashes_are_the_same_for_ever() {
        assert_eq!(fnv(["a"].into_iter()), fnv(["a"].into_iter()));
        assert_ne!(fnv(["a", "b"].into_iter()), fnv(["ab"].into_iter()));
        // Of the algorithm's authors, with the byte that ends a part.
        assert_eq!(fnv(std::iter::empty()), 0xcbf2_9ce4_8422_2325);
    }
}
