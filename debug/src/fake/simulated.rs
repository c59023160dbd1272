//! A guest without a hypervisor: processors of a dozen instructions each, on threads of their own.
//!
//! On it the whole debugger runs in milliseconds: the gdb server, the engine, the rules of steps, attaching and
//! leaving. What of a processor matters to a debugger it does as hardware does: it traps what is planted, compares its
//! debug registers before an instruction and with each access, steps one instruction, and is kicked.
//!
//! | | x86 | aarch64 |
//! | --- | --- | --- |
//! | count | `inc rax` | `add x0, x0, #1` |
//! | store, load | `mov [rbx], rax`, `mov rax, [rbx]` | `str x0, [x1]`, `ldr x0, [x1]` |
//! | branch | `jmp rel8` | `b` |
//! | count down, branch at 0 | `dec rcx`, `jrcxz rel8` | `sub x2, x2, #1`, `cbz x2` |
//! | call, return | `call rel32`, `ret` | `bl`, `ret` |
//! | keep where to return to | | `str x30, [sp, #-16]!`, `ldr x30, [sp], #16` |
//! | breakpoint | `int3` | `brk` |
//! | device | `out imm8, al` | `hvc #0` |
//! | nothing | `nop` | `nop` |

use super::{FakeVcpu, Ram};
use crate::arming::DebugRegisters;
use crate::context::Debuggee;
use crate::engine::Engine;
use crate::live::debugger::{Debugger, Target};
use crate::live::gate::Kick;
use crate::live::machine::LiveMachine;
use crate::live::runner::{Exit, Next, Runner, Turn};
use crate::live::times::Times;
use crate::live::vcpus::{Monitor, Task, Vcpus};
use crate::machine::MachineError;
use crate::ram::Memory;
use crate::trap::{Injection, Trap};
use crate::vcpu::Vcpu;
use arch::aarch64::debug_registers::Pair;
use arch::aarch64::syndrome::DebugException;
use arch::address::PhysRange;
use arch::paging::TableMemory;
use arch::register::row;
use arch::x86::debug_registers::{Condition, DR6_BS};
use arch::{GuestPhys, Isa};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// RAM that all processors of a guest and a debugger share.
#[derive(Clone, Debug)]
pub struct SharedRam(pub Arc<Ram>);

impl TableMemory for SharedRam {
    fn read_table(&self, address: GuestPhys, bytes: &mut [u8]) -> bool {
        self.0.read_table(address, bytes)
    }
}

impl Memory for SharedRam {
    fn read(&self, address: GuestPhys, bytes: &mut [u8]) -> usize {
        self.0.read(address, bytes)
    }

    fn write(&self, address: GuestPhys, bytes: &[u8]) -> usize {
        self.0.write(address, bytes)
    }

    fn ranges(&self) -> Vec<PhysRange> {
        self.0.ranges()
    }
}

/// What an instruction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Instruction {
    Count,
    Store,
    Load,
    Branch(i64),
    CountDown,
    BranchAtZero(i64),
    Call(i64),
    Return,
    KeepLink,
    RestoreLink,
    Breakpoint(u16),
    Device,
    Nothing,
    Unknown,
}

/// The instruction at the start of `code`, and its length.
fn decode(isa: Isa, code: &[u8]) -> (Instruction, u64) {
    match isa {
        Isa::X86_64 => match *code {
            [0x48, 0xff, 0xc0, ..] => (Instruction::Count, 3),
            [0x48, 0x89, 0x03, ..] => (Instruction::Store, 3),
            [0x48, 0x8b, 0x03, ..] => (Instruction::Load, 3),
            [0xeb, to, ..] => (Instruction::Branch(2 + i64::from(to.cast_signed())), 2),
            [0x48, 0xff, 0xc9, ..] => (Instruction::CountDown, 3),
            [0xe3, to, ..] => (Instruction::BranchAtZero(2 + i64::from(to.cast_signed())), 2),
            [0xe8, a, b, c, d, ..] => (Instruction::Call(5 + i64::from(i32::from_le_bytes([a, b, c, d]))), 5),
            [0xc3, ..] => (Instruction::Return, 1),
            [0xcc, ..] => (Instruction::Breakpoint(0), 1),
            [0xe6, _, ..] => (Instruction::Device, 2),
            [0x90, ..] => (Instruction::Nothing, 1),
            _ => (Instruction::Unknown, 1),
        },
        Isa::Aarch64 => {
            let word = arch::bytes::u32_at(code, 0).unwrap_or(0);
            let what = match word {
                0x9100_0400 => Instruction::Count,
                0xf900_0020 => Instruction::Store,
                0xf940_0020 => Instruction::Load,
                0xd400_0002 => Instruction::Device,
                0xd503_201f => Instruction::Nothing,
                0xd100_0442 => Instruction::CountDown,
                0xd65f_03c0 => Instruction::Return,
                0xf81f_0ffe => Instruction::KeepLink,
                0xf841_07fe => Instruction::RestoreLink,
                // 19 bits, likewise.
                _ if word & 0xff00_001f == 0xb400_0002 => {
                    Instruction::BranchAtZero(i64::from((word << 8).cast_signed() >> 13) * 4)
                }
                _ if word >> 26 == 0b10_0101 => {
                    Instruction::Call(i64::from((word << 6).cast_signed() >> 6) * 4)
                }
                _ if word >> 26 == 0b00_0101 => {
                    // 26 bits, with their sign, in words.
                    Instruction::Branch(i64::from((word << 6).cast_signed() >> 6) * 4)
                }
                _ if word & 0xffe0_001f == 0xd420_0000 => {
                    Instruction::Breakpoint(u16::try_from(word >> 5 & 0xffff).unwrap_or(0))
                }
                _ => Instruction::Unknown,
            };
            (what, 4)
        }
    }
}

