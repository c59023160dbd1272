//! A target without a processor, for tests and fuzzing of what stands above the traits.
//!
//! [`simulated`] has a processor that executes a dozen instructions, and vCPUs on threads of their own.

pub mod simulated;

pub use arch::ram::fake::Ram;

use crate::abilities::{Abilities, SoftwareBreakpoints};
use crate::arming::{Arming, DebugRegisters, Own};
use crate::engine::{Cpu, Stepped};
#[cfg(feature = "linux")]
use crate::linux::Described;
use crate::machine::{Action, Activity, Code, Control, Event, Machine, MachineError, Order, StopReason};
use crate::ram::Memory;
use crate::reply::{Arguments, Command, Offer, Refusal, Reply, offered, run_offered};
use crate::trap::Injection;
use crate::vcpu::Vcpu;
use arch::Isa;
use arch::paging::Regime;
use arch::register::{Bank, RegisterFile, table};
use arch::x86::step::RFLAGS_TF;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A host that can do everything.
pub fn host() -> Abilities {
    Abilities {
        software: SoftwareBreakpoints::Trapped,
        single_step: true,
        breakpoints: 4,
        watchpoints: 4,
        blocks_interrupts: true,
    }
}

/// A machine without a processor: its registers are what was written to them, a resumed vCPU
/// stops at once as if it had made a step. For tests and fuzzing of what stands above
/// [`Machine`].
#[derive(Debug)]
pub struct Still {
    isa: Isa,
    ram: Ram,
    abilities: Abilities,
    registers: Vec<Mutex<RegisterFile>>,
    events: VecDeque<Event>,
    wake: OwnedFd,
    /// What its kernel says of itself, if it has one.
    #[cfg(feature = "linux")]
    pub kernel: Option<Described>,
    /// How its vCPUs read their code.
    pub code: Code,
    /// vCPUs from this one on have not been started.
    pub started: u32,
    /// Its guest cannot begin again.
    pub cannot_restart: bool,
    /// Commands that it adds.
    pub offers: &'static [Offer<Still>],
}

impl Still {
    /// A machine with this many vCPUs and bytes of RAM.
    ///
    /// # Errors
    /// When the system gives no more descriptors.
    pub fn new(isa: Isa, vcpus: u32, size: usize) -> io::Result<Still> {
        let abilities = host();
        let mut file = RegisterFile::new(isa);
        for (row, register) in table(isa).iter().enumerate() {
            file.set_bytes(row, &vec![0; register.bytes()]);
        }
        let registers = (0..vcpus).map(|_| Mutex::new(file.clone())).collect();
        // It never becomes readable: events are there at once.
        let (wake, _) = nix::unistd::pipe()?;
        let events = VecDeque::new();
        let ram = Ram::new(size);
        let (started, cannot_restart) = (u32::MAX, false);
        Ok(Still {
            isa,
            ram,
            abilities,
            registers,
            events,
            wake,
            #[cfg(feature = "linux")]
            kernel: None,
            code: Code::FLAT_64,
            started,
            cannot_restart,
            offers: &[],
        })
    }

