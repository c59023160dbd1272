//! A guest with a TCP/IP of its own (smoltcp's, too), whose frames go to a stack that reaches this machine's loopback.

mod endings;
mod turns;
mod windows;

use crate::{
    Forward, GATEWAY, GUEST, HEADER, LONGEST_PACKET, Limits, MAC_OF_HOST, Notice, Options, Reach, Stack,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{dhcpv4, tcp, udp};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, IpEndpoint};
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// How often is looked until something is given up.
const PATIENCE: usize = 20_000;

/// The wire: frames of the guest's on their way.
#[derive(Default)]
struct Cable {
    to_guest: VecDeque<Vec<u8>>,
    from_guest: Vec<Vec<u8>>,
    mtu: usize,
    /// What the guest sends has options in its headers of IP's.
    adds_options: bool,
}

struct In(Vec<u8>);
struct Out<'a>(&'a mut Vec<Vec<u8>>);

impl RxToken for In {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

impl TxToken for Out<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, size: usize, fill: F) -> R {
        let mut packet = vec![0; HEADER + size];
        let result = fill(&mut packet[HEADER..]);
        self.0.push(packet);
        result
    }
}

impl Device for Cable {
    type RxToken<'a> = In;
    type TxToken<'a> = Out<'a>;

    fn receive(&mut self, _: Instant) -> Option<(In, Out<'_>)> {
        Some((In(self.to_guest.pop_front()?), Out(&mut self.from_guest)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Out<'_>> {
        Some(Out(&mut self.from_guest))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu + 14;
        capabilities
    }
}

struct Guest {
    cable: Cable,
    interface: Interface,
    sockets: SocketSet<'static>,
    stack: Stack,
    start: std::time::Instant,
}

impl Guest {
    fn new(reach: Reach, forwards: &[&str]) -> Guest {
        let limits = Limits { connections: 4, half_open: 2, flows: 4 };
        let forwards = forwards.iter().map(|it| it.parse::<Forward>().unwrap()).collect();
        let mut stack = Stack::new(Options { mac: MAC, reach, forwards, limits }).unwrap();
        stack.begin(false, true);
        let mut cable = Cable { mtu: Stack::MTU.into(), ..Cable::default() };
        let config = Config::new(HardwareAddress::Ethernet(EthernetAddress(MAC)));
        let mut interface = Interface::new(config, &mut cable, Instant::ZERO);
        interface.update_ip_addrs(|list| list.push(IpCidr::new(GUEST.into(), 24)).unwrap());
        interface.routes_mut().add_default_ipv4_route(GATEWAY).unwrap();
        Guest { cable, interface, sockets: SocketSet::new(vec![]), stack, start: std::time::Instant::now() }
    }

    /// Carries frames both ways.
    fn step(&mut self) {
        let now = Instant::from_micros(i64::try_from(self.start.elapsed().as_micros()).unwrap());
        self.interface.poll(now, &mut self.cable, &mut self.sockets);
        let adds_options = self.cable.adds_options;
        for packet in self.cable.from_guest.drain(..) {
            self.stack.send(&if adds_options { with_options(packet) } else { packet });
        }
        let mut packet = vec![0; LONGEST_PACKET];
        // As few as a queue might have room for.
        for _ in 0..4 {
            let Some(size) = self.stack.receive(&mut packet) else { break };
            self.cable.to_guest.push_back(packet[HEADER..size].to_vec());
        }
    }

    /// Until the host has news for the stack, or it is time for what the guest or the stack does by itself.
    fn wait(&self) {
        let events = self.stack.events();
        let mut polls = [PollFd::new(&events, PollFlags::IN)];
        poll(&mut polls, Some(&Timespec { tv_sec: 0, tv_nsec: 500_000 })).unwrap();
    }

    fn until<T>(&mut self, mut done: impl FnMut(&mut Guest) -> Option<T>) -> T {
        for _ in 0..PATIENCE {
            self.step();
            if let Some(result) = done(self) {
                return result;
            }
            if self.cable.to_guest.is_empty() {
                self.wait();
            }
        }
        panic!("it never comes");
    }

    fn tcp_socket(&mut self) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 100_000]);
        self.sockets.add(tcp::Socket::new(buffer(), buffer()))
    }

    fn connect(&mut self, to: SocketAddrV4, from: u16) -> SocketHandle {
        let handle = self.tcp_socket();
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket.connect(self.interface.context(), (*to.ip(), to.port()), from).unwrap();
        handle
    }

    fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    fn udp_socket(&mut self, port: u16) -> SocketHandle {
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 16], vec![0; 200_000]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(port).unwrap();
        self.sockets.add(socket)
    }
}

