//! What a guest is made of.

mod hypercalls;

pub use super::guest_clock::GuestClock;
pub use crate::symbols::SymbolsConfig;
use arch::cpu_template::CpuTemplate;
use arch::{Isa, aarch64, x86};
use debug::gdb::endpoint::Endpoint;
use debug::gdb::server::OnLost;
use debug::socket::Audience;
use devices::platform::Extra;
pub use devices::virtio::block::LONGEST_SERIAL;
pub use devices::virtio::fs::LONGEST_TAG;
pub use devices::virtio::net::Mac;
pub use hypercalls::{HypercallConfig, Trace};
use std::path::PathBuf;

/// A guest, and the machine that it runs in.
#[derive(Clone, Debug)]
pub struct Config {
    /// The kernel; the embedded guest where there is none.
    pub kernel: Option<PathBuf>,
    /// Initrds, or modules: paths, which may have a string behind them ([`crate::boot::initrd`]).
    pub initrds: Vec<PathBuf>,
    /// The command line as the user gave it.
    pub cmdline: Option<String>,
    /// Whether to leave the command line as it is.
    pub cmdline_exact: bool,
    /// Where a flat binary goes, guest-physical.
    pub load_address: Option<u64>,
    /// Number of vCPUs.
    pub cpus: u32,
    /// Memory.
    pub memory: MemorySize,
    /// What the guest sees of the processor.
    pub cpu: CpuTemplate,
    /// The devices that not every machine has, and this one is to have.
    pub extras: Vec<Extra>,
    /// Its virtio devices.
    pub virtio: Vec<VirtioDevice>,
    /// How the guest finds and reaches them.
    pub transport: VirtioTransport,
    /// What becomes of its time while it is held.
    pub guest_clock: GuestClock,
    /// Where a debugger connects, if one may.
    pub gdb: Option<GdbConfig>,
    /// The file that the kernel was linked to, for who debugs the guest.
    pub symbols: SymbolsConfig,
    /// Hypercalls that are answered and shown.
    pub hypercalls: Option<HypercallConfig>,
    /// Whether registers are kept that a reset or a triple fault would lose: there may be a dump of the guest's end
    /// ([`Moment::End`](super::dumper::Moment::End)).
    pub keeps_registers: bool,
}

/// How a guest finds and reaches virtio devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VirtioTransport {
    /// They are functions of a PCI bus, and interrupt by messages.
    #[default]
    Pci,
    /// Firmware names each one's registers in memory, and its line.
    Mmio,
}

/// A virtio device that a machine may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VirtioDevice {
    /// Random bytes of the host's ([`devices::virtio::entropy`]).
    Entropy,
    /// A disk ([`devices::virtio::block`]).
    Disk(DiskConfig),
    /// Sockets between the guest and the host ([`devices::virtio::vsock`]).
    Vsock(VsockConfig),
    /// A network ([`devices::virtio::net`]).
    Net(NetConfig),
    /// A folder of the host's ([`devices::virtio::fs`]).
    Share(ShareConfig),
    /// A console, named ports, or both ([`devices::virtio::console`]).
    Console(ConsoleConfig),
}

/// A guest's virtio console.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConsoleConfig {
    /// It has a terminal, which is the guest's console instead of the serial port: what Linux has as `hvc0`. One device of
    /// a guest may have it.
    pub is_console: bool,
    /// Names of ports, of which the guest's makers have the other ends ([`Guest::take_port`](super::Guest::take_port)).
    pub ports: Vec<String>,
}

/// A disk that a guest is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// The image, and what the guest may do to it.
    pub image: disk::Options,
    /// What the guest knows it by: at most [`LONGEST_SERIAL`] bytes; empty: by nothing.
    pub serial: String,
}

/// A guest's socket device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VsockConfig {
    /// The guest's number: [`FIRST_CID`](devices::virtio::vsock::FIRST_CID) or more. None: any; with sockets, the first.
    pub cid: Option<u32>,
    /// By what programs of the host's reach it.
    pub host: VsockHost,
}

/// The host's end of a socket device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VsockHost {
    /// The host's kernel: by the guest's number.
    Kernel,
    /// The Unix socket of the host's by which programs reach the guest; those that the guest reaches are at `PATH_PORT`.
    Sockets(PathBuf),
}

impl VsockHost {
    /// By which the host's kernel is asked.
    pub const KERNEL: &str = "/dev/vhost-vsock";
}

/// A network that a guest is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// Who carries the guest's frames.
    pub link: LinkConfig,
    /// The guest's address there; where none is given, the same for each guest that has a network of its own, and one by
    /// chance on a tap.
    pub mac: Option<Mac>,
}

/// Who carries a guest's frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkConfig {
    /// A network of the guest's own, behind ordinary sockets of this host's.
    User(UserNetConfig),
    /// A tap interface of the host's, by name.
    Tap(String),
}

