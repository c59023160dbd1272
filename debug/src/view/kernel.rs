//! What is seen of the guest's Linux kernel, live or dumped.

use super::{NO_KERNEL_SPACE, View, stack};
use crate::cancel::Cancelled;
use crate::linux::described::{self, Anchor, Scope};
use crate::linux::kallsyms::{self, Parts};
use crate::linux::log::{Log, Wanted};
use crate::linux::module::{Module, ModuleLayout, Modules, Section};
use crate::linux::reader::Reader;
use crate::linux::symbols::Kind;
use crate::linux::task::{TaskLayout, Tasks};
use crate::linux::translate::kernel_regime;
use crate::linux::{self, Described, Symbols, Types, VmCoreInfo, btf};
use crate::memory::Translation;
use arch::Isa;
use arch::paging::Regime;
use arch::register::Bank;
use std::borrow::Cow;
use std::sync::Arc;

/// vCPUs that are asked for how they translate, and tables that are looked through for what the kernel sees, at most: a dump
/// may have thousands, none of which has it, and whoever asks often would ask all of them each time. The kernel's description
/// tells of its own tables besides.
const MOST_ASKED: usize = 64;
const MOST_REGIMES: usize = 16;

impl<'a> View<'a> {
    /// Where the guest's Linux kernel is mapped, if one is ([`linux::text`]).
    pub fn kernel_text(&self) -> Option<u64> {
        let described = || self.kernel(Scope::Running).ok()?.info.as_ref().and_then(VmCoreInfo::image_start);
        // Tables of user space may have no more of the kernel than its entries.
        if self.is_in_user_space()
            && let Some(text) = described()
        {
            return Some(text);
        }
        let (regime, _) = self.translation().ok()?;
        let vbar = match self.isa() {
            Isa::Aarch64 => self.machine.registers(self.vcpu, &[Bank::System]).ok()?.get("VBAR_EL1"),
            Isa::X86_64 => Some(0),
        };
        match vbar {
            Some(vbar) => linux::text(self.isa(), &regime, self.memory(), vbar),
            None => described(),
        }
    }

    fn is_in_user_space(&self) -> bool {
        let file = self.machine.registers(self.vcpu, &[Bank::General, Bank::System]).ok();
        file.and_then(|file| stack::start(self.isa(), &file)).is_some_and(|(_, is_user)| is_user)
    }

    /// How far the guest's kernel has moved from where it was linked, bytes.
    pub fn kernel_slide(&self) -> Option<u64> {
        self.kernel(Scope::Running).ok()?.info.as_ref().and_then(VmCoreInfo::slide)
    }

