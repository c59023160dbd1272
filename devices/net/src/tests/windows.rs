//! A guest that sends more than it was told there is room for. smoltcp takes what its buffer holds, and 0.12.0 panics
//! when it is asked for its next deadline before it has acknowledged that (smoltcp issue 1048, mended in 1079): it must
//! not be asked then.

use super::*;
use crate::events::{Events, News, Token};
use crate::outbox::{ETHERNET, Outbox};
use crate::tcp::Connections;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetProtocol, IpProtocol, Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
};
use std::net::SocketAddr;

/// Where the guest's numbers begin.
const FIRST: i32 = 1000;

/// A connection of a guest's that says what it likes.
struct Talk {
    events: Events,
    outbox: Outbox,
    connections: Connections,
    to: SocketAddrV4,
    host: TcpListener,
    /// What the other end's next byte is.
    theirs: TcpSeqNumber,
    /// The last that it has acknowledged, counted from the guest's first byte.
    acknowledged: usize,
    scale: Option<u8>,
    time: i64,
}

impl Talk {
    /// One that is established.
    fn new(scale: Option<u8>) -> Talk {
        let host = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = host.local_addr().unwrap().port();
        let (events, mut outbox) = (Events::new().unwrap(), Outbox::new(MAC));
        outbox.mtu = Stack::MTU.into();
        let connections = Connections::new(&mut outbox, Instant::ZERO, (4, 2));
        let (to, theirs) = (SocketAddrV4::new(GATEWAY, port), TcpSeqNumber(0));
        let mut talk =
            Talk { events, outbox, connections, to, host, theirs, acknowledged: 0, scale, time: 0 };
        let request = talk.packet(TcpControl::Syn, FIRST - 1, &[]);
        let target = SocketAddr::from(([127, 0, 0, 1], port));
        let now = talk.now();
        talk.connections.open((&mut talk.outbox, &talk.events), &request, (to, target), now);
        for _ in 0..PATIENCE {
            talk.hear_host();
            talk.turn();
            if talk.take() > 0 {
                talk.say(0, &[]);
                return talk;
            }
            let mut polls = [PollFd::from_borrowed_fd(talk.events.borrowed(), PollFlags::IN)];
            poll(&mut polls, Some(&Timespec { tv_sec: 0, tv_nsec: 500_000 })).unwrap();
        }
        panic!("it is not answered");
    }

    fn now(&mut self) -> Instant {
        self.time += 1;
        Instant::from_millis(self.time)
    }

    fn packet(&self, control: TcpControl, number: i32, payload: &[u8]) -> Vec<u8> {
        let is_first = control == TcpControl::Syn;
        let segment = TcpRepr {
            src_port: 4000,
            dst_port: self.to.port(),
            control,
            seq_number: TcpSeqNumber(number),
            ack_number: (!is_first).then_some(self.theirs),
            window_len: 0xffff,
            window_scale: self.scale.filter(|_| is_first),
            max_seg_size: is_first.then_some(0xff00),
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload,
        };
        let header = Ipv4Repr {
            src_addr: GUEST,
            dst_addr: *self.to.ip(),
            next_header: IpProtocol::Tcp,
            payload_len: segment.buffer_len(),
            hop_limit: 64,
        };
        let (sums, start) = (ChecksumCapabilities::default(), header.buffer_len());
        let mut packet = vec![0; start + segment.buffer_len()];
        header.emit(&mut Ipv4Packet::new_unchecked(&mut packet), &sums);
        let (from, to) = (header.src_addr.into(), header.dst_addr.into());
        segment.emit(&mut TcpPacket::new_unchecked(&mut packet[start..]), &from, &to, &sums);
        packet
    }

    /// The guest sends these bytes, as those from so many on.
    fn say(&mut self, at: usize, payload: &[u8]) {
        let whole = self.packet(TcpControl::None, FIRST + i32::try_from(at).unwrap(), payload);
        let (to, now) = (SocketAddrV4::new(*self.to.ip(), 0), self.now());
        let start = whole.len() - Ipv4Packet::new_checked(&whole[..]).unwrap().payload().len();
        self.connections.hear(&mut self.outbox, (&whole, &whole[start..]), to, now);
    }

