//! What is said by ICMP: echoes of the gateway and the name server, and that something cannot be reached.

use crate::address::{GATEWAY, GUEST, RESOLVER};
use crate::outbox::{Outbox, UDP, ip_header};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    Icmpv4DstUnreachable, Icmpv4Packet, Icmpv4Repr, IpProtocol, Ipv4Packet, Ipv4Repr, UdpPacket, UdpRepr,
};
use std::net::{Ipv4Addr, SocketAddrV4};

fn push(outbox: &mut Outbox, from: Ipv4Addr, message: &Icmpv4Repr<'_>) {
    let ends = (SocketAddrV4::new(from, 0), SocketAddrV4::new(GUEST, 0));
    let header = ip_header(ends, IpProtocol::Icmp, message.buffer_len());
    outbox.push_ip(&header, |bytes| {
        message.emit(&mut Icmpv4Packet::new_unchecked(bytes), &ChecksumCapabilities::default());
    });
}

/// Answers an echo's request to the gateway or the name server; nobody else's.
pub fn answer(outbox: &mut Outbox, to: Ipv4Addr, packet: &[u8]) {
    let Ok(packet) = Icmpv4Packet::new_checked(packet) else { return };
    let Ok(message) = Icmpv4Repr::parse(&packet, &ChecksumCapabilities::default()) else { return };
    if let Icmpv4Repr::EchoRequest { ident, seq_no, data } = message
        && [GATEWAY, RESOLVER].contains(&to)
        && !outbox.is_full()
    {
        push(outbox, to, &Icmpv4Repr::EchoReply { ident, seq_no, data });
    }
}

/// Tells the guest that what it has sent from one place to another is not taken there.
pub fn unreachable(outbox: &mut Outbox, reason: Icmpv4DstUnreachable, header: &Ipv4Repr, beginning: &[u8]) {
    if outbox.is_full() {
        return;
    }
    // As much of it as its sender needs (RFC 792).
    let data = &beginning[..beginning.len().min(8)];
    push(outbox, header.dst_addr, &Icmpv4Repr::DstUnreachable { reason, header: *header, data });
}

/// The same of a datagram, of which the places are known and nothing else.
pub fn port_unreachable(outbox: &mut Outbox, from: SocketAddrV4, to: SocketAddrV4) {
    let header = ip_header((from, to), IpProtocol::Udp, UDP);
    let mut bytes = [0; UDP];
    let udp = UdpRepr { src_port: from.port(), dst_port: to.port() };
    let none = ChecksumCapabilities::ignored();
    let (source, target) = (header.src_addr.into(), header.dst_addr.into());
    udp.emit(&mut UdpPacket::new_unchecked(&mut bytes[..]), &source, &target, 0, |_| {}, &none);
    unreachable(outbox, Icmpv4DstUnreachable::PortUnreachable, &header, &bytes);
}

/// The header and the beginning of an IP packet's payload.
pub fn parts(packet: &[u8]) -> Option<(Ipv4Repr, &[u8])> {
    let parsed = Ipv4Packet::new_checked(packet).ok()?;
    let header = Ipv4Repr::parse(&parsed, &ChecksumCapabilities::ignored()).ok()?;
    // Behind the header's options, if it has any.
    Some((header, parsed.payload()))
}