    /// The kernels that have described themselves in the guest's memory.
    ///
    /// # Errors
    /// [`Cancelled`], while they are looked for.
    pub fn kernel(&self, scope: Scope) -> Result<Cow<'a, Described>, Cancelled> {
        if let Some(known) = self.machine.kernel() {
            return Ok(Cow::Borrowed(known));
        }
        let registers = |vcpu| self.machine.registers(vcpu, &[Bank::System]).ok();
        let anchors: Vec<Anchor> = (0..self.machine.vcpus())
            .filter_map(|vcpu| registers(vcpu).as_ref().and_then(Anchor::new))
            .collect();
        let mut go_on = || self.cancel.check();
        described::find(self.isa(), self.memory(), &anchors, scope, &mut go_on).map(Cow::Owned)
    }

    /// The guest kernel's log, or what of it is wanted. A vCPU may translate otherwise than the kernel just
    /// now (in user space with tables of its own, or reset); then others are asked, and the kernel's description. Of a log
    /// before 5.10 the kernel's symbols tell which numbers its records have, where records from a number on are wanted.
    ///
    /// # Errors
    /// [`linux::LogError`], of the vCPU that is looked through.
    pub fn kernel_log(&self, info: &VmCoreInfo, wanted: &Wanted) -> Result<Log, linux::LogError> {
        // Who wants the last lines wants no numbers, and a search takes long.
        let symbols = match wanted.since.filter(|_| info.is_log_unnumbered()) {
            Some(_) => self.kernel_symbols(info).ok(),
            None => None,
        };
        let symbol = |name: &str| symbols.as_ref().and_then(|symbols| symbols.address(name));
        match self.as_kernel(info, |read| info.log_with(read, wanted, &symbol)) {
            Ok((log, _)) => Ok(log),
            Err(errors) => Err(errors.into_iter().next().unwrap_or(linux::LogError::NotMapped(0))),
        }
    }

    /// What `look` finds in memory as the kernel sees it, and in which space that is: one vCPU may see it, and another
    /// not. Where nobody sees it, the errors: of the vCPU that is looked through, of others, and of the kernel's
    /// description; none where there is nothing to translate by.
    pub(super) fn as_kernel<T, E>(
        &self,
        info: &VmCoreInfo,
        look: impl Fn(&dyn Fn(u64, &mut [u8]) -> usize) -> Result<T, E>,
    ) -> Result<(T, Translation), Vec<E>> {
        let others = (0..self.machine.vcpus()).filter(|vcpu| *vcpu != self.vcpu);
        let vcpus = std::iter::once(self.vcpu).chain(others);
        let mut known: Vec<Regime> = Vec::new();
        let by_registers = vcpus.take(MOST_ASKED).filter_map(|vcpu| {
            let regime = self.machine.regime(vcpu).ok().filter(|regime| !known.contains(regime))?;
            known.push(regime);
            Some(regime)
        });
        let by_registers = by_registers.take(MOST_REGIMES);
        let by_info = kernel_regime(self.isa(), info);
        let mut errors = Vec::new();
        for regime in by_registers.chain(by_info) {
            let space = Translation::Virtual(regime);
            match look(&|at, bytes| self.read_unless_cancelled(&space, at, bytes)) {
                Ok(found) => return Ok((found, space)),
                Err(error) => errors.push(error),
            }
        }
        Err(errors)
    }

    fn read_unless_cancelled(&self, space: &Translation, at: u64, bytes: &mut [u8]) -> usize {
        match self.cancel.check() {
            Ok(()) => self.read_in(space, at, bytes),
            Err(Cancelled) => 0,
        }
    }

    /// The symbols that the kernel keeps for itself: where it says that they are, and otherwise where they are found in its
    /// image. They are read once, and then kept by the engine.
    ///
    /// # Errors
    /// In words, why there are none. Also when it is broken off.
    pub fn kernel_symbols(&self, info: &VmCoreInfo) -> Result<Arc<Symbols>, String> {
        self.engine.kept().symbols(info, || match Parts::described(info) {
            Some(place) => self.by_kernel(info, |read| kallsyms::symbols(&place, read)).map(Ok),
            None => self.searched_symbols(info),
        })
    }

    /// How all of the kernel's image is seen, which is searched once: by tables that have its beginning and its data.
    fn image_space(&self, info: &VmCoreInfo) -> Result<Translation, String> {
        let is_there = |read: &dyn Fn(u64, &mut [u8]) -> usize| {
            let places = ["_stext", "init_uts_ns"].map(|name| info.address(name));
            let reader = Reader::new(read);
            places.into_iter().flatten().try_for_each(|place| reader.address(place).map(drop))
        };
        let found = self.as_kernel(info, is_there);
        found.map(|((), space)| space).map_err(|_| NO_KERNEL_SPACE.into())
    }

    /// What is found where all of the image was searched, or not found there.
    ///
    /// # Errors
    /// In words, why it was not searched to the end.
    fn searched_symbols(&self, info: &VmCoreInfo) -> Result<Result<Symbols, String>, String> {
        let space = self.image_space(info)?;
        let found = kallsyms::searched(info, |at, bytes| self.read_unless_cancelled(&space, at, bytes));
        self.cancel.check().map_err(|cancelled| cancelled.to_string())?;
        Ok(found.map_err(|error| error.to_string()))
    }

    /// The types that the kernel keeps for itself, likewise.
    ///
    /// # Errors
    /// In words, why there are none. Also when it is broken off.
    pub fn kernel_types(&self, info: &VmCoreInfo) -> Result<Arc<Types>, String> {
        self.engine.kept().types(info, || match self.kernel_btf(info)? {
            Ok(bytes) => btf::types(&bytes).map(Ok).map_err(|error| format!("the kernel's types: {error}")),
            Err(why) => Ok(Err(why)),
        })
    }

    /// The same, as the kernel has them: where its symbols say, or where they are found in its image if it has no symbols of
    /// data; or why it has none.
    ///
    /// # Errors
    /// In words, why they cannot be read. Also when it is broken off.
    pub(super) fn kernel_btf(&self, info: &VmCoreInfo) -> Result<Result<Vec<u8>, String>, String> {
        let symbols = self.kernel_symbols(info)?;
        let why = match types_place(&symbols) {
            Ok((begin, end)) => {
                let size = usize::try_from(end.saturating_sub(begin)).unwrap_or(usize::MAX);
                let bytes = self.by_kernel(info, |read| {
                    let mut bytes = vec![0; size.min(btf::MOST_BYTES + 1)];
                    Reader::new(read).bytes(begin, &mut bytes).map(|()| bytes)
                });
                return bytes.map(Ok);
            }
            Err(why) if has_data(&symbols) => return Ok(Err(why)),
            Err(why) => why,
        };
        let space = self.image_space(info)?;
        let found = btf::searched(info, |at, bytes| self.read_unless_cancelled(&space, at, bytes));
        self.cancel.check().map_err(|cancelled| cancelled.to_string())?;
        Ok(found.ok_or(why))
    }

    /// The kernel's tasks, by its own symbols and types.
    ///
    /// # Errors
    /// In words, what it lacks for that. Also when it is broken off.
    pub fn kernel_tasks(&self, info: &VmCoreInfo) -> Result<Tasks, String> {
        let symbols = self.kernel_symbols(info)?;
        let layout = TaskLayout::new(&*self.kernel_types(info)?).map_err(|error| error.to_string())?;
        let first = placed(&symbols, "init_task", "CONFIG_KALLSYMS_ALL");
        let first = first.or_else(|why| self.listed_task(info, &layout).ok_or(why))?;
        self.by_kernel(info, |read| {
            in_words(layout.tasks(first, &Reader::new(read), &mut || self.cancel.check()))
        })
    }

    /// A task that is in the list of all, where no symbol leads to one: by those that vCPUs are at.
    fn listed_task(&self, info: &VmCoreInfo, layout: &TaskLayout) -> Option<u64> {
        let current = self.kernel_current(info).ok()?;
        let listed = |vcpu| {
            let task = self.task_on(info, &current, vcpu).ok()?.address;
            self.by_kernel(info, |read| layout.listed(task, &Reader::new(read)).ok_or("it is in no list"))
                .ok()
        };
        (0..self.machine.vcpus()).take_while(|_| self.cancel.check().is_ok()).find_map(listed)
    }

    /// The kernel's modules, likewise.
    ///
    /// # Errors
    /// In words, what it lacks for that. Also when it is broken off.
    pub fn kernel_modules(&self, info: &VmCoreInfo) -> Result<Modules, String> {
        let symbols = self.kernel_symbols(info)?;
        let head = placed(&symbols, "modules", "CONFIG_MODULES, CONFIG_KALLSYMS_ALL")?;
        let layout = ModuleLayout::new(&*self.kernel_types(info)?).map_err(|error| error.to_string())?;
        self.by_kernel(info, |read| {
            in_words(layout.modules(head, &Reader::new(read), &mut || self.cancel.check()))
        })
    }

    /// The sections of a module, as the kernel tells user space of them.
    ///
    /// # Errors
    /// In words, what it lacks for that. Also when it is broken off.
    pub fn module_sections(&self, info: &VmCoreInfo, module: &Module) -> Result<Vec<Section>, String> {
        let layout = ModuleLayout::new(&*self.kernel_types(info)?).map_err(|error| error.to_string())?;
        self.by_kernel(info, |read| layout.sections(module, &Reader::new(read)))
    }

    /// As [`Self::as_kernel`], with one error in words. In user space some of the kernel may be mapped and its data not
    /// (page table isolation); the kernel's own description comes last, and tells most.
    pub(crate) fn by_kernel<T, E: std::fmt::Display>(
        &self,
        info: &VmCoreInfo,
        look: impl Fn(&dyn Fn(u64, &mut [u8]) -> usize) -> Result<T, E>,
    ) -> Result<T, String> {
        match self.as_kernel(info, look) {
            Ok((found, _)) => Ok(found),
            Err(errors) => Err(errors
                .last()
                .map_or_else(|| "nothing tells how the kernel translates".into(), ToString::to_string)),
        }
    }
}