    fn file(&self, vcpu: u32) -> Result<MutexGuard<'_, RegisterFile>, MachineError> {
        let file = self.registers.get(vcpu as usize).ok_or(MachineError::NoVcpu(vcpu))?;
        Ok(file.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Machine for Still {
    fn isa(&self) -> Isa {
        self.isa
    }

    fn vcpus(&self) -> u32 {
        u32::try_from(self.registers.len()).unwrap_or(u32::MAX)
    }

    fn activity(&self, vcpu: u32) -> Activity {
        if vcpu < self.started { Activity::Running } else { Activity::NotStarted }
    }

    #[cfg(feature = "linux")]
    fn kernel(&self) -> Option<&Described> {
        self.kernel.as_ref()
    }

    fn registers(&self, vcpu: u32, _: &[Bank]) -> Result<RegisterFile, MachineError> {
        Ok(self.file(vcpu)?.clone())
    }

    fn code(&self, _: u32) -> Result<Code, MachineError> {
        Ok(self.code)
    }

    fn regime(&self, vcpu: u32) -> Result<Regime, MachineError> {
        Regime::new(&*self.file(vcpu)?).map_err(|fault| MachineError::Host(fault.to_string()))
    }

    fn set_registers(&self, vcpu: u32, file: &RegisterFile) -> Result<(), MachineError> {
        let mut registers = self.file(vcpu)?;
        registers.take_from(file);
        Ok(())
    }

    fn memory(&self) -> &dyn Memory {
        &self.ram
    }

    fn abilities(&self) -> &Abilities {
        &self.abilities
    }

    fn resume(&mut self, orders: Vec<Order>) -> Result<(), MachineError> {
        let moving = (0..).zip(orders).find(|(_, order)| order.action != Action::Stay);
        if let Some((vcpu, _)) = moving {
            let registers = self.file(vcpu)?.clone();
            self.events.push_back(Event::Stopped { vcpu, reason: StopReason::Step, registers });
        }
        Ok(())
    }

    /// What has not been told yet has not happened.
    fn pause(&mut self) {
        self.events.clear();
    }

    fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn event_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    fn disarm(&mut self) {}

    fn control(&mut self, control: Control) -> Result<(), MachineError> {
        match control == Control::Reset && self.cannot_restart {
            true => Err(MachineError::Unsupported("its kernel is gone")),
            false => Ok(()),
        }
    }

    fn exits(&self) -> Vec<Vec<(&'static str, u64)>> {
        Vec::new()
    }

    fn commands(&self) -> Vec<Command> {
        offered(self.offers)
    }

    fn run_command(&mut self, name: &str, arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
        run_offered(self.offers, self, name, arguments)
    }
}

/// What a scripted vCPU's next step comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScriptedStep {
    /// How it ends.
    pub end: Stepped,
    /// Where the vCPU is then; `None` is where it was.
    pub pc: Option<u64>,
}

/// A vCPU that is nothing but its registers, and writes down what it is told. It runs 64-bit code.
#[derive(Debug)]
pub struct FakeVcpu {
    /// Its number.
    pub id: u32,
    isa: Isa,
    /// Its registers.
    pub file: RegisterFile,
    /// What it runs with.
    pub arming: Arming,
    /// The debug registers that the guest has armed for itself.
    pub guests: DebugRegisters,
    /// Exceptions that the guest was given.
    pub injected: Vec<Injection>,
    /// Whether the last of them waits for the guest to be entered.
    pub is_queued: bool,
    /// It takes no values of registers.
    pub refuses: bool,
    /// How often interrupts were kept out of the next instruction, kicks forgotten, accesses aborted.
    pub counts: FakeCounts,
}

/// How often a [`FakeVcpu`] was told something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FakeCounts {
    /// To keep interrupts out of the next instruction.
    pub shadows: u32,
    /// To forget kicks.
    pub cleared: u32,
    /// To abort an access.
    pub aborts: u32,
    /// To leave a `HLT`.
    pub ended_halts: u32,
}

impl FakeVcpu {
    /// One whose registers are 0.
    pub fn new(isa: Isa) -> FakeVcpu {
        let mut file = RegisterFile::new(isa);
        for (row, register) in table(isa).iter().enumerate() {
            file.set_bytes(row, &vec![0; register.bytes()]);
        }
        FakeVcpu {
            id: 0,
            isa,
            file,
            arming: Arming::off(isa),
            guests: DebugRegisters::none(isa),
            injected: Vec::new(),
            is_queued: false,
            refuses: false,
            counts: FakeCounts::default(),
        }
    }

    /// Its program counter.
    pub fn set_pc(&mut self, pc: u64) {
        self.file.set_pc(pc);
    }

    fn flags(&self) -> &'static str {
        match self.isa {
            Isa::X86_64 => "eflags",
            Isa::Aarch64 => "cpsr",
        }
    }
}

impl Vcpu for FakeVcpu {
    fn id(&self) -> u32 {
        self.id
    }

    fn isa(&self) -> Isa {
        self.isa
    }

    fn pc_and_flags(&self) -> Result<(u64, u64), MachineError> {
        Ok((self.file.pc().unwrap_or(0), self.file.get(self.flags()).unwrap_or(0)))
    }

    fn code(&self) -> Result<Code, MachineError> {
        Ok(Code::FLAT_64)
    }

    fn regime(&self) -> Result<Regime, MachineError> {
        Regime::new(&self.file).map_err(|fault| MachineError::Host(fault.to_string()))
    }

    /// Those banks alone, as a hypervisor is asked for no more.
    fn registers(&self, banks: &[Bank]) -> RegisterFile {
        let mut file = RegisterFile::new(self.isa);
        for (row, register) in table(self.isa).iter().enumerate() {
            if !banks.contains(&register.bank()) {
                continue;
            }
            match self.file.get_row(row) {
                Some(value) => file.set_row(row, value),
                None => self.file.bytes(row).into_iter().for_each(|bytes| file.set_bytes(row, &bytes)),
            }
        }
        file
    }

    fn register(&self, row: usize) -> Option<u64> {
        self.file.get_row(row)
    }

