//! Who gets what: senders by two doors, headers with options, and many packets beside few.

use super::*;
use crate::doors::Doors;
use crate::events::{Events, Token};
use crate::outbox::{Outbox, TURN};
use crate::udp::{send_on, take_turn};
use std::io::{Error, ErrorKind};

/// A socket of this machine's, and what has come to it so far.
fn outside() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

#[test]
fn senders_by_two_doors_to_one_port_have_their_own_answers() {
    let ports = [free_port(false), free_port(false)];
    let forwards = ports.map(|port| format!("udp::{port}-:53"));
    let mut guest = Guest::new(Reach::Others, &[&forwards[0], &forwards[1]]);
    let handle = guest.udp_socket(53);
    let senders = [outside(), outside()];
    let mut seen = Vec::new();
    for (sender, port) in senders.iter().zip(ports) {
        sender.send_to(b"asked", ("127.0.0.1", port)).unwrap();
        seen.push(guest.until(|guest| {
            let socket = guest.sockets.get_mut::<udp::Socket<'_>>(handle);
            socket.recv().ok().map(|(_, meta)| meta.endpoint)
        }));
    }
    assert_ne!(seen[0], seen[1]);
    for ((sender, seen), port) in senders.iter().zip(&seen).zip(ports) {
        let socket = guest.sockets.get_mut::<udp::Socket<'_>>(handle);
        socket.send_slice(&port.to_be_bytes(), *seen).unwrap();
        let mut got = [0; 16];
        let (count, from) = guest.until(|_| sender.recv_from(&mut got).ok());
        assert_eq!((&got[..count], from.port()), (&port.to_be_bytes()[..], port));
    }
}

#[test]
fn headers_with_options_are_as_good_as_those_without() {
    let (to, nobody) = (server(), free_port(true));
    let mut guest = Guest::new(Reach::Host, &[]);
    guest.cable.adds_options = true;
    let handle = guest.connect(to, 4000);
    guest.until(|guest| guest.tcp(handle).may_send().then_some(()));
    guest.tcp(handle).send_slice(b"\x00\x01").unwrap();
    guest.tcp(handle).close();
    let mut got = Vec::new();
    guest.until(|guest| {
        let socket = guest.tcp(handle);
        if socket.can_recv() {
            socket.recv(|bytes| (bytes.len(), got.extend_from_slice(bytes))).unwrap();
        }
        matches!(socket.state(), tcp::State::TimeWait | tcp::State::Closed).then_some(())
    });
    assert_eq!(got, [0xff, 0xfe]);
    // What nobody takes is refused.
    let handle = guest.connect(SocketAddrV4::new(GATEWAY, nobody), 4001);
    guest.until(|guest| (guest.tcp(handle).state() == tcp::State::Closed).then_some(()));
    let socket = outside();
    let (own, handle) = (socket.local_addr().unwrap().port(), guest.udp_socket(53));
    let to = IpEndpoint::new(GATEWAY.into(), own);
    guest.sockets.get_mut::<udp::Socket<'_>>(handle).send_slice(b"a datagram", to).unwrap();
    let mut got = [0; 16];
    let (count, _) = guest.until(|_| socket.recv_from(&mut got).ok());
    assert_eq!(&got[..count], b"a datagram");
}

/// A server that sends without end.
fn spring() -> SocketAddrV4 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        while stream.write_all(&[7; 4096]).is_ok() {}
    });
    SocketAddrV4::new(GATEWAY, port)
}

