//! A client of the gdb remote protocol, for what stock debuggers do not do: wrong packets,
//! vanishing, counting.

use debug::gdb::packet::{Framer, INTERRUPT, Item, frame, from_hex};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// What a connection goes over.
trait Stream: Read + Write + std::fmt::Debug + Send {}

impl<S: Read + Write + std::fmt::Debug + Send> Stream for S {}

/// A connection.
#[derive(Debug)]
pub struct Client {
    stream: Box<dyn Stream>,
    framer: Framer,
    /// What has arrived and was not asked for yet.
    items: std::collections::VecDeque<Item>,
    limit: Duration,
    /// Whether packets are acknowledged.
    acknowledges: bool,
}

impl Client {
    /// Connects; the socket may not be there yet. Replies may take `limit`.
    ///
    /// # Errors
    /// When it cannot connect.
    pub fn connect(socket: &Path, limit: Duration) -> Result<Client, String> {
        let stream = crate::port::connect(socket).map_err(|error| format!("cannot connect: {error}"))?;
        stream.set_read_timeout(Some(limit)).map_err(|error| error.to_string())?;
        Ok(Client::over(Box::new(stream), limit))
    }

    fn over(stream: Box<dyn Stream>, limit: Duration) -> Client {
        Client { stream, framer: Framer::default(), items: Default::default(), limit, acknowledges: true }
    }

    /// Connects over TCP and switches acknowledgements off.
    ///
    /// # Errors
    /// When it cannot.
    pub fn attach_tcp(address: &str, limit: Duration) -> Result<Client, String> {
        let stream = TcpStream::connect(address).map_err(|error| format!("cannot connect: {error}"))?;
        stream.set_read_timeout(Some(limit)).map_err(|error| error.to_string())?;
        Client::over(Box::new(stream), limit).begin()
    }

    /// Connects and switches acknowledgements off, where the server can do without.
    ///
    /// # Errors
    /// When it cannot.
    pub fn attach(socket: &Path, limit: Duration) -> Result<Client, String> {
        Client::connect(socket, limit)?.begin()
    }

    fn begin(self) -> Result<Client, String> {
        let mut client = self;
        client.ask("qSupported:multiprocess+;swbreak+;hwbreak+;vContSupported+")?;
        client.acknowledges = client.ask("QStartNoAckMode")? != "OK";
        Ok(client)
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// When the connection is closed.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.stream.write_all(bytes).map_err(|error| format!("cannot send: {error}"))
    }

    /// The next thing that arrives; `None` when the connection is closed.
    ///
    /// # Errors
    /// When nothing arrives in time.
    pub fn item(&mut self) -> Result<Option<Item>, String> {
        let deadline = Instant::now() + self.limit;
        loop {
            if let Some(item) = self.items.pop_front() {
                return Ok(Some(item));
            }
            if Instant::now() >= deadline {
                return Err("nothing arrives".into());
            }
            let mut buffer = [0; 64 << 10];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(None),
                Ok(count) => {
                    let items = &mut self.items;
                    self.framer.feed(&buffer[..count], |item| items.push_back(item));
                }
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(format!("no reply: {error}")),
            }
        }
    }

    /// The next packet that is not console output.
    ///
    /// # Errors
    /// When the connection is closed, or nothing arrives in time.
    pub fn reply(&mut self) -> Result<String, String> {
        loop {
            match self.item()? {
                Some(Item::Packet(data)) if data.first() != Some(&b'O') || data == b"OK" => {
                    if self.acknowledges {
                        // A server that has said goodbye needs no acknowledgement.
                        self.send(b"+").ok();
                    }
                    return Ok(String::from_utf8_lossy(&data).into_owned());
                }
                Some(_) => {}
                None => return Err("the connection is closed".into()),
            }
        }
    }

    /// What is written to the console before the next reply.
    ///
    /// # Errors
    /// As [`Self::reply`].
    pub fn console_reply(&mut self) -> Result<String, String> {
        let mut text = Vec::new();
        loop {
            match self.item()? {
                Some(Item::Packet(data)) => match data.strip_prefix(b"O").and_then(from_hex) {
                    Some(more) => text.extend(more),
                    None => return Ok(String::from_utf8_lossy(&text).into_owned()),
                },
                Some(_) => {}
                None => return Err("the connection is closed".into()),
            }
        }
    }

    /// Sends a packet and waits for its reply.
    ///
    /// # Errors
    /// As [`Self::reply`].
    pub fn ask(&mut self, packet: &str) -> Result<String, String> {
        self.send(&frame(packet.as_bytes()))?;
        self.reply().map_err(|error| format!("{packet}: {error}"))
    }

    /// Sends a packet that is answered on the console, and then with OK; what the console says.
    ///
    /// # Errors
    /// As [`Self::reply`]; when it is answered with an error.
    pub fn console(&mut self, packet: &str) -> Result<String, String> {
        self.send(&frame(packet.as_bytes()))?;
        let mut text = Vec::new();
        loop {
            match self.item()? {
                Some(Item::Packet(data)) if data == b"OK" => break,
                Some(Item::Packet(data)) => match data.split_first() {
                    Some((b'O', hex)) => text.extend(debug::gdb::packet::from_hex(hex).unwrap_or_default()),
                    _ => return Err(format!("{packet}: {}", String::from_utf8_lossy(&data))),
                },
                Some(_) => {}
                None => return Err("the connection is closed".into()),
            }
        }
        if self.acknowledges {
            self.send(b"+")?;
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Sends a packet and waits for its reply; the length of its data, escapes undone.
    ///
    /// # Errors
    /// As [`Self::reply`].
    pub fn ask_length(&mut self, packet: &str) -> Result<usize, String> {
        self.send(&frame(packet.as_bytes()))?;
        loop {
            match self.item()? {
                Some(Item::Packet(data)) => {
                    if self.acknowledges {
                        self.send(b"+")?;
                    }
                    return Ok(data.len() - data.iter().filter(|byte| **byte == b'}').count());
                }
                Some(Item::Ack) => {}
                other => return Err(format!("{packet}: {other:?}")),
            }
        }
    }

    /// Sends a packet whose reply must be this one, or begin with it when it ends with `*`.
    ///
    /// # Errors
    /// What came instead.
    pub fn expect(&mut self, packet: &str, reply: &str) -> Result<String, String> {
        let found = self.ask(packet)?;
        let fits = match reply.strip_suffix('*') {
            Some(start) => found.starts_with(start),
            None => found == reply,
        };
        if fits { Ok(found) } else { Err(format!("{packet}: {found} instead of {reply}")) }
    }

    /// Lets the guest run.
    ///
    /// # Errors
    /// When the connection is closed.
    pub fn run(&mut self) -> Result<(), String> {
        self.send(&frame(b"vCont;c"))
    }

    /// Interrupts the guest; the stop.
    ///
    /// # Errors
    /// As [`Self::reply`].
    pub fn interrupt(&mut self) -> Result<String, String> {
        self.send(&[INTERRUPT])?;
        self.reply().map_err(|error| format!("interrupt: {error}"))
    }
}
