//! Who gets what: senders by two doors, headers with options, many packets beside few, and a reader that is slow.

use super::*;
use nix::sys::socket::{setsockopt, sockopt};

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

/// The guest has sent all and been told that it has gone; whoever reads it on the host takes his time, and gets all.
#[test]
fn who_reads_slowly_gets_all_though_the_guest_is_done() {
    const PIECE: usize = 50_000;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // Short segments and a small window, with which the host keeps little: what is not read waits in the network.
    setsockopt(&listener, sockopt::TcpMaxSeg, &536).unwrap();
    setsockopt(&listener, sockopt::RcvBuf, &8192).unwrap();
    let to = SocketAddrV4::new(GATEWAY, listener.local_addr().unwrap().port());
    let mut guest = Guest::new(Reach::Host, &[]);
    let handle = guest.connect(to, 4000);
    guest.until(|guest| guest.tcp(handle).may_send().then_some(()));
    let (mut reader, _) = listener.accept().unwrap();
    // This side of the host's has nothing to say, so that the guest's end is the end of it.
    reader.shutdown(std::net::Shutdown::Write).unwrap();
    guest.until(|guest| (guest.tcp(handle).state() == tcp::State::CloseWait).then_some(()));
    // As much as goes, until nothing has gone for long: all that there is room for on the way is full.
    let (mut sent, mut idle) = (0, 0);
    guest.until(|guest| {
        let socket = guest.tcp(handle);
        let was_empty = socket.send_queue() == 0;
        if was_empty {
            sent += socket.send_slice(&bytes(PIECE, sent)).unwrap();
        }
        idle = if was_empty { 0 } else { idle + 1 };
        (idle == 200).then_some(())
    });
    guest.tcp(handle).close();
    reader.set_nonblocking(true).unwrap();
    let mut got = Vec::new();
    let mut piece = vec![0; PIECE];
    // A little is read, so that what is left of it, and the end, has room here; the rest still waits here then.
    guest.until(|guest| {
        if guest.tcp(handle).state() == tcp::State::Closed {
            return Some(());
        }
        if let Ok(count) = reader.read(&mut piece) {
            got.extend_from_slice(&piece[..count]);
        }
        None
    });
    let before = got.len();
    // Time for whoever would end the connection now.
    for _ in 0..20 {
        guest.step();
    }
    guest.until(|_| {
        loop {
            match reader.read(&mut piece) {
                Ok(0) => return Some(()),
                Ok(count) => got.extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return None,
                Err(error) => panic!("{error} after {} of {sent} bytes, {before} of them before", got.len()),
            }
        }
    });
    let wanted: Vec<u8> = (0..sent / PIECE).flat_map(|at| bytes(PIECE, at * PIECE)).collect();
    assert!(got == wanted, "{} of {} bytes", got.len(), wanted.len());
}