/// What a processor has beside its registers.
#[derive(Debug)]
struct Processor {
    ram: SharedRam,
    is_kicked: Arc<AtomicBool>,
    /// Accesses to the device.
    device: Arc<AtomicU64>,
    /// Breakpoint instructions of the guest's own that it was given.
    own_traps: Arc<AtomicU64>,
    late_kicks: Arc<AtomicU64>,
}

impl Processor {
    /// The debug register that a place or an access meets: its number.
    fn met(vcpu: &FakeVcpu, at: u64, is_write: Option<bool>) -> Option<usize> {
        match &vcpu.arming.registers {
            DebugRegisters::X86(slots) => slots.iter().position(|slot| {
                slot.is_some_and(|slot| match is_write {
                    None => slot.condition == Condition::Execute && slot.address == at,
                    Some(is_write) => {
                        let is_watched = slot.condition == Condition::Access
                            || slot.condition == Condition::Write && is_write;
                        is_watched && (at..at + 8).contains(&slot.address)
                    }
                })
            }),
            DebugRegisters::Aarch64 { breakpoints, watchpoints } => {
                let is_at = |pair: &Pair| pair.is_enabled() && pair.value == at & !7;
                match is_write {
                    None => breakpoints.iter().position(|pair| pair.is_enabled() && pair.value == at),
                    // LSC: bit 3 loads, bit 4 stores.
                    Some(is_write) => watchpoints.iter().position(|pair| {
                        is_at(pair) && pair.control >> if is_write { 4 } else { 3 } & 1 != 0
                    }),
                }
            }
        }
    }

    /// The trap of a debug register.
    fn trap(vcpu: &FakeVcpu, register: usize, access: Option<(u64, bool)>) -> Exit {
        Exit::Trap(match (vcpu.isa(), access) {
            (Isa::X86_64, _) => Trap::Debug { dr6: 1 << register },
            (Isa::Aarch64, None) => Trap::Aarch64 { exception: DebugException::Breakpoint, far: 0 },
            (Isa::Aarch64, Some((far, is_write))) => Trap::Aarch64 {
                exception: DebugException::Watchpoint { is_write, is_cache_maintenance: false },
                far,
            },
        })
    }

    /// Executes until it is kicked or traps.
    fn run(&self, vcpu: &mut FakeVcpu) -> Exit {
        self.deliver(vcpu);
        if self.is_kicked_late() {
            return Exit::Interrupted;
        }
        loop {
            if self.is_kicked.load(Ordering::SeqCst) {
                return Exit::Interrupted;
            }
            if let Some(exit) = self.execute(vcpu) {
                return exit;
            }
            thread::yield_now();
        }
    }

