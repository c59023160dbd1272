//! What a debug session has asked for, and how far each vCPU has come with it.

use super::filters::{Filter, Filters};
use super::retries::Retries;
use crate::arming::{Allocation, DebugRegisters, TooMany, Want, allocate};
use crate::breakpoint::{Breakpoint, Id, Table};
use crate::machine::{Abilities, Action};
use crate::memory::Translation;
use crate::output::Output;
use arch::Isa;

/// What a debug session has asked for.
#[derive(Debug)]
pub struct Requests {
    /// The breakpoints.
    pub table: Table,
    /// What each vCPU does, and how far it has come.
    pub(super) progress: Vec<Progress>,
    /// Whether steps may fall into interrupt handlers.
    pub step_interrupts: bool,
    /// A debugger is attached.
    pub is_attached: bool,
    /// Debug registers that breakpoints need.
    pub(super) sharing: Sharing,
    /// The same, and those that are left for [guards](Table::guarded): in force while a vCPU runs.
    pub(super) guarded: Sharing,
    /// What `dprintf` has printed, for the debugger.
    pub(super) output: Output,
    /// How the addresses of breakpoints were looked at last.
    pub(super) space: Option<Translation>,
    /// Instructions whose hits have been dealt with, and that are still to be executed.
    pub(super) retries: Retries,
    /// Which hits are told, by the addresses that breakpoints are asked for at.
    pub filters: Filters,
}

/// Debug registers, and what each is for.
#[derive(Clone, Debug)]
pub(super) struct Sharing {
    pub(super) allocation: Allocation,
    pub(super) wants: Vec<Want>,
    /// The breakpoint that each want belongs to.
    pub(super) owners: Vec<Id>,
}

impl Sharing {
    pub fn none(isa: Isa) -> Sharing {
        let allocation = Allocation { registers: DebugRegisters::none(isa), served: Vec::new() };
        Sharing { allocation, wants: Vec::new(), owners: Vec::new() }
    }

    pub fn new(isa: Isa, abilities: &Abilities, wanted: &[(Id, Want)]) -> Result<Sharing, TooMany> {
        let (owners, wants): (Vec<Id>, Vec<Want>) = wanted.iter().copied().unzip();
        Ok(Sharing { allocation: allocate(isa, abilities, &wants)?, wants, owners })
    }
}

/// How far a vCPU has come with its action.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    pub(super) action: Action,
    /// Steps of a range that have been made.
    pub(super) steps: u32,
    /// The stack pointer before the last of them.
    pub(super) stack: Option<u64>,
    /// The range is run through instead of stepped.
    pub(super) run: Option<Run>,
    /// It has begun what it was told last.
    pub(super) has_begun: bool,
    /// The breakpoints that it stopped at last.
    pub(super) stopped_at: Vec<Id>,
}

/// A range that is run through.
#[derive(Clone, Debug)]
pub(super) struct Run {
    /// The stack pointer when it began, if that is known: exits of the range are met by other
    /// tasks of the guest, too.
    pub(super) stack: Option<u64>,
    pub(super) wants: Vec<Want>,
    pub(super) allocation: Allocation,
}

impl Requests {
    /// Gives each vCPU a new action.
    pub fn begin(&mut self, actions: &[Action]) {
        for (progress, action) in self.progress.iter_mut().zip(actions) {
            *progress = Progress { action: *action, ..Progress::default() };
        }
        self.retries.keep_those_of(&self.table, actions);
    }

    /// The breakpoints whose want of a debug register is met.
    pub(super) fn met(&self, want: usize) -> Vec<Id> {
        self.guarded.wants.get(want).map(|want| self.table.wanting(*want)).unwrap_or_default()
    }

    /// Counts a hit of a breakpoint, if it is there: it, and what its hits go through.
    pub(super) fn count(&mut self, id: Id) -> Option<(Breakpoint, Option<Filter>)> {
        let breakpoint = self.table.count(id)?;
        Some((breakpoint.clone(), self.filters.of(breakpoint).cloned()))
    }

    /// A hit that a vCPU has stopped at is told to nobody, and happens again when it runs: it is no hit yet.
    pub fn take_back_hit(&mut self, vcpu: u32) {
        let Some(progress) = self.progress.get_mut(vcpu as usize) else { return };
        for id in std::mem::take(&mut progress.stopped_at) {
            self.table.take_back_hit(id);
        }
    }

    /// Whether a vCPU has begun what [`Self::begin`] said last.
    pub fn has_begun(&self, vcpu: u32) -> bool {
        self.progress(vcpu).has_begun
    }

    /// The breakpoints that a vCPU has stopped at since [`Self::begin`].
    pub fn stopped_at(&self, vcpu: u32) -> &[Id] {
        &self.progress(vcpu).stopped_at
    }

    /// Forgets how far each vCPU has come, and which hits were wanted: the debugger has gone, or the guest's memory.
    pub fn forget(&mut self) {
        self.progress.fill(Progress::default());
        self.retries = Retries::default();
        self.filters = Filters::default();
    }

    /// Somebody has given a vCPU other registers.
    pub fn changed(&mut self, vcpu: u32) {
        self.retries.forget(vcpu);
    }

    pub(super) fn progress(&self, vcpu: u32) -> &Progress {
        const NONE: &Progress = &Progress {
            action: Action::Run,
            steps: 0,
            stack: None,
            run: None,
            has_begun: false,
            stopped_at: Vec::new(),
        };
        self.progress.get(vcpu as usize).unwrap_or(NONE)
    }

    pub(super) fn print(&mut self, text: String) {
        self.output.push(text);
    }

    /// Whether something has been printed.
    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Whether a breakpoint has a debug register beside the instruction that is planted for it.
    pub fn is_guarded(&self, id: Id) -> bool {
        self.guarded.owners[self.sharing.owners.len()..].contains(&id)
    }

    /// Takes what has been printed, in pieces of `most` bytes or little more, until there is no more.
    pub fn take_output(&mut self, most: usize) -> Option<String> {
        self.output.take(most)
    }
}
