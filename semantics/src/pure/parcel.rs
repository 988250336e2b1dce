//! A packet on its way through the node.

use std::net::IpAddr;

use bytemuck::Pod;
use proxy_common::abi::Addr;
use proxy_common::datapath::checksum::Repair;
use proxy_common::datapath::{Origin, Packet, Route};
use proxy_common::testing::Skb;

use super::speech;

/// Where a program sends a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Redirect {
    /// Out of a device.
    Out(u32),
    /// Into this node by a device.
    In(u32),
}

/// A packet at a device.
pub(super) struct Parcel<'a> {
    skb: Skb,
    device: u32,
    redirect: Option<Redirect>,
    /// The device that leads to an address; none if that is this node's own.
    way: &'a dyn Fn(IpAddr) -> Option<u32>,
}

impl<'a> Parcel<'a> {
    pub(super) fn new(bytes: Vec<u8>, way: &'a dyn Fn(IpAddr) -> Option<u32>) -> Self {
        Self {
            skb: Skb::new(bytes),
            device: 0,
            redirect: None,
            way,
        }
    }

    /// The packet is at another device.
    pub(super) fn arrive(&mut self, device: u32) {
        self.device = device;
        self.redirect = None;
    }

    pub(super) fn redirect(&self) -> Option<Redirect> {
        self.redirect
    }

    pub(super) fn bytes(self) -> Vec<u8> {
        self.skb.bytes
    }

    /// Source and destination address.
    pub(super) fn addresses(&self) -> (IpAddr, IpAddr) {
        speech::addresses(&self.skb.bytes)
    }
}

impl Packet for Parcel<'_> {
    fn len(&self) -> u32 {
        self.skb.len()
    }

    fn pull(&mut self, len: u32) {
        self.skb.pull(len);
    }

    fn load<T: Pod>(&self, offset: u32) -> Option<T> {
        self.skb.load(offset)
    }

    fn peek<T: Pod>(&self, offset: u32) -> Option<T> {
        self.skb.peek(offset)
    }

    fn store<T: Pod>(&mut self, offset: u32, value: T) -> Option<()> {
        self.skb.store(offset, value)
    }

    fn repair(&mut self, repair: &Repair) -> Option<()> {
        self.skb.repair(repair)
    }

    fn resize(&mut self, len: u32) -> Option<()> {
        self.skb.resize(len)
    }

    fn device(&self) -> u32 {
        self.device
    }

    fn is_tagged(&self) -> bool {
        false
    }

    fn is_segmented(&self) -> bool {
        false
    }

    fn route(&mut self, _src: &Addr, dst: &Addr, _origin: Origin) -> Route {
        match (self.way)((*dst).into()) {
            Some(device) => {
                self.redirect = Some(Redirect::Out(device));
                Route::Neighbour(device)
            }
            None => Route::None,
        }
    }

    fn redirect_out(&mut self, device: u32) {
        self.redirect = Some(Redirect::Out(device));
    }

    fn redirect_in(&mut self, device: u32) {
        self.redirect = Some(Redirect::In(device));
    }
}
