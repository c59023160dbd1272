//! Headers of packets (5.10.6 "Device Operation").

/// Bytes of a header.
pub const HEADER: usize = 44;
/// The most bytes behind one (`VIRTIO_VSOCK_MAX_PKT_BUF_SIZE` of Linux).
pub const LONGEST: usize = 64 << 10;
/// The host's number (5.10.4).
pub const HOST: u64 = 2;
/// The kind of packet that belongs to a stream (5.10.6.4).
pub const STREAM: u16 = 1;

/// What a packet is for (5.10.6).
pub mod op {
    pub const REQUEST: u16 = 1;
    pub const RESPONSE: u16 = 2;
    pub const RST: u16 = 3;
    pub const SHUTDOWN: u16 = 4;
    pub const RW: u16 = 5;
    pub const CREDIT_UPDATE: u16 = 6;
    pub const CREDIT_REQUEST: u16 = 7;
}

/// Flags of a shutdown (5.10.6.5): whoever sends it will receive, and send, no more.
pub mod shutdown {
    pub const RECEIVES_NO_MORE: u32 = 1;
    pub const SENDS_NO_MORE: u32 = 2;
    pub const BOTH: u32 = 3;
}

/// A header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    /// Bytes behind it.
    pub len: u32,
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    /// Bytes that the sender has room for, and has taken out of there so far.
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
}

impl Header {
    /// What these bytes begin with.
    pub fn decoded(bytes: &[u8]) -> Option<Header> {
        let bytes = bytes.get(..HEADER)?;
        let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight are eight"));
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four are four"));
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Some(Header {
            src_cid: long(0),
            dst_cid: long(8),
            src_port: word(16),
            dst_port: word(20),
            len: word(24),
            kind: half(28),
            op: half(30),
            flags: word(32),
            buf_alloc: word(36),
            fwd_cnt: word(40),
        })
    }

    pub fn encoded(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER);
        bytes.extend(self.src_cid.to_le_bytes());
        bytes.extend(self.dst_cid.to_le_bytes());
        for word in [self.src_port, self.dst_port, self.len] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(self.kind.to_le_bytes());
        bytes.extend(self.op.to_le_bytes());
        for word in [self.flags, self.buf_alloc, self.fwd_cnt] {
            bytes.extend(word.to_le_bytes());
        }
        bytes
    }

    /// To whoever has sent this one.
    pub fn answer(&self, op: u16) -> Header {
        Header {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op,
            ..Header::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_44_bytes() {
        let header = Header {
            src_cid: 3,
            dst_cid: HOST,
            src_port: 0x0102_0304,
            dst_port: 1234,
            len: 5,
            kind: STREAM,
            op: op::RW,
            flags: 7,
            buf_alloc: 8,
            fwd_cnt: 9,
        };
        let bytes = header.encoded();
        assert_eq!((bytes.len(), bytes[16], bytes[28], bytes[30]), (HEADER, 4, 1, 5));
        assert_eq!(Header::decoded(&bytes), Some(header));
        assert_eq!(Header::decoded(&bytes[..43]), None);
    }
}
