//! Networks that a guest is given: who carries the frames of each behind its device.

mod passt;
mod tap;

use crate::error::{Error, NetError};
use crate::machine::config::{LinkConfig, Mac, NetConfig, NetStack, UserNetConfig};
use devices::tell;
use devices::virtio::net::{Link, Net, Sent, feature};
use net::{Limits, Notice, Options, Reach, Stack};
use passt::Passt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tap::Tap;

/// The address of a guest that has a network of its own.
const USUAL_MAC: Mac = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

/// How many descriptors a network may need, beside those that it begins with.
pub fn descriptors(config: &NetConfig) -> usize {
    let Limits { connections, flows, .. } = Limits::default();
    match config.link {
        LinkConfig::User(_) => connections + flows,
        LinkConfig::Tap(_) => 0,
    }
}

/// Whether another program may be started for it.
pub fn may_need_a_program(config: &NetConfig) -> bool {
    matches!(&config.link, LinkConfig::User(user) if user.stack != NetStack::Own)
}

/// Who carries frames.
#[derive(Debug)]
pub enum Carrier {
    /// This program.
    Own(Box<Stack>),
    /// passt.
    Passt(Passt),
    /// The host's kernel.
    Tap(Tap),
}

impl Link for Carrier {
    fn sources(&self) -> Vec<RawFd> {
        vec![match self {
            Carrier::Own(stack) => stack.descriptor(),
            Carrier::Passt(passt) => passt.descriptor(),
            Carrier::Tap(tap) => tap.descriptor(),
        }]
    }

    fn features(&self) -> u64 {
        match self {
            // Between the guest and this program nothing is damaged: checksums are left out.
            Carrier::Own(_) => feature::CSUM | feature::GUEST_CSUM,
            Carrier::Passt(_) => 0,
            Carrier::Tap(tap) => tap.features(),
        }
    }

    fn mtu(&self) -> Option<u16> {
        match self {
            Carrier::Own(_) | Carrier::Passt(_) => Some(Stack::MTU),
            Carrier::Tap(_) => None,
        }
    }

    fn begin(&mut self, features: u64) {
        match self {
            Carrier::Own(stack) => {
                stack.begin(features & feature::GUEST_CSUM != 0, features & feature::MTU != 0);
            }
            Carrier::Passt(_) => {}
            Carrier::Tap(tap) => tap.begin(features),
        }
    }

    fn reset(&mut self) {
        match self {
            Carrier::Own(stack) => stack.reset(),
            // It does not know of the guest's connections: whoever is at their other ends is told by the next guest.
            Carrier::Passt(_) => {}
            Carrier::Tap(tap) => tap.reset(),
        }
    }

    fn send(&mut self, packet: &[u8]) -> Sent {
        match self {
            Carrier::Own(stack) => {
                stack.send(packet);
                if let Some(Notice::TooManyConnections) = stack.take_notice() {
                    let Limits { connections, half_open, .. } = Limits::default();
                    tell!(
                        Warn,
                        "the guest has more connections than it may ({connections}, {half_open} of them not answered); \
                         further ones are refused"
                    );
                }
                Sent::Gone
            }
            Carrier::Passt(passt) => passt.send(packet),
            Carrier::Tap(tap) => tap.send(packet),
        }
    }

    fn receive(&mut self, packet: &mut [u8]) -> Option<usize> {
        match self {
            Carrier::Own(stack) => stack.receive(packet),
            Carrier::Passt(passt) => passt.receive(packet),
            Carrier::Tap(tap) => tap.receive(packet),
        }
    }

    fn rested(&mut self, time: Duration) {
        match self {
            Carrier::Own(stack) => stack.rested(time),
            // Others do not know of it: their time goes on.
            Carrier::Passt(_) | Carrier::Tap(_) => {}
        }
    }

    fn is_up(&self) -> bool {
        match self {
            Carrier::Passt(passt) => passt.is_up(),
            Carrier::Own(_) | Carrier::Tap(_) => true,
        }
    }
}

/// A network that is open, and the guest's address there.
#[derive(Clone, Debug)]
pub struct OpenNet {
    carrier: Arc<Mutex<Carrier>>,
    mac: Mac,
}

/// Opens a network.
///
/// # Errors
/// [`Error::Net`].
pub fn open(config: &NetConfig) -> Result<OpenNet, Error> {
    let failed = |net: String| move |why: NetError| Error::Net { net, why };
    let (carrier, mac) = match &config.link {
        LinkConfig::User(user) => {
            let mac = config.mac.unwrap_or(USUAL_MAC);
            (of_user(user, mac).map_err(failed("user".into()))?, mac)
        }
        LinkConfig::Tap(name) => {
            let failed = failed(format!("tap={name}"));
            let made = Tap::open(name).map_err(NetError::Tap).and_then(|tap| Ok((tap, some_mac()?)));
            let (tap, some) = made.map_err(failed)?;
            (Carrier::Tap(tap), config.mac.unwrap_or(some))
        }
    };
    Ok(OpenNet { carrier: Arc::new(Mutex::new(carrier)), mac })
}

impl OpenNet {
    /// A device for it.
    pub fn device(&self) -> Net<Carrier> {
        Net::new(Arc::clone(&self.carrier), self.mac)
    }
}

fn of_user(config: &UserNetConfig, mac: Mac) -> Result<Carrier, NetError> {
    if config.stack != NetStack::Own {
        let trusted = if config.stack == NetStack::Passt { Ok(()) } else { passt::is_trusted() };
        match trusted.and_then(|()| Passt::start(config)) {
            Ok(passt) => {
                log::info!("the guest's network is made by passt");
                return Ok(Carrier::Passt(passt));
            }
            Err(error) if config.stack == NetStack::Passt => return Err(error),
            Err(error) => log::info!("the guest's network is made by vmm itself: {error}"),
        }
    }
    let reach = if config.host_loopback { Reach::Host } else { Reach::Others };
    let forwards = config.forwards.clone();
    let stack = Stack::new(Options { mac, reach, forwards, limits: Limits::default() })?;
    Ok(Carrier::Own(Box::new(stack)))
}

/// An address by chance, of those that anybody may give.
fn some_mac() -> io::Result<Mac> {
    const LOCAL: u8 = 2;
    const GROUP: u8 = 1;
    let mut mac = [0; 6];
    File::open("/dev/urandom")?.read_exact(&mut mac)?;
    mac[0] = mac[0] & !GROUP | LOCAL;
    Ok(mac)
}
