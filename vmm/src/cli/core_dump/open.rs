//! Opening a dump: whatever its format is, and with what its user knows better.

use super::unpacked::unpacked;
use super::{Args, CoreError};
use crate::given_file;
use arch::GuestPhys;
use arch::register::{RegisterFile, row, table};
use debug::dump::core::Core;
use debug::dump::read::NEITHER;
use debug::dump::{self, Contents, DumpError, DumpedVcpu};
use debug::linux::VmCoreInfo;
use debug::machine::Machine;
use debug::reply::number;
use debug::source::OnDisk;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What somebody is told who wants to change something of a dump.
const READ_ONLY: &str = "this is a dump: registers and memory can be changed, in a copy, with --writable";

/// Opens a dump as the options say.
pub(super) fn open(args: &Args, path: &Path) -> Result<Core, CoreError> {
    let failed = |source| CoreError::Open { path: path.into(), source };
    let source = given_file::open(path).and_then(OnDisk::new).map_err(failed)?;
    let malformed = |source| {
        let source = match source {
            DumpError::Unknown(what) if what == NEITHER => {
                DumpError::Unknown(format!("{what}; plain memory needs --raw and --arch"))
            }
            source => source,
        };
        CoreError::Dump { path: path.into(), source }
    };
    let contents = match args.arch.filter(|_| args.raw) {
        Some(isa) => {
            dump::read::raw::read(Arc::new(source), isa, args.base.unwrap_or(0), RegisterFile::new(isa))
        }
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
        contents.cpus.push(DumpedVcpu::unknown(contents.isa));
    }
    for cpu in &mut contents.cpus {
        set_registers(&mut cpu.registers, &args.register)?;
    }
    let core = Core::new(contents, args.writable).map_err(failed)?.explaining(READ_ONLY);
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
pub(super) enum Description {
    File(PathBuf),
    Memory(u64),
}

impl Description {
    pub(super) fn parse(text: &str) -> Result<Description, String> {
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
