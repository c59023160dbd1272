//! What the guest reaches, and what it does not: services of the host's own are not meant for guests.

use crate::address::{GATEWAY, RESOLVER, is_inside};
use crate::resolver::PORT;
use nix::ifaddrs::getifaddrs;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};

/// What a guest may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Other machines.
    Others,
    /// The host too: its loopback by the gateway's address, and each address of its own.
    Host,
    /// Nothing at all, for those who try this.
    Nobody,
}

impl Reach {
    /// Where a connection to a place goes, if it may; `resolver` is the host's name server.
    pub fn target(self, to: SocketAddrV4, resolver: Option<SocketAddr>) -> Option<SocketAddr> {
        let (ip, port) = (*to.ip(), to.port());
        match self {
            Reach::Nobody => None,
            // The one service of the host's that is meant for guests.
            _ if ip == RESOLVER => resolver.filter(|_| port == PORT),
            Reach::Host if ip == GATEWAY => Some((Ipv4Addr::LOCALHOST, port).into()),
            _ if port == 0 || is_inside(ip) || !is_anybody(ip) => None,
            Reach::Others if is_own(ip) => None,
            Reach::Others | Reach::Host => Some(to.into()),
        }
    }
}

/// Whether an address may be one of some machine's. Loopback, what means this machine or all of them, and what has no
/// meaning are none.
fn is_anybody(ip: Ipv4Addr) -> bool {
    let [first, ..] = ip.octets();
    !(ip.is_loopback() || first == 0 || first >= 224)
}

/// Whether it is an address of this host's: of an interface, or one that is routed to this host by another rule.
fn is_own(ip: Ipv4Addr) -> bool {
    is_of_interface(ip) || is_local_by_route(ip)
}

fn is_of_interface(ip: Ipv4Addr) -> bool {
    // Without a list nothing is known to be another's.
    let Ok(list) = getifaddrs() else { return true };
    let mut own = list.filter_map(|interface| interface.address);
    own.any(|address| address.as_sockaddr_in().is_some_and(|it| it.ip() == ip))
}

/// A datagram's socket, which sends nothing, tells by its own address: what goes to this host comes from the address it
/// goes to, or from loopback.
fn is_local_by_route(ip: Ipv4Addr) -> bool {
    let own = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
        socket.connect((ip, 9))?;
        socket.local_addr()
    });
    match own {
        Ok(own) => own.ip() == IpAddr::V4(ip) || own.ip().is_loopback(),
        // What has no route is reached by nobody. Whatever else goes wrong, nothing is known to be another's.
        Err(error) => !matches!(error.kind(), ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable),
    }
}

/// What of a guest's frames another network may see, which does not look after the host as this one does: passt connects
/// to whatever address stands in a packet, also to loopback.
#[derive(Clone, Debug)]
pub struct Guard {
    reaches_host: bool,
    /// The host's own addresses, as they were at the start.
    own: Vec<Ipv4Addr>,
}

impl Guard {
    /// For a guest that may reach so much.
    ///
    /// # Errors
    /// The host's: it does not tell its addresses.
    pub fn new(reach: Reach) -> io::Result<Guard> {
        let list = getifaddrs()?.filter_map(|it| Some(it.address?.as_sockaddr_in()?.ip()));
        Ok(Guard { reaches_host: reach == Reach::Host, own: list.collect() })
    }

    /// Whether a frame may go on. Beside ARP there is IPv4 alone.
    pub fn lets_pass(&self, frame: &[u8]) -> bool {
        const IPV4: [u8; 2] = [8, 0];
        const ARP: [u8; 2] = [8, 6];
        match frame.get(12..14) {
            Some(kind) if kind == ARP => true,
            Some(kind) if kind == IPV4 => {
                let to = frame.get(30..34).and_then(|it| <[u8; 4]>::try_from(it).ok());
                to.is_some_and(|to| self.lets_reach(to.into(), port_of(&frame[14..])))
            }
            _ => false,
        }
    }

    /// Whether an address may be reached, at a port, if what is to reach it has one. There may be another network of which
    /// these two addresses are, behind the host: what is not served by passt itself would get there.
    fn lets_reach(&self, ip: Ipv4Addr, port: Option<u16>) -> bool {
        const DHCP: u16 = 67;
        match ip {
            Ipv4Addr::BROADCAST => true,
            RESOLVER => port == Some(PORT),
            GATEWAY => self.reaches_host || port == Some(DHCP),
            ip if is_inside(ip) || !is_anybody(ip) => false,
            ip => self.reaches_host || !self.own.contains(&ip),
        }
    }
}