/// A network of a guest's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserNetConfig {
    /// Ports of the host's that lead to the guest.
    pub forwards: Vec<net::Forward>,
    /// Whether the guest reaches services of this host's: its loopback by the gateway's address, and its own addresses.
    pub host_loopback: bool,
    /// Who makes the network.
    pub stack: NetStack,
}

/// Who makes a network of a guest's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NetStack {
    /// passt, if it is there and can, else this program.
    #[default]
    Found,
    /// This program.
    Own,
    /// passt.
    Passt,
}

/// A folder that a guest is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareConfig {
    /// The folder.
    pub folder: PathBuf,
    /// The name by which the guest mounts it: 1 to [`LONGEST_TAG`] bytes, no two of a guest's the same.
    pub tag: String,
    /// Whether the guest may write to it.
    pub is_writable: bool,
    /// What below it is empty for the guest, whatever is there: paths from the folder on, of names alone and without
    /// links. For what it may not write to.
    pub covered: Vec<PathBuf>,
}

/// A gdb server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GdbConfig {
    /// Where it listens.
    pub address: Endpoint,
    /// Whether the guest waits for a debugger before its first instruction.
    pub waits: bool,
    /// Whether processes of every user are served, instead of this one's and root's.
    pub any_user: bool,
    /// What becomes of the guest when a debugger has gone without saying so.
    pub on_lost: OnLost,
    /// Whether a second debugger takes the place of the first.
    pub takeover: bool,
    /// The folder that `monitor dump` writes below; the current one where none is given.
    pub dump_folder: Option<PathBuf>,
}

impl GdbConfig {
    /// A server at this address, of which all else is as without further options.
    pub fn new(address: Endpoint) -> GdbConfig {
        GdbConfig {
            address,
            waits: true,
            any_user: false,
            on_lost: OnLost::default(),
            takeover: false,
            dump_folder: None,
        }
    }

    /// Who may connect to a socket in the file system.
    pub fn audience(&self) -> Audience {
        if self.any_user { Audience::Everyone } else { Audience::Owner }
    }
}

impl Config {
    /// Whether the guest waits at its first instruction, for a debugger.
    pub fn waits_for_debugger(&self) -> bool {
        self.gdb.as_ref().is_some_and(|gdb| gdb.waits)
    }

    /// Whether the guest's console is a virtio device, instead of the serial port.
    pub fn has_virtio_console(&self) -> bool {
        let is_it = |device: &VirtioDevice| matches!(device, VirtioDevice::Console(it) if it.is_console);
        self.virtio.iter().any(is_it)
    }
}

impl Default for Config {
    fn default() -> Config {
        let isa = kvm::HOST_ISA;
        Config {
            kernel: None,
            initrds: Vec::new(),
            cmdline: None,
            cmdline_exact: false,
            load_address: None,
            cpus: 1,
            memory: MemorySize::DEFAULT,
            cpu: CpuTemplate::built_in(isa, "host", None),
            extras: vec![Extra::Exit],
            virtio: Vec::new(),
            transport: VirtioTransport::default(),
            guest_clock: GuestClock::default(),
            gdb: None,
            symbols: SymbolsConfig::default(),
            hypercalls: None,
            keeps_registers: false,
        }
    }
}

/// A size of memory that a guest can have: a multiple of 4 KiB (64 KiB, where host pages may
/// be so large) of at least what the boot tables need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySize(u64);

impl MemorySize {
    /// What a guest has when nothing is said: 512 MiB.
    pub const DEFAULT: MemorySize = MemorySize(512 << 20);

    /// Alignment of a size, bytes: the largest page size of our hosts.
    const ALIGNMENT: u64 = 64 << 10;

    /// Checks a size in bytes.
    ///
    /// # Errors
    /// A message that says what would do.
    pub fn new(isa: Isa, bytes: u64) -> Result<MemorySize, String> {
        let (minimum, maximum) = match isa {
            Isa::X86_64 => (x86::layout::MINIMUM_MEMORY, 1 << 46),
            Isa::Aarch64 => (aarch64::layout::MINIMUM_MEMORY, 1 << 47),
        };
        if bytes < minimum {
            return Err(format!("a guest needs at least {}M (write 512M or 4G)", minimum >> 20));
        }
        if bytes > maximum {
            return Err(format!("more than {}T cannot be addressed", maximum >> 40));
        }
        if !bytes.is_multiple_of(Self::ALIGNMENT) {
            return Err(format!("{bytes} bytes are not a multiple of 64K"));
        }
        Ok(MemorySize(bytes))
    }

    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_sizes() {
        for isa in Isa::ALL {
            assert!(MemorySize::new(isa, 0).unwrap_err().contains("at least"));
            assert!(MemorySize::new(isa, (512 << 20) + 1).unwrap_err().contains("multiple"));
            assert!(MemorySize::new(isa, 1 << 60).unwrap_err().contains("addressed"));
            assert_eq!(MemorySize::new(isa, 512 << 20), Ok(MemorySize::DEFAULT));
        }
    }
}
