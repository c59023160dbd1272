//! How a call comes out of a vCPU's registers, and how its result gets there: by the family's convention, and by the
//! way that this host has for it ([`Transport`]).

use super::family::FamilyName;
use crate::machine::guest_ram::GuestRam;
use arch::hypercall::{Abi, Rows, hvc_immediate};
use arch::register::row;
use arch::{GuestPhys, GuestVirt, Isa};
use debug::disassemble::OperatingMode;
use debug::machine::Memory;
use debug::memory::Translation;
use devices::hypercall::{Hypercalls, MOST_ARGUMENTS, RawCall};
use kvm::exit::HypercallExit;
use kvm::{HOST_ISA, KvmError, Transport, Vcpu};
use std::sync::{Mutex, PoisonError};

/// Calls of one machine's family.
pub(super) struct Calling {
    pub family: FamilyName,
    pub transport: Transport,
    /// The registers of each ABI's calls.
    rows: [Rows; Abi::ALL.len()],
    /// aarch64: where each vCPU's last call was.
    places: Vec<Mutex<Option<CallPlace>>>,
}

/// Where an `HVC` is, by a translation that holds as long as the tables' base does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CallPlace {
    pc: u64,
    base: u64,
    address: GuestPhys,
}

impl Calling {
    pub fn new(family: FamilyName, transport: Transport, vcpus: u32) -> Calling {
        let rows = Abi::ALL.map(|abi| (family.facts().convention)(abi).rows(abi.isa()));
        Calling { family, transport, rows, places: (0..vcpus).map(|_| Mutex::default()).collect() }
    }

    /// Whether calls look at registers, so that KVM had better hand them over with each exit.
    pub fn looks_at_registers(&self) -> bool {
        !matches!(self.transport, Transport::XenExit { .. }) || !self.family.is_called_as_xen()
    }

    /// The call behind an exit; `None` for an SMCCC call, which is not ours.
    pub fn take(
        &self,
        vcpu: &Vcpu,
        exit: HypercallExit,
        calls: &Hypercalls,
        ram: &GuestRam,
    ) -> Result<Option<RawCall>, KvmError> {
        let abi = match exit {
            HypercallExit::Xen { is_long, number, arguments, .. } => {
                let abi = if is_long { Abi::X86_64 } else { Abi::X86_32 };
                if self.family.is_called_as_xen() {
                    return Ok(Some(RawCall { abi, number, arguments }));
                }
                // KVM has taken Xen's registers.
                abi
            }
            HypercallExit::Port if vcpu.code()?.mode == OperatingMode::Bits64 => Abi::X86_64,
            HypercallExit::Port => Abi::X86_32,
            HypercallExit::Smccc { is_smc, .. } => {
                let hvc = self.family.facts().hvc;
                if is_smc || hvc.is_none() || self.immediate(vcpu, ram)? != hvc {
                    return Ok(None);
                }
                Abi::Aarch64
            }
        };
        let rows = &self.rows[abi as usize];
        let value = |row: usize| vcpu.register(row).unwrap_or(0);
        let number = abi.cut(value(rows.number));
        let mut arguments = [0; MOST_ARGUMENTS];
        let known = match exit {
            HypercallExit::Smccc { function, .. } => Some(u64::from(function)),
            _ => None,
        };
        let first = || known.unwrap_or_else(|| rows.arguments.first().map_or(0, |row| value(*row)));
        let (count, is_op) = match abi.word() {
            // A 64-bit argument of 32-bit code is in two registers.
            4 => (MOST_ARGUMENTS, false),
            _ => calls.argument_count(number, abi, first),
        };
        for (index, (argument, row)) in arguments.iter_mut().zip(&rows.arguments).take(count).enumerate() {
            *argument = known.filter(|_| is_op && index == 0).unwrap_or_else(|| value(*row));
        }
        Ok(Some(RawCall { abi, number, arguments }))
    }

    /// aarch64: the immediate of the `HVC` in front of the program counter. Where it is in memory is
    /// known from the last time, unless the tables have changed; what it is is looked at each time.
    fn immediate(&self, vcpu: &Vcpu, ram: &GuestRam) -> Result<Option<u16>, KvmError> {
        let (pc, base) = vcpu.pc_and_base()?;
        let pc = pc.wrapping_sub(4);
        let Some(place) = self.places.get(vcpu.id() as usize) else { return Ok(None) };
        let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
        let known = place.filter(|place| place.pc == pc && place.base == base).map(|place| place.address);
        let address = match known {
            Some(address) => address,
            None => match Translation::Virtual(vcpu.regime()?).locate(ram, GuestVirt(pc)) {
                Ok((address, _)) => {
                    *place = Some(CallPlace { pc, base, address });
                    address
                }
                Err(_) => return Ok(None),
            },
        };
        let mut bytes = [0; 4];
        let count = ram.read(address, &mut bytes);
        Ok(if count == 4 { hvc_immediate(u32::from_le_bytes(bytes)) } else { None })
    }

    /// Gives the vCPU a call's result.
    pub fn give(&self, vcpu: &mut Vcpu, exit: HypercallExit, abi: Abi, result: i64) -> Result<(), KvmError> {
        let value = abi.cut(result.cast_unsigned());
        match exit {
            HypercallExit::Xen { .. } => {
                vcpu.set_hypercall_result(value);
                Ok(())
            }
            HypercallExit::Port | HypercallExit::Smccc { .. } => {
                vcpu.set_rows(&[(self.rows[abi as usize].result, value)])
            }
        }
    }
}

/// Whether a kernel has made the call: calls are for kernels.
pub(super) fn is_privileged(vcpu: &Vcpu, exit: HypercallExit) -> bool {
    match exit {
        HypercallExit::Xen { privilege, .. } => privilege == 0,
        HypercallExit::Port => vcpu.is_privileged(),
        // `HVC` is undefined at EL0.
        HypercallExit::Smccc { .. } => true,
    }
}

/// Answers an SMCCC call as KVM does one that it does not know: `NOT_SUPPORTED`, and nothing else
/// (Linux, `kvm_smccc_call_handler`).
pub(super) fn refuse_smccc(vcpu: &Vcpu) -> Result<(), KvmError> {
    vcpu.set_rows(&[(0, u64::MAX), (1, 0), (2, 0), (3, 0)])
}

/// Puts the vCPU back to the call, as if it had not been made.
pub(super) fn rewind(vcpu: &mut Vcpu, exit: HypercallExit) -> Result<(), KvmError> {
    let (pc, _) = vcpu.pc_and_flags()?;
    let pc_row = arch::register::pc_row(HOST_ISA);
    match HOST_ISA {
        // KVM has gone on behind the instruction.
        Isa::Aarch64 => vcpu.set_rows(&[(pc_row, pc.wrapping_sub(4))]),
        // It goes on when the guest is entered, which is made to happen now.
        Isa::X86_64 => {
            let number = row(Isa::X86_64, "rax").and_then(|row| Some((row, vcpu.register(row)?)));
            if let Some((_, number)) = number
                && matches!(exit, HypercallExit::Xen { .. })
            {
                vcpu.set_hypercall_result(number);
            }
            // It is written, so there is nothing more to serve.
            vcpu.finish_access()?;
            let rows: Vec<(usize, u64)> = number.into_iter().chain([(pc_row, pc)]).collect();
            vcpu.set_rows(&rows)
        }
    }
}
