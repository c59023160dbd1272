//! A guest's network in user space, by a guest that sends anything, and somebody outside who takes its connections.

use devices::virtio::net::{HEADER, Link, Sent};
use net::{GATEWAY, GUEST, LONGEST_PACKET, Limits, MAC_OF_HOST, Options, Reach, Stack};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::RawFd;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// An IPv4 packet whose header is right, of this protocol.
fn ip(protocol: u8, to: Ipv4Addr, inner: &[u8]) -> Vec<u8> {
    let size = u16::try_from(20 + inner.len()).unwrap_or(u16::MAX).to_be_bytes();
    let mut packet = vec![0x45, 0, size[0], size[1], 0, 0, 0x40, 0, 64, protocol, 0, 0];
    packet.extend(GUEST.octets());
    packet.extend(to.octets());
    let mut sum: u32 = packet.chunks(2).map(|it| u32::from(it[0]) << 8 | u32::from(it[1])).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let [_, _, high, low] = (!sum).to_be_bytes();
    packet[10..12].copy_from_slice(&[high, low]);
    packet.extend(inner);
    packet
}

fn packet(kind: [u8; 2], inner: &[u8]) -> Vec<u8> {
    [&[0; HEADER][..], &MAC_OF_HOST, &MAC, &kind, inner].concat()
}

const TCP: u8 = 6;

/// What the guest is to acknowledge next, by its ports: what the network has sent, as TCP counts it. A guest that only
/// guessed would never have a connection.
#[derive(Default)]
struct Heard(HashMap<[u8; 2], u32>);

impl Heard {
    /// A packet for the guest, with its header and that of Ethernet in front.
    fn hear(&mut self, packet: &[u8]) {
        const SYN: u8 = 2;
        const FIN: u8 = 1;
        let Some(packet) = packet.get(HEADER + 14..).filter(|it| it.get(9) == Some(&TCP)) else { return };
        // The network's own packets have no options of IP's.
        let Some(tcp) = packet.get(20..).filter(|it| it.len() >= 20) else { return };
        let header = usize::from(tcp[12] >> 4) * 4;
        let ends = [SYN, FIN].map(|flag| usize::from(tcp[13] & flag != 0)).iter().sum::<usize>();
        let count = u32::try_from(tcp.len().saturating_sub(header) + ends).unwrap_or(0);
        let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
        self.0.insert([tcp[2], tcp[3]], sequence.wrapping_add(count));
    }

    /// Makes of the number that a packet of the guest's acknowledges one behind what was heard.
    fn acknowledge(&self, tcp: &mut [u8]) {
        let next = tcp.first_chunk::<2>().and_then(|port| self.0.get(port)).copied().unwrap_or(0);
        if let Some([a, b, c, d]) = tcp.get(8..12) {
            let number = u32::from_be_bytes([*a, *b, *c, *d]).wrapping_add(next);
            tcp[8..12].copy_from_slice(&number.to_be_bytes());
        }
    }
}

/// Packets, each a kind, the length of what is in it, and that; the connections among them reach a listener.
pub fn frames(data: &[u8]) {
    converse(data);
}

/// The same; what whoever is outside has heard, of all connections together.
fn converse(mut data: &[u8]) -> Vec<u8> {
    const IPV4: [u8; 2] = [8, 0];
    const ARP: [u8; 2] = [8, 6];
    const UDP: u8 = 17;
    const ICMP: u8 = 1;
    let (mut outside, mut heard) = (Vec::new(), Heard::default());
    // Without sockets there is nothing to fuzz.
    let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)) else { return outside };
    let (Ok(place), Ok(())) = (listener.local_addr(), listener.set_nonblocking(true)) else { return outside };
    let limits = Limits { connections: 8, half_open: 4, flows: 4 };
    let options = Options { mac: MAC, reach: Reach::Host, forwards: Vec::new(), limits };
    let Ok(mut stack) = Stack::new(options) else { return outside };
    stack.begin(data.len().is_multiple_of(2), data.len().is_multiple_of(3));
    let (mut taken, mut out): (Vec<TcpStream>, _) = (Vec::new(), vec![0; LONGEST_PACKET]);
    while let [kind, length, rest @ ..] = data {
        let (inner, rest) = rest.split_at(rest.len().min(usize::from(*length)));
        data = rest;
        let mut inner = inner.to_vec();
        match kind % 8 {
            0 => stack.send(&packet(IPV4, &inner)),
            1 => stack.send(&packet(ARP, &inner)),
            2..=4 => {
                // To the listener: what goes elsewhere is not to leave this machine.
                if let Some(port) = inner.get_mut(2..4) {
                    port.copy_from_slice(&place.port().to_be_bytes());
                }
                heard.acknowledge(&mut inner);
                stack.send(&packet(IPV4, &ip(TCP, GATEWAY, &inner)));
            }
            5 => {
                let to = if kind & 8 == 0 { GATEWAY } else { Ipv4Addr::BROADCAST };
                // Addresses and names are asked for, and nobody else.
                if let Some(port) = inner.get_mut(2..4) {
                    port.copy_from_slice(&67u16.to_be_bytes());
                }
                stack.send(&packet(IPV4, &ip(UDP, to, &inner)));
            }
            6 => stack.send(&packet(IPV4, &ip(ICMP, GATEWAY, &inner))),
            // Somebody outside comes, says this, hears what there is, and goes or not.
            _ => {
                taken.extend(listener.accept().ok().map(|(stream, _)| stream));
                if let Some(stream) = taken.last_mut() {
                    let mut piece = [0; 4096];
                    // One that has gone, or has no room, hears nothing.
                    let count = stream.set_nonblocking(true).and_then(|()| {
                        stream.write_all(&inner)?;
                        stream.read(&mut piece)
                    });
                    outside.extend_from_slice(&piece[..count.unwrap_or(0)]);
                }
                if kind & 8 != 0 {
                    taken.pop();
                }
            }
        }
        for _ in 0..*kind >> 4 {
            let Some(size) = stack.receive(&mut out) else { break };
            assert!((HEADER + 14..=LONGEST_PACKET).contains(&size));
            heard.hear(&out[..size]);
        }
    }
    outside
}

/// A link that gives back what it is sent, as far as it has room.
#[derive(Debug, Default)]
pub struct Echo(Vec<Vec<u8>>);

impl Link for Echo {
    fn sources(&self) -> Vec<RawFd> {
        Vec::new()
    }

    fn begin(&mut self, _: u64) {}

    fn reset(&mut self) {
        self.0.clear();
    }

    fn send(&mut self, packet: &[u8]) -> Sent {
        const MOST: usize = 4;
        if self.0.len() >= MOST {
            return Sent::NoRoom;
        }
        self.0.push(packet.to_vec());
        Sent::Gone
    }

    fn receive(&mut self, packet: &mut [u8]) -> Option<usize> {
        let next = self.0.pop()?;
        packet[..next.len()].copy_from_slice(&next);
        Some(next.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::FUZZED;

    /// What is mutated has connections that are open, with bytes both ways, and such that end from either side.
    #[test]
    fn seeds_have_connections_that_are_open() {
        let seeds = FUZZED.iter().find(|it| it.name == "frames").unwrap().seeds;
        assert_eq!(converse(seeds[0]), b"hello");
        assert_eq!(converse(seeds[1]), b"hello again");
    }
}
