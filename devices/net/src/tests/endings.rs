//! How connections end, and that they do not: a reader that is slow, one that does not read, a guest that is silent.

use super::*;
use nix::sys::socket::{setsockopt, sockopt};

const PIECE: usize = 50_000;

/// A guest that has sent so many bytes and been told that all has gone; whoever reads them on the host has read these.
fn done_before_its_reader() -> (Guest, TcpStream, usize, Vec<u8>) {
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
    // A little is read whenever nothing goes on, so that what is left of it, and the end, has room here; the rest still
    // waits here then.
    let mut idle = 0;
    guest.until(|guest| {
        if guest.tcp(handle).state() == tcp::State::Closed {
            return Some(());
        }
        idle += 1;
        if idle % 30 == 0 {
            let count = reader.read(&mut piece).unwrap_or(0);
            got.extend_from_slice(&piece[..count]);
        }
        None
    });
    reader.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    (guest, reader, sent, got)
}

/// Time passes, in which the stack does what is to be done.
fn pass(guest: &mut Guest, seconds: u64) {
    let time = Duration::from_secs(seconds);
    guest.stack.pass(time);
    guest.start -= time;
    for _ in 0..20 {
        guest.step();
    }
}

/// Whoever reads takes his time, and gets all.
#[test]
fn who_reads_slowly_gets_all_though_the_guest_is_done() {
    let (mut guest, mut reader, sent, mut got) = done_before_its_reader();
    let before = got.len();
    pass(&mut guest, 11);
    // The guest has forgotten it, and takes its port for another.
    let to = SocketAddrV4::new(GATEWAY, reader.local_addr().unwrap().port());
    let handle = guest.connect(to, 4000);
    pass(&mut guest, 11);
    guest.sockets.remove(handle);
    // Nobody looks whether the time has come that does not.
    assert!(guest.stack.patience().unwrap() > Duration::from_secs(20));
    let mut piece = vec![0; PIECE];
    guest.until(|guest| {
        loop {
            match reader.read(&mut piece) {
                Ok(0) => return Some(()),
                // For longer than one may take who reads nothing.
                Ok(count) => {
                    got.extend_from_slice(&piece[..count]);
                    pass(guest, 5);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return None,
                Err(error) => panic!("{error} after {} of {sent} bytes, {before} of them before", got.len()),
            }
        }
    });
    let wanted: Vec<u8> = (0..sent / PIECE).flat_map(|at| bytes(PIECE, at * PIECE)).collect();
    assert!(got == wanted, "{} of {} bytes", got.len(), wanted.len());
}

/// Whoever reads nothing at all does not keep the place of a connection.
#[test]
fn who_reads_nothing_is_given_up() {
    let (mut guest, reader, ..) = done_before_its_reader();
    // At first the host takes something still, for which it has room.
    let mut errors = (0..5).filter_map(|_| {
        pass(&mut guest, 128);
        reader.take_error().unwrap()
    });
    let error = errors.next().expect("it is waited for without end");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

/// A connection of the guest's, and its other end.
fn connected() -> (Guest, SocketHandle, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = SocketAddrV4::new(GATEWAY, listener.local_addr().unwrap().port());
    let mut guest = Guest::new(Reach::Host, &[]);
    let handle = guest.connect(to, 4000);
    guest.until(|guest| guest.tcp(handle).may_send().then_some(()));
    let (other, _) = listener.accept().unwrap();
    other.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    (guest, handle, other)
}

#[test]
fn a_connection_may_be_silent_for_as_long_as_it_likes() {
    let (mut guest, handle, mut other) = connected();
    for _ in 0..3 {
        pass(&mut guest, 1000);
        other.write_all(b"asked").unwrap();
        guest.until(|guest| {
            guest.tcp(handle).recv(|bytes| (bytes.len(), bytes == b"asked")).unwrap().then_some(())
        });
        guest.tcp(handle).send_slice(b"said").unwrap();
        guest.step();
        let mut got = [0; 4];
        other.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"said");
    }
}

/// What the guest has not answered in time it has not got; the time in which it is held is not its.
#[test]
fn a_guest_that_answers_nothing_has_lost_its_connection() {
    let (mut guest, _, mut other) = connected();
    let mut packet = vec![0; LONGEST_PACKET];
    let mut lose_all = |guest: &mut Guest, (passes, rests)| {
        guest.stack.pass(Duration::from_secs(passes));
        guest.stack.rested(Duration::from_secs(rests));
        while guest.stack.receive(&mut packet).is_some() {}
    };
    other.write_all(b"asked").unwrap();
    for times in [(0, 0), (1000, 1000), (120, 0), (1000, 1000)] {
        lose_all(&mut guest, times);
        assert!(other.take_error().unwrap().is_none(), "{times:?}");
    }
    lose_all(&mut guest, (8, 0));
    assert_eq!(other.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

/// A guest that does not read is one that is there, as long as it says so.
#[test]
fn a_guest_that_has_no_room_keeps_its_connection() {
    let (mut guest, handle, mut other) = connected();
    other.set_nonblocking(true).unwrap();
    let (mut sent, mut idle) = (0, 0);
    guest.until(|_| {
        let count = other.write(&[7; PIECE]).unwrap_or(0);
        (sent, idle) = (sent + count, if count == 0 { idle + 1 } else { 0 });
        (idle == 200).then_some(())
    });
    for _ in 0..20 {
        pass(&mut guest, 31);
    }
    let mut got = 0;
    guest.until(|guest| {
        got += guest.tcp(handle).recv(|bytes| (bytes.len(), bytes.len())).unwrap();
        (got == sent).then_some(())
    });
    // One that says nothing is not.
    guest.until(|_| {
        let count = other.write(&[7; PIECE]).unwrap_or(0);
        idle = if count == 0 { idle + 1 } else { 0 };
        (idle == 200).then_some(())
    });
    let mut packet = vec![0; LONGEST_PACKET];
    for _ in 0..6 {
        guest.stack.pass(Duration::from_secs(31));
        while guest.stack.receive(&mut packet).is_some() {}
    }
    assert_eq!(other.take_error().unwrap().unwrap().kind(), std::io::ErrorKind::ConnectionReset);
}
