//! Who is who in the guest's network: the addresses that QEMU's users know (`qemu-system-x86_64(1)`, `-netdev user`).

use std::net::Ipv4Addr;

/// An address of Ethernet's.
pub type Mac = [u8; 6];

/// The guest.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// Its gateway, which is the host.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// Its name server, which asks the host's.
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// Bits of the network's address.
pub const PREFIX: u8 = 24;
/// The same as a mask.
pub const MASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);
/// Of everybody but the guest.
pub const MAC_OF_HOST: Mac = [0x52, 0x55, 10, 0, 2, 2];

/// Whether an address is in the guest's own network.
pub fn is_inside(address: Ipv4Addr) -> bool {
    let network = |it: Ipv4Addr| it.to_bits() & MASK.to_bits();
    network(address) == network(GUEST)
}
