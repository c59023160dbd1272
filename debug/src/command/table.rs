//! The table: the commands that every machine has.

#[cfg(feature = "linux")]
use super::backtrace;
#[cfg(feature = "linux")]
use super::dmesg;
#[cfg(feature = "dump")]
use super::dump;
#[cfg(feature = "linux")]
use super::linux;
#[cfg(feature = "linux")]
use super::locks;
#[cfg(feature = "linux")]
use super::module_symbols;
#[cfg(feature = "linux")]
use super::modules;
#[cfg(feature = "linux")]
use super::mounts;
use super::operator::Operator;
#[cfg(feature = "linux")]
use super::print;
#[cfg(any(feature = "dwarf", feature = "linux"))]
use super::symbols;
#[cfg(feature = "linux")]
use super::tasks;
#[cfg(feature = "linux")]
use super::why;
use super::{breakpoints, host, info, memory, registers};
use crate::reply::{Arguments, Command, Refusal, Reply};

/// A command, and what parses its arguments and carries it out.
pub(super) struct Entry {
    pub command: Command,
    pub run: fn(&mut dyn Operator, &Arguments<'_>) -> Result<Reply, Refusal>,
}

/// All of them, in the order in which help has them.
pub(super) const TABLE: &[Entry] = &[
    Entry { command: info::INFO, run: info::run },
    Entry { command: registers::REGS, run: registers::run },
    Entry { command: registers::THREADS, run: registers::run_threads },
    Entry { command: memory::TRANSLATE, run: memory::run_translate },
    Entry { command: memory::READ, run: memory::run_read },
    Entry { command: memory::MAP, run: memory::run_map },
    Entry { command: memory::MEM, run: memory::run_mem },
    Entry { command: host::EXITS, run: host::run_exits },
    Entry { command: breakpoints::BREAKPOINTS, run: breakpoints::run },
    #[cfg(feature = "linux")]
    Entry { command: linux::LINUX, run: linux::run },
    #[cfg(feature = "linux")]
    Entry { command: dmesg::DMESG, run: dmesg::run },
    #[cfg(feature = "linux")]
    Entry { command: tasks::PS, run: tasks::run },
    #[cfg(feature = "linux")]
    Entry { command: backtrace::BT, run: backtrace::run },
    #[cfg(feature = "linux")]
    Entry { command: modules::LSMOD, run: modules::run },
    #[cfg(feature = "linux")]
    Entry { command: mounts::MOUNTS, run: mounts::run },
    #[cfg(feature = "linux")]
    Entry { command: module_symbols::SYMBOLS, run: module_symbols::run },
    #[cfg(feature = "linux")]
    Entry { command: locks::LOCKS, run: locks::run },
    #[cfg(feature = "linux")]
    Entry { command: why::WHY, run: why::run },
    #[cfg(feature = "linux")]
    Entry { command: print::PRINT, run: print::run },
    #[cfg(any(feature = "dwarf", feature = "linux"))]
    Entry { command: symbols::SYM, run: symbols::run },
    #[cfg(feature = "dump")]
    Entry { command: dump::DUMP, run: dump::run },
    Entry { command: host::NMI, run: host::run_nmi },
    Entry { command: host::HOST, run: host::run },
    Entry { command: host::RESET, run: host::run_reset },
    Entry { command: host::QUIT, run: host::run_quit },
];
