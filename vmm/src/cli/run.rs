//! `vmm` without a subcommand: its options, and the guest that is run with them.

use super::candidates::words;
use super::values::{self, ConsoleDevice, NetChoice};
use crate::cell::Sandbox;
use crate::control::names;
use crate::error::Error;
use crate::machine::config::{
    Config, ConsoleConfig, DiskConfig, GdbConfig, GuestClock, HypercallConfig, MemorySize, ShareConfig,
    SymbolsConfig, VirtioDevice, VirtioTransport, VsockConfig,
};
use crate::machine::hypercalls::family::FamilyName;
use crate::outcome::Outcome;
use crate::run::config::{DumpOn, OnReboot, RunConfig};
use crate::run::console::ConsoleKind;
use crate::run::run;
use arch::cpu_template::CpuTemplate;
use arch::{Isa, aarch64, x86};
use clap::builder::ValueParser;
use clap::{ArgAction, ValueEnum};
use debug::gdb::endpoint::Endpoint;
use debug::gdb::server::OnLost;
use devices::platform::Extra;
use kvm::HOST_ISA;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Options of a run.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Kernel; its format is detected: bzImage, ELF vmlinux, Multiboot 1 and 2, flat binary (x86_64);
    /// Image (also gzip, zstd, EFI zboot), ELF, flat binary (aarch64)
    #[arg(long, value_name = "PATH", help_heading = "Guest")]
    kernel: Option<PathBuf>,
    /// Initial RAM disk; may be given more than once. For kernels entered by Multiboot, and by PVH if they are
    /// not Linux, each is a module, with a string behind its file's name: --initrd 'PATH STRING'
    #[arg(long, value_name = "PATH[ STRING]", requires = "kernel", help_heading = "Guest")]
    initrd: Vec<PathBuf>,
    /// Kernel command line. For Linux console=ttyS0 (or what --console-device is) is added when it names no console; Multiboot kernels get
    /// their file's name in front, which they skip
    #[arg(long, value_name = "STR", allow_hyphen_values = true, help_heading = "Guest")]
    cmdline: Option<String>,
    /// Add nothing to the command line, nor to the strings of modules
    #[arg(long, help_heading = "Guest")]
    cmdline_exact: bool,
    /// Where a flat binary is loaded and entered, guest-physical, for example 0x100000 (x86_64: in
    /// 64-bit mode, RSI has the boot parameters) or 0x40080000 (aarch64: X0 has the device tree)
    #[arg(long, value_name = "ADDRESS", value_parser = values::address, requires = "kernel", help_heading = "Guest")]
    load_address: Option<u64>,

    /// Number of vCPUs
    #[arg(long, value_name = "N", default_value = "1", value_parser = ValueParser::new(values::count), help_heading = "Machine")]
    cpus: u32,
    /// Memory: 512M, 4G; a bare number counts MiB
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = ValueParser::new(values::memory_size), help_heading = "Machine")]
    memory: MemorySize,
    /// What the guest sees of the processor: host, an architecture level, or a JSON file
    #[arg(long, value_name = "NAME|PATH", default_value = "host", long_help = template_help(), add = words(TEMPLATES), help_heading = "Machine")]
    cpu_template: String,
    /// Switch CPU features, for example -cx16,-avx512f (names as in /proc/cpuinfo)
    #[arg(long, value_name = "LIST", allow_hyphen_values = true, help_heading = "Machine")]
    cpu_features: Option<String>,
    /// Give the guest random bytes of this host's, by a virtio device on PCI
    #[arg(long, help_heading = "Machine")]
    entropy: bool,
    /// Give the guest a disk (/dev/vda, then /dev/vdb): a raw file, a block device, or a qcow2 image. With ro it
    /// cannot write to it; with snapshot what it writes goes to a temporary file below TMPDIR and is gone with this
    /// run. Without format= the image is qcow2 if both its first bytes and its name say so. May be given more than
    /// once
    #[arg(long, value_name = "PATH[,ro][,format=raw|qcow2][,serial=TEXT][,snapshot]", value_parser = ValueParser::new(values::disk), help_heading = "Machine")]
    disk: Vec<DiskConfig>,
    /// Give the guest a folder of this host's, by virtio-fs: mount -t virtiofs TAG /mnt. The tag is the folder's
    /// name unless given; with ro the guest cannot write to it. What is mounted below the folder is not
    /// shown. May be given more than once
    #[arg(long, value_name = "DIR[,tag=TAG][,ro|rw]", value_parser = ValueParser::new(values::share), help_heading = "Machine")]
    share: Vec<ShareConfig>,
    /// Sockets (AF_VSOCK) between programs of the guest and of this machine: the guest's number, or auto, and the Unix
    /// socket to reach it by
    #[arg(long, value_name = "CID|auto[,path=PATH]", value_parser = ValueParser::new(values::vsock), help_heading = "Machine")]
    vsock: Option<VsockConfig>,
    /// Give the guest a network: user, of its own, behind ordinary sockets of this host's (10.0.2.15 by DHCP), or the
    /// tap interface NAME. Behind user and a comma: hostfwd=tcp:PORT-:GUESTPORT (or udp; more than once) has a port of
    /// this host's loopback lead to the guest, host-loopback lets it reach this host's own services at 10.0.2.2,
    /// stack=own or stack=passt says who makes the network
    #[arg(long, value_name = "none|user[,...]|tap=NAME[,mac=MAC]", default_value = "none", value_parser = ValueParser::new(values::net),
          add = words(&["none", "user", "tap="]), help_heading = "Machine")]
    net: NetChoice,
    /// How the guest finds its virtio devices: pci, or mmio for kernels without PCI (registers in memory, a line for
    /// each; eight at most)
    #[arg(long, value_name = "pci|mmio", default_value = "pci", value_parser = ValueParser::new(values::transport),
          add = words(&["pci", "mmio"]), help_heading = "Machine")]
    virtio: VirtioTransport,
    /// Let the guest end the run with a code: x86_64 port 0xf4 (as QEMU's isa-debug-exit), aarch64
    /// the word at vmm,exit-device in the device tree; the exit code is (value << 1) | 1
    #[arg(long, value_name = "on|off", default_value = "on", num_args = 0..=1, default_missing_value = "on",
          require_equals = false, action = ArgAction::Set, add = words(&["on", "off"]), value_parser = ValueParser::new(values::on_off), help_heading = "Machine")]
    exit_device: bool,
    /// Add QEMU's pc-testdev, for KVM's own tests (kvm-unit-tests): interrupt lines at ports 0x2000 to 0x2017,
    /// registers at 0xe0 and 0xe8, a page's flush at 0xe4, memory at 0xff000000 (x86_64)
    #[arg(long, help_heading = "Machine")]
    test_device: bool,

    /// Where the guest's console goes; on a terminal, Ctrl-A x quits and Ctrl-A h helps
    #[arg(long, value_name = "stdio|file:PATH|pty|none", default_value = "stdio", value_parser = ValueParser::new(values::console),
          add = words(&["stdio", "file:", "pty", "none"]), help_heading = "Run")]
    console: ConsoleKind,
    /// What the guest's console is: a serial port, or a virtio device (hvc0), which knows the terminal's size,
    /// but needs a driver: what a kernel prints before it has that goes to the serial port
    #[arg(long, value_name = "serial|virtio", default_value = "serial", value_parser = ValueParser::new(values::console_device),
          add = words(ConsoleDevice::NAMES), help_heading = "Machine")]
    console_device: ConsoleDevice,
    /// End the guest after this time: 30s, 500ms, 2m
    #[arg(long, value_name = "TIME", value_parser = ValueParser::new(values::duration), help_heading = "Run")]
    timeout: Option<Duration>,
    /// A name to speak to the guest by: vmm ls, monitor NAME, stop NAME, dump NAME PATH
    #[arg(long, value_name = "NAME", value_parser = ValueParser::new(names::check), help_heading = "Run")]
    name: Option<String>,
    /// Write a core of the guest when it ends so: panic (it says so by a pvpanic device, or its log does
    /// when it resets or the time is over), hang (its log says so, and that ends it), triple-fault, timeout; .gz and .zst
    /// compress
    #[arg(long, value_name = "WHEN[,WHEN...]=PATH", add = words(&["panic=", "hang=", "triple-fault=", "timeout="]),
          value_parser = ValueParser::new(values::dump_on), help_heading = "Run")]
    dump_on: Option<DumpOn>,
    /// What a reset of the guest does
    #[arg(long, value_name = "ACTION", default_value = "exit", help_heading = "Run")]
    reboot: Reboot,
    /// What becomes of the guest's time while a debugger or a dump holds the guest
    #[arg(long, value_name = "ACTION", default_value = "stop", help_heading = "Run")]
    guest_clock: Clock,

    /// Serve gdb or lldb: the guest waits at its first instruction until one attaches; without a
    /// host, only this machine can connect
    #[arg(long, value_name = "[HOST]:PORT|unix:PATH", value_parser = ValueParser::new(Endpoint::parse), help_heading = "Debugging")]
    gdb: Option<Endpoint>,
    /// Let the guest run before a debugger attaches
    #[arg(long, requires = "gdb", help_heading = "Debugging")]
    gdb_no_wait: bool,
    /// Serve debuggers of every user of this machine, not only yours and root's
    #[arg(long, requires = "gdb", help_heading = "Debugging")]
    gdb_any_user: bool,
    /// What the guest does when a debugger has vanished: run on, wait for the next one, or end
    #[arg(long, value_name = "continue|hold|quit", default_value = "continue", value_parser = ValueParser::new(values::lost),
          add = words(&["continue", "hold", "quit"]),
          requires = "gdb", help_heading = "Debugging")]
    gdb_lost: OnLost,
    /// Let a second debugger take the place of the first
    #[arg(long, requires = "gdb", help_heading = "Debugging")]
    gdb_takeover: bool,
    /// The file that the kernel was linked to (vmlinux), for source lines and names; without this, one of the kernel's
    /// build, beside it or where distributions and debuginfod keep those; none: only what the kernel keeps itself
    #[arg(long, value_name = "PATH|none", value_parser = ValueParser::new(values::symbols), help_heading = "Debugging")]
    symbols: Option<SymbolsConfig>,
    /// The folder that gdb's `monitor dump` writes below, also of a gdb that is served later (`vmm gdb`); the current one
    /// if none is given
    #[arg(long, value_name = "PATH", help_heading = "Debugging")]
    dump_dir: Option<PathBuf>,
    /// Whether the monitor keeps itself from what it does not need, so that a guest which has got the better of it has
    /// little to go on with: on, as far as this host has it; off, for debugging vmm; require: a host that has not all of
    /// it is refused
    #[arg(long, value_name = "on|off|require", default_value = "on", value_parser = ValueParser::new(Sandbox::parse),
          add = words(Sandbox::NAMES), help_heading = "Run")]
    sandbox: Sandbox,

    #[arg(long, value_name = "FAMILY[,...]", add = words(FamilyName::NAMES), help = about_hypercalls(),
          value_parser = ValueParser::new(values::hypercalls), help_heading = "Debugging")]
    hypercalls: Option<HypercallConfig>,
}

