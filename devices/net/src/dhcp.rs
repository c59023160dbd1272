//! The guest gets its address by DHCP (RFC 2131): there is one, and it is the guest's for as long as it likes.

use crate::address::{GATEWAY, GUEST, MASK, RESOLVER};
use crate::outbox::Outbox;
use smoltcp::wire::{DhcpMessageType, DhcpOption, DhcpPacket, DhcpRepr};
use std::net::{Ipv4Addr, SocketAddrV4};

/// Ports of servers and clients.
pub const SERVER: u16 = 67;
const CLIENT: u16 = 68;
/// Options (RFC 2132): name servers, the longest packet.
const NAME_SERVERS: u8 = 6;
const INTERFACE_MTU: u8 = 26;
/// Seconds.
const LEASE: u32 = 86_400;
/// The least bytes of a message (RFC 951).
const LEAST: usize = 300;

/// Answers a client's message.
pub fn answer(outbox: &mut Outbox, message: &[u8]) {
    let Ok(packet) = DhcpPacket::new_checked(message) else { return };
    let Ok(asked) = DhcpRepr::parse(&packet) else { return };
    let wanted = asked.requested_ip.unwrap_or(asked.client_ip);
    let of_others = asked.server_identifier.is_some_and(|server| server != GATEWAY);
    let kind = match asked.message_type {
        DhcpMessageType::Discover => DhcpMessageType::Offer,
        DhcpMessageType::Request if of_others => return,
        DhcpMessageType::Request if wanted == GUEST => DhcpMessageType::Ack,
        DhcpMessageType::Request => DhcpMessageType::Nak,
        DhcpMessageType::Inform => DhcpMessageType::Ack,
        _ => return,
    };
    let is_given = kind != DhcpMessageType::Nak;
    let mtu = u16::try_from(outbox.mtu).unwrap_or(u16::MAX).to_be_bytes();
    let more = [
        DhcpOption { kind: NAME_SERVERS, data: &RESOLVER.octets() },
        DhcpOption { kind: INTERFACE_MTU, data: &mtu },
    ];
    let nobody = Ipv4Addr::UNSPECIFIED;
    let answer = DhcpRepr {
        message_type: kind,
        transaction_id: asked.transaction_id,
        secs: 0,
        client_hardware_address: asked.client_hardware_address,
        client_ip: asked.client_ip,
        your_ip: if is_given { GUEST } else { nobody },
        server_ip: GATEWAY,
        router: is_given.then_some(GATEWAY),
        subnet_mask: is_given.then_some(MASK),
        relay_agent_ip: nobody,
        broadcast: asked.broadcast,
        requested_ip: None,
        client_identifier: None,
        server_identifier: Some(GATEWAY),
        parameter_request_list: None,
        dns_servers: None,
        max_size: None,
        lease_duration: is_given.then_some(LEASE),
        renew_duration: None,
        rebind_duration: None,
        additional_options: if is_given { &more } else { &[] },
    };
    let mut bytes = vec![0; answer.buffer_len().max(LEAST)];
    if answer.emit(&mut DhcpPacket::new_unchecked(&mut bytes[..])).is_err() {
        return;
    }
    // One that has an address gets it there, and who has none hears what all do.
    let to = if asked.client_ip == GUEST { GUEST } else { Ipv4Addr::BROADCAST };
    outbox.push_datagram(SocketAddrV4::new(GATEWAY, SERVER), SocketAddrV4::new(to, CLIENT), &bytes);
}
