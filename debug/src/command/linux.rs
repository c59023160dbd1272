//! `linux`: what a Linux kernel in the guest says of itself, without its symbols.

use super::names::found;
use super::operator::Operator;
use crate::cancel::Cancelled;
use crate::linux::VmCoreInfo;
use crate::linux::described::Scope;
use crate::reply::{Arguments, Command, Json, Refusal, Reply, Value, hex, json};
use crate::view::View;
use arch::Isa;
use arch::plain::plain;
use std::fmt;

/// `linux`.
pub const LINUX: Command = Command::new("linux", "", "the guest's Linux kernel: release, where it is mapped");

/// What is known of the guest's kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kernel {
    /// Its release, as `uname -r` has it, if one has described itself.
    pub release: Option<String>,
    /// What tells its build from others, in hexadecimal digits.
    pub build_id: Option<String>,
    /// How far it has moved from where it was linked, bytes.
    pub slide: Option<u64>,
    /// It has moved, and its per-CPU variables have not.
    pub left_per_cpu: bool,
    /// Where it is mapped from, guest-virtual.
    pub mapped: Option<u64>,
    /// The file with its symbols that was found by its build id, as nobody has named one.
    pub symbols: Option<String>,
    /// What else there is to say, a line each.
    pub remarks: Vec<String>,
}

impl Kernel {
    /// Looks for it.
    ///
    /// # Errors
    /// [`Cancelled`].
    pub fn of(view: &View<'_>) -> Result<Kernel, Cancelled> {
        let known = view.kernel(Scope::Everything)?;
        let info = known.info.as_ref();
        let slide = info.and_then(VmCoreInfo::slide);
        let is_moved = slide.is_some_and(|slide| slide != 0);
        let has_per_cpu_at_zero = info.is_some_and(VmCoreInfo::has_per_cpu_at_zero);
        Ok(Kernel {
            release: info.map(|info| info.release().to_string()),
            build_id: info.and_then(VmCoreInfo::build_id).map(str::to_string),
            slide,
            left_per_cpu: is_moved && view.isa() == Isa::X86_64 && has_per_cpu_at_zero,
            mapped: view.kernel_text(),
            symbols: None,
            remarks: known.remarks.clone(),
        })
    }
}

impl Kernel {
    /// Adds what is known of it to what is known of the machine.
    pub(super) fn with_facts(&self, mut facts: Json) -> Json {
        facts["release"] = json!(self.release);
        facts["slide"] = json!(self.slide.map(hex));
        facts["mapped"] = json!(self.mapped.map(hex));
        if let Some(remarks) = facts["remarks"].as_array_mut() {
            remarks.extend(self.remarks.iter().cloned().map(Json::from));
        }
        facts
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.release {
            Some(release) => writeln!(f, "release: {release}")?,
            None => writeln!(f, "no Linux kernel has described itself in memory (yet)")?,
        }
        if let Some(slide) = self.slide {
            writeln!(f, "moved by {slide:#x} from where it was linked")?;
            if self.left_per_cpu {
                // A debugger that is told the slide moves all sections alike.
                writeln!(f, "its per-CPU variables have not moved; for them, load symbols by hand:")?;
                writeln!(f, "  symbol-file")?;
                writeln!(f, "  add-symbol-file vmlinux -o {slide:#x} -s .data..percpu 0")?;
            }
        }
        match self.mapped {
            Some(address) => writeln!(f, "mapped from {address:#x} on")?,
            None => writeln!(f, "not mapped where a kernel would be (yet)")?,
        }
        if let Some(symbols) = &self.symbols {
            writeln!(f, "symbols: {symbols}, found by its build id")?;
        }
        self.remarks.iter().try_for_each(|remark| writeln!(f, "{remark}"))
    }
}

impl Value for Kernel {
    fn json(&self) -> Json {
        json!({
            "release": self.release, "build_id": self.build_id, "slide": self.slide.map(hex),
            "left_per_cpu": self.left_per_cpu, "mapped": self.mapped.map(hex), "symbols": self.symbols,
            "remarks": self.remarks,
        })
    }
}

pub(super) fn run(operator: &mut dyn Operator, arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
    arguments.none()?;
    let kernel = Kernel::of(&operator.view())?;
    let symbols = found(operator)?.map(|found| plain(&found.place));
    Ok(Box::new(Kernel { symbols, ..kernel }))
}