    fn hear_host(&mut self) {
        let mut news: Vec<News> = Vec::new();
        while self.events.take(&mut news) {}
        for news in news.into_iter().filter(|it| it.token != Token::Timer) {
            let now = self.now();
            self.connections.news(&mut self.outbox, news, now);
        }
    }

    /// All that is done for connections at a time, and asked of them.
    fn turn(&mut self) {
        let now = self.now();
        self.connections.wake_due(now);
        self.outbox.allow(crate::outbox::TURN, |outbox| self.connections.turn(outbox, now));
        self.connections.deadline();
    }

    /// Leaves no room in the outbox.
    fn fill(&mut self) {
        while !self.outbox.is_full() {
            self.outbox.push(EthernetProtocol::Arp, 28, |_| {});
        }
    }

    /// The guest takes all that there is; how many packets of the connection's.
    fn take(&mut self) -> usize {
        let mut count = 0;
        while let Some(packet) = self.outbox.pop() {
            let Ok(header) = Ipv4Packet::new_checked(&packet[HEADER + ETHERNET..]) else { continue };
            let Ok(segment) = TcpPacket::new_checked(header.payload()) else { continue };
            assert!(!segment.rst(), "it is reset");
            self.theirs = segment.seq_number() + segment.segment_len();
            self.acknowledged = self.acknowledged.max(segment.ack_number() - TcpSeqNumber(FIRST));
            count += 1;
        }
        count
    }
}

#[test]
fn a_guest_that_sends_past_an_unscaled_window() {
    const PIECE: usize = 50_000;
    // In order; the first at last.
    for order in [[0, 1, 2, 3], [1, 2, 3, 0]] {
        let mut talk = Talk::new(None);
        talk.take();
        talk.fill();
        for at in order {
            talk.say(at * PIECE, &[7; PIECE]);
        }
        // With the outbox full, and then not: it is asked for its deadline behind each.
        talk.turn();
        talk.turn();
        talk.take();
        talk.turn();
        talk.take();
        assert_eq!(talk.acknowledged, 4 * PIECE, "{order:?}");
        let (mut host, _) = talk.host.accept().unwrap();
        let mut got = vec![0; 4 * PIECE];
        let reader = thread::spawn(move || host.read_exact(&mut got).map(|()| got));
        for _ in 0..PATIENCE {
            talk.hear_host();
            talk.turn();
            talk.take();
            if reader.is_finished() {
                break;
            }
            thread::yield_now();
        }
        assert!(reader.join().unwrap().unwrap().iter().all(|byte| *byte == 7));
    }
}

/// Segments of any length at any place near the window's end, while the outbox is full and while it is not, and while
/// the host takes some and none.
#[test]
fn a_guest_that_sends_whatever_it_likes() {
    for scale in [None, Some(0), Some(7), Some(14)] {
        let mut state = 1u64;
        let mut draw = move |limit: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(state >> 33).unwrap() % limit
        };
        let mut talk = Talk::new(scale);
        let (mut host, _) = talk.host.accept().unwrap();
        host.set_nonblocking(true).unwrap();
        let bytes = vec![7; 60_000];
        // Where it goes on, unless something of that was not taken.
        let mut next = 0;
        let mut room = vec![0; 100_000];
        for _ in 0..1000 {
            match draw(12) {
                0 => talk.fill(),
                1 => {
                    talk.take();
                    next = talk.acknowledged;
                }
                2 => {
                    let size = draw(room.len());
                    if let Err(error) = host.read(&mut room[..size]) {
                        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                    }
                }
                3 | 4 => {
                    talk.hear_host();
                    talk.turn();
                }
                kind => {
                    let size = draw(bytes.len());
                    talk.say(if kind < 10 { next } else { next + draw(300_000) }, &bytes[..size]);
                    next += if kind < 10 { size } else { 0 };
                }
            }
        }
        assert!(talk.acknowledged > 300_000, "{scale:?}: {}", talk.acknowledged);
    }
}
