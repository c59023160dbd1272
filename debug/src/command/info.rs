//! `info`: what the machine is; and with a word behind it, what QEMU's monitor prints for that.

mod qemu;

pub use qemu::{Entries, Entry, Ranges, VcpuRegisters};

#[cfg(feature = "linux")]
use super::linux::Kernel;
use super::memory::range_json;
use super::operator::Operator;
use crate::cancel::Cancelled;
use crate::machine::Tables;
use crate::reply::{Arguments, Command, Flag, Json, Refusal, Reply, Value, json};
use crate::view::View;
use arch::Isa;
use arch::address::PhysRange;
use arch::words::counted;
use std::fmt;

/// `info`.
pub const INFO: Command = Command::new(
    "info",
    "[mem|tlb|registers]",
    "what the machine is: memory, vCPUs, kernel; or what is mapped, entries of page tables, registers, as QEMU's monitor prints them",
)
.flags(&[Flag { name: "-a", short: None, value: None, what: "registers of all vCPUs" }])
.words(&["mem", "tlb", "registers"]);

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Info {
    /// What the machine is.
    Machine,
    /// QEMU's `info mem`.
    Mem,
    /// QEMU's `info tlb`.
    Tlb,
    /// QEMU's `info registers`.
    Registers {
        /// Of all vCPUs.
        of_all: bool,
    },
}

impl Info {
    /// From what somebody has typed.
    ///
    /// # Errors
    /// [`Refusal::Usage`].
    pub fn parse(arguments: &Arguments<'_>) -> Result<Info, Refusal> {
        let of_all = arguments.has("-a");
        match arguments.words()[..] {
            [] if !of_all => Ok(Info::Machine),
            ["mem"] if !of_all => Ok(Info::Mem),
            ["tlb"] if !of_all => Ok(Info::Tlb),
            ["registers"] => Ok(Info::Registers { of_all }),
            _ => {
                Err(Refusal::Usage("what there is to ask for is mem, tlb, registers or registers -a".into()))
            }
        }
    }

    /// Looks.
    ///
    /// # Errors
    /// [`Refusal::NotThere`], [`Refusal::Cancelled`].
    pub fn run(self, view: &View<'_>) -> Result<Reply, Refusal> {
        Ok(match self {
            Info::Machine => Box::new(Facts::of(view)?),
            Info::Mem => Box::new(Ranges::of(view)?),
            Info::Tlb => Box::new(Entries::of(view)?),
            Info::Registers { of_all: false } => Box::new(VcpuRegisters::of(view, view.vcpu..view.vcpu + 1)?),
            Info::Registers { of_all: true } => Box::new(VcpuRegisters::of(view, 0..view.machine.vcpus())?),
        })
    }
}

/// What a machine is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// A dump's format in words; `None` of a live guest.
    pub format: Option<String>,
    /// The architecture.
    pub isa: Isa,
    /// How many vCPUs there are.
    pub vcpus: u32,
    /// Its RAM.
    pub memory: Vec<PhysRange>,
    /// How the vCPU that is looked through translates, in words.
    pub translation: String,
    /// Its kernel.
    #[cfg(feature = "linux")]
    pub kernel: Kernel,
    /// What is odd about a dump's file, a line each.
    pub remarks: Vec<String>,
}

impl Facts {
    /// Those of the machine that is looked at.
    ///
    /// # Errors
    /// [`Cancelled`].
    pub fn of(view: &View<'_>) -> Result<Facts, Cancelled> {
        let file = view.machine.file();
        Ok(Facts {
            format: file.map(|file| file.format.to_string()),
            isa: view.isa(),
            vcpus: view.machine.vcpus(),
            memory: view.memory().ranges(),
            translation: translation(view),
            #[cfg(feature = "linux")]
            kernel: Kernel::of(view)?,
            remarks: file.map_or(Vec::new(), |file| file.remarks.to_vec()),
        })
    }
}

/// How a vCPU translates, and by whose tables, in words.
fn translation(view: &View<'_>) -> String {
    let vcpu = view.vcpu;
    match view.translation() {
        Ok((regime, Tables::Own)) => regime.describe(),
        Ok((regime, Tables::Vcpu(other))) => {
            format!("{} (vCPU {other}'s; paging is off in vCPU {vcpu})", regime.describe())
        }
        Ok((regime, Tables::Description)) => {
            format!("{} (by the kernel's description; registers do not tell)", regime.describe())
        }
        Err(error) => error.to_string(),
    }
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Ranges of memory that a person wants to see.
        const MOST: usize = 16;
        if let Some(format) = &self.format {
            writeln!(f, "format: {format}")?;
        }
        writeln!(f, "architecture: {}", self.isa)?;
        writeln!(f, "vCPUs: {}", self.vcpus)?;
        let size: u64 = self.memory.iter().map(|range| range.size).sum();
        writeln!(f, "memory: {} MiB in {}", size.div_ceil(1 << 20), counted(self.memory.len(), "range"))?;
        for range in self.memory.iter().take(MOST) {
            writeln!(f, "  {:#014x}-{:#014x}", range.start.0, range.end().0 - 1)?;
        }
        if self.memory.len() > MOST {
            writeln!(f, "  and more")?;
        }
        writeln!(f, "translation: {}", self.translation)?;
        #[cfg(feature = "linux")]
        write!(f, "{}", self.kernel)?;
        self.remarks.iter().try_for_each(|remark| writeln!(f, "{remark}"))
    }
}

impl Value for Facts {
    fn json(&self) -> Json {
        let facts = json!({
            "format": self.format,
            "architecture": self.isa.name(),
            "vcpus": self.vcpus,
            "memory": self.memory.iter().map(range_json).collect::<Vec<_>>(),
            "translation": self.translation,
            "remarks": self.remarks,
        });
        #[cfg(feature = "linux")]
        let facts = self.kernel.with_facts(facts);
        facts
    }
}

pub(super) fn run(operator: &mut dyn Operator, arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
    Info::parse(arguments)?.run(&operator.view())
}
