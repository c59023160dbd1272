//! `regs` and `threads`: what a vCPU has in its registers, and where each vCPU is.

use super::operator::Operator;
use super::thread_kind::ThreadKind;
use crate::disassemble::LONGEST_INSTRUCTION;
use crate::machine::Activity;
use crate::reply::{Arguments, Command, Json, Refusal, Reply, Said, Value, hex, json};
use crate::report::Report;
use crate::view::View;
use arch::Isa;
use arch::register::{Bank, Group, RegisterFile};
use std::fmt;

/// `regs`.
pub const REGS: Command = Command::new(
    "regs",
    "[GROUP]",
    "registers: general segment system float vector debug, or all; without a group the first three",
)
.words(&["general", "segment", "system", "float", "vector", "debug", "all"]);

/// Registers of the vCPU that is looked through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Regs {
    /// Which.
    pub groups: Vec<Group>,
}

impl Regs {
    /// From what somebody has typed.
    ///
    /// # Errors
    /// [`Refusal::Usage`].
    pub fn parse(arguments: &Arguments<'_>) -> Result<Regs, Refusal> {
        let groups = match arguments.words()[..] {
            [] => vec![Group::General, Group::Segment, Group::System],
            ["all"] => Group::ALL.to_vec(),
            [name] => {
                let group = Group::ALL.into_iter().find(|group| group.name() == name);
                let names = Group::ALL.map(Group::name).join(", ");
                let wrong = || Refusal::Usage(format!("there is no group '{name}': {names}, all"));
                vec![group.ok_or_else(wrong)?]
            }
            _ => return Err(Refusal::Usage("only one group of registers is shown at a time".into())),
        };
        Ok(Regs { groups })
    }

    /// Reads them.
    ///
    /// # Errors
    /// [`Refusal::NotThere`].
    pub fn run(&self, view: &View<'_>) -> Result<Registers, Refusal> {
        let file = view.machine.registers(view.vcpu, &Bank::ALL)?;
        let mut code = vec![0; LONGEST_INSTRUCTION];
        let count = match (file.pc(), view.machine.code(view.vcpu)) {
            (Some(pc), Ok(how)) => view.read(how.linear(pc), &mut code),
            _ => 0,
        };
        code.truncate(count);
        Ok(Registers { vcpu: view.vcpu, file, code, groups: self.groups.clone() })
    }
}

/// What a vCPU has in its registers.
#[derive(Clone, Debug)]
pub struct Registers {
    /// The vCPU.
    pub vcpu: u32,
    /// All of its registers.
    pub file: RegisterFile,
    /// The bytes at its program counter, as far as they can be read.
    pub code: Vec<u8>,
    /// The groups that were asked for.
    pub groups: Vec<Group>,
}

impl fmt::Display for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = Report { vcpu: self.vcpu, registers: &self.file, code: &self.code };
        writeln!(f, "{}", report.text_of(&self.groups))
    }
}

impl Value for Registers {
    /// `{"rax": "0x1", ...}`; of more than 64 bits, the bytes in the order of memory.
    fn json(&self) -> Json {
        let rows = self.file.rows().filter(|(_, register)| self.groups.contains(&register.group));
        let value = |row| match self.file.get_row(row) {
            Some(word) => hex(word),
            None => Json::String(
                self.file.bytes(row).unwrap_or_default().iter().map(|byte| format!("{byte:02x}")).collect(),
            ),
        };
        rows.map(|(row, register)| (register.name, value(row))).collect()
    }
}

pub(super) fn run(operator: &mut dyn Operator, arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
    Ok(Box::new(Regs::parse(arguments)?.run(&operator.view())?))
}

/// `threads`.
pub const THREADS: Command = Command::new(
    "threads",
    "[cpus|tasks]",
    "where each vCPU is, and what it does; or for gdb, what its threads are from the next stop on",
);

/// A vCPU, and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thread {
    /// Its number.
    pub vcpu: u32,
    /// What it does.
    pub activity: Activity,
    /// Its program counter, if that is known.
    pub pc: Option<u64>,
    /// Its stack pointer, if that is known.
    pub stack: Option<u64>,
}

/// All vCPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Threads(pub Vec<Thread>);

impl Threads {
    /// Looks where they are.
    ///
    /// # Errors
    /// [`Refusal::NotThere`].
    pub fn of(view: &View<'_>) -> Result<Threads, Refusal> {
        let stack = match view.isa() {
            Isa::X86_64 => "rsp",
            Isa::Aarch64 => "sp",
        };
        let thread = |vcpu| {
            let file = view.machine.registers(vcpu, &[Bank::General])?;
            let (pc, stack) = (file.pc(), file.get(stack));
            Ok(Thread { vcpu, activity: view.machine.activity(vcpu), pc, stack })
        };
        (0..view.machine.vcpus()).map(thread).collect::<Result<_, Refusal>>().map(Threads)
    }
}

impl fmt::Display for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |value: Option<u64>| value.map_or("?".into(), |value| format!("{value:#018x}"));
        self.0.iter().try_for_each(|Thread { vcpu, activity, pc, stack }| {
            writeln!(f, "vCPU {vcpu} [{}]: pc {}, sp {}", activity.name(), word(*pc), word(*stack))
        })
    }
}

impl Value for Threads {
    fn json(&self) -> Json {
        let thread = |Thread { vcpu, activity, pc, stack }: &Thread| json!({ "vcpu": vcpu, "state": activity.name(), "pc": pc.map(hex), "sp": stack.map(hex) });
        self.0.iter().map(thread).collect()
    }
}

pub(super) fn run_threads(operator: &mut dyn Operator, arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
    let wanted = ThreadKind::parse(arguments)?;
    let are = operator.threads(wanted)?;
    match (wanted, are) {
        (Some(kind), Some(are)) => Ok(Said::new(are, json!({ "threads": kind.word() })).reply()),
        (Some(_), None) => {
            Err(Refusal::Senseless("it is for a debugger's threads, and none is attached here".into()))
        }
        (None, are) => Ok(Box::new(Listed { threads: Threads::of(&operator.view())?, are })),
    }
}

/// All vCPUs, and what threads are to a debugger.
#[derive(Debug)]
struct Listed {
    threads: Threads,
    are: Option<String>,
}

impl fmt::Display for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.threads)?;
        self.are.as_ref().map_or(Ok(()), |are| writeln!(f, "{are}"))
    }
}

impl Value for Listed {
    fn json(&self) -> Json {
        self.threads.json()
    }
}
