//! Stacks of the guest's Linux kernel: of vCPUs, and of tasks that sleep.

use super::View;
use crate::linux::module::{Module, ModuleLayout, Modules};
use crate::linux::reader::Reader;
use crate::linux::task::{State, Task};
use crate::linux::unwind::{End, Frame, Stack, Start, frame_pointer, orc};
use crate::linux::{Symbols, Types, VmCoreInfo};
use arch::Isa;
use arch::register::{Bank, RegisterFile};
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

/// Where an address in the kernel's code is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The function.
    pub function: String,
    /// How far behind its beginning, bytes.
    pub offset: u64,
    /// The module that it is in.
    pub module: Option<String>,
}

/// Symbols of modules that are read, at most, but for the last module's: distributions' modules have a million of them,
/// all together.
const MOST_SYMBOLS: usize = 1 << 20;

/// How the kernel's stacks are unwound.
#[derive(Debug)]
enum How {
    Orc(orc::Layout, Option<orc::Table>),
    FramePointer(frame_pointer::Layout),
}

/// What stacks of a kernel are looked at with.
#[derive(Debug)]
pub struct Stacks<'a> {
    view: View<'a>,
    info: &'a VmCoreInfo,
    symbols: Arc<Symbols>,
    types: Arc<Types>,
    modules: Modules,
    /// Modules' symbols that have been read, by where their `struct module` is.
    of_modules: RefCell<HashMap<u64, Option<Arc<Symbols>>>>,
    layout: Option<ModuleLayout>,
    how: How,
}

