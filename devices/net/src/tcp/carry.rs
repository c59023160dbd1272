//! Bytes between a socket of the host's and the guest's.

use crate::events::News;
use rustix::net::sockopt;
use smoltcp::socket::tcp::{Socket, State};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

/// Whether something went either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carried {
    Something,
    Nothing,
}

/// The host's side of a connection.
#[derive(Debug)]
pub struct Host {
    stream: TcpStream,
    is_readable: bool,
    is_writable: bool,
    /// Both directions are over, or it has failed.
    is_over: bool,
    /// All has been read, and the guest been told so.
    has_ended: bool,
    /// The guest has said that it sends no more.
    guest_sends_no_more: bool,
    /// All that the guest sends has been written, and the host been told so.
    guest_has_ended: bool,
    /// Closing it is an orderly end.
    closes_in_order: bool,
}

impl Host {
    /// One that is heard of as soon as there is something. Until it has ended in order, the other side is told by a reset
    /// when it is closed: by whichever thread ends the network, which need not be one that may do more than close.
    pub fn new(stream: TcpStream) -> Host {
        // A socket that does not take this ends in order instead.
        sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).ok();
        Host {
            stream,
            is_readable: false,
            is_writable: false,
            is_over: false,
            has_ended: false,
            guest_sends_no_more: false,
            guest_has_ended: false,
            closes_in_order: false,
        }
    }

    pub fn hear(&mut self, news: News) {
        self.is_readable |= news.is_readable || news.is_over;
        self.is_writable |= news.is_writable || news.is_over;
        self.is_over |= news.is_over;
    }

    /// Why it could not connect.
    pub fn error(&self) -> Option<io::Error> {
        self.stream.take_error().unwrap_or_else(Some)
    }

    /// Once both directions have ended in order, what the other side has not got yet it still gets.
    fn look_for_end(&mut self) {
        let is_at_its_end = self.has_ended && self.guest_has_ended;
        if is_at_its_end && !std::mem::replace(&mut self.closes_in_order, true) {
            // As above, it has not taken that one either.
            sockopt::set_socket_linger(&self.stream, None).ok();
        }
    }

    /// Whether the guest has sent all in order, and the host not taken it yet: the guest may think that it is over.
    pub fn is_owed(&self, socket: &Socket<'_>) -> bool {
        self.guest_sends_no_more && !self.guest_has_ended && !self.is_over && socket.can_recv()
    }

    /// Carries both ways, as far as there is something and room for it.
    pub fn carry(&mut self, socket: &mut Socket<'_>) -> Carried {
        match socket.state() {
            // The guest has not answered yet.
            State::SynSent | State::SynReceived | State::Listen => {
                if self.is_over {
                    socket.abort();
                }
                return Carried::Nothing;
            }
            State::Closed if !self.is_owed(socket) => return Carried::Nothing,
            _ => {}
        }
        let results = [self.give_host(socket), self.give_guest(socket)];
        let mut carried = Carried::Nothing;
        for result in results {
            match result {
                Ok(0) => {}
                Ok(_) => carried = Carried::Something,
                // What one side has lost the other is told.
                Err(_) => socket.abort(),
            }
        }
        self.look_for_end();
        carried
    }

    fn give_host(&mut self, socket: &mut Socket<'_>) -> io::Result<usize> {
        let mut all = 0;
        while self.is_writable && socket.can_recv() {
            let mut stream = &self.stream;
            let result = socket.recv(|bytes| match stream.write(bytes) {
                Ok(count) => (count, Ok(count)),
                Err(error) => (0, Err(error)),
            });
            match result {
                Ok(Ok(count)) => all += count,
                Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => self.is_writable = false,
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => break,
            }
        }
        self.guest_sends_no_more |=
            matches!(socket.state(), State::CloseWait | State::LastAck | State::Closing | State::TimeWait);
        if self.guest_sends_no_more && !socket.can_recv() && !self.guest_has_ended {
            self.guest_has_ended = true;
            self.stream.shutdown(Shutdown::Write)?;
        }
        Ok(all)
    }

    fn give_guest(&mut self, socket: &mut Socket<'_>) -> io::Result<usize> {
        let mut all = 0;
        while self.is_readable && !self.has_ended && socket.can_send() {
            let mut stream = &self.stream;
            let result = socket.send(|bytes| match stream.read(bytes) {
                Ok(count) => (count, Ok(count)),
                Err(error) => (0, Err(error)),
            });
            match result {
                Ok(Ok(0)) => {
                    self.has_ended = true;
                    // What has been read before comes before the end.
                    socket.close();
                }
                Ok(Ok(count)) => all += count,
                Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => self.is_readable = false,
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => break,
            }
        }
        Ok(all)
    }
}
