//! Framing: bytes to packets and back.
//!
//! Source: GDB manual, "Overview" of the remote protocol: `$data#checksum`, escapes with
//! `}`, acknowledgements, and the interrupt byte.

/// Bytes of a packet's data that are accepted; gdb is told so with `PacketSize`.
pub const LONGEST: usize = 128 << 10;
/// The byte that interrupts a running target.
pub const INTERRUPT: u8 = 0x03;
/// "Interpret as command" and "break" of telnet (RFC 854), and what gdb sends behind them for `BREAK-g`.
const TELNET_IAC: u8 = 0xff;
const TELNET_BREAK: u8 = 0xf3;
const SYSTEM_REQUEST: u8 = b'g';

/// Whether a connection may begin with this byte: debuggers begin with an acknowledgement of nothing,
/// with a packet, or with an interrupt.
pub fn may_begin(byte: u8) -> bool {
    matches!(byte, b'+' | b'-' | b'$' | INTERRUPT | TELNET_IAC)
}

/// What arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A packet with a right checksum: its data, escapes still in it.
    Packet(Vec<u8>),
    /// A packet with a wrong checksum.
    Damaged,
    /// A packet longer than [`LONGEST`].
    TooLong,
    /// `+`.
    Ack,
    /// `-`.
    Nack,
    /// The interrupt byte, or a telnet break, which gdb sends for `set remote interrupt-sequence BREAK`
    /// (also followed by a `g`, for the magic system request of a Linux kernel).
    Interrupt,
    /// A byte that is no protocol. Nothing behind it is looked at: a web page that has a browser send
    /// packets to a port of this machine has words of HTTP around them.
    Noise(u8),
}

impl Item {
    /// Bytes of data that it carries.
    pub fn len(&self) -> usize {
        match self {
            Item::Packet(data) => data.len(),
            _ => 0,
        }
    }

    /// Whether it carries none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Within {
    #[default]
    Outside,
    Data,
    FirstDigit,
    SecondDigit(u8),
    /// Behind a telnet IAC.
    Telnet,
    /// Behind a telnet break.
    Break,
    /// Behind noise.
    Lost,
}

/// Takes a stream apart.
#[derive(Debug, Default)]
pub struct Framer {
    state: Within,
    data: Vec<u8>,
    is_too_long: bool,
}

impl Framer {
    /// Takes the next bytes; calls `visit` for everything that is complete.
    pub fn feed(&mut self, mut bytes: &[u8], mut visit: impl FnMut(Item)) {
        while let Some((&byte, rest)) = bytes.split_first() {
            if self.state == Within::Data {
                // Most of a stream is data, which goes over in one piece.
                let end = bytes.iter().position(|byte| matches!(byte, b'#' | b'$')).unwrap_or(bytes.len());
                let room = LONGEST - self.data.len();
                self.data.extend(&bytes[..end.min(room)]);
                self.is_too_long |= end > room;
                if end > 0 {
                    bytes = &bytes[end..];
                    continue;
                }
            }
            bytes = rest;
            if let Some(item) = self.byte(byte) {
                visit(item);
            }
        }
    }

    fn byte(&mut self, byte: u8) -> Option<Item> {
        match self.state {
            Within::Outside => self.outside(byte),
            Within::Break => {
                self.state = Within::Outside;
                if byte == SYSTEM_REQUEST { None } else { self.outside(byte) }
            }
            Within::Telnet => match byte {
                TELNET_BREAK => {
                    self.state = Within::Break;
                    Some(Item::Interrupt)
                }
                _ => Some(self.lose(byte)),
            },
            Within::Lost => None,
            Within::Data => {
                match byte {
                    b'#' => self.state = Within::FirstDigit,
                    // A new packet begins where the old one was cut off.
                    b'$' => self.begin(),
                    // Taken over by `feed`.
                    _ => {}
                }
                None
            }
            Within::FirstDigit => {
                self.state = Within::SecondDigit(byte);
                None
            }
            Within::SecondDigit(first) => {
                self.state = Within::Outside;
                let data = std::mem::take(&mut self.data);
                let told = from_hex(&[first, byte]);
                Some(if std::mem::take(&mut self.is_too_long) {
                    Item::TooLong
                } else if told.as_deref() == Some(&[checksum(&data)]) {
                    Item::Packet(data)
                } else {
                    Item::Damaged
                })
            }
        }
    }

    /// Takes a byte between two packets.
    fn outside(&mut self, byte: u8) -> Option<Item> {
        match byte {
            b'$' => {
                self.begin();
                None
            }
            b'+' => Some(Item::Ack),
            b'-' => Some(Item::Nack),
            INTERRUPT => Some(Item::Interrupt),
            TELNET_IAC => {
                self.state = Within::Telnet;
                None
            }
            _ => Some(self.lose(byte)),
        }
    }

    fn lose(&mut self, byte: u8) -> Item {
        self.state = Within::Lost;
        Item::Noise(byte)
    }

    fn begin(&mut self) {
        self.state = Within::Data;
        self.is_too_long = false;
        self.data.clear();
    }
}

/// The sum of all bytes, modulo 256.
pub fn checksum(data: &[u8]) -> u8 {
    data.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte))
}

/// A packet with these data, which have no byte that must be escaped.
pub fn frame(data: &[u8]) -> Vec<u8> {
    let mut packet = Vec::with_capacity(data.len() + 4);
    push_frame(&mut packet, |packet| packet.extend(data));
    packet
}