impl<'a> Stacks<'a> {
    /// By the symbols, types and modules that the kernel has in its own memory.
    ///
    /// # Errors
    /// In words, what it lacks. Also when it is broken off.
    pub fn new(view: View<'a>, info: &'a VmCoreInfo) -> Result<Stacks<'a>, String> {
        let (symbols, types) = (view.kernel_symbols(info)?, view.kernel_types(info)?);
        let how = match view.isa() {
            Isa::X86_64 => How::Orc(orc::Layout::new(&types)?, orc::Table::of_kernel(&symbols)),
            Isa::Aarch64 => {
                let code_bits = info.number("KERNELPACMASK").unwrap_or(0);
                How::FramePointer(frame_pointer::Layout::new(&types, code_bits)?)
            }
        };
        // A kernel without modules, or whose list of them is no symbol, has stacks as well.
        let modules = view.kernel_modules(info).unwrap_or_default();
        let layout = ModuleLayout::new(&types).ok();
        Ok(Stacks { view, info, symbols, types, modules, of_modules: RefCell::default(), layout, how })
    }

    /// The stack of a vCPU.
    ///
    /// # Errors
    /// In words. Also when it is broken off.
    pub fn of_vcpu(&self, vcpu: u32) -> Result<Stack, String> {
        let banks = [Bank::General, Bank::System];
        let file = self.view.machine.registers(vcpu, &banks).map_err(|error| error.to_string())?;
        let (start, is_user) = start(self.view.isa(), &file)
            .ok_or_else(|| format!("the registers of vCPU {vcpu} are not known"))?;
        match is_user {
            true => Ok(Stack { frames: Vec::new(), end: End::User(start.pc) }),
            false => self.unwind(&|_| Ok(start)),
        }
    }

    /// The stack of a task: where it goes on if it sleeps, and of one that is in a processor, that one's.
    ///
    /// # Errors
    /// In words. Also when it is broken off.
    pub fn of_task(&self, task: &Task) -> Result<Stack, String> {
        if let (Some(true), Some(cpu)) = (task.is_on_cpu, task.cpu) {
            return self.of_vcpu(cpu);
        }
        let from_fork = |pc| {
            let names = ["ret_from_fork", "ret_from_fork_asm"];
            names.into_iter().any(|name| self.symbols.address(name) == Some(pc))
        };
        self.unwind(&|reader| {
            let start = match self.view.isa() {
                Isa::X86_64 => {
                    let of = self.types.tagged("task_struct");
                    let sp = of.and_then(|of| self.types.field(of, "thread.sp"));
                    let sp = sp.ok_or("the kernel's types do not have struct task_struct's thread.sp")?;
                    let sp = reader.field(task.address, sp).map_err(|error| error.to_string())?;
                    orc::asleep(&self.types, sp, reader)?
                }
                Isa::Aarch64 => frame_pointer::asleep(&self.types, task.address, reader)?,
            };
            // One that has not run yet was called by nobody.
            Ok(Start { is_exact: from_fork(start.pc), ..start })
        })
    }

    /// Where a task sleeps: the first function of its stack that is not one that puts tasks to sleep (as in
    /// `/proc/PID/wchan`). `None` of one that does not sleep, or where that is not known.
    pub fn sleeps_in(&self, task: &Task) -> Option<Location> {
        if task.is_on_cpu != Some(false) || matches!(task.state, State::Running | State::New) {
            return None;
        }
        let [begin, end] = ["__sched_text_start", "__sched_text_end"].map(|name| self.symbols.address(name));
        let puts_to_sleep = begin?..end?;
        // Behind the call.
        let back = |frame: &Frame| frame.pc.wrapping_sub(u64::from(!frame.is_exact));
        let stack = self.of_task(task).ok()?;
        let frame = stack.frames.iter().find(|frame| !puts_to_sleep.contains(&back(frame)))?;
        self.place(back(frame))
            .map(|place| Location { offset: frame.pc - back(frame) + place.offset, ..place })
    }

    fn unwind(&self, start: &dyn Fn(&Reader<'_>) -> Result<Start, String>) -> Result<Stack, String> {
        let stack = self.view.by_kernel(self.info, |read| {
            let reader = Reader::new(read);
            let start = start(&reader)?;
            reader.address(start.sp & !7).map_err(|error| error.to_string())?;
            Ok::<_, String>(match &self.how {
                How::Orc(layout, own) => layout.stack(start, |pc| self.table(*own, pc), &reader),
                How::FramePointer(layout) => {
                    let has_frame = |pc| {
                        let begin = self.at(pc, |symbol| symbol);
                        begin.is_none_or(|begin| frame_pointer::has_frame(begin, pc, &reader))
                    };
                    layout.stack(start, has_frame, &reader)
                }
            })
        });
        self.view.cancel.check().map_err(|cancelled| cancelled.to_string())?;
        stack
    }

    /// The table that has an address's entries.
    fn table(&self, own: Option<orc::Table>, pc: u64) -> Option<orc::Table> {
        if let Some(module) = self.module(pc) {
            return module.orc;
        }
        let is_within = |begin, end| match (self.symbols.address(begin), self.symbols.address(end)) {
            (Some(begin), Some(end)) => (begin..end).contains(&pc),
            _ => false,
        };
        own.filter(|_| is_within("_stext", "_etext") || is_within("_sinittext", "_einittext"))
    }

    fn module(&self, pc: u64) -> Option<&Module> {
        self.modules.all.iter().find(|module| pc.wrapping_sub(module.text) < module.text_size)
    }

    /// Where an address is.
    pub fn place(&self, pc: u64) -> Option<Location> {
        let module = self.module(pc).map(|module| module.name.clone());
        let symbols = self.symbols_at(pc)?;
        let (symbol, size) = symbols.at(pc)?;
        (size != u64::MAX || module.is_some()).then(|| Location {
            function: symbol.name.to_string(),
            offset: pc - symbol.address,
            module,
        })
    }

    /// Where the function begins that an address is in.
    fn at<T>(&self, pc: u64, then: impl Fn(u64) -> T) -> Option<T> {
        let symbols = self.symbols_at(pc)?;
        symbols.at(pc).map(|(symbol, _)| then(symbol.address))
    }

    fn symbols_at(&self, pc: u64) -> Option<Arc<Symbols>> {
        let Some(module) = self.module(pc) else { return Some(Arc::clone(&self.symbols)) };
        if let Some(known) = self.of_modules.borrow().get(&module.address) {
            return known.clone();
        }
        // Who has so many is after something else.
        let known: usize = self.of_modules.borrow().values().flatten().map(|symbols| symbols.count()).sum();
        let layout = self.layout.as_ref().filter(|_| known < MOST_SYMBOLS)?;
        let read = self.view.by_kernel(self.info, |read| layout.symbols(module, &Reader::new(read)));
        let read = read.ok().map(Arc::new);
        self.of_modules.borrow_mut().insert(module.address, read.clone());
        read
    }
}

/// Where a vCPU is, and whether that is in user space.
fn start(isa: Isa, file: &RegisterFile) -> Option<(Start, bool)> {
    let get = |name: &str| file.get(name);
    Some(match isa {
        Isa::X86_64 => {
            let mut general = [0; 16];
            for (number, name) in [(10, "r10"), (13, "r13"), (7, "rdi"), (2, "rdx")] {
                general[number] = get(name)?;
            }
            let start = Start {
                pc: get("rip")?,
                sp: get("rsp")?,
                fp: get("rbp")?,
                general: Some(general),
                is_exact: true,
                ..Start::default()
            };
            (start, get("cs")? & 3 != 0)
        }
        Isa::Aarch64 => {
            let (pc, sp, fp, link) = (get("pc")?, get("sp")?, get("x29")?, get("x30"));
            (Start { pc, sp, fp, link, is_exact: true, ..Start::default() }, get("cpsr")? & 0x1c == 0)
        }
    })
}