    /// Whether a kick comes now that was for what its thread has just done: in about half of the entries left.
    fn is_kicked_late(&self) -> bool {
        let take = |left: u64| left.checked_sub(1);
        let left = self.late_kicks.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take);
        // Of two entries, of four, of eight: what is tried again is kicked again, now and then.
        left.is_ok_and(|left| (left ^ left >> 1 ^ left >> 2) & 1 != 0)
    }

    /// The guest's handler of breakpoints counts them, and returns behind them.
    fn deliver(&self, vcpu: &mut FakeVcpu) {
        let length = if vcpu.isa() == Isa::X86_64 { 1 } else { 4 };
        for injection in std::mem::take(&mut vcpu.injected) {
            let is_breakpoint = match injection {
                Injection::Breakpoint => true,
                Injection::Aarch64 { exception, .. } => matches!(exception, DebugException::Brk(_)),
                Injection::Debug { .. } => false,
            };
            if is_breakpoint {
                self.own_traps.fetch_add(1, Ordering::SeqCst);
                let pc = vcpu.file.pc().unwrap_or(0);
                vcpu.set_pc(pc + length);
            }
        }
        vcpu.is_queued = false;
    }

    /// Puts a word on the stack, which grows by `size` bytes.
    fn push(&self, vcpu: &mut FakeVcpu, value: u64, size: u64) {
        let stack = names(vcpu.isa()).stack;
        let at = register(vcpu, stack).wrapping_sub(size);
        self.ram.write(GuestPhys(at), &value.to_le_bytes());
        vcpu.file.set(stack, at);
    }

    /// Takes one from it.
    fn pop(&self, vcpu: &mut FakeVcpu, size: u64) -> u64 {
        let stack = names(vcpu.isa()).stack;
        let (at, mut value) = (register(vcpu, stack), [0; 8]);
        self.ram.read(GuestPhys(at), &mut value);
        vcpu.file.set(stack, at.wrapping_add(size));
        u64::from_le_bytes(value)
    }

    fn execute(&self, vcpu: &mut FakeVcpu) -> Option<Exit> {
        let isa = vcpu.isa();
        let pc = vcpu.file.pc().unwrap_or(0);
        if let Some(register) = Processor::met(vcpu, pc, None) {
            return Some(Processor::trap(vcpu, register, None));
        }
        let mut code = [0; 5];
        self.ram.read(GuestPhys(pc), &mut code);
        let (instruction, length) = decode(isa, &code);
        let Names { counter, pointer, .. } = names(isa);
        let at = register(vcpu, pointer);
        let access = match instruction {
            Instruction::Store => Some((at, true)),
            Instruction::Load => Some((at, false)),
            _ => None,
        };
        let met = access.and_then(|(at, is_write)| Processor::met(vcpu, at, Some(is_write)));
        // On aarch64 the access is still to come.
        if let Some(register) = met.filter(|_| isa == Isa::Aarch64) {
            return Some(Processor::trap(vcpu, register, access));
        }
        let mut next = pc + length;
        let mut value = [0; 8];
        match instruction {
            Instruction::Count => {
                let count = register(vcpu, counter) + 1;
                vcpu.file.set(counter, count);
            }
            Instruction::Store => {
                self.ram.write(GuestPhys(at), &register(vcpu, counter).to_le_bytes());
            }
            Instruction::Load => {
                self.ram.read(GuestPhys(at), &mut value);
                vcpu.file.set(counter, u64::from_le_bytes(value));
            }
            Instruction::Branch(by) => next = pc.wrapping_add_signed(by),
            Instruction::CountDown => {
                let left = names(isa).left;
                vcpu.file.set(left, register(vcpu, left).wrapping_sub(1));
            }
            Instruction::BranchAtZero(by) if register(vcpu, names(isa).left) == 0 => {
                next = pc.wrapping_add_signed(by);
            }
            Instruction::BranchAtZero(_) => {}
            Instruction::Call(by) => {
                match isa {
                    Isa::X86_64 => self.push(vcpu, next, 8),
                    Isa::Aarch64 => vcpu.file.set("x30", next),
                }
                next = pc.wrapping_add_signed(by);
            }
            Instruction::Return => {
                next = match isa {
                    Isa::X86_64 => self.pop(vcpu, 8),
                    Isa::Aarch64 => register(vcpu, "x30"),
                };
            }
            Instruction::KeepLink => self.push(vcpu, register(vcpu, "x30"), 16),
            Instruction::RestoreLink => {
                let link = self.pop(vcpu, 16);
                vcpu.file.set("x30", link);
            }
            Instruction::Breakpoint(_) if !vcpu.arming.software => {
                self.own_traps.fetch_add(1, Ordering::SeqCst);
            }
            Instruction::Breakpoint(number) => {
                return Some(Exit::Trap(match isa {
                    Isa::X86_64 => Trap::Int3,
                    Isa::Aarch64 => Trap::Aarch64 { exception: DebugException::Brk(number), far: 0 },
                }));
            }
            Instruction::Device => {
                self.device.fetch_add(1, Ordering::SeqCst);
            }
            Instruction::Nothing => {}
            Instruction::Unknown => {
                return Some(Exit::End { fatal: Some(format!("no instruction at {pc:#x}")) });
            }
        }
        vcpu.set_pc(next);
        match (met, vcpu.arming.step) {
            (Some(register), false) => Some(Processor::trap(vcpu, register, access)),
            (Some(register), true) => Some(Exit::Trap(Trap::Debug { dr6: DR6_BS | 1 << register })),
            (None, true) => Some(Exit::Trap(crate::live::step::stepped(isa))),
            (None, false) if instruction == Instruction::Device => Some(Exit::Served),
            (None, false) => None,
        }
    }
}