/// A packet with options in its header of IP's, if it is one of IPv4's: some that mean nothing (RFC 791, 3.1).
fn with_options(mut packet: Vec<u8>) -> Vec<u8> {
    const NO_OPERATION: [u8; 8] = [1; 8];
    const AT: usize = HEADER + 14;
    if packet.get(HEADER + 12..AT) != Some(&[8, 0]) {
        return packet;
    }
    packet.splice(AT + 20..AT + 20, NO_OPERATION);
    packet[AT] += 2;
    let total = u16::from_be_bytes([packet[AT + 2], packet[AT + 3]]) + 8;
    packet[AT + 2..AT + 4].copy_from_slice(&total.to_be_bytes());
    packet[AT + 10..AT + 12].fill(0);
    let mut sum: u32 = packet[AT..AT + 28].chunks(2).map(|it| u32::from(it[0]) << 8 | u32::from(it[1])).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let [_, _, high, low] = (!sum).to_be_bytes();
    packet[AT + 10..AT + 12].copy_from_slice(&[high, low]);
    packet
}

fn bytes(count: usize, seed: usize) -> Vec<u8> {
    (0..count).map(|at| ((at * 31 + at / 251 + seed) % 256).to_le_bytes()[0]).collect()
}

/// A server of this machine's, which sends back what it is sent, the other way round in each byte.
fn server() -> SocketAddrV4 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut all = Vec::new();
                (&stream).read_to_end(&mut all).unwrap();
                all.iter_mut().for_each(|byte| *byte = !*byte);
                (&stream).write_all(&all).unwrap();
            });
        }
    });
    SocketAddrV4::new(GATEWAY, port)
}

#[test]
fn a_connection_carries_both_ways_and_ends() {
    let (to, sent) = (server(), bytes(3_000_000, 7));
    let mut guest = Guest::new(Reach::Host, &[]);
    let handle = guest.connect(to, 4000);
    let (mut at, mut got) = (0, Vec::new());
    guest.until(|guest| {
        let socket = guest.tcp(handle);
        if socket.can_send() && at < sent.len() {
            at += socket.send_slice(&sent[at..]).unwrap();
            if at == sent.len() {
                socket.close();
            }
        }
        if socket.can_recv() {
            socket.recv(|bytes| (bytes.len(), got.extend_from_slice(bytes))).unwrap();
        }
        matches!(socket.state(), tcp::State::TimeWait | tcp::State::Closed).then_some(())
    });
    assert_eq!(got.len(), sent.len());
    assert!(got.iter().zip(&sent).all(|(got, sent)| *got == !sent));
    // Room for others again, many times what there may be at a time.
    for round in 0..12 {
        let handle = guest.connect(to, 5000 + round);
        guest.until(|guest| guest.tcp(handle).may_send().then_some(()));
        guest.tcp(handle).close();
        guest.until(|guest| {
            let state = guest.tcp(handle).state();
            matches!(state, tcp::State::TimeWait | tcp::State::Closed).then_some(())
        });
        guest.sockets.remove(handle);
    }
    assert_eq!(guest.stack.take_notice(), None);
}

