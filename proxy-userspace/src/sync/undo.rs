//! Taking back what a Service's update has written, when a later write of it fails.
//!
//! Frontends go back first, so that no packet finds a half of the new version, then what they led
//! to. What can't be taken back stays, whole frontend by frontend, until the update is tried again.

use proxy_common::abi::Backend;

use super::Sync;
use super::actual::is_live;
use super::adopt::gone;
use super::publish::Writer;
use super::refusal::Refusal;
use super::target::{Target, Write};

/// What makes up for one write, or nothing if there is no need: slots that no frontend names, and
/// addresses, which are settled at the end of each update.
pub(super) fn inverse(sync: &Sync, write: &Write) -> Option<Write> {
    match write {
        Write::Service { id, .. } => Some(Write::RemoveService { id: *id }),
        Write::Backend { id, backend } => Some(Write::Backend {
            id: *id,
            backend: before(sync.actual.backend(*id), *backend),
        }),
        Write::Frontend { key, .. } => Some(match sync.actual.frontends.get(key) {
            Some(&value) => Write::Frontend { key: *key, value },
            None => Write::RemoveFrontend { key: *key },
        }),
        Write::SourceRange { service, net } => Some(Write::RemoveSourceRange {
            service: *service,
            net: *net,
        }),
        Write::Slots { .. }
        | Write::Address { .. }
        | Write::RemoveAddress { .. }
        | Write::RemoveFrontend { .. }
        | Write::RemoveService { .. }
        | Write::RemoveSourceRange { .. } => None,
    }
}

/// What a backend that was `old` and is `new` becomes. Its numbers never go back.
fn before(old: Backend, new: Backend) -> Backend {
    if is_live(&old) {
        let joined = new.joined;
        Backend { joined, ..old }
    } else {
        gone(new)
    }
}

impl Sync {
    /// Takes back what `journal` tells of, the last first.
    pub(super) fn undo<T: Target>(
        &mut self,
        journal: Vec<Write>,
        writer: &mut Writer<'_, T>,
    ) -> Result<(), Refusal> {
        let mut was_visible = false;
        for write in journal.into_iter().rev() {
            if let Write::Frontend { key, .. } | Write::RemoveFrontend { key } = &write {
                was_visible = true;
                self.loose.insert(key.addr);
            }
            if was_visible && matches!(write, Write::RemoveSourceRange { .. }) {
                // Who has read the new frontend must not miss its ranges.
                self.pass_grace_period(writer);
                was_visible = false;
            }
            self.write(write.clone(), writer)?;
            if let Write::Backend { id, backend } = &write
                && !is_live(backend)
            {
                self.backend_ids.rest(*id);
            }
            if let Write::RemoveService { id } = write {
                self.rest_service(id);
            }
        }
        Ok(())
    }
}
