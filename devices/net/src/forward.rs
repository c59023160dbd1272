//! Ports of the host's that lead to the guest, written as QEMU has them: `tcp:[ADDRESS]:PORT-[ADDRESS]:PORT`.

use crate::address::GUEST;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::str::FromStr;

/// What goes through a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

/// A port of the host's that leads to one of the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// What goes through it.
    pub protocol: Protocol,
    /// Where the host listens; on loopback where nothing else is written.
    pub host: SocketAddrV4,
    /// The guest's port.
    pub guest: u16,
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        write!(f, "{protocol}:{}-:{}", self.host, self.guest)
    }
}

impl FromStr for Forward {
    type Err = String;

    fn from_str(text: &str) -> Result<Forward, String> {
        let wrong = || {
            format!(
                "'{text}' is no forward: write tcp:2222-:22, or with the host's address udp:192.0.2.1:53-:53"
            )
        };
        let (protocol, rest) = text.split_once(':').ok_or_else(wrong)?;
        let protocol = match protocol {
            "tcp" | "" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return Err(wrong()),
        };
        let (host, guest) = rest.split_once('-').ok_or_else(wrong)?;
        let (address, port) = host.rsplit_once(':').unwrap_or(("", host));
        let address = match address {
            "" => Ipv4Addr::LOCALHOST,
            address => address.parse().map_err(|_| wrong())?,
        };
        let (inside, guest) = guest.split_once(':').ok_or_else(wrong)?;
        if !inside.is_empty() && inside.parse() != Ok(GUEST) {
            return Err(format!("'{text}': the guest is {GUEST}: leave its address out, as in tcp:2222-:22"));
        }
        let number = |text: &str| text.parse().ok().filter(|port| *port != 0).ok_or_else(wrong);
        Ok(Forward { protocol, host: SocketAddrV4::new(address, number(port)?), guest: number(guest)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwards() {
        for (text, wanted) in [
            ("tcp::2222-:22", "tcp:127.0.0.1:2222-:22"),
            ("tcp:2222-:22", "tcp:127.0.0.1:2222-:22"),
            (":2222-10.0.2.15:22", "tcp:127.0.0.1:2222-:22"),
            ("udp:0.0.0.0:53-:5353", "udp:0.0.0.0:53-:5353"),
        ] {
            let forward: Forward = text.parse().unwrap();
            assert_eq!(forward.to_string(), wanted);
            assert_eq!(wanted.parse(), Ok(forward));
        }
        for text in
            ["", "tcp", "tcp:1", "tcp:1-2", "tcp:0-:1", "tcp:1-:0", "tcp:65536-:1", "icmp:1-:1", "tcp:x:1-:1"]
        {
            assert!(text.parse::<Forward>().unwrap_err().contains("write tcp:2222-:22"), "{text}");
        }
        assert!("tcp:1-10.0.2.16:1".parse::<Forward>().unwrap_err().contains("the guest is 10.0.2.15"));
    }
}
