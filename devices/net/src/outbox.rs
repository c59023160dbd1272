//! What is on its way to the guest: packets, each a header as virtio and the kernel's tap have it and a frame, in a
//! queue that has an end.

use crate::address::{MAC_OF_HOST, Mac};
use smoltcp::phy::{Checksum, ChecksumCapabilities};
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, IpProtocol, Ipv4Packet, Ipv4Repr,
    UdpPacket, UdpRepr,
};
use std::collections::VecDeque;
use std::net::SocketAddrV4;

/// Bytes of the header (`struct virtio_net_hdr_v1` of Linux's `virtio_net.h`).
pub const HEADER: usize = 12;
/// Of an Ethernet header.
pub const ETHERNET: usize = 14;
/// Of an IPv4 header without options.
pub const IP: usize = 20;
/// Of a UDP header.
pub const UDP: usize = 8;
/// The most bytes of a packet.
pub const LONGEST_PACKET: usize = HEADER + ETHERNET + 0xffff;

/// The most packets that are made in one turn, or looked at in vain.
pub const TURN: usize = 8;
/// Packets from which on nothing more is made that can wait, and nothing at all.
const FULL: usize = 32;
const OVERFULL: usize = 256;

/// Packets for the guest.
#[derive(Debug)]
pub struct Outbox {
    packets: VecDeque<Vec<u8>>,
    /// Packets from which on whoever has its turn waits for the next one.
    allowed: usize,
    /// The guest's address, as far as is known.
    pub mac: Mac,
    /// The guest takes packets of TCP whose checksum is still to be completed.
    pub leaves_checksums: bool,
    /// Bytes of an IP packet.
    pub mtu: usize,
}

impl Outbox {
    pub fn new(mac: Mac) -> Outbox {
        Outbox { packets: VecDeque::new(), allowed: FULL, mac, leaves_checksums: false, mtu: 1500 }
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.packets.clear();
    }

    /// Whether what can wait should.
    pub fn is_full(&self) -> bool {
        self.packets.len() >= self.allowed
    }

    /// Lets somebody have a turn, in which the outbox is full already when there are so many more packets.
    pub fn allow<R>(&mut self, more: usize, turn: impl FnOnce(&mut Outbox) -> R) -> R {
        self.allowed = (self.packets.len() + more).min(FULL);
        let result = turn(self);
        self.allowed = FULL;
        result
    }

    pub fn pop(&mut self) -> Option<Vec<u8>> {
        self.packets.pop_front()
    }

    /// A packet that is filled by `fill`, with so many bytes behind the Ethernet header. Where the guest takes far too
    /// little it is lost.
    pub fn push<R>(&mut self, kind: EthernetProtocol, size: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut packet = vec![0; HEADER + ETHERNET + size];
        let ethernet = EthernetRepr {
            src_addr: EthernetAddress(MAC_OF_HOST),
            dst_addr: EthernetAddress(self.mac),
            ethertype: kind,
        };
        ethernet.emit(&mut EthernetFrame::new_unchecked(&mut packet[HEADER..]));
        let result = fill(&mut packet[HEADER + ETHERNET..]);
        if kind == EthernetProtocol::Ipv4 && self.leaves_checksums {
            leave_checksum(&mut packet);
        }
        if self.packets.len() < OVERFULL {
            self.packets.push_back(packet);
        }
        result
    }

    /// A packet of IP's.
    pub fn push_ip(&mut self, header: &Ipv4Repr, fill: impl FnOnce(&mut [u8])) {
        self.push(EthernetProtocol::Ipv4, IP + header.payload_len, |packet| {
            fill(&mut packet[IP..]);
            header.emit(&mut Ipv4Packet::new_unchecked(packet), &ChecksumCapabilities::default());
        });
    }

    /// A datagram; one that is too long for the guest is lost.
    pub fn push_datagram(&mut self, from: SocketAddrV4, to: SocketAddrV4, bytes: &[u8]) {
        if IP + UDP + bytes.len() > self.mtu {
            return;
        }
        let header = ip_header((from, to), IpProtocol::Udp, UDP + bytes.len());
        let udp = UdpRepr { src_port: from.port(), dst_port: to.port() };
        let checksums = self.checksums();
        self.push_ip(&header, |packet| {
            let fill = |place: &mut [u8]| place.copy_from_slice(bytes);
            udp.emit(
                &mut UdpPacket::new_unchecked(packet),
                &header.src_addr.into(),
                &header.dst_addr.into(),
                bytes.len(),
                fill,
                &checksums,
            );
        });
    }

    /// What is computed here. What the guest sends comes through memory: nothing damages it.
    pub fn checksums(&self) -> ChecksumCapabilities {
        let computed = if self.leaves_checksums { Checksum::None } else { Checksum::Tx };
        let mut checksums = ChecksumCapabilities::default();
        // Those who ask for an address look at all that comes, and do not know of checksums to be completed.
        (checksums.tcp, checksums.udp) = (computed, Checksum::Tx);
        checksums
    }
}

/// An IP header of a packet from one place to another.
pub fn ip_header((from, to): (SocketAddrV4, SocketAddrV4), what: IpProtocol, size: usize) -> Ipv4Repr {
    const HOPS: u8 = 64;
    Ipv4Repr {
        src_addr: *from.ip(),
        dst_addr: *to.ip(),
        next_header: what,
        payload_len: size,
        hop_limit: HOPS,
    }
}

/// Leaves it to the guest to complete the checksum of TCP: the field has the sum of the pseudo header, and the packet's
/// header says where it is (virtio 1.2, 5.1.6.2 "Packet Transmission").
fn leave_checksum(packet: &mut [u8]) {
    const NEEDS_CHECKSUM: u8 = 1;
    const TCP: u8 = 6;
    /// Where in a packet the headers of IP and of TCP begin, and where in that of TCP the checksum is.
    const AT: usize = HEADER + ETHERNET;
    const INNER: usize = AT + IP;
    const FIELD: usize = 16;
    let size = packet.len().saturating_sub(INNER);
    if packet.get(AT + 9) != Some(&TCP) || size < FIELD + 2 {
        return;
    }
    let addresses = packet[AT + 12..AT + 20].chunks(2).map(|it| u32::from(it[0]) << 8 | u32::from(it[1]));
    let mut sum = addresses.sum::<u32>() + u32::from(TCP) + u32::try_from(size).unwrap_or(0);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let [_, _, high, low] = sum.to_be_bytes();
    packet[INNER + FIELD..INNER + FIELD + 2].copy_from_slice(&[high, low]);
    packet[0] = NEEDS_CHECKSUM;
    for (place, value) in [(6, ETHERNET + IP), (8, FIELD)] {
        packet[place..place + 2].copy_from_slice(&u16::try_from(value).unwrap_or(0).to_le_bytes());
    }
}
