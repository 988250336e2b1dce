//! Which pods the socket edge leaves alone. Pure.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use super::PodSelector;
use crate::model::Pod;

/// The pods whose sockets are left alone: those of a namespace, and those that a selector selects.
///
/// They see Services' addresses, as programs of a mesh beside them must; their packets are
/// translated at their devices.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Skip {
    /// All pods of these.
    pub namespaces: Namespaces,
    /// In all namespaces, the pods that one of these selects.
    pub selectors: Vec<PodSelector>,
}

impl Skip {
    /// Whether any pod can be meant. If not, nothing has to be known of pods.
    pub fn is_some(&self) -> bool {
        !self.namespaces.0.is_empty() || !self.selectors.is_empty()
    }

    /// Whether the sockets of this pod are left alone.
    pub fn leaves_out(&self, pod: &Pod) -> bool {
        self.namespaces.0.contains(&*pod.name.namespace)
            || self.selectors.iter().any(|selector| selector.matches(pod))
    }
}

/// Names of namespaces.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Namespaces(BTreeSet<String>);

/// No namespace has this name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("'{0}' is not the name of a namespace")]
pub struct NamespaceError(String);

impl FromStr for Namespaces {
    type Err = NamespaceError;

    /// Reads `istio-system,mesh`.
    ///
    /// # Errors
    /// If one of them can't be the name of a namespace.
    fn from_str(text: &str) -> Result<Self, NamespaceError> {
        let name = |name: &str| match name.trim() {
            name if super::is_dns_label(name) => Ok(name.to_owned()),
            name => Err(NamespaceError(name.to_owned())),
        };
        text.split(',')
            .map(name)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl fmt::Display for Namespaces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&Vec::from_iter(self.0.iter().map(String::as_str)).join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectName;

    fn pod(namespace: &str, app: &str) -> Pod {
        Pod {
            name: ObjectName {
                namespace: namespace.into(),
                name: "a".into(),
            },
            uid: "u".into(),
            labels: [("app".to_owned(), app.to_owned())].into(),
        }
    }

    #[test]
    fn a_pod_is_left_out_by_its_namespace_or_any_selector() {
        let skip = Skip {
            namespaces: "mesh, istio-system".parse().unwrap(),
            selectors: ["app=a", "app=b"].map(|it| it.parse().unwrap()).into(),
        };
        assert!(skip.is_some());
        assert!(skip.leaves_out(&pod("mesh", "c")));
        assert!(skip.leaves_out(&pod("istio-system", "")));
        assert!(skip.leaves_out(&pod("shop", "a")));
        assert!(skip.leaves_out(&pod("shop", "b")));
        assert!(!skip.leaves_out(&pod("shop", "c")));
        assert_eq!(skip.namespaces.to_string(), "istio-system,mesh");
    }

    #[test]
    fn by_default_none_is_left_out() {
        assert!(!Skip::default().is_some());
        assert!(!Skip::default().leaves_out(&pod("shop", "a")));
    }

    #[test]
    fn names_that_no_namespace_has() {
        for (text, name) in [("", ""), ("a,,b", ""), ("Mesh", "Mesh"), ("a,b.c", "b.c")] {
            let error = text.parse::<Namespaces>().unwrap_err();
            assert_eq!(error, NamespaceError(name.to_owned()), "{text}");
        }
    }
}