#[test]
fn what_is_refused_is_refused_and_the_host_is_not_reached() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let to = server();
    let loopback = SocketAddrV4::new(Ipv4Addr::LOCALHOST, to.port());
    for (reach, to) in [
        (Reach::Host, SocketAddrV4::new(GATEWAY, nobody)),
        (Reach::Others, to),
        (Reach::Others, loopback),
        (Reach::Host, loopback),
    ] {
        let mut guest = Guest::new(reach, &[]);
        let handle = guest.connect(to, 4000);
        guest.until(|guest| (guest.tcp(handle).state() == tcp::State::Closed).then_some(()));
        assert!(!guest.tcp(handle).may_recv(), "{reach:?} {to}");
    }
}

/// A free port of this machine's, which somebody else may take before it is used: then the test says so.
fn free_port(is_tcp: bool) -> u16 {
    match is_tcp {
        true => TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port(),
        false => UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port(),
    }
}

#[test]
fn a_port_of_the_hosts_leads_to_the_guest() {
    let port = free_port(true);
    let mut guest = Guest::new(Reach::Others, &[&format!("tcp::{port}-:80")]);
    let handle = guest.tcp_socket();
    guest.tcp(handle).listen(80).unwrap();
    let client = thread::spawn(move || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.write_all(b"from outside").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        answer
    });
    let mut got = Vec::new();
    guest.until(|guest| {
        let socket = guest.tcp(handle);
        if socket.can_recv() {
            socket.recv(|bytes| (bytes.len(), got.extend_from_slice(bytes))).unwrap();
        }
        (socket.state() == tcp::State::CloseWait && !socket.can_recv()).then_some(())
    });
    assert_eq!(got, b"from outside");
    assert_eq!(guest.tcp(handle).remote_endpoint().unwrap().addr, GATEWAY.into());
    guest.tcp(handle).send_slice(b"from inside").unwrap();
    guest.tcp(handle).close();
    guest.until(|_| client.is_finished().then_some(()));
    assert_eq!(client.join().unwrap(), b"from inside");
    // Where nobody in the guest listens, the connection ends.
    let client = thread::spawn(move || TcpStream::connect(("127.0.0.1", port)).unwrap().read(&mut [0; 1]));
    guest.until(|_| client.is_finished().then_some(()));
    assert!(client.join().unwrap().is_err());
}

/// Whoever was connected to a guest that is gone is told, and who comes is let in by the next.
#[test]
fn the_guest_begins_again() {
    let port = free_port(true);
    let mut guest = Guest::new(Reach::Others, &[&format!("tcp::{port}-:80")]);
    let connect = |guest: &mut Guest| {
        let handle = guest.tcp_socket();
        guest.tcp(handle).listen(80).unwrap();
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        guest.until(|guest| guest.tcp(handle).may_send().then_some(()));
        (stream, handle)
    };
    let (mut former, _) = connect(&mut guest);
    former.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    guest.stack.reset();
    assert_eq!(former.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    guest.sockets = SocketSet::new(vec![]);
    guest.stack.begin(false, true);
    let (mut next, handle) = connect(&mut guest);
    next.write_all(b"again").unwrap();
    guest.until(|guest| guest.tcp(handle).can_recv().then_some(()));
}

#[test]
fn datagrams_go_both_ways() {
    let outside = UdpSocket::bind("127.0.0.1:0").unwrap();
    outside.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let (port, own) = (free_port(false), outside.local_addr().unwrap().port());
    let mut guest = Guest::new(Reach::Host, &[&format!("udp::{port}-:53")]);
    let handle = guest.udp_socket(53);
    for size in [0, 1, 1400, 60_000] {
        let sent = bytes(size, 3);
        let to = IpEndpoint::new(GATEWAY.into(), own);
        guest.sockets.get_mut::<udp::Socket<'_>>(handle).send_slice(&sent, to).unwrap();
        guest.until(|guest| guest.cable.from_guest.is_empty().then_some(()));
        let mut got = vec![0; 65_536];
        outside.set_nonblocking(true).unwrap();
        let (count, from) = guest.until(|_| outside.recv_from(&mut got).ok());
        assert_eq!(got[..count], sent);
        // Its answer, and one to the port that leads inside.
        for to in [from, ([127, 0, 0, 1], port).into()] {
            outside.send_to(&sent, to).unwrap();
            let (answer, seen) = guest.until(|guest| {
                let socket = guest.sockets.get_mut::<udp::Socket<'_>>(handle);
                socket.recv().ok().map(|(bytes, meta)| (bytes.to_vec(), meta.endpoint))
            });
            assert_eq!((answer, seen.addr), (sent.clone(), GATEWAY.into()));
            // What the guest answers to that reaches who has sent it.
            if to.port() == port {
                let socket = guest.sockets.get_mut::<udp::Socket<'_>>(handle);
                socket.send_slice(b"answer", seen).unwrap();
                let (count, from) = guest.until(|_| outside.recv_from(&mut got).ok());
                assert_eq!((&got[..count], from.port()), (&b"answer"[..], port));
            }
        }
    }
}

#[test]
fn the_guest_is_given_its_address() {
    let mut guest = Guest::new(Reach::Others, &[]);
    guest.interface.update_ip_addrs(|list| list.clear());
    let handle = guest.sockets.add(dhcpv4::Socket::new());
    let (address, router) =
        guest.until(|guest| match guest.sockets.get_mut::<dhcpv4::Socket<'_>>(handle).poll() {
            Some(dhcpv4::Event::Configured(config)) => Some((config.address, config.router)),
            _ => None,
        });
    assert_eq!((address.to_string(), router), ("10.0.2.15/24".into(), Some(GATEWAY)));
}