/// What registers are called that instructions use.
struct Names {
    counter: &'static str,
    pointer: &'static str,
    left: &'static str,
    stack: &'static str,
}

fn names(isa: Isa) -> Names {
    match isa {
        Isa::X86_64 => Names { counter: "rax", pointer: "rbx", left: "rcx", stack: "rsp" },
        Isa::Aarch64 => Names { counter: "x0", pointer: "x1", left: "x2", stack: "sp" },
    }
}

/// Stacks begin this many bytes behind the first processor's word...
const STACKS: u64 = 0x4000;
/// ...and each is this long.
const STACK: u64 = 0x400;

fn register(vcpu: &FakeVcpu, name: &str) -> u64 {
    vcpu.file.get(name).unwrap_or(0)
}

/// A thread of a processor.
#[derive(Debug)]
struct Thread {
    inbox: Mutex<Option<Sender<Task<FakeVcpu>>>>,
    is_kicked: Arc<AtomicBool>,
    handle: Mutex<Option<JoinHandle<()>>>,
}

/// It does not begin again.
pub const NEVER: u64 = u64::MAX;

/// The processors of a guest, each on a thread of its own.
#[derive(Debug)]
pub struct Simulated {
    threads: Vec<Thread>,
    is_x86: bool,
    /// Its RAM.
    pub ram: SharedRam,
    /// Accesses to the device.
    pub device: Arc<AtomicU64>,
    /// Breakpoint instructions of the guest's own that it was given.
    pub own_traps: Arc<AtomicU64>,
    /// How often a debugger has had it begin again; it refuses that as long as this is [`NEVER`].
    pub resets: AtomicU64,
    /// Entries that are still to come of which about half end at once, by a kick that comes late.
    pub late_kicks: Arc<AtomicU64>,
    /// How the guest ended, if it has.
    pub end: Arc<Mutex<Option<String>>>,
}

impl Simulated {
    /// A guest of this many processors that begin at `entry`, each with a word of its own to store to, from `data` on,
    /// and a stack of its own behind all of these.
    /// None runs before it is told to.
    pub fn new(isa: Isa, vcpus: u32, ram: SharedRam, entry: u64, data: u64) -> Simulated {
        let mut simulated = Simulated {
            threads: Vec::new(),
            is_x86: isa == Isa::X86_64,
            ram,
            device: Arc::default(),
            own_traps: Arc::default(),
            resets: AtomicU64::new(NEVER),
            late_kicks: Arc::default(),
            end: Arc::default(),
        };
        for id in 0..vcpus {
            let mut vcpu = FakeVcpu::new(isa);
            vcpu.id = id;
            vcpu.set_pc(entry);
            let Names { pointer, stack, .. } = names(isa);
            vcpu.file.set(pointer, data + 8 * u64::from(id));
            vcpu.file.set(stack, data + STACKS + STACK * u64::from(id + 1));
            simulated.spawn(vcpu);
        }
        simulated
    }

    fn spawn(&mut self, vcpu: FakeVcpu) {
        let (inbox, tasks) = channel();
        let is_kicked = Arc::new(AtomicBool::new(false));
        let processor = Processor {
            ram: self.ram.clone(),
            is_kicked: Arc::clone(&is_kicked),
            device: Arc::clone(&self.device),
            own_traps: Arc::clone(&self.own_traps),
            late_kicks: Arc::clone(&self.late_kicks),
        };
        let end = Arc::clone(&self.end);
        let handle = thread::spawn(move || live(vcpu, &processor, &tasks, &end));
        let (inbox, handle) = (Mutex::new(Some(inbox)), Mutex::new(Some(handle)));
        self.threads.push(Thread { inbox, is_kicked, handle });
    }
}

