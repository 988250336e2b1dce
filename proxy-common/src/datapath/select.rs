//! Choosing a backend.

use super::Tables;
use crate::abi::{
    Addr, Affinity, AffinityKey, Backend, BackendFlags, BackendState, FlowKey, Frontend,
    FrontendFlags,
};

/// Why a frontend has no backend for a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// No endpoints at all (rule R65).
    NoEndpoints,
    /// Endpoints, but none here (rule R66).
    NoLocalEndpoint,
    /// The maps contradict each other.
    Inconsistent,
}

/// Who asks for a backend.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'a> {
    /// The client's address, by which it is remembered with session affinity.
    pub client: &'a Addr,
    /// What the choice depends on: [`hash`] or [`hash_of_socket`].
    pub hash: u32,
}

/// A backend and its id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chosen<'a> {
    /// The id.
    pub id: u32,
    /// The backend.
    pub backend: &'a Backend,
}

/// Chooses the backend of a new flow from the local set or the cluster set (rules R36, R111 to
/// R117).
///
/// # Errors
///
/// There is none.
#[inline(always)]
pub fn select_backend<'a, T: Tables>(
    tables: &'a T,
    frontend: &Frontend,
    local_only: bool,
    asker: Asker<'_>,
    now: u64,
) -> Result<Chosen<'a>, Refusal> {
    let (first, count) = candidates(frontend, local_only);
    if count == 0 {
        let rejects = frontend.flags.contains(FrontendFlags::REJECT);
        return Err(if rejects {
            Refusal::NoEndpoints
        } else {
            Refusal::NoLocalEndpoint
        });
    }
    if frontend.affinity_seconds == 0 {
        return by_hash(tables, frontend, first, count, asker.hash);
    }
    let fresh = by_hash(tables, frontend, first, count, asker.hash)?;
    let id = remembered_or(tables, frontend, local_only, asker.client, (now, fresh.id));
    live(tables, frontend.service, id).ok_or(Refusal::Inconsistent)
}

/// First slot and size of the set.
#[inline(always)]
const fn candidates(frontend: &Frontend, local_only: bool) -> (u32, u32) {
    if local_only {
        (frontend.first_slot, frontend.n_local)
    } else {
        (
            frontend.first_slot.wrapping_add(frontend.cluster_offset),
            frontend.n_cluster,
        )
    }
}

/// The choice is a function of flow and Service: a record that is lost is made anew with the same
/// backend while the set is unchanged.
#[inline(always)]
fn by_hash<'a, T: Tables>(
    tables: &'a T,
    frontend: &Frontend,
    first: u32,
    count: u32,
    hash: u32,
) -> Result<Chosen<'a>, Refusal> {
    let position = ((u64::from(hash) * u64::from(count)) >> 32) as u32;
    tables
        .slot(first.wrapping_add(position))
        .and_then(|id| live(tables, frontend.service, id))
        .ok_or(Refusal::Inconsistent)
}

/// The backend, if it still is one of this Service: the frontend may have been replaced since it
/// was read, and the kernel's hash maps use the memory of an old entry for a new one at once.
#[inline(always)]
fn live<T: Tables>(tables: &T, service: u32, id: u32) -> Option<Chosen<'_>> {
    let backend = tables.backend(id)?;
    let is_live = backend.state != BackendState::Gone as u8 && backend.service == service;
    is_live.then_some(Chosen { id, backend })
}

/// The backend that this client got last, if it came soon enough and the backend is still in the
/// set (rules R114, R115), or else the one with the id `fresh`. That is remembered.
#[inline(never)]
fn remembered_or<T: Tables>(
    tables: &T,
    frontend: &Frontend,
    local_only: bool,
    client: &Addr,
    (now, fresh): (u64, u32),
) -> u32 {
    let key = AffinityKey {
        client: *client,
        service: frontend.service,
    };
    let id = remembered(tables, frontend, local_only, &key, now).unwrap_or(fresh);
    if let Some(backend) = tables.backend(id) {
        let memory = Affinity {
            backend: id,
            joined: backend.joined,
            last_used: now,
        };
        tables.put_affinity(&key, &memory);
    }
    id
}

#[inline(always)]
fn remembered<T: Tables>(
    tables: &T,
    frontend: &Frontend,
    local_only: bool,
    key: &AffinityKey,
    now: u64,
) -> Option<u32> {
    const SECOND: u64 = 1_000_000_000;
    let memory = tables.affinity(key)?;
    let chosen = live(tables, frontend.service, memory.backend)?;
    let is_same = chosen.backend.joined == memory.joined;
    let is_recent =
        now.wrapping_sub(memory.last_used) <= u64::from(frontend.affinity_seconds) * SECOND;
    let set = if local_only {
        BackendFlags::IN_LOCAL_SET
    } else {
        BackendFlags::IN_CLUSTER_SET
    };
    let is_allowed = chosen.backend.flags.contains(set);
    (is_same && is_recent && is_allowed).then_some(memory.backend)
}

/// A hash of the flow, keyed by Service: rounds and finish of MurmurHash3 (x86, 32 bits).
#[inline(always)]
pub fn hash(flow: &FlowKey, service: u32) -> u32 {
    let [a, b, c, d] = flow.tuple.src.words();
    let ports: u32 = bytemuck::cast([flow.tuple.src_port, flow.tuple.dst_port]);
    let seed = service ^ (u32::from(flow.protocol) << 24);
    finish(mix(mix(mix(mix(mix(seed, a), b), c), d), ports))
}

/// The same of a socket, whose packets are not there yet, by its cookie.
#[inline(always)]
pub const fn hash_of_socket(cookie: u64, service: u32) -> u32 {
    finish(mix(mix(service, cookie as u32), (cookie >> 32) as u32))
}

#[inline(always)]
const fn mix(hash: u32, word: u32) -> u32 {
    let word = word
        .wrapping_mul(0xcc9e_2d51)
        .rotate_left(15)
        .wrapping_mul(0x1b87_3593);
    (hash ^ word)
        .rotate_left(13)
        .wrapping_mul(5)
        .wrapping_add(0xe654_6b64)
}

/// Lets every bit of the input reach every bit of the hash.
#[inline(always)]
pub const fn finish(hash: u32) -> u32 {
    let hash = (hash ^ hash >> 16).wrapping_mul(0x85eb_ca6b);
    let hash = (hash ^ hash >> 13).wrapping_mul(0xc2b2_ae35);
    hash ^ hash >> 16
}