/// A guest that asks for more connections than it may have gets none beyond that, and is told of once.
#[test]
fn connections_have_an_end() {
    let to = server();
    let mut guest = Guest::new(Reach::Host, &[]);
    let handles: Vec<_> = (0..30).map(|at| guest.connect(to, 3000 + at)).collect();
    let settled = |state| matches!(state, tcp::State::Established | tcp::State::Closed);
    guest.until(|guest| handles.iter().all(|it| settled(guest.tcp(*it).state())).then_some(()));
    let open = handles.iter().filter(|it| guest.tcp(**it).state() == tcp::State::Established).count();
    assert!((1..=4).contains(&open), "{open}");
    assert_eq!(guest.stack.take_notice(), Some(Notice::TooManyConnections));
    assert_eq!(guest.stack.take_notice(), None);
    // A driver that goes takes them with it.
    guest.stack.begin(false, true);
    let handle = guest.connect(to, 4000);
    guest.until(|guest| (guest.tcp(handle).state() == tcp::State::Established).then_some(()));
}

/// Frames of any kind, good ones with bytes changed among them, come to nothing bad.
#[test]
fn hostile_frames() {
    let mut stack =
        Stack::new(Options { mac: MAC, reach: Reach::Nobody, forwards: vec![], limits: Limits::default() })
            .unwrap();
    stack.begin(true, true);
    let mut state = 1u64;
    let mut draw = move |limit: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % limit
    };
    let mut out = vec![0; LONGEST_PACKET];
    for _ in 0..20_000 {
        let size = HEADER + usize::try_from(draw(200)).unwrap();
        let mut packet: Vec<u8> = (0..size).map(|_| draw(256).to_le_bytes()[0]).collect();
        let kind = [[8, 0], [8, 6]][usize::try_from(draw(2)).unwrap()];
        let beginning = [&[0; HEADER][..], &MAC_OF_HOST, &MAC, &kind, &[0x45]].concat();
        let count = beginning.len().min(size);
        packet[..count].copy_from_slice(&beginning[..count]);
        if let Some(addresses) = packet.get_mut(HEADER + 14 + 12..HEADER + 14 + 16) {
            addresses.copy_from_slice(&GUEST.octets());
        }
        stack.send(&packet);
        while draw(3) == 0 && stack.receive(&mut out).is_some() {}
    }
    // What has been answered has an end.
    let mut rest = 0;
    while stack.receive(&mut out).is_some() {
        rest += 1;
    }
    assert!(rest < 1000, "{rest}");
}
