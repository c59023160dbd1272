//! The way between smoltcp and the guest: one packet in, and what is answered and sent out to the outbox.

use crate::outbox::Outbox;
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use smoltcp::wire::EthernetProtocol;

pub struct Wire<'a> {
    outbox: &'a mut Outbox,
    incoming: Option<&'a [u8]>,
}

impl<'a> Wire<'a> {
    /// With an IP packet of the guest's, if there is one.
    pub fn new(outbox: &'a mut Outbox, incoming: Option<&'a [u8]>) -> Wire<'a> {
        Wire { outbox, incoming }
    }
}

pub struct Incoming<'a>(&'a [u8]);

impl RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(self.0)
    }
}

pub struct Outgoing<'a>(&'a mut Outbox);

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, size: usize, fill: F) -> R {
        self.0.push(EthernetProtocol::Ipv4, size, fill)
    }
}

impl Device for Wire<'_> {
    type RxToken<'b>
        = Incoming<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Outgoing<'b>
    where
        Self: 'b;

    fn receive(&mut self, _: Instant) -> Option<(Incoming<'_>, Outgoing<'_>)> {
        Some((Incoming(self.incoming.take()?), Outgoing(self.outbox)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Outgoing<'_>> {
        (!self.outbox.is_full()).then_some(Outgoing(self.outbox))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.outbox.mtu;
        capabilities.checksum = self.outbox.checksums();
        capabilities
    }
}
