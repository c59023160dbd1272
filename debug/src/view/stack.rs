//! Stacks of the guest's Linux kernel: of vCPUs, and of tasks that sleep.

use super::View;
use super::module_names::ModuleNames;
use crate::linux::module::build_id;
use crate::linux::reader::Reader;
use crate::linux::task::{Task, TaskState};
use crate::linux::unwind::cfi::Row;
use crate::linux::unwind::{Frame, Stack, StackEnd, Start, frame_pointer, orc};
use crate::linux::{Symbols, Types, VmCoreInfo};
use crate::machine::Activity;
use crate::symbols::Moved;
use arch::Isa;
use arch::register::{Bank, RegisterFile};
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

/// Where an address in the kernel's image, or in a module, is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The function or the variable.
    pub symbol: String,
    /// How far behind its beginning, bytes.
    pub offset: u64,
    /// The module that it is in.
    pub module: Option<String>,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Location { symbol, offset, module } = self;
        write!(f, "{symbol}+{offset:#x}")?;
        module.as_ref().map_or(Ok(()), |module| write!(f, " [{module}]"))
    }
}

/// Bytes of a kernel's stack, at most: with all that makes it larger (KASAN, pages of 64 KiB).
const MOST_STACK: u64 = 64 << 10;

/// Frames of all stacks that are gone through for one question, at most: twice as many as a hundred thousand tasks have.
const MOST_FRAMES: usize = 1 << 22;

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
    modules: ModuleNames<'a>,
    /// Which vCPU is at a task, by where its `struct task_struct` is, once somebody has asked.
    at: OnceCell<HashMap<u64, u32>>,
    /// The stack pointers of vCPUs that are in the kernel, and which vCPUs these are, likewise.
    stack_pointers: OnceCell<Vec<(u64, u32)>>,
    /// Frames that are gone through still: a guest may have many tasks with stacks that do not end.
    frames_left: Cell<usize>,
    how: How,
    /// The kernel's file, which may know more of its frames.
    file: Option<Moved>,
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
        let modules = ModuleNames::new(view, info, &types);
        Ok(Stacks {
            view,
            info,
            symbols,
            types,
            modules,
            at: OnceCell::new(),
            stack_pointers: OnceCell::new(),
            frames_left: Cell::new(MOST_FRAMES),
            how,
            file: None,
        })
    }

    /// By what the file says, too, that the kernel was linked to: if both have the same build id. By another one's frames
    /// would be made up.
    #[must_use]
    pub fn by_file(self, file: Option<Moved>) -> Stacks<'a> {
        let file = file.filter(|file| self.info().build_id().is_some_and(|id| file.is_build(id)));
        Stacks { file, ..self }
    }

    /// What of the kernel's modules could not be had, a line each.
    pub fn remarks(&self) -> &[String] {
        self.modules.remarks()
    }

    /// The stack of a vCPU.
    ///
    /// # Errors
    /// In words. Also when it is broken off.
    pub fn of_vcpu(&self, vcpu: u32) -> Result<Stack, String> {
        let (start, is_user) = self.start(vcpu)?;
        match is_user {
            true => Ok(Stack { frames: Vec::new(), end: StackEnd::User(start.pc) }),
            false => self.unwind(vcpu, &|_| Ok(start)),
        }
    }

    pub(super) fn types(&self) -> &Types {
        &self.types
    }

    pub(super) fn symbols(&self) -> &Symbols {
        &self.symbols
    }

    pub(super) fn modules(&self) -> &ModuleNames<'a> {
        &self.modules
    }

    /// The kernel's description.
    pub(super) fn info(&self) -> &'a VmCoreInfo {
        self.info
    }

    /// The view that stacks are looked at by.
    pub(super) fn view(&self) -> &View<'a> {
        &self.view
    }

    /// What `look` finds in memory as the kernel sees it, if anything.
    pub(super) fn find<T>(&self, look: impl Fn(&Reader<'_>) -> Option<T>) -> Option<T> {
        self.view.by_kernel(self.info, |read| look(&Reader::new(read)).ok_or("nothing is there")).ok()
    }

    fn start(&self, vcpu: u32) -> Result<(Start, bool), String> {
        let banks = [Bank::General, Bank::System];
        let file = self.view.machine.registers(vcpu, &banks).map_err(|error| error.to_string())?;
        start(self.view.isa(), &file).ok_or_else(|| format!("the registers of vCPU {vcpu} are not known"))
    }

    /// The vCPU that is on a task's stack, if one is.
    fn vcpu_on(&self, stack: u64) -> Option<u32> {
        // Stacks may be near each other: one behind this one is another task's.
        let size = self.types.tagged("thread_union").and_then(|id| self.types.size(id));
        let size = size.filter(|size| (1..=MOST_STACK).contains(size)).unwrap_or(MOST_STACK);
        // All vCPUs are asked once, as there may be many of them, and of tasks.
        let all = || {
            let sp = |vcpu| self.start(vcpu).ok().filter(|(_, is_user)| !is_user).map(|(start, _)| start.sp);
            let vcpus = 0..self.view.machine.vcpus();
            let mut all: Vec<(u64, u32)> = vcpus.filter_map(|vcpu| Some((sp(vcpu)?, vcpu))).collect();
            all.sort_unstable();
            all
        };
        let all = self.stack_pointers.get_or_init(all);
        let behind = &all[all.partition_point(|(sp, _)| *sp < stack)..];
        let on = behind.iter().take_while(|(sp, _)| *sp - stack <= size);
        on.map(|(_, vcpu)| *vcpu).min()
    }

    /// The vCPU that is at a task, by its registers.
    pub(super) fn vcpu_at(&self, task: &Task) -> Option<u32> {
        let all = || {
            let Ok(current) = self.view.kernel_current(self.info) else { return HashMap::new() };
            // What one that was switched off has in its registers is from before.
            let is_on = |vcpu: &u32| self.view.machine.activity(*vcpu) != Activity::NotStarted;
            let vcpus = (0..self.view.machine.vcpus()).filter(is_on);
            let running = |vcpu| Some((self.view.task_on(self.info, &current, vcpu).ok()?.address, vcpu));
            vcpus.filter_map(running).collect()
        };
        self.at.get_or_init(all).get(&task.address).copied()
    }

    /// A member of a task, which has eight bytes.
    pub(super) fn of_task_struct(&self, task: &Task, name: &str) -> Result<u64, String> {
        self.view.of_task_struct(self.info, &self.types, task, name)
    }

    /// The stack of a task: where it goes on if it sleeps, and of one that is in a processor, that one's.
    ///
    /// # Errors
    /// In words. Also when it is broken off.
    pub fn of_task(&self, task: &Task) -> Result<Stack, String> {
        let stack = self.of_task_struct(task, "stack")?;
        if stack == 0 {
            return Err("it has ended, and has no stack any more".into());
        }
        if task.is_on_cpu != Some(false) {
            // One that is in user space, or in an interrupt, has another; then it is the vCPU that is at the task, and else
            // the processor that the kernel says.
            let said = task.cpu.filter(|_| task.is_on_cpu == Some(true));
            if let Some(vcpu) = self.vcpu_on(stack).or_else(|| self.vcpu_at(task)).or(said) {
                return self.of_vcpu(vcpu);
            }
        }
        let from_fork = |pc| {
            let names = ["ret_from_fork", "ret_from_fork_asm"];
            names.into_iter().any(|name| self.symbols.address(name) == Some(pc))
        };
        let sp = match self.view.isa() {
            Isa::X86_64 => self.of_task_struct(task, "thread.sp")?,
            Isa::Aarch64 => 0,
        };
        self.unwind(self.view.vcpu, &|reader| {
            let start = match self.view.isa() {
                Isa::X86_64 => orc::asleep(&self.types, sp, reader)?,
                Isa::Aarch64 => frame_pointer::asleep(&self.types, task.address, reader)?,
            };
            // One that has not run yet was called by nobody.
            Ok(Start { is_exact: from_fork(start.pc), ..start })
        })
    }

    /// Where a task sleeps: the first function of its stack that is not one that puts tasks to sleep (as in
    /// `/proc/PID/wchan`). `None` of one that does not sleep, or where that is not known.
    pub fn sleeps_in(&self, task: &Task) -> Option<Location> {
        if task.is_on_cpu != Some(false) || matches!(task.state, TaskState::Running | TaskState::New) {
            return None;
        }
        let [begin, end] = ["__sched_text_start", "__sched_text_end"].map(|name| self.symbols.address(name));
        let puts_to_sleep = begin?..end?;
        let stack = self.of_task(task).ok()?;
        self.location(stack.frames.iter().find(|frame| !puts_to_sleep.contains(&frame.code()))?)
    }

    /// When a task that is on a processor began there, ns of the kernel's clock (`sched_info`, which takes
    /// `CONFIG_SCHED_INFO`).
    pub fn began(&self, task: &Task) -> Option<u64> {
        self.of_task_struct(task, "sched_info.last_arrival").ok().filter(|at| *at != 0)
    }

    /// When a task that sleeps ran last, likewise.
    pub fn ran_last(&self, task: &Task) -> Option<u64> {
        self.of_task_struct(task, "se.exec_start").ok().filter(|at| *at != 0)
    }

    /// By the tables of a vCPU, and where these do not lead to all that is wanted, as in user space, by others: then it
    /// is the one that leads furthest.
    fn unwind(
        &self,
        vcpu: u32,
        start: &dyn Fn(&Reader<'_>) -> Result<Start, String>,
    ) -> Result<Stack, String> {
        let longest: RefCell<Option<Stack>> = RefCell::default();
        let found = self.view.through(vcpu).by_kernel(self.info, |read| {
            let reader = Reader::new(read);
            if self.frames_left.get() == 0 {
                return Err("the stacks that were looked at had too many frames".to_string());
            }
            let stack = self.unwind_by(start(&reader)?, &reader);
            self.frames_left.set(self.frames_left.get().saturating_sub(stack.frames.len().max(1)));
            let StackEnd::Lost(why) = &stack.end else { return Ok(stack) };
            let (why, mut longest) = (why.clone(), longest.borrow_mut());
            if longest.as_ref().is_none_or(|longest| longest.frames.len() < stack.frames.len()) {
                *longest = Some(stack);
            }
            Err::<Stack, String>(why)
        });
        self.view.cancel.check().map_err(|cancelled| cancelled.to_string())?;
        found.or_else(|why| longest.take().ok_or(why))
    }

    fn unwind_by(&self, start: Start, reader: &Reader<'_>) -> Stack {
        match &self.how {
            How::Orc(layout, own) => {
                layout.stack(start, |pc| self.table(*own, pc), &|pc| self.call_frame(pc), reader)
            }
            How::FramePointer(layout) => {
                layout.stack(start, |pc| self.function(pc), &|pc| self.call_frame(pc), reader)
            }
        }
    }

    /// What the kernel's file says of a frame: nothing, if that is damaged.
    fn call_frame(&self, pc: u64) -> Option<Row> {
        self.file.as_ref()?.call_frame(pc).unwrap_or_default()
    }

    /// The table that has an address's entries.
    fn table(&self, own: Option<orc::Table>, pc: u64) -> Option<orc::Table> {
        if let Some(module) = self.modules.module(pc) {
            return module.orc;
        }
        let is_within = |begin, end| match (self.symbols.address(begin), self.symbols.address(end)) {
            (Some(begin), Some(end)) => (begin..end).contains(&pc),
            _ => false,
        };
        own.filter(|_| is_within("_stext", "_etext") || is_within("_sinittext", "_einittext"))
    }

    /// Where a frame goes on.
    pub fn location(&self, frame: &Frame) -> Option<Location> {
        let code = frame.code();
        let module = self.modules.module(code).map(|module| module.name.clone());
        let symbols = self.symbols_at(code)?;
        let (symbol, size) = symbols.at(code)?;
        (size != u64::MAX || module.is_some()).then(|| Location {
            symbol: symbol.name.to_string(),
            offset: frame.pc.wrapping_sub(symbol.address),
            module,
        })
    }

    /// Where the function begins that an address is in.
    fn function(&self, pc: u64) -> Option<u64> {
        let (symbol, size) =
            self.symbols_at(pc).as_ref()?.at(pc).map(|(symbol, size)| (symbol.address, size))?;
        (size != u64::MAX || self.modules.module(pc).is_some()).then_some(symbol)
    }

    /// The module that an address is in: where its `struct module` is.
    pub(crate) fn module(&self, pc: u64) -> Option<u64> {
        self.modules.module(pc).map(|module| module.address)
    }

    /// What tells the build of the module that an address is in from others, if it says that, and where its sections are.
    pub(crate) fn build(&self, pc: u64) -> Option<(String, Vec<(String, u64)>)> {
        let module = self.modules.module(pc)?;
        let sections = self.view.module_sections(self.info, module).ok()?;
        let id = self.find(|reader| build_id(&sections, reader).ok().flatten())?;
        Some((id, sections.into_iter().map(|it| (it.name, it.address)).collect()))
    }

    fn symbols_at(&self, pc: u64) -> Option<Arc<Symbols>> {
        match self.modules.module(pc) {
            Some(module) => self.modules.symbols(module),
            None => Some(Arc::clone(&self.symbols)),
        }
    }
}

/// Where a vCPU is, and whether that is in user space.
pub(super) fn start(isa: Isa, file: &RegisterFile) -> Option<(Start, bool)> {
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
            (Start { pc, sp, fp, link, is_exact: true, ..Start::default() }, get("cpsr")? & 0xf == 0)
        }
    })
}