/// A connection always has more packets than the guest takes at once; a datagram does not wait for the connection to
/// have none, by a door or as an answer.
#[test]
fn a_datagram_passes_a_connection_that_never_ends() {
    const ENOUGH: usize = 300_000;
    let (to, port, socket) = (spring(), free_port(false), outside());
    let mut guest = Guest::new(Reach::Host, &[&format!("udp::{port}-:53")]);
    // Short packets, of which a window has many.
    guest.stack.begin(false, false);
    let (tcp, udp) = (guest.connect(to, 4000), guest.udp_socket(53));
    let own = IpEndpoint::new(GATEWAY.into(), socket.local_addr().unwrap().port());
    guest.sockets.get_mut::<udp::Socket<'_>>(udp).send_slice(b"who am I", own).unwrap();
    let (_, flow) = guest.until(|_| socket.recv_from(&mut [0; 16]).ok());
    let read = |guest: &mut Guest| match guest.tcp(tcp) {
        socket if socket.can_recv() => socket.recv(|bytes| (bytes.len(), bytes.len())).unwrap(),
        _ => 0,
    };
    let mut all = 0;
    guest.until(|guest| {
        all += read(guest);
        (all > ENOUGH).then_some(())
    });
    for to in [([127, 0, 0, 1], port).into(), flow] {
        socket.send_to(b"urgent", to).unwrap();
        let mut meanwhile = 0;
        guest.until(|guest| {
            meanwhile += read(guest);
            guest.sockets.get_mut::<udp::Socket<'_>>(udp).recv().ok().map(|_| ())
        });
        // What was on its way, and a few turns.
        assert!(meanwhile < 100 * 1460, "{meanwhile}");
    }
}

/// A turn has an end, though the outbox has more of none of what is looked at.
#[test]
fn datagrams_too_long_for_the_guest_do_not_make_a_turn_longer() {
    const COUNT: usize = 3 * TURN;
    let (events, mut doors, mut outbox) = (Events::new().unwrap(), Doors::new(), Outbox::new(MAC));
    let port = free_port(false);
    doors.open(&events, SocketAddrV4::new(Ipv4Addr::LOCALHOST, port), 53, Token::Forward(0)).unwrap();
    let sender = outside();
    for _ in 0..COUNT {
        sender.send_to(&[7; 1500], ("127.0.0.1", port)).unwrap();
    }
    doors.news(0);
    let mut turns = 0;
    while doors.is_ready(0) {
        doors.turn(0, &mut outbox);
        turns += 1;
    }
    assert_eq!((turns, outbox.pop()), (COUNT / TURN + 1, None));
}

/// What a socket hears of one datagram keeps no other, whether that comes or goes.
#[test]
fn datagrams_pass_an_error() {
    let mut outbox = Outbox::new(MAC);
    for kind in [ErrorKind::HostUnreachable, ErrorKind::ConnectionRefused, ErrorKind::PermissionDenied] {
        let mut come = VecDeque::from([Err(kind), Ok(()), Err(kind), Ok(()), Err(ErrorKind::WouldBlock)]);
        assert!(!take_turn(&mut outbox, |_| come.pop_front().unwrap().map_err(Error::from)));
        assert_eq!(come.len(), 0);
        let mut answers = VecDeque::from([Err(kind), Ok(1)]);
        let sent = send_on(|| answers.pop_front().unwrap().map_err(Error::from));
        assert_eq!((sent.unwrap_err().kind(), answers.len()), (kind, 0));
        // One that does not end is no datagram's.
        assert!(!take_turn(&mut outbox, |_| Err(kind.into())));
    }
    assert!(take_turn(&mut outbox, |_| Ok(())));
}

/// Who sent something to the former guest is nobody to the next.
#[test]
fn a_guest_that_begins_again_does_not_know_who_sent_before() {
    let port = free_port(false);
    let mut guest = Guest::new(Reach::Others, &[&format!("udp::{port}-:53")]);
    let (handle, sender) = (guest.udp_socket(53), outside());
    let send = |guest: &mut Guest, to| {
        guest.sockets.get_mut::<udp::Socket<'_>>(handle).send_slice(b"an answer", to).unwrap();
        // It asks who has the address first.
        for _ in 0..20 {
            guest.step();
        }
        sender.recv_from(&mut [0; 16]).map_err(|error| error.kind())
    };
    let come = |guest: &mut Guest| {
        sender.send_to(b"asked", ("127.0.0.1", port)).unwrap();
        guest.until(|guest| {
            guest.sockets.get_mut::<udp::Socket<'_>>(handle).recv().ok().map(|(_, meta)| meta.endpoint)
        })
    };
    let seen = come(&mut guest);
    assert!(send(&mut guest, seen).is_ok());
    guest.stack.begin(false, true);
    assert_eq!(send(&mut guest, seen).unwrap_err(), ErrorKind::WouldBlock);
    let seen = come(&mut guest);
    assert!(send(&mut guest, seen).is_ok());
}
