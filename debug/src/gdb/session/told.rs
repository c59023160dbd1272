//! What a debugger is told beyond its questions.

use super::{Client, Session};
use crate::disassemble::OperatingMode;
use crate::gdb::description::Described;
use crate::machine::Machine;
use arch::Isa;
use arch::register::Bank;

impl<M: Machine> Session<M> {
    /// What a debugger that attaches now is told the processor is.
    pub fn describes(&self) -> Described {
        let follow = || {
            let mode = self
                .debuggee
                .machine
                .code(self.debuggee.current)
                .map_or(OperatingMode::Bits64, |code| code.mode);
            self.believed.describes(mode, self.is_long(self.debuggee.current))
        };
        match self.isa() {
            Isa::X86_64 => self.described.unwrap_or_else(follow),
            Isa::Aarch64 => Described::Whole,
        }
    }

    /// Whether an x86 vCPU is in long mode.
    fn is_long(&self, vcpu: u32) -> bool {
        const EFER_LMA: u64 = 1 << 10;
        let file = self.debuggee.machine.registers(vcpu, &[Bank::System]);
        file.is_ok_and(|file| file.get("efer").is_some_and(|efer| efer & EFER_LMA != 0))
    }

    /// What the debugger is told when it sees half of a processor that has gone to 64-bit mode; once.
    pub fn outgrown(&mut self, vcpu: u32) -> Option<String> {
        let is_asked_for = self.described.is_some();
        if self.is_told || is_asked_for || !self.registers.is_narrow() || !self.is_long(vcpu) {
            return None;
        }
        self.is_told = true;
        Some(self.signed(
            "the guest is in 64-bit mode now, and gdb sees a 32-bit processor. To see all of it, type:\n  \
             disconnect\n  file (or the file with 64-bit symbols behind it)\n  set architecture auto\n  \
             target remote ... (as before)\n\
             meanwhile the guest runs on, unless it is held for a debugger that is lost.\n",
        ))
    }

    /// What a gdb that may be too old for them is told of an aarch64 guest that signs return addresses; once.
    pub fn signs(&mut self, vcpu: u32) -> Option<String> {
        /// `SCTLR_EL1.EnIA` (Arm ARM (DDI 0487)).
        const ENABLED: u64 = 1 << 31;
        // gdb before 14 does not know how to strip them; one that takes errors in words does.
        let may_be_old = self.client == Client::Gdb && !self.takes_words;
        if self.isa() != Isa::Aarch64 || self.is_told || !may_be_old {
            return None;
        }
        // Asked once: a guest that begins under its debugger does not sign.
        self.is_told = true;
        let file = self.debuggee.machine.registers(vcpu, &[Bank::System]).ok()?;
        if file.get("SCTLR_EL1")? & ENABLED == 0 {
            return None;
        }
        Some(self.signed(
            "this guest signs return addresses, which gdb before 14 cannot read: finish, return and up go astray \
             there. If yours is older, boot the guest with arm64.nopauth\n",
        ))
    }

    /// What is to be told on the debugger's console, once.
    pub fn take_words(&mut self) -> Option<String> {
        self.debuggee.take_words().map(|words| self.signed(&words))
    }

    /// Words with the name of whose they are in front of each line.
    pub fn signed(&self, words: &str) -> String {
        words.lines().map(|line| format!("{}: {line}\n", self.name)).collect()
    }
}