    fn set_registers(&mut self, file: &RegisterFile) -> Result<(), MachineError> {
        if self.refuses {
            return Err(MachineError::Host("it takes no values".into()));
        }
        self.file.take_from(file);
        Ok(())
    }

    fn set_rows(&mut self, values: &[(usize, u64)]) -> Result<(), MachineError> {
        for (row, value) in values {
            self.file.set_row(*row, *value);
        }
        Ok(())
    }

    fn own_debug_registers(&self, _: &Abilities) -> Result<DebugRegisters, MachineError> {
        Ok(self.guests.clone())
    }

    /// As KVM does it on x86: it steps with the trap flag, and takes it away when it steps no more.
    fn set_debug(&mut self, arming: &Arming) -> Result<(), MachineError> {
        if self.isa == Isa::X86_64 {
            let flags = self.file.get("eflags").unwrap_or(0);
            if arming.step || self.arming.step {
                self.file.set("eflags", flags & !RFLAGS_TF);
            }
        }
        self.arming.clone_from(arming);
        Ok(())
    }

    fn inject(&mut self, injection: &Injection, arming: &Arming) -> Result<(), MachineError> {
        self.injected.push(*injection);
        self.is_queued = self.isa == Isa::X86_64;
        self.set_debug(arming)
    }

    fn has_queued(&self) -> bool {
        self.is_queued
    }

    fn abort_access(&mut self) -> Result<(), MachineError> {
        self.counts.aborts += 1;
        Ok(())
    }

    fn shadow_interrupts(&mut self) -> Result<(), MachineError> {
        self.counts.shadows += 1;
        Ok(())
    }

    fn end_halt(&mut self) -> Result<(), MachineError> {
        self.counts.ended_halts += 1;
        Ok(())
    }

    fn activity(&self) -> Activity {
        Activity::Running
    }

    fn nmi(&mut self) -> Result<(), MachineError> {
        Ok(())
    }

    fn clear_kick(&mut self) {
        self.counts.cleared += 1;
    }
}

/// One vCPU whose steps come out as a script says. For tests and fuzzing of the [engine](crate::engine).
#[derive(Debug)]
pub struct Scripted {
    /// The vCPU.
    pub vcpu: FakeVcpu,
    ram: Ram,
    script: VecDeque<ScriptedStep>,
    /// What the engine has it run with.
    pub arming: Arming,
    /// How often it was exclusive, and whether it is now.
    pub exclusive: (u32, bool),
    /// Where the last step has faulted, if it has.
    pub faulted: Option<u64>,
}

impl Scripted {
    /// A vCPU with `size` bytes of RAM, whose registers are 0.
    pub fn new(isa: Isa, size: usize, script: impl IntoIterator<Item = ScriptedStep>) -> Scripted {
        Scripted {
            vcpu: FakeVcpu::new(isa),
            ram: Ram::new(size),
            script: script.into_iter().collect(),
            arming: Arming::off(isa),
            exclusive: (0, false),
            faulted: None,
        }
    }
}

impl Cpu for Scripted {
    fn vcpu(&self) -> &dyn Vcpu {
        &self.vcpu
    }

    fn vcpu_mut(&mut self) -> &mut dyn Vcpu {
        &mut self.vcpu
    }

    fn memory(&self) -> &dyn Memory {
        &self.ram
    }

    fn arm(&mut self, arming: &Arming) {
        self.arming.clone_from(arming);
    }

    fn inject(&mut self, injection: &Injection) -> Result<(), MachineError> {
        self.vcpu.injected.push(*injection);
        Ok(())
    }

    fn is_own(&mut self, _: &Injection) -> Result<bool, MachineError> {
        Ok(true)
    }

    fn own_among_others(&self) -> Option<&[Own]> {
        None
    }

    fn own_registers(&self) -> Vec<Own> {
        Vec::new()
    }

    fn begin_exclusive(&mut self) {
        assert!(!self.exclusive.1, "exclusive twice");
        self.exclusive = (self.exclusive.0 + 1, true);
    }

    fn end_exclusive(&mut self) {
        assert!(self.exclusive.1, "not exclusive");
        self.exclusive.1 = false;
    }

    fn faulted_at(&self) -> Option<u64> {
        self.faulted
    }

    fn step(&mut self) -> Result<Stepped, MachineError> {
        assert!(self.arming.step, "it is stepped without being told");
        // Where the script ends, something else comes first for ever.
        let Some(step) = self.script.pop_front() else { return Ok(Stepped::Other) };
        self.faulted = (step.end == Stepped::Faulted).then(|| self.vcpu.file.pc()).flatten();
        if let Some(pc) = step.pc {
            self.vcpu.set_pc(pc);
        }
        Ok(step.end)
    }
}