/// The port that a packet of IPv4 is for; none where it has none, or only the first fragment has it (RFC 791, 3.1).
fn port_of(packet: &[u8]) -> Option<u16> {
    const TCP: u8 = 6;
    const UDP: u8 = 17;
    let header = usize::from(packet.first()? & 15) * 4;
    let fragment = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x3fff;
    let ports = packet.get(header.max(20)..)?.get(..4)?;
    let has_ports = [TCP, UDP].contains(packet.get(9)?) && fragment == 0;
    has_ports.then(|| u16::from_be_bytes([ports[2], ports[3]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is a network's own service is reached, and nothing else of two addresses that another network may have too.
    #[test]
    fn a_guard_knows_services_by_their_ports() {
        let frame = |to: Ipv4Addr, protocol: u8, fragment: u8, port: u16| {
            let mut frame = [&[0; 12][..], &[8, 0, 0x46], &[0; 15], &to.octets(), &[0; 24]].concat();
            (frame[20], frame[23]) = (fragment, protocol);
            frame[14 + 24 + 2..][..2].copy_from_slice(&port.to_be_bytes());
            frame
        };
        let (others, host) = (Guard::new(Reach::Others).unwrap(), Guard::new(Reach::Host).unwrap());
        for (to, protocol, fragment, port, (by_others, by_host)) in [
            (RESOLVER, 17, 0, 53, (true, true)),
            (RESOLVER, 6, 0, 53, (true, true)),
            (RESOLVER, 6, 0, 22, (false, false)),
            (RESOLVER, 1, 0, 53, (false, false)),
            (RESOLVER, 17, 0x20, 53, (false, false)),
            (RESOLVER, 17, 0x40, 53, (true, true)),
            (GATEWAY, 17, 0, 67, (true, true)),
            (GATEWAY, 6, 0, 22, (false, true)),
            (GATEWAY, 1, 0, 0, (false, true)),
        ] {
            let frame = frame(to, protocol, fragment, port);
            let passes = (others.lets_pass(&frame), host.lets_pass(&frame));
            assert_eq!(passes, (by_others, by_host), "{to} {protocol} {fragment:x} {port}");
        }
        assert_eq!(port_of(&[0x45; 21]), None);
    }

    #[test]
    fn the_host_is_not_reached_unless_it_is_said() {
        let to = |text: &str| text.parse::<SocketAddrV4>().unwrap();
        let resolver = Some("127.0.0.53:53".parse().unwrap());
        for never in [
            "127.0.0.1:80",
            "127.255.0.9:80",
            "0.0.0.0:80",
            "0.1.2.3:80",
            "224.0.0.1:80",
            "255.255.255.255:80",
            "240.0.0.1:80",
            "10.0.2.15:80",
            "10.0.2.77:80",
            "10.0.2.3:80",
            "192.0.2.1:0",
        ] {
            for reach in [Reach::Others, Reach::Host, Reach::Nobody] {
                assert_eq!(reach.target(to(never), resolver), None, "{never}");
            }
        }
        assert_eq!(Reach::Others.target(to("10.0.2.2:80"), resolver), None);
        assert_eq!(Reach::Host.target(to("10.0.2.2:80"), resolver), Some("127.0.0.1:80".parse().unwrap()));
        assert_eq!(Reach::Others.target(to("10.0.2.3:53"), resolver), resolver);
        assert_eq!(Reach::Others.target(to("10.0.2.3:53"), None), None);
        let other = Some("192.0.2.1:80".parse().unwrap());
        assert_eq!(Reach::Others.target(to("192.0.2.1:80"), resolver), other);
        assert_eq!(Reach::Nobody.target(to("192.0.2.1:80"), resolver), None);
    }

    #[test]
    fn a_guard_lets_pass_what_is_others() {
        let own = getifaddrs().unwrap().find_map(|it| Some(it.address?.as_sockaddr_in()?.ip())).unwrap();
        let frame = |kind: u8, to: Ipv4Addr| {
            [&[0; 12][..], &[8, kind, 0x45], &[0; 15], &to.octets(), &[0; 20]].concat()
        };
        let guard = Guard::new(Reach::Others).unwrap();
        for (to, passes) in [
            ("127.0.0.1", false),
            ("127.9.9.9", false),
            ("0.0.0.0", false),
            ("0.1.1.1", false),
            ("224.0.0.1", false),
            ("10.0.2.77", false),
            ("10.0.2.2", false),
            ("10.0.2.3", false),
            ("255.255.255.255", true),
            ("192.0.2.77", true),
        ] {
            assert_eq!(guard.lets_pass(&frame(0, to.parse().unwrap())), passes, "{to}");
        }
        assert!(!guard.lets_pass(&frame(0, own)));
        assert!(guard.lets_pass(&frame(6, own)));
        let ipv6 = [&[0; 12][..], &[0x86, 0xdd], &[0; 60]].concat();
        let tagged = [&[0; 12][..], &[0x81, 0], &[0; 60]].concat();
        for other in [&[][..], &frame(0, own)[..33], &ipv6, &tagged] {
            assert!(!guard.lets_pass(other), "{other:x?}");
        }
    }

    /// Each address of this machine's, loopback or not.
    #[test]
    fn its_own_addresses_are_the_hosts() {
        let own = getifaddrs().unwrap().filter_map(|it| Some(it.address?.as_sockaddr_in()?.ip()));
        let mut seen = 0;
        for ip in own {
            seen += 1;
            assert_eq!(Reach::Others.target(SocketAddrV4::new(ip, 80), None), None, "{ip}");
            assert!(is_local_by_route(ip), "{ip}");
        }
        assert!(seen > 0);
        assert!(is_local_by_route(Ipv4Addr::new(127, 4, 5, 6)));
    }
}
