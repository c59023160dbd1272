//! `vmm core`: a memory dump, looked at from the command line or served to a debugger. No KVM is
//! needed, and the host's architecture does not matter.

use crate::completions::words;
use crate::config::parse_count;
use crate::error::Error;
use crate::given_file;
use crate::outcome;
use crate::stdout;
use crate::unpacked::{CannotUnpack, unpacked};
use arch::address::PhysRange;
use arch::register::{Bank, Group, RegisterFile, row, table};
use arch::{GuestPhys, GuestVirt, Isa};
use clap::{Args, Subcommand};
use debug::dump::described::Scope;
use debug::dump::diff::{self, Place};
use debug::dump::machine::{Core, Tables};
use debug::dump::source::OnDisk;
use debug::dump::{self, Contents, Cpu, DumpError};
use debug::engine::Engine;
use debug::gdb::listener::{Address, Listener};
use debug::gdb::monitor::{self, number};
use debug::gdb::server::{self, Service};
use debug::gdb::session::Session;
use debug::linux::VmCoreInfo;
use debug::memory::{self, Space};
use debug::socket::Access;
use debug::target::Machine;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde_json::{Value, json};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Options of `vmm core`.
#[derive(Debug, Args)]
pub struct CoreArgs {
    /// The dump: an ELF core (ours, QEMU's, /proc/vmcore), a compressed kdump, either of them also in gzip or
    /// Zstandard, or plain memory with --raw
    path: PathBuf,
    /// Serve gdb or lldb
    #[arg(long, value_name = "[HOST]:PORT|unix:PATH", value_parser = clap::builder::ValueParser::new(Address::parse))]
    gdb: Option<Address>,
    /// Serve debuggers of every user of this machine, not only yours and root's
    #[arg(long, requires = "gdb")]
    gdb_any_user: bool,
    /// Let the debugger change registers and memory, in a copy that is gone at the end
    #[arg(long)]
    writable: bool,
    /// Tell which pages of another dump of the same guest differ, by virtual address
    #[arg(long, value_name = "PATH", conflicts_with = "gdb")]
    diff: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    /// The vCPU whose registers and page tables count
    #[arg(long, value_name = "N", default_value = "0", global = true, value_parser = clap::builder::ValueParser::new(vcpu_number))]
    vcpu: u32,
    /// The file is plain memory
    #[arg(long, requires = "arch")]
    raw: bool,
    /// The architecture of plain memory
    #[arg(long, value_name = "x86_64|aarch64", add = words(&["x86_64", "aarch64"]), requires = "raw", value_parser = clap::builder::ValueParser::new(isa))]
    arch: Option<Isa>,
    /// Where plain memory begins, guest-physical
    #[arg(long, value_name = "ADDRESS", requires = "raw", value_parser = number)]
    base: Option<u64>,
    /// A register of all vCPUs that the dump does not have, or has wrong; may be given more than once
    #[arg(long, value_name = "NAME=VALUE")]
    register: Vec<String>,
    /// The kernel's description of itself (VMCOREINFO), if it is not in the dump or not clear: the note's
    /// text, or the guest-physical address (0x...) of the page that has it
    #[arg(long, value_name = "PATH|0xADDRESS", value_parser = clap::builder::ValueParser::new(Description::parse))]
    vmcoreinfo: Option<Description>,
    #[command(subcommand)]
    command: Option<CoreCommand>,
}

/// What is asked of a dump.
#[derive(Debug, Subcommand)]
enum CoreCommand {
    /// What the file is: format, memory, vCPUs, kernel
    Info,
    /// Registers: general segment system float vector debug, or all
    Regs {
        /// The group
        #[arg(add = words(&["general", "segment", "system", "float", "vector", "debug", "all"]))]
        group: Option<String>,
    },
    /// The page walk for an address, entry by entry
    Translate {
        /// Guest-virtual address
        #[arg(value_parser = number)]
        address: u64,
        /// Guest-physical address of a process's top-level table, instead of the vCPU's
        #[arg(long, value_name = "ADDRESS", value_parser = number)]
        table: Option<u64>,
    },
    /// Memory, in hexadecimal
    Read {
        /// Guest-virtual address
        #[arg(value_parser = number)]
        address: u64,
        /// Bytes
        #[arg(value_parser = number)]
        length: u64,
        /// The address is guest-physical
        #[arg(long)]
        physical: bool,
    },
    /// The kernel's log, or its last lines
    Dmesg {
        /// How many lines
        #[arg(value_parser = clap::builder::ValueParser::new(parse_count))]
        lines: Option<u32>,
    },
    /// vCPUs: where each is
    Threads,
}