/// A processor's thread.
fn live(
    mut vcpu: FakeVcpu,
    processor: &Processor,
    tasks: &Receiver<Task<FakeVcpu>>,
    end: &Mutex<Option<String>>,
) {
    let mut runner = Runner::new(vcpu.isa(), Arc::new(Times::default()));
    loop {
        processor.is_kicked.store(false, Ordering::SeqCst);
        loop {
            let task = if runner.may_run() { tasks.try_recv().ok() } else { tasks.recv().ok() };
            match task {
                Some(task) => task(&mut runner, &mut vcpu),
                None if runner.may_run() => break,
                None => return,
            }
        }
        let next = runner.run(&mut vcpu, &mut |vcpu: &mut FakeVcpu, turn: Turn<'_>| {
            // The device is done at once.
            if turn.is_finish() {
                return Exit::Interrupted;
            }
            let (_inside, _) = turn.enter();
            processor.run(vcpu)
        });
        let why = match next {
            Next::Look => continue,
            Next::End(why) => why.unwrap_or_else(|| "the guest ended".into()),
            Next::Unowned(trap) => format!("nobody's {trap:?}"),
            Next::Failed(why) => why,
        };
        *end.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    }
}

impl Monitor for Simulated {
    type Vcpu = FakeVcpu;

    fn vcpus(&self) -> u32 {
        u32::try_from(self.threads.len()).unwrap_or(u32::MAX)
    }

    fn post(&self, vcpu: u32, task: Task<FakeVcpu>) {
        let Some(thread) = self.threads.get(vcpu as usize) else { return };
        if let Some(inbox) = &*thread.inbox.lock().unwrap_or_else(PoisonError::into_inner) {
            inbox.send(task).ok();
        }
        thread.is_kicked.store(true, Ordering::SeqCst);
    }

    fn kick(&self, vcpu: u32) {
        if let Some(thread) = self.threads.get(vcpu as usize) {
            thread.is_kicked.store(true, Ordering::SeqCst);
        }
    }

    fn kick_among_vcpus(&self) -> Kick {
        let kicks: Vec<_> = self.threads.iter().map(|thread| Arc::clone(&thread.is_kicked)).collect();
        Box::new(move |vcpu| {
            if let Some(is_kicked) = kicks.get(vcpu as usize) {
                is_kicked.store(true, Ordering::SeqCst);
            }
        })
    }

    /// Port 0 is the device: how often it was accessed.
    fn read_port(&self, port: u16, bytes: &mut [u8]) -> Result<(), MachineError> {
        let count = if port == 0 { self.device.load(Ordering::SeqCst) } else { u64::MAX };
        bytes.iter_mut().zip(count.to_le_bytes()).for_each(|(byte, value)| *byte = value);
        match self.is_x86 {
            true => Ok(()),
            false => Err(MachineError::Unsupported("there are no ports here")),
        }
    }

    fn write_port(&self, port: u16, _: &[u8]) -> Result<(), MachineError> {
        if self.is_x86 && port == 0 {
            self.device.fetch_add(1, Ordering::SeqCst);
        }
        self.read_port(port, &mut [0])
    }

    fn reset(&self) -> Result<(), MachineError> {
        match self.resets.load(Ordering::SeqCst) {
            NEVER => Err(MachineError::Unsupported("it begins once")),
            resets => {
                self.resets.store(resets + 1, Ordering::SeqCst);
                Ok(())
            }
        }
    }

    fn quit(&self) {
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        end.get_or_insert_with(|| "the debugger has ended it".into());
    }
}

impl Drop for Simulated {
    fn drop(&mut self) {
        for thread in &self.threads {
            let inbox = thread.inbox.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(inbox) = inbox {
                inbox.send(Box::new(|runner, _| runner.pause())).ok();
            }
        }
        for thread in &self.threads {
            let handle = thread.handle.lock().unwrap_or_else(PoisonError::into_inner).take();
            while handle.as_ref().is_some_and(|handle| !handle.is_finished()) {
                thread.is_kicked.store(true, Ordering::SeqCst);
                thread::yield_now();
            }
        }
    }
}

/// A guest that counts, stores what it has counted, and begins again: its code, and the addresses of the store and of
/// the branch, from the first instruction on.
pub fn counting(isa: Isa) -> (Vec<u8>, u64, u64) {
    match isa {
        Isa::X86_64 => (vec![0x48, 0xff, 0xc0, 0x48, 0x89, 0x03, 0x90, 0xeb, 0xf7], 3, 7),
        Isa::Aarch64 => {
            let code = [0x9100_0400u32, 0xf900_0020, 0xd503_201f, 0x17ff_fffd];
            (code.iter().flat_map(|word| word.to_le_bytes()).collect(), 4, 12)
        }
    }
}