/// What help says of `--hypercalls`.
fn about_hypercalls() -> String {
    format!(
        "Answer the guest's hypercalls and write them to standard error, as strace does: {}. Behind commas: trace=PATH \
         or trace=off, json, summary (counts at the end), filter=NAME[+NAME...] (console_io, EVTCHNOP_send), \
         transport=page (x86_64: without KVM's help)",
        FamilyName::list()
    )
}

/// The built-in templates of this host.
const TEMPLATES: &[&str] = match HOST_ISA {
    Isa::X86_64 => &x86::features::TEMPLATES,
    Isa::Aarch64 => &aarch64::features::TEMPLATES,
};

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Clock {
    /// It stands still, as far as the host can
    Stop,
    /// It runs on
    Run,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Reboot {
    /// End the run
    Exit,
    /// Boot the guest again
    Restart,
}

fn template_help() -> String {
    format!(
        "What the guest sees of the processor: a built-in name or a JSON file.\n\
         x86_64: {};\naarch64: {}",
        x86::features::TEMPLATES.join(", "),
        aarch64::features::TEMPLATES.join(", ")
    )
}

impl Args {
    /// The run that was asked for.
    ///
    /// # Errors
    /// [`Error::Open`] or [`Error::Template`] for a template file.
    pub fn config(&self) -> Result<RunConfig, Error> {
        let guest = Config {
            kernel: self.kernel.clone(),
            initrds: self.initrd.clone(),
            cmdline: self.cmdline.clone(),
            cmdline_exact: self.cmdline_exact,
            load_address: self.load_address,
            cpus: self.cpus,
            memory: self.memory,
            cpu: template(&self.cpu_template, self.cpu_features.as_deref())?,
            extras: self.extras(),
            virtio: self.virtio(),
            transport: self.virtio,
            guest_clock: match self.guest_clock {
                Clock::Stop => GuestClock::Stop,
                Clock::Run => GuestClock::Run,
            },
            gdb: self.gdb.clone().map(|address| GdbConfig {
                waits: !self.gdb_no_wait,
                any_user: self.gdb_any_user,
                on_lost: self.gdb_lost,
                takeover: self.gdb_takeover,
                dump_folder: self.dump_dir.clone(),
                ..GdbConfig::new(address)
            }),
            symbols: self.symbols.clone().unwrap_or_default(),
            hypercalls: self.hypercalls.clone(),
            keeps_registers: self.dump_on.is_some(),
        };
        Ok(RunConfig {
            guest,
            console: self.console.clone(),
            timeout: self.timeout,
            on_reboot: match self.reboot {
                Reboot::Exit => OnReboot::Exit,
                Reboot::Restart => OnReboot::Restart,
            },
            name: self.name.clone(),
            dump_on: self.dump_on.clone(),
            dump_folder: self.dump_dir.clone(),
            sandbox: self.sandbox,
        })
    }

    fn virtio(&self) -> Vec<VirtioDevice> {
        let disks = self.disk.iter().cloned().map(VirtioDevice::Disk);
        let vsock = self.vsock.iter().cloned().map(VirtioDevice::Vsock);
        let shares = self.share.iter().cloned().map(VirtioDevice::Share);
        let net = self.net.0.clone().map(VirtioDevice::Net);
        let console = (self.console_device == ConsoleDevice::Virtio)
            .then(|| VirtioDevice::Console(ConsoleConfig { is_console: true, ports: Vec::new() }));
        self.entropy
            .then_some(VirtioDevice::Entropy)
            .into_iter()
            .chain(disks)
            .chain(shares)
            .chain(vsock)
            .chain(net)
            .chain(console)
            .collect()
    }

    /// The devices that not every machine has, and this one is to have.
    fn extras(&self) -> Vec<Extra> {
        // Somebody wants to know of the guest's panics.
        let wants_panics = self.dump_on.as_ref().is_some_and(|on| on.panic);
        let all = [
            (Extra::Exit, self.exit_device),
            (Extra::Pvpanic, wants_panics),
            (Extra::Test, self.test_device),
        ];
        all.into_iter().filter(|(_, is_wanted)| *is_wanted).map(|(extra, _)| extra).collect()
    }
}

/// Runs a guest; the exit code.
pub fn carry_out(args: &Args) -> u8 {
    match args.config().and_then(|config| run(&config)) {
        Ok(ended) => {
            let outcome = &ended.outcome;
            match outcome {
                _ if outcome.is_failure() => log::error!("{outcome}"),
                Outcome::Timeout => log::warn!("{outcome}"),
                _ => log::info!("{outcome}"),
            }
            ended.code()
        }
        Err(error) => {
            log::error!("{error}");
            error.code()
        }
    }
}

/// A template by name, or from a file when there is a slash or `.json` in it; with switches.
fn template(name: &str, features: Option<&str>) -> Result<CpuTemplate, Error> {
    let path = Path::new(name);
    if !name.contains('/') && path.extension().is_none_or(|extension| extension != "json") {
        return Ok(CpuTemplate::built_in(HOST_ISA, name, features));
    }
    let text = std::fs::read(path).map_err(|source| Error::Open {
        option: "--cpu-template",
        path: path.to_path_buf(),
        source,
    })?;
    let mut template: CpuTemplate = serde_json::from_slice(&text)
        .map_err(|source| Error::Template { path: path.to_path_buf(), source })?;
    if let Some(features) = features {
        template.features = Some(match template.features.take() {
            Some(earlier) => format!("{earlier},{features}"),
            None => features.to_string(),
        });
    }
    Ok(template)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        run: Args,
    }

    fn parse(line: &str) -> Result<RunConfig, String> {
        let words = std::iter::once("vmm").chain(line.split_whitespace());
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        line.run.config().map_err(|error| error.to_string())
    }

    #[test]
    fn a_full_line_is_understood() {
        let run = parse(
            "--kernel k --initrd a --initrd b --cpus 4 --memory 6G --console file:/tmp/c --timeout 30s \
             --reboot restart --exit-device off --cpu-features -cx16,-avx512f --load-address 0x200000",
        )
        .unwrap();
        let config = run.guest;
        assert_eq!(config.initrds, [PathBuf::from("a"), PathBuf::from("b")]);
        assert_eq!((config.cpus, config.memory.bytes()), (4, 6 << 30));
        assert_eq!(run.console, ConsoleKind::File("/tmp/c".into()));
        assert_eq!((run.timeout, run.on_reboot), (Some(Duration::from_secs(30)), OnReboot::Restart));
        assert_eq!((config.extras, config.load_address), (vec![], Some(0x20_0000)));
        assert_eq!(config.cpu.features.as_deref(), Some("-cx16,-avx512f"));
    }

    #[test]
    fn defaults_and_the_bare_exit_device_switch() {
        let config = parse("").unwrap().guest;
        assert_eq!((config.cpus, config.memory), (1, MemorySize::DEFAULT));
        assert_eq!(parse("--exit-device").unwrap().guest.extras, config.extras);
    }

    #[test]
    fn the_example_templates_are_understood() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/cpu-templates");
        let mut seen = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let template = template(path.to_str().unwrap(), Some("-sse4_2")).unwrap();
            assert!(template.features.is_some_and(|features| features.ends_with(",-sse4_2")));
            assert!(template.cpuid.len() + template.id_registers.len() > 0);
            seen += 1;
        }
        assert_eq!(seen, 2);
    }

    #[test]
    fn a_machine_has_the_devices_that_are_asked_for() {
        for (line, wanted) in [
            ("", &[Extra::Exit][..]),
            ("--exit-device off", &[]),
            ("--dump-on panic,timeout=core", &[Extra::Exit, Extra::Pvpanic]),
            ("--dump-on timeout=core", &[Extra::Exit]),
            ("--test-device --exit-device off", &[Extra::Test]),
        ] {
            let config = parse(line).unwrap().guest;
            assert_eq!(
                (&config.extras[..], config.keeps_registers),
                (wanted, line.contains("dump")),
                "{line}"
            );
        }
    }
}
