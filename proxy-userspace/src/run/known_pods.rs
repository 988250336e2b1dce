//! The pods that the socket edge tells apart.

use std::path::Path;

use crate::loader::pins::Pins;
use crate::loader::socket_settings::SocketSettingsMap;
use crate::model::Event;
use crate::pods::{Handle, Keeper, PodsError, Skip, View};

/// Pods that are known, served or left out, and where the programs find them.
pub(super) struct KnownPods {
    keeper: Handle,
    settings: SocketSettingsMap,
}

impl KnownPods {
    /// Serves only those pods, at or below `cgroup`, of which it becomes known that they are not
    /// to be left out. If none is, serves all, and there is nothing to know.
    ///
    /// # Errors
    /// If the cgroups can't be read, or the kernel refuses.
    pub(super) fn start(
        pins: &Pins,
        skip: &Skip,
        cgroup: &Path,
        mut settings: SocketSettingsMap,
    ) -> Result<Option<Self>, PodsError> {
        if !skip.is_some() {
            settings.set_pods(0, false)?;
            return Ok(None);
        }
        let keeper = Keeper::start(pins, skip.clone(), cgroup)?;
        settings.set_pods(keeper.view().levels, true)?;
        Ok(Some(Self { keeper, settings }))
    }

    /// Passes on what the source says; never waits.
    pub(super) fn tell(&self, event: &Event) {
        self.keeper.tell(event);
    }

    /// Waits until something else has become of the pods.
    pub(super) async fn changed(&mut self) -> anyhow::Result<()> {
        Ok(self.keeper.changed().await?)
    }

    /// Has the programs look where the pods are, and tells what has become of them.
    pub(super) fn follow(&mut self) -> (View, Option<String>) {
        let view = self.keeper.view();
        let failed = self.settings.set_pods(view.levels, true).err();
        let problem = failed.map(|error| format!("{:#}", anyhow::Error::from(error)));
        let problem = problem.or_else(|| view.problem.clone());
        (view, problem)
    }
}