fn vcpu_number(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| "write the number of a vCPU, from 0 up".into())
}

fn isa(text: &str) -> Result<Isa, String> {
    Isa::ALL.into_iter().find(|isa| isa.name() == text).ok_or_else(|| "write x86_64 or aarch64".into())
}

/// Why a dump does not tell what was asked.
#[derive(Debug, thiserror::Error)]
enum CoreError {
    #[error("cannot open {}: {source}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("{}: {source}", path.display())]
    Dump { path: PathBuf, source: DumpError },
    #[error("{}: {source}", path.display())]
    Unpack { path: PathBuf, source: CannotUnpack },
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    NotThere(String),
    #[error(transparent)]
    Other(#[from] Error),
    #[error("cannot write: {0}")]
    Output(#[from] io::Error),
}

impl CoreError {
    fn code(&self) -> u8 {
        match self {
            CoreError::Open { .. } | CoreError::Unpack { source: CannotUnpack::Folder { .. }, .. } => {
                outcome::FILE
            }
            CoreError::Output(_) => outcome::FILE,
            CoreError::Dump { .. } | CoreError::Unpack { source: CannotUnpack::Damaged(_), .. } => {
                outcome::IMAGE
            }
            CoreError::Usage(_) => outcome::USAGE,
            CoreError::NotThere(_) => outcome::NOT_THERE,
            CoreError::Other(error) => error.code(),
        }
    }
}

/// Does what was asked; the exit code.
pub fn main(args: &CoreArgs) -> u8 {
    match run(args) {
        Ok(()) => 0,
        Err(CoreError::Output(error)) => stdout::written(Err(error), 0),
        Err(error) => {
            log::error!("{error}");
            error.code()
        }
    }
}

fn run(args: &CoreArgs) -> Result<(), CoreError> {
    let core = open(args, &args.path)?;
    for remark in core.remarks() {
        log::warn!("{}: {remark}", args.path.display());
    }
    if args.vcpu >= core.vcpus() {
        let last = core.vcpus() - 1;
        return Err(CoreError::Usage(format!("--vcpu {}: the dump has vCPUs 0 to {last}", args.vcpu)));
    }
    let mut out = io::BufWriter::new(io::stdout().lock());
    if let Some(other) = &args.diff {
        difference(args, &core, &open(args, other)?, &mut out)?;
    } else if let Some(address) = &args.gdb {
        if args.command.is_some() || args.json {
            let text = "--gdb serves until it is ended; give no command and no --json with it";
            return Err(CoreError::Usage(text.into()));
        }
        serve(core, address, args.gdb_any_user)?;
    } else {
        answer(args, core, &mut out)?;
    }
    Ok(out.flush()?)
}

fn open(args: &CoreArgs, path: &Path) -> Result<Core, CoreError> {
    let failed = |source| CoreError::Open { path: path.into(), source };
    let source = given_file::open(path).and_then(OnDisk::new).map_err(failed)?;
    let malformed = |source| CoreError::Dump { path: path.into(), source };
    let contents = match args.arch.filter(|_| args.raw) {
        Some(isa) => dump::raw::read(Arc::new(source), isa, args.base.unwrap_or(0), RegisterFile::new(isa)),
        None => match dump::in_one_piece(&source).map_err(malformed)? {
            None => dump::open(Arc::new(source)),
            Some(packing) => {
                let cannot = |source| CoreError::Unpack { path: path.into(), source };
                let plain = unpacked(&source, packing, path).map_err(cannot)?;
                dump::open(Arc::new(plain)).map(|mut contents| {
                    contents.format.push_str(&format!(", unpacked from {}", packing.words().0));
                    contents
                })
            }
        },
    };
    let mut contents: Contents = contents.map_err(malformed)?;
    if contents.cpus.is_empty() && !args.register.is_empty() {
        contents.cpus.push(Cpu::unknown(contents.isa));
    }
    for cpu in &mut contents.cpus {
        set_registers(&mut cpu.registers, &args.register)?;
    }
    let core = Core::new(contents, args.writable).map_err(failed)?;
    Ok(match &args.vmcoreinfo {
        Some(place) => {
            let info = description(&core, place)?;
            core.with_kernel(info)
        }
        None => core,
    })
}

/// Sets registers as the user gives them.
fn set_registers(file: &mut RegisterFile, given: &[String]) -> Result<(), CoreError> {
    let isa = file.isa();
    for text in given {
        let wrong = |why: &str| CoreError::Usage(format!("--register {text}: {why}"));
        let (name, value) = text.split_once('=').ok_or_else(|| wrong("write NAME=VALUE"))?;
        let known = row(isa, name).filter(|row| table(isa)[*row].bits <= 64);
        let row = known.ok_or_else(|| wrong(&format!("{isa} has no such register of up to 64 bits")))?;
        file.set_row(row, number(value).map_err(|why| wrong(&why))?);
    }
    Ok(())
}

/// Where a kernel's description of itself is.
#[derive(Clone, Debug)]
enum Description {
    File(PathBuf),
    Memory(u64),
}

impl Description {
    fn parse(text: &str) -> Result<Description, String> {
        match text.starts_with("0x") {
            true => number(text).map(Description::Memory),
            false => Ok(Description::File(text.into())),
        }
    }
}

/// Reads a kernel's description of itself.
fn description(core: &Core, place: &Description) -> Result<VmCoreInfo, CoreError> {
    /// Bytes, of a text that kernels keep in a page.
    const MOST: u64 = 64 << 10;
    const NONE: &str = "no description of a kernel: OSRELEASE and PAGESIZE are not in it, or it is too long";
    match place {
        Description::File(path) => {
            let mut bytes = Vec::new();
            let read = given_file::open(path).and_then(|file| file.take(MOST + 1).read_to_end(&mut bytes));
            read.map_err(|source| CoreError::Open { path: path.into(), source })?;
            let none = DumpError::Unknown(NONE.into());
            VmCoreInfo::parse(&bytes).ok_or(CoreError::Dump { path: path.into(), source: none })
        }
        Description::Memory(address) => {
            let mut bytes = vec![0; 4096];
            let read = core.memory().read(GuestPhys(*address), &mut bytes);
            let none = || CoreError::NotThere(format!("--vmcoreinfo {address:#x}: {NONE}"));
            VmCoreInfo::parse(&bytes[..read]).ok_or_else(none)
        }
    }
}

fn session(core: Core) -> Session<Core> {
    let engine = Engine::new(core.isa(), core.host().clone(), core.vcpus());
    Session::new(core, Arc::new(engine))
}

/// Serves debuggers until a signal, or `kill`.
fn serve(core: Core, address: &Address, any_user: bool) -> Result<(), Error> {
    let access = if any_user { Access::Everyone } else { Access::Owner };
    let listener = Listener::bind(address, access)
        .map_err(|source| Error::Listen { address: address.to_string(), source })?;
    if address.is_open() {
        log::warn!("whoever can connect to {} can read the dump", listener.address());
    }
    let signals: SigSet =
        [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM].into_iter().collect();
    signals.thread_block().map_err(|error| Error::system("cannot block signals")(error.into()))?;
    let quit = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)
        .map_err(|error| Error::system("cannot make a signalfd")(error.into()))?;
    let quit = quit.as_fd().try_clone_to_owned().map_err(Error::system("cannot duplicate a signalfd"))?;
    log::warn!("waiting for gdb at {}", listener.address());
    let service = Service { gate: crate::peer::gate(any_user), ..Service::plain(quit) };
    server::run(&listener, session(core), &service);
    Ok(())
}

fn answer(args: &CoreArgs, core: Core, out: &mut impl Write) -> Result<(), CoreError> {
    let vcpu = args.vcpu;
    match &args.command {
        None | Some(CoreCommand::Info) => info(args, core, out),
        Some(CoreCommand::Threads) => threads(args, core, out),
        Some(CoreCommand::Regs { group }) => {
            let groups = groups(group.as_deref())?;
            if args.json {
                let file =
                    core.registers(vcpu, &Bank::ALL).map_err(|e| CoreError::NotThere(e.to_string()))?;
                return Ok(writeln!(out, "{}", registers_json(&file, &groups))?);
            }
            let line = format!("regs {}", group.as_deref().unwrap_or(""));
            monitored(core, vcpu, &line, out)
        }
        Some(CoreCommand::Translate { address, table }) => translate(args, &core, *address, *table, out),
        Some(CoreCommand::Read { address, length, physical }) => {
            read(args, &core, *address, *length, *physical, out)
        }
        Some(CoreCommand::Dmesg { lines }) => dmesg(args, core, *lines, out),
    }
}

/// The groups of registers that a user names.
fn groups(name: Option<&str>) -> Result<Vec<Group>, CoreError> {
    match name {
        None => Ok(vec![Group::General]),
        Some("all") => Ok(Group::ALL.to_vec()),
        Some(name) => {
            let group = Group::ALL.into_iter().find(|group| group.name() == name);
            let names = Group::ALL.map(Group::name).join(", ");
            let wrong = || CoreError::Usage(format!("there is no group '{name}': {names}, all"));
            group.map(|group| vec![group]).ok_or_else(wrong)
        }
    }
}

/// What the debugger's command says.
fn monitored(core: Core, vcpu: u32, line: &str, out: &mut impl Write) -> Result<(), CoreError> {
    let mut session = session(core);
    session.current = vcpu;
    let text = monitor::run(&mut session, line);
    Ok(out.write_all(text.as_bytes())?)
}

fn hex(value: u64) -> Value {
    Value::String(format!("{value:#x}"))
}

fn registers_json(file: &RegisterFile, groups: &[Group]) -> Value {
    let rows = file.rows().filter(|(_, register)| groups.contains(&register.group));
    let value = |row| match file.get_row(row) {
        Some(word) => hex(word),
        None => Value::String(
            file.bytes(row).unwrap_or_default().iter().map(|byte| format!("{byte:02x}")).collect(),
        ),
    };
    rows.map(|(row, register)| (register.name.to_string(), value(row)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn range_json(range: &PhysRange) -> Value {
    json!({ "start": hex(range.start.0), "size": range.size })
}

fn info(args: &CoreArgs, core: Core, out: &mut impl Write) -> Result<(), CoreError> {
    let ranges = core.memory().ranges();
    let size: u64 = ranges.iter().map(|range| range.size).sum();
    let translation = match core.translation(args.vcpu) {
        Ok((regime, Tables::Own)) => regime.describe(),
        Ok((regime, Tables::Vcpu(other))) => {
            format!("{} (vCPU {other}'s; paging is off in vCPU {})", regime.describe(), args.vcpu)
        }
        Ok((regime, Tables::Description)) => {
            format!("{} (by the kernel's description; registers do not tell)", regime.describe())
        }
        Err(error) => error.to_string(),
    };
    let release = core.info().map(|info| info.release().to_string());
    let slide = core.info().and_then(|info| info.slide());
    if args.json {
        let known = core.kernel().map_or(&[][..], |known| &known.remarks);
        let value = json!({
            "format": core.format(),
            "architecture": core.isa().name(),
            "vcpus": core.vcpus(),
            "memory": ranges.iter().map(range_json).collect::<Vec<_>>(),
            "translation": translation,
            "release": release,
            "slide": slide.map(hex),
            "remarks": core.remarks().iter().chain(known).collect::<Vec<_>>(),
        });
        return Ok(writeln!(out, "{value}")?);
    }
    writeln!(out, "format: {}", core.format())?;
    writeln!(out, "architecture: {}", core.isa())?;
    writeln!(out, "vCPUs: {}", core.vcpus())?;
    writeln!(out, "memory: {} MiB in {} ranges", size.div_ceil(1 << 20), ranges.len())?;
    const MOST: usize = 16;
    for range in ranges.iter().take(MOST) {
        writeln!(out, "  {:#014x}-{:#014x}", range.start.0, range.end().0 - 1)?;
    }
    if ranges.len() > MOST {
        writeln!(out, "  and more")?;
    }
    writeln!(out, "translation: {translation}")?;
    monitored(core, args.vcpu, "linux", out)
}

fn threads(args: &CoreArgs, core: Core, out: &mut impl Write) -> Result<(), CoreError> {
    let mut lines = Vec::new();
    for vcpu in 0..core.vcpus() {
        let file = core.registers(vcpu, &[Bank::General]).map_err(|e| CoreError::NotThere(e.to_string()))?;
        let state = core.state(vcpu).name();
        let pc = file.pc();
        let stack = file.get(if core.isa() == Isa::X86_64 { "rsp" } else { "sp" });
        lines.push(match args.json {
            true => {
                json!({ "vcpu": vcpu, "state": state, "pc": pc.map(hex), "sp": stack.map(hex) }).to_string()
            }
            false => {
                let word = |value: Option<u64>| value.map_or("?".into(), |value| format!("{value:#018x}"));
                format!("vCPU {vcpu} [{state}]: pc {}, sp {}", word(pc), word(stack))
            }
        });
    }
    match args.json {
        true => writeln!(out, "[{}]", lines.join(","))?,
        false => lines.iter().try_for_each(|line| writeln!(out, "{line}"))?,
    }
    Ok(())
}

fn translate(
    args: &CoreArgs,
    core: &Core,
    address: u64,
    table: Option<u64>,
    out: &mut impl Write,
) -> Result<(), CoreError> {
    let regime = match table {
        Some(table) => core.user_regime(args.vcpu, GuestPhys(table)),
        None => core.regime(args.vcpu),
    };
    let regime = regime.map_err(|error| CoreError::NotThere(error.to_string()))?;
    let mut steps = Vec::new();
    let result = regime.walk(core.memory(), GuestVirt(address), |step| steps.push(step));
    if args.json {
        let steps: Vec<Value> = steps
            .iter()
            .map(|step| json!({ "name": step.name, "at": hex(step.at.0), "value": hex(step.value) }))
            .collect();
        let (physical, size, permissions, fault) = match &result {
            Ok(mapping) => (
                Some(hex(mapping.address.0)),
                Some(mapping.page_size),
                Some(mapping.permissions.to_string()),
                None,
            ),
            Err(fault) => (None, None, None, Some(fault.to_string())),
        };
        let value = json!({
            "address": hex(address), "regime": regime.describe(), "steps": steps, "physical": physical,
            "page_size": size, "permissions": permissions, "fault": fault,
        });
        writeln!(out, "{value}")?;
    } else {
        out.write_all(monitor::walk_text(&regime, core.memory(), GuestVirt(address)).as_bytes())?;
    }
    out.flush()?;
    result.map(drop).map_err(|_| {
        let why = memory::why_not(core.memory(), &Space::Virtual(regime), GuestVirt(address));
        CoreError::NotThere(format!("{address:#x}: {}", why.unwrap_or_default()))
    })
}

fn read(
    args: &CoreArgs,
    core: &Core,
    address: u64,
    length: u64,
    physical: bool,
    out: &mut impl Write,
) -> Result<(), CoreError> {
    const LINE: usize = 16;
    const PIECE: usize = 4096;
    let space = match physical {
        true => Space::Physical,
        false => {
            let regime = core.regime(args.vcpu).map_err(|error| CoreError::NotThere(error.to_string()))?;
            Space::Virtual(regime)
        }
    };
    let mut done = 0u64;
    let mut buffer = [0; PIECE];
    if args.json {
        write!(out, "{{\"address\":\"{address:#x}\",\"bytes\":\"")?;
    }
    while done < length {
        let wanted = usize::try_from(length - done).map_or(PIECE, |left| left.min(PIECE));
        let at = address.wrapping_add(done);
        let count = memory::read(core.memory(), &space, None, GuestVirt(at), &mut buffer[..wanted]);
        for (index, line) in buffer[..count].chunks(LINE).enumerate() {
            let digits: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
            if args.json {
                write!(out, "{}", digits.concat())?;
                continue;
            }
            let text: String = line
                .iter()
                .map(|byte| if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '.' })
                .collect();
            let at = at.wrapping_add((index * LINE) as u64);
            writeln!(out, "{at:#018x}  {:47}  {text}", digits.join(" "))?;
        }
        done += count as u64;
        if count < wanted {
            break;
        }
    }
    if args.json {
        writeln!(out, "\"}}")?;
    }
    out.flush()?;
    match done == length {
        true => Ok(()),
        false => {
            let at = address.wrapping_add(done);
            let why = memory::why_not(core.memory(), &space, GuestVirt(at));
            let why = why.unwrap_or_else(|| "it cannot be read".into());
            Err(CoreError::NotThere(format!("{done} of {length} bytes, up to {at:#x}: {why}")))
        }
    }
}

fn dmesg(args: &CoreArgs, core: Core, lines: Option<u32>, out: &mut impl Write) -> Result<(), CoreError> {
    let not_there = |why: String| CoreError::NotThere(why);
    let mut session = session(core);
    session.current = args.vcpu;
    let known = session.kernel(Scope::Running).map_err(|cancelled| not_there(cancelled.to_string()))?;
    let info = known.info.as_ref().ok_or_else(|| {
        let none = "no Linux kernel has described itself in the dump";
        not_there(
            std::iter::once(none)
                .chain(known.remarks.iter().map(String::as_str))
                .collect::<Vec<_>>()
                .join("; "),
        )
    })?;
    let log =
        session.kernel_log(info, lines.and_then(|lines| usize::try_from(lines).ok()).unwrap_or(usize::MAX));
    let log = log.map_err(|error| not_there(error.to_string()))?;
    match args.json {
        true => writeln!(out, "{}", json!(log))?,
        false => log.iter().try_for_each(|line| writeln!(out, "{line}"))?,
    }
    Ok(())
}

fn difference(args: &CoreArgs, first: &Core, second: &Core, out: &mut impl Write) -> Result<(), CoreError> {
    if first.isa() != second.isa() {
        let text = format!("--diff: one dump is of {}, the other of {}", first.isa(), second.isa());
        return Err(CoreError::Usage(text));
    }
    let found = diff::compare(first.memory(), second.memory());
    let (places, unmapped) = match first.regime(args.vcpu) {
        Ok(regime) => diff::places(&regime, first.memory(), &found.changed),
        Err(error) => {
            log::warn!("virtual addresses are not known: {error}");
            (Vec::new(), found.changed.clone())
        }
    };
    let pages: u64 = found.changed.iter().map(|range| range.size.div_ceil(4096)).sum();
    if args.json {
        let place = |Place { start, range }: &Place| json!({ "virtual": hex(start.0), "physical": hex(range.start.0), "size": range.size });
        let value = json!({
            "pages": pages,
            "mapped": places.iter().map(place).collect::<Vec<_>>(),
            "unmapped": unmapped.iter().map(range_json).collect::<Vec<_>>(),
            "only_in_one": found.only_one.iter().map(range_json).collect::<Vec<_>>(),
        });
        return Ok(writeln!(out, "{value}")?);
    }
    for Place { start, range } in &places {
        let last = start.0 + (range.size - 1);
        writeln!(
            out,
            "{:#018x}-{last:#018x} {} pages at {:#x}",
            start.0,
            range.size.div_ceil(4096),
            range.start.0
        )?;
    }
    for (ranges, why) in [(&unmapped, "mapped nowhere"), (&found.only_one, "in one of the dumps only")] {
        for range in ranges {
            writeln!(out, "{:#x}-{:#x}, guest-physical: {why}", range.start.0, range.end().0 - 1)?;
        }
    }
    writeln!(out, "{pages} pages differ")?;
    Ok(())
}
