//! `host`, `exits`, `nmi`, `reset` and `quit`: what runs the guest, and what can be done to it as a whole.

use super::operator::Operator;
use crate::abilities::{Abilities, SoftwareBreakpoints};
use crate::machine::{Control, MachineError};
use crate::memory::Translation;
use crate::reply::{Arguments, Command, Json, Refusal, Reply, Said, Value, json};
use crate::view::View;
use std::fmt;

/// `host`.
pub const HOST: Command =
    Command::new("host", "", "what the host can do, and what takes the place of the rest").running();

/// What the host can do for a debugger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostAbilities {
    /// That.
    pub abilities: Abilities,
    /// What addresses mean, in words.
    pub translation: String,
}

impl HostAbilities {
    /// That of the machine that is looked at.
    pub fn of(view: &View<'_>) -> HostAbilities {
        let translation = match view.space() {
            Translation::Virtual(regime) => regime.describe(),
            Translation::Physical => "addresses are guest-physical".into(),
        };
        HostAbilities { abilities: view.machine.abilities().clone(), translation }
    }

    fn software(&self) -> &'static str {
        match self.abilities.software {
            SoftwareBreakpoints::Trapped => "trapped by KVM",
            SoftwareBreakpoints::EmulationFailure => "seen as an instruction that KVM cannot emulate",
            SoftwareBreakpoints::None => "not seen; debug registers take their place",
        }
    }
}

impl fmt::Display for HostAbilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Abilities { single_step, breakpoints, watchpoints, blocks_interrupts, .. } = self.abilities;
        let slowly = if watchpoints == 0 { " (gdb's software watchpoints work, slowly)" } else { "" };
        let interrupts = if blocks_interrupts { "kept out by KVM" } else { "masked by us" };
        writeln!(f, "breakpoint instructions: {}", self.software())?;
        writeln!(f, "single step: {}", if single_step { "yes" } else { "no" })?;
        writeln!(f, "breakpoint registers: {breakpoints}")?;
        writeln!(f, "watchpoint registers: {watchpoints}{slowly}")?;
        writeln!(f, "interrupts during a step: {interrupts}")?;
        writeln!(f, "translation: {}", self.translation)
    }
}

impl Value for HostAbilities {
    fn json(&self) -> Json {
        json!({
            "breakpoint_instructions": self.software(),
            "single_step": self.abilities.single_step,
            "breakpoint_registers": self.abilities.breakpoints,
            "watchpoint_registers": self.abilities.watchpoints,
            "blocks_interrupts": self.abilities.blocks_interrupts,
            "translation": self.translation,
        })
    }
}

pub(super) fn run(operator: &mut dyn Operator, arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
    arguments.none()?;
    Ok(Box::new(HostAbilities::of(&operator.view())))
}

/// `exits`.
pub const EXITS: Command = Command::new("exits", "", "exits of each vCPU, by reason").running();

/// Exits of each vCPU, by reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exits(pub Vec<Vec<(&'static str, u64)>>);

impl fmt::Display for Exits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return writeln!(f, "nobody counts exits here");
        }
        for (vcpu, counts) in self.0.iter().enumerate() {
            let parts: Vec<String> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
            writeln!(f, "vCPU {vcpu}: {}", if parts.is_empty() { "none".into() } else { parts.join(", ") })?;
        }
        Ok(())
    }
}

impl Value for Exits {
    fn json(&self) -> Json {
        let of_one = |(vcpu, counts): (usize, &Vec<(&'static str, u64)>)| {
            let counts: Json = counts.iter().map(|(name, count)| (*name, *count)).collect();
            json!({ "vcpu": vcpu, "exits": counts })
        };
        self.0.iter().enumerate().map(of_one).collect()
    }
}

pub(super) fn run_exits(operator: &mut dyn Operator, arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
    arguments.none()?;
    let mut exits = operator.view().machine.exits();
    exits.iter_mut().for_each(|counts| counts.retain(|(_, count)| *count > 0));
    Ok(Box::new(Exits(exits)))
}

/// `nmi`.
pub const NMI: Command =
    Command::new("nmi", "", "raise a non-maskable interrupt on the current vCPU").running();

/// `reset`.
pub const RESET: Command =
    Command::new("reset", "", "have the guest begin again, held at its first instruction").running();

/// `quit`.
pub const QUIT: Command = Command::new("quit", "", "end the guest, or close the dump");

/// What has been done, in words.
fn done(text: impl Into<String>) -> Reply {
    let text = text.into();
    let json = json!({ "done": text.trim_end() });
    Said::new(text, json).reply()
}

/// Why the machine does not do it.
fn failed(error: MachineError) -> Refusal {
    match error {
        MachineError::Host(words) => Refusal::Failed(words),
        MachineError::Unsupported(words) => Refusal::Senseless(words.into()),
        MachineError::NoVcpu(_) | MachineError::Later => error.into(),
    }
}

pub(super) fn run_nmi(operator: &mut dyn Operator, arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
    arguments.none()?;
    let vcpu = operator.view().vcpu;
    operator.machine().control(Control::Nmi(vcpu)).map_err(failed)?;
    Ok(done("the interrupt is pending"))
}

pub(super) fn run_reset(operator: &mut dyn Operator, arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
    arguments.none()?;
    let more = operator.restart().map_err(failed)?;
    Ok(done(format!("the guest is at its first instruction again\n{more}")))
}

pub(super) fn run_quit(operator: &mut dyn Operator, arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
    arguments.none()?;
    operator.end().map(done).map_err(failed)
}