/// A guest with functions: its code, and the distance of places in it from the first instruction.
#[derive(Clone, Debug)]
pub struct Calling {
    /// Its code. It calls `work`, counts, and begins again.
    pub code: Vec<u8>,
    /// Behind the call of `work`.
    pub back: u64,
    /// A function that stores what has been counted, calls `leaf`, and returns.
    pub work: u64,
    /// Its call.
    pub call: u64,
    /// Behind it.
    pub behind: u64,
    /// A function that counts.
    pub leaf: u64,
    /// A function that counts down, and calls itself until it is at 0.
    pub down: u64,
    /// That call.
    pub again: u64,
    /// Behind it.
    pub behind_again: u64,
}

/// A guest with functions.
pub fn calling(isa: Isa) -> Calling {
    match isa {
        Isa::X86_64 => Calling {
            code: [
                // call work; inc rax; jmp 0
                &[0xe8, 5, 0, 0, 0, 0x48, 0xff, 0xc0, 0xeb, 0xf6][..],
                // work: mov [rbx], rax; call leaf; nop; ret
                &[0x48, 0x89, 0x03, 0xe8, 2, 0, 0, 0, 0x90, 0xc3],
                // leaf: inc rax; ret
                &[0x48, 0xff, 0xc0, 0xc3],
                // down: dec rcx; jrcxz over the call; call down; ret
                &[0x48, 0xff, 0xc9, 0xe3, 5, 0xe8, 0xf6, 0xff, 0xff, 0xff, 0xc3],
            ]
            .concat(),
            back: 5,
            work: 10,
            call: 13,
            behind: 18,
            leaf: 20,
            down: 24,
            again: 29,
            behind_again: 34,
        },
        Isa::Aarch64 => {
            const KEEP: u32 = 0xf81f_0ffe;
            const RESTORE: u32 = 0xf841_07fe;
            const RET: u32 = 0xd65f_03c0;
            const COUNT: u32 = 0x9100_0400;
            let code = [
                // bl work; add x0, x0, #1; b 0
                [0x9400_0003, COUNT, 0x17ff_fffe].as_slice(),
                // work: keep; str x0, [x1]; bl leaf; nop; restore; ret
                &[KEEP, 0xf900_0020, 0x9400_0004, 0xd503_201f, RESTORE, RET],
                // leaf: add x0, x0, #1; ret
                &[COUNT, RET],
                // down: keep; sub x2, x2, #1; cbz x2 over the call; bl down; restore; ret
                &[KEEP, 0xd100_0442, 0xb400_0042, 0x97ff_fffd, RESTORE, RET],
            ];
            Calling {
                code: code.concat().iter().flat_map(|word| word.to_le_bytes()).collect(),
                back: 4,
                work: 12,
                call: 20,
                behind: 24,
                leaf: 36,
                down: 44,
                again: 56,
                behind_again: 60,
            }
        }
    }
}

/// Where [`debuggee`]'s code begins.
pub const CODE: u64 = 0x1000;
/// Where its data is: a word for each vCPU.
pub const DATA: u64 = 0x4000;

/// A guest of this many processors, all in front of the first instruction of `code`, for a program that debugs it.
///
/// # Errors
/// When the system gives no more descriptors.
pub fn debuggee(isa: Isa, vcpus: u32, code: &[u8]) -> io::Result<Debuggee<LiveMachine<Simulated>>> {
    let ram = SharedRam(Arc::new(Ram::new(1 << 16)));
    ram.write(GuestPhys(CODE), code);
    let vcpus = Arc::new(Vcpus::new(Simulated::new(isa, vcpus, ram.clone(), CODE, DATA)));
    let engine = Arc::new(Engine::new(isa, super::host(), vcpus.count()));
    let guest = Target { engine: Arc::clone(&engine), memory: Box::new(ram) };
    let (_, machine) = Debugger::join(&vcpus, guest, true)?;
    let mut debuggee = Debuggee::new(machine, engine);
    debuggee.attach();
    Ok(debuggee)
}

/// All of a simulated guest's vCPUs.
pub type SimulatedVcpus = Vcpus<Simulated>;

/// The row of the register that the guest counts in.
pub fn counter(isa: Isa) -> usize {
    row(isa, if isa == Isa::X86_64 { "rax" } else { "x0" }).unwrap_or(0)
}

#[cfg(test)]
mod tests;