/// Why something was not found, or not looked for any more.
pub(super) fn in_words<T, E: std::fmt::Display>(found: Result<Result<T, E>, Cancelled>) -> Result<T, String> {
    found.map_err(|cancelled| cancelled.to_string())?.map_err(|error| error.to_string())
}

/// Where the kernel's types begin and end. From 5.4 to 5.6 `objcopy` named that (`scripts/link-vmlinux.sh`), then the linker's
/// script does; before, kernels had none in memory.
fn types_place(symbols: &Symbols) -> Result<(u64, u64), String> {
    let of_objcopy =
        ["start", "end"].map(|which| symbols.address(&format!("_binary__btf_vmlinux_bin_{which}")));
    if let [Some(begin), Some(end)] = of_objcopy {
        return Ok((begin, end));
    }
    let place = |name| placed(symbols, name, "CONFIG_DEBUG_INFO_BTF");
    Ok((place("__start_BTF")?, place("__stop_BTF")?))
}

/// Whether a kernel keeps symbols of data: all but a few are there, or none.
fn has_data(symbols: &Symbols) -> bool {
    symbols.iter().filter(|symbol| symbol.kind == Kind::Data).nth(100).is_some()
}

/// The address of a symbol in the kernel's image.
fn placed(symbols: &Symbols, name: &str, option: &str) -> Result<u64, String> {
    let option = if has_data(symbols) { option } else { "CONFIG_KALLSYMS_ALL" };
    let lacks = || format!("the kernel has no symbol '{name}' in memory ({option})");
    symbols.address(name).ok_or_else(lacks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cancel::Cancel;
    use crate::engine::Engine;
    use crate::fake::Still;
    use crate::linux::symbols::{Builder, Symbol};
    use crate::machine::Machine;
    use std::cell::Cell;

    #[test]
    fn types_are_where_linkers_have_named_them() {
        let place = |names: [&str; 2]| {
            let mut builder = Builder::default();
            for (name, address) in names.into_iter().zip([0x1000, 0x3000]) {
                builder.add(Symbol { name, address, kind: Kind::Data, is_global: true });
            }
            types_place(&builder.finish())
        };
        let expected = Ok((0x1000, 0x3000));
        assert_eq!(place(["__start_BTF", "__stop_BTF"]), expected);
        assert_eq!(place(["_binary__btf_vmlinux_bin_start", "_binary__btf_vmlinux_bin_end"]), expected);
        let none = place(["_binary__btf_vmlinux_bin_start", "others"]);
        assert!(none.is_err_and(|why| why.contains("no symbol '__start_BTF'")));
    }

    #[test]
    fn thousands_of_vcpus_are_not_all_looked_through() {
        let machine = Still::new(Isa::X86_64, 3000, 1 << 16).unwrap();
        for vcpu in 0..3000 {
            let mut file = machine.registers(vcpu, &Bank::ALL).unwrap();
            let tables = 0x1000 * (1 + u64::from(vcpu));
            for (name, value) in [("cr0", 0x8000_0011), ("cr3", tables), ("cr4", 0x20), ("efer", 0xd00)] {
                file.set(name, value);
            }
            machine.set_registers(vcpu, &file).unwrap();
        }
        let engine = Engine::new(Isa::X86_64, machine.abilities().clone(), 3000);
        let cancel = Cancel::default();
        let view = View { machine: &machine, engine: &engine, vcpu: 7, is_physical: false, cancel: &cancel };
        let info = VmCoreInfo::parse(b"OSRELEASE=6.12.0\nPAGESIZE=4096\n").unwrap();
        let looks = Cell::new(0);
        let look = |_: &dyn Fn(u64, &mut [u8]) -> usize| {
            looks.set(looks.get() + 1);
            Err::<(), _>("nothing is there")
        };
        assert_eq!(view.by_kernel(&info, look), Err("nothing is there".into()));
        assert!((1..=MOST_REGIMES + 1).contains(&looks.get()), "{}", looks.get());
        // The one that is looked through comes first.
        let first = |read: &dyn Fn(u64, &mut [u8]) -> usize| Ok::<_, ()>(read(0, &mut []));
        let (_, space) = view.as_kernel(&info, first).unwrap();
        assert_eq!(space, Translation::Virtual(machine.regime(7).unwrap()));
    }
}