/// Appends a packet whose data `push` appends.
pub fn push_frame(packet: &mut Vec<u8>, push: impl FnOnce(&mut Vec<u8>)) {
    packet.push(b'$');
    let start = packet.len();
    push(packet);
    let sum = checksum(&packet[start..]);
    packet.push(b'#');
    push_hex(packet, &[sum]);
}

const fn is_special(byte: u8) -> bool {
    matches!(byte, b'#' | b'$' | b'}' | b'*')
}

/// Appends binary data, escaped.
pub fn push_escaped(packet: &mut Vec<u8>, data: &[u8]) {
    for piece in data.chunks(64) {
        // Most pieces have nothing to escape; a look at all of one without leaving early is a
        // few vector instructions.
        if !piece.iter().fold(false, |found, byte| found | is_special(*byte)) {
            packet.extend(piece);
            continue;
        }
        for &byte in piece {
            if is_special(byte) {
                packet.extend([b'}', byte ^ 0x20]);
            } else {
                packet.push(byte);
            }
        }
    }
}

/// Escapes binary data.
pub fn escape(data: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(data.len());
    push_escaped(&mut escaped, data);
    escaped
}

/// Undoes [`escape`].
pub fn unescape(data: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(data.len());
    let mut bytes = data.iter();
    while let Some(&byte) = bytes.next() {
        match byte {
            b'}' => plain.extend(bytes.next().map(|escaped| escaped ^ 0x20)),
            _ => plain.push(byte),
        }
    }
    plain
}

/// Appends bytes in hexadecimal.
pub fn push_hex(text: &mut Vec<u8>, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let start = text.len();
    text.resize(start + bytes.len() * 2, 0);
    for (pair, byte) in text[start..].chunks_exact_mut(2).zip(bytes) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 0xf)];
    }
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(bytes.len() * 2);
    push_hex(&mut text, bytes);
    text
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// The bytes that hexadecimal text stands for; `None` for an odd number of digits, or others.
pub fn from_hex(text: &[u8]) -> Option<Vec<u8>> {
    let pairs = text.chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return None;
    }
    pairs.map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

/// A number in hexadecimal of at most 64 bits.
pub fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 16 {
        return None;
    }
    text.iter().try_fold(0, |value, byte| Some(value << 4 | u64::from(digit(*byte)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(bytes: &[u8]) -> Vec<Item> {
        let mut items = Vec::new();
        Framer::default().feed(bytes, |item| items.push(item));
        items
    }

    fn packet(text: &str) -> Item {
        Item::Packet(text.as_bytes().to_vec())
    }

    #[test]
    fn packets_acks_and_interrupts() {
        assert_eq!(
            items(b"+$g#67-\x03$m0,4#fd"),
            [Item::Ack, packet("g"), Item::Nack, Item::Interrupt, packet("m0,4")]
        );
        assert_eq!(items(b"$#00"), [packet("")]);
        assert_eq!(items(b"$qSupported:x#A9"), [Item::Damaged]);
    }

    #[test]
    fn noise_damage_and_cut_packets() {
        assert_eq!(items(b"$g#00$g#67"), [Item::Damaged, packet("g")]);
        assert_eq!(items(b"$g#67POST / HTTP/1.1\r\n\r\n$k#6b"), [packet("g"), Item::Noise(b'P')]);
        assert_eq!(
            items(b"\xff\xf3$g#67\xff\xf3g$g#67"),
            [Item::Interrupt, packet("g"), Item::Interrupt, packet("g")]
        );
        assert_eq!(items(b"\xff$g#67"), [Item::Noise(b'$')]);
        assert!(b"+-$\x03\xff".iter().all(|byte| may_begin(*byte)));
        assert!(!b"GPOHDT\x16\r\0 ".iter().any(|byte| may_begin(*byte)));
        assert_eq!(items(b"$g#zz"), [Item::Damaged]);
        assert_eq!(items(b"$cut off$g#67"), [packet("g")]);
        assert_eq!(items(b"$g#6"), []);
        let long = [&b"$"[..], &vec![b'a'; LONGEST + 1], b"#00$g#67"].concat();
        assert_eq!(items(&long), [Item::TooLong, packet("g")]);
    }

    #[test]
    fn one_byte_at_a_time() {
        let mut framer = Framer::default();
        let mut items = Vec::new();
        for byte in b"$g#67" {
            framer.feed(&[*byte], |item| items.push(item));
        }
        assert_eq!(items, [packet("g")]);
    }

    #[test]
    fn frames_are_read_back() {
        for data in [&b""[..], b"OK", &[0, 1, b'#', b'$', b'}', b'*', 0xff]] {
            let escaped = escape(data);
            assert_eq!(items(&frame(&escaped)), [Item::Packet(escaped.clone())]);
            assert_eq!(unescape(&escaped), data);
        }
        assert_eq!(unescape(b"a}"), b"a");
    }

    #[test]
    fn hexadecimal() {
        assert_eq!(hex(&[0, 0x1f, 0xff]), b"001fff");
        assert_eq!(from_hex(b"001Fff"), Some(vec![0, 0x1f, 0xff]));
        assert_eq!((from_hex(b"0"), from_hex(b"0g")), (None, None));
        assert_eq!((number(b"ffffffffffffffff"), number(b"1f")), (Some(u64::MAX), Some(0x1f)));
        assert_eq!((number(b""), number(b"10000000000000000"), number(b"x")), (None, None, None));
    }
}
