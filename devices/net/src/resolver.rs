//! The host's name server, which the guest's questions go to.

use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};

/// The port of name servers.
pub const PORT: u16 = 53;
/// As much as is read of the file.
const MOST: u64 = 64 << 10;

/// The first of the host's (resolv.conf(5)).
pub fn of_host() -> Option<SocketAddr> {
    let mut text = String::new();
    File::open("/etc/resolv.conf").ok()?.take(MOST).read_to_string(&mut text).ok()?;
    first(&text)
}

fn first(text: &str) -> Option<SocketAddr> {
    let address = |line: &str| {
        let mut words = line.split_whitespace();
        // With an interface behind a percent sign it could not be connected to.
        (words.next()? == "nameserver").then(|| words.next()?.parse::<IpAddr>().ok())?
    };
    text.lines().find_map(address).map(|address| SocketAddr::new(address, PORT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_can_be_asked() {
        for (text, wanted) in [
            ("", None),
            ("# nameserver 1.2.3.4\nsearch x\n", None),
            ("nameserver fe80::1%eth0\nnameserver\nnameserver 1.2.3.4\n", Some("1.2.3.4:53")),
            ("\tnameserver   ::1 # own\nnameserver 1.2.3.4", Some("[::1]:53")),
        ] {
            assert_eq!(first(text), wanted.map(|it| it.parse().unwrap()), "{text}");
        }
    }
}
