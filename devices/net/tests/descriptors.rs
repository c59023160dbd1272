//! A process that has no descriptors left for a while. The limit is the process's, so this is a test alone.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::net::{TcpListener, TcpStream};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

/// Whether the network has something to do within so many seconds.
fn has_news(stack: &net::Stack, seconds: i64) -> bool {
    // SAFETY: the stack has it open.
    let descriptor = unsafe { BorrowedFd::borrow_raw(stack.descriptor()) };
    let wait = Timespec { tv_sec: seconds, tv_nsec: 0 };
    poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], Some(&wait)).unwrap() > 0
}

#[test]
fn who_comes_while_there_are_no_descriptors_is_let_in_later() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let forward = format!("tcp::{port}-:80").parse().unwrap();
    let mut stack = net::Stack::new(net::Options {
        mac: [2, 0, 0, 0, 0, 1],
        reach: net::Reach::Others,
        forwards: vec![forward],
        limits: net::Limits::default(),
    })
    .unwrap();
    stack.begin(false, true);
    let mut packet = vec![0; net::LONGEST_PACKET];
    assert_eq!(stack.receive(&mut packet), None);
    let _client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    // No new one has a number below this.
    setrlimit(Resource::RLIMIT_NOFILE, 3, hard).unwrap();
    let start = Instant::now();
    for _ in 0..4 {
        assert!(has_news(&stack, 20), "it is not tried again");
        assert_eq!(stack.receive(&mut packet), None);
    }
    // It is not busy with it: between two attempts is a pause.
    assert!(start.elapsed() >= Duration::from_millis(450), "{:?}", start.elapsed());
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    assert!(has_news(&stack, 20), "it is not tried again");
    let size = stack.receive(&mut packet).expect("whoever waits is let in");
    // The guest's port is asked for a connection: TCP's flags are SYN alone.
    let tcp = &packet[net::HEADER + 14 + 20..size];
    assert_eq!((&tcp[2..4], tcp[13]), (&80u16.to_be_bytes()[..], 2));
}
