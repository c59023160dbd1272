//! Why a vCPU left the guest, as one typed value.
//!
//! Every exit of both architectures is decoded here, once; nothing later reads the unions of
//! `kvm_run`. Source: KVM API, "5. The kvm_run structure".

pub use crate::debug_exit::DebugExit;

use arch::End;
use debug::trap::Trap;
use kvm_bindings as kvm;

/// What `KVM_RUN` came back with. Data of port and memory accesses is lent from `kvm_run`:
/// what a read leaves there is what the guest gets when it runs on.
#[derive(Debug)]
pub enum VcpuExit<'a> {
    /// The guest reads I/O ports: `data` is one or more accesses of `size` bytes each, all to
    /// `port` (a string instruction makes several).
    PortRead {
        /// The port.
        port: u16,
        /// Width of one access, bytes: 1, 2 or 4.
        size: usize,
        /// To be filled.
        data: &'a mut [u8],
    },
    /// The guest writes I/O ports, likewise.
    PortWrite {
        /// The port.
        port: u16,
        /// Width of one access, bytes: 1, 2 or 4.
        size: usize,
        /// What it writes.
        data: &'a [u8],
    },
    /// The guest reads memory that has no RAM behind it.
    MmioRead {
        /// Guest-physical address.
        address: u64,
        /// To be filled.
        data: &'a mut [u8],
    },
    /// The guest writes memory that has no RAM behind it.
    MmioWrite {
        /// Guest-physical address.
        address: u64,
        /// What it writes.
        data: &'a [u8],
    },
    /// `HLT` on a host whose KVM leaves it to us (no in-kernel interrupt controller).
    Halt,
    /// x86 triple fault: the processor is in shutdown.
    Shutdown,
    /// The guest asked the firmware interface that KVM emulates for something (aarch64 PSCI).
    SystemEvent(SystemEvent),
    /// KVM cannot go on.
    InternalError(InternalError),
    /// The processor refused to enter the guest.
    EntryFailed {
        /// The hardware's reason.
        reason: u64,
    },
    /// aarch64: an access to memory without RAM by an instruction that the hardware does not
    /// describe (no valid syndrome).
    NoSyndrome {
        /// The exception's instruction-specific syndrome.
        iss: u64,
        /// Guest-physical address of the access.
        address: u64,
    },
    /// KVM could not resolve a fault on guest memory.
    MemoryFault {
        /// Guest-physical address.
        address: u64,
        /// Bytes.
        size: u64,
        /// What is said of the access: bit 3 (`KVM_MEMORY_EXIT_FLAG_PRIVATE`) that it was to private memory (KVM API,
        /// "KVM_EXIT_MEMORY_FAULT").
        flags: u64,
        /// What `KVM_RUN` failed with.
        errno: i32,
    },
    /// A debug event (`KVM_SET_GUEST_DEBUG`).
    Debug(DebugExit),
    /// The guest calls its hypervisor, and KVM hands it over.
    Hypercall(HypercallExit),
    /// x86: the guest writes an MSR that a filter keeps for us.
    MsrWrite {
        /// Its number.
        index: u32,
        /// What it writes.
        value: u64,
        /// To be set for a write that faults.
        refused: &'a mut u8,
    },
    /// A signal: somebody kicked the thread.
    Interrupted,
    /// A reason that this monitor asks for nowhere, by its number.
    Other(u32),
}

impl VcpuExit<'_> {
    /// Names of the kinds that [`Self::kind`] tells apart.
    pub const KINDS: [&'static str; 9] =
        ["port", "mmio", "debug", "interrupted", "system event", "shutdown", "error", "other", "hypercall"];

    /// Which kind it is, for counting.
    pub fn kind(&self) -> usize {
        match self {
            VcpuExit::PortRead { .. } | VcpuExit::PortWrite { .. } => 0,
            VcpuExit::MmioRead { .. } | VcpuExit::MmioWrite { .. } => 1,
            VcpuExit::Debug(_) => 2,
            VcpuExit::Interrupted => 3,
            VcpuExit::SystemEvent(_) => 4,
            VcpuExit::Shutdown => 5,
            VcpuExit::InternalError(_) | VcpuExit::EntryFailed { .. } | VcpuExit::MemoryFault { .. } => 6,
            VcpuExit::Halt | VcpuExit::NoSyndrome { .. } | VcpuExit::MsrWrite { .. } | VcpuExit::Other(_) => {
                7
            }
            VcpuExit::Hypercall(_) => 8,
        }
    }
}

impl VcpuExit<'_> {
    /// The trap that a debugger may have asked for, if it is one: a debug exit, or an instruction that KVM cannot
    /// emulate, which one that was planted may be.
    pub fn trap(&self) -> Option<Trap> {
        match self {
            VcpuExit::Debug(debug) => debug.trap(),
            VcpuExit::InternalError(InternalError::Emulation { instruction }) => {
                Some(Trap::EmulationFailure { instruction: instruction.clone() })
            }
            _ => None,
        }
    }
}

/// A hypercall, as each way out of the guest tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HypercallExit {
    /// `KVM_EXIT_XEN`.
    Xen {
        /// The caller is in 64-bit mode.
        is_long: bool,
        /// Its privilege level.
        privilege: u32,
        /// The call.
        number: u64,
        /// Its arguments.
        arguments: [u64; 6],
    },
    /// A write to the port of our own hypercall page.
    Port,
    /// aarch64: an SMCCC function that was handed over.
    Smccc {
        /// The function: the lower half of X0.
        function: u32,
        /// By `SMC` instead of `HVC`.
        is_smc: bool,
    },
}

/// `KVM_EXIT_SYSTEM_EVENT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SystemEvent {
    /// PSCI `SYSTEM_OFF` or `SYSTEM_RESET`, or the guest reports that it has crashed.
    End(End),
    /// aarch64: an interrupt for a vCPU that was made to wait.
    Wakeup,
    /// Another number.
    Other(u32),
}

/// `KVM_EXIT_INTERNAL_ERROR`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InternalError {
    /// KVM met an instruction that it had to emulate and cannot.
    Emulation {
        /// The instruction's bytes, where KVM tells them.
        instruction: Vec<u8>,
    },
    /// Anything else.
    Other {
        /// The kind, `KVM_INTERNAL_ERROR_*`.
        suberror: u32,
        /// What KVM says about it.
        data: Vec<u64>,
    },
}

/// Decodes what `KVM_RUN` left in `run`.
///
/// # Safety
/// `run` must be the start of a vCPU's whole `KVM_GET_VCPU_MMAP_SIZE` mapping, which no one
/// else uses for the lifetime of the result.
pub unsafe fn decode(run: &mut kvm::kvm_run) -> VcpuExit<'_> {
    let base = std::ptr::from_mut(run).cast::<u8>();
    match run.exit_reason {
        kvm::KVM_EXIT_IO => {
            // SAFETY: the exit reason says which member of the union is valid.
            let io = unsafe { run.__bindgen_anon_1.io };
            let size = usize::from(io.size).max(1);
            let length = size * usize::try_from(io.count).unwrap_or(0);
            let offset = usize::try_from(io.data_offset).unwrap_or(0);
            // SAFETY: KVM put the data at that offset within the mapping that `run` begins.
            let data = unsafe { std::slice::from_raw_parts_mut(base.add(offset), length) };
            if u32::from(io.direction) == kvm::KVM_EXIT_IO_IN {
                VcpuExit::PortRead { port: io.port, size, data }
            } else {
                VcpuExit::PortWrite { port: io.port, size, data }
            }
        }
        kvm::KVM_EXIT_MMIO => {
            // SAFETY: as above.
            let mmio = unsafe { &mut run.__bindgen_anon_1.mmio };
            let length = usize::try_from(mmio.len).unwrap_or(8).min(8);
            let (address, data) = (mmio.phys_addr, &mut mmio.data[..length]);
            if mmio.is_write != 0 {
                VcpuExit::MmioWrite { address, data }
            } else {
                VcpuExit::MmioRead { address, data }
            }
        }
        kvm::KVM_EXIT_HLT => VcpuExit::Halt,
        kvm::KVM_EXIT_SHUTDOWN => VcpuExit::Shutdown,
        kvm::KVM_EXIT_SYSTEM_EVENT => {
            // SAFETY: as above.
            let event = unsafe { run.__bindgen_anon_1.system_event };
            VcpuExit::SystemEvent(match event.type_ {
                kvm::KVM_SYSTEM_EVENT_SHUTDOWN => SystemEvent::End(End::PowerOff),
                kvm::KVM_SYSTEM_EVENT_RESET => SystemEvent::End(End::Reset),
                kvm::KVM_SYSTEM_EVENT_CRASH => SystemEvent::End(End::Crash),
                kvm::KVM_SYSTEM_EVENT_WAKEUP => SystemEvent::Wakeup,
                other => SystemEvent::Other(other),
            })
        }
        kvm::KVM_EXIT_INTERNAL_ERROR => {
            // SAFETY: as above; `internal` has the layout of `emulation_failure` with its
            // fields as words.
            let internal = unsafe { run.__bindgen_anon_1.internal };
            let count = usize::try_from(internal.ndata).unwrap_or(0).min(internal.data.len());
            VcpuExit::InternalError(internal_error(internal.suberror, &internal.data[..count]))
        }
        kvm::KVM_EXIT_FAIL_ENTRY => {
            // SAFETY: as above.
            let failure = unsafe { run.__bindgen_anon_1.fail_entry };
            VcpuExit::EntryFailed { reason: failure.hardware_entry_failure_reason }
        }
        kvm::KVM_EXIT_ARM_NISV => {
            // SAFETY: as above.
            let nisv = unsafe { run.__bindgen_anon_1.arm_nisv };
            VcpuExit::NoSyndrome { iss: nisv.esr_iss, address: nisv.fault_ipa }
        }
        kvm::KVM_EXIT_MEMORY_FAULT => memory_fault(run, libc::EFAULT),
        kvm::KVM_EXIT_DEBUG => {
            // SAFETY: as above.
            VcpuExit::Debug(super::native::debug_exit(unsafe { &run.__bindgen_anon_1.debug.arch }))
        }
        kvm::KVM_EXIT_XEN => {
            // SAFETY: as above; a hypercall is the only type there is.
            let call = unsafe { run.__bindgen_anon_1.xen.u.hcall };
            VcpuExit::Hypercall(HypercallExit::Xen {
                is_long: call.longmode != 0,
                privilege: call.cpl,
                number: call.input,
                arguments: call.params,
            })
        }
        kvm::KVM_EXIT_HYPERCALL => {
            // SAFETY: as above.
            let call = unsafe { &run.__bindgen_anon_1.hypercall };
            // SAFETY: as above; on x86 this exit is not asked for.
            let flags = unsafe { call.__bindgen_anon_1.flags };
            let function = u32::try_from(call.nr & 0xffff_ffff).unwrap_or(0);
            VcpuExit::Hypercall(HypercallExit::Smccc {
                function,
                is_smc: flags & KVM_HYPERCALL_EXIT_SMC != 0,
            })
        }
        kvm::KVM_EXIT_X86_WRMSR => {
            // SAFETY: as above.
            let msr = unsafe { &mut run.__bindgen_anon_1.msr };
            VcpuExit::MsrWrite { index: msr.index, value: msr.data, refused: &mut msr.error }
        }
        kvm::KVM_EXIT_INTR => VcpuExit::Interrupted,
        other => VcpuExit::Other(other),
    }
}

/// The exit that came with a failure of `KVM_RUN`, if there is one: `KVM_EXIT_MEMORY_FAULT` alone comes so,
/// with `EFAULT` or `EHWPOISON`; with any other error the exit reason is an old one (KVM API,
/// "KVM_EXIT_MEMORY_FAULT").
pub(crate) fn of_failure(errno: i32, run: &kvm::kvm_run) -> Option<VcpuExit<'static>> {
    let may_have_one = matches!(errno, libc::EFAULT | libc::EHWPOISON);
    if !may_have_one || run.exit_reason != kvm::KVM_EXIT_MEMORY_FAULT {
        return None;
    }
    Some(memory_fault(run, errno))
}

/// To be called where that is the exit reason.
fn memory_fault(run: &kvm::kvm_run, errno: i32) -> VcpuExit<'static> {
    // SAFETY: the exit reason has said which member of the union is valid; all are plain numbers.
    let fault = unsafe { run.__bindgen_anon_1.memory_fault };
    VcpuExit::MemoryFault { address: fault.gpa, size: fault.size, flags: fault.flags, errno }
}

/// To be called in front of an entry: a memory fault that was told belongs to no later failure. Nothing else may be
/// forgotten here: KVM on aarch64 finishes an access because this still says that there is one.
pub(crate) fn forget_memory_fault(run: &mut kvm::kvm_run) {
    if run.exit_reason == kvm::KVM_EXIT_MEMORY_FAULT {
        run.exit_reason = kvm::KVM_EXIT_UNKNOWN;
    }
}

/// In the flags of `KVM_EXIT_HYPERCALL` on aarch64.
const KVM_HYPERCALL_EXIT_SMC: u64 = 1 << 0;

/// Reads an internal error's words. For an emulation failure the first one has flags, the
/// second holds the number of instruction bytes in its lowest byte, then the bytes (KVM API,
/// "KVM_EXIT_INTERNAL_ERROR", `emulation_failure`).
fn internal_error(suberror: u32, data: &[u64]) -> InternalError {
    const KVM_INTERNAL_ERROR_EMULATION: u32 = 1;
    const FLAG_INSTRUCTION_BYTES: u64 = 1 << 0;
    const INSTRUCTION_BYTES: usize = 15;
    if suberror != KVM_INTERNAL_ERROR_EMULATION {
        return InternalError::Other { suberror, data: data.to_vec() };
    }
    let bytes: Vec<u8> = data.iter().skip(1).flat_map(|word| word.to_le_bytes()).collect();
    let told = data.first().is_some_and(|flags| flags & FLAG_INSTRUCTION_BYTES != 0);
    let instruction = match bytes.split_first() {
        Some((&size, bytes)) if told => {
            bytes[..usize::from(size).min(INSTRUCTION_BYTES).min(bytes.len())].to_vec()
        }
        _ => Vec::new(),
    };
    InternalError::Emulation { instruction }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_with(reason: u32) -> Box<[u8; 8192]> {
        let mut page = Box::new([0u8; 8192]);
        // SAFETY: the page is larger than `kvm_run`, zeroed, and not read as anything else now.
        let run = unsafe { &mut *page.as_mut_ptr().cast::<kvm::kvm_run>() };
        run.exit_reason = reason;
        page
    }

    fn as_run(page: &mut [u8; 8192]) -> &mut kvm::kvm_run {
        // SAFETY: as above; the array is borrowed for as long as the result.
        unsafe { &mut *page.as_mut_ptr().cast::<kvm::kvm_run>() }
    }

    #[test]
    fn string_port_accesses_keep_their_width() {
        let mut page = run_with(kvm::KVM_EXIT_IO);
        page[4096..4104].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
        // SAFETY: only the union's member for this exit reason is written.
        let io = unsafe { &mut as_run(&mut page).__bindgen_anon_1.io };
        (io.direction, io.size, io.port, io.count, io.data_offset) = (1, 2, 0x3f8, 4, 4096);
        // SAFETY: the page is the whole mapping.
        let VcpuExit::PortWrite { port, size, data } = (unsafe { decode(as_run(&mut page)) }) else {
            panic!("not a port write");
        };
        assert_eq!((port, size, data), (0x3f8, 2, &[1, 2, 3, 4, 5, 6, 7, 8][..]));
    }

    #[test]
    fn a_memory_fault_comes_with_an_error_and_keeps_its_address() {
        for errno in [libc::EFAULT, libc::EHWPOISON] {
            let mut page = run_with(kvm::KVM_EXIT_MEMORY_FAULT);
            // SAFETY: as above.
            let fault = unsafe { &mut as_run(&mut page).__bindgen_anon_1.memory_fault };
            (fault.gpa, fault.size, fault.flags) = (0x1234_5000, 0x20_0000, 1 << 3);
            let Some(VcpuExit::MemoryFault { address, size, flags, errno: told }) =
                of_failure(errno, as_run(&mut page))
            else {
                panic!("not a memory fault");
            };
            assert_eq!((address, size, flags, told), (0x1234_5000, 0x20_0000, 1 << 3, errno));
            // Whoever else has the page mapped sees it until the next entry; it belongs to no later error.
            assert_eq!(as_run(&mut page).exit_reason, kvm::KVM_EXIT_MEMORY_FAULT);
            forget_memory_fault(as_run(&mut page));
            assert!(of_failure(errno, as_run(&mut page)).is_none());
        }
        for errno in [libc::EINTR, libc::EINVAL, libc::ENOSYS] {
            assert!(of_failure(errno, as_run(&mut run_with(kvm::KVM_EXIT_MEMORY_FAULT))).is_none());
        }
        let mut access = run_with(kvm::KVM_EXIT_MMIO);
        assert!(of_failure(libc::EFAULT, as_run(&mut access)).is_none());
        forget_memory_fault(as_run(&mut access));
        assert_eq!(as_run(&mut access).exit_reason, kvm::KVM_EXIT_MMIO, "KVM has to finish it");
    }

    #[test]
    fn an_mmio_length_beyond_eight_is_cut() {
        let mut page = run_with(kvm::KVM_EXIT_MMIO);
        // SAFETY: as above.
        let mmio = unsafe { &mut as_run(&mut page).__bindgen_anon_1.mmio };
        (mmio.phys_addr, mmio.len, mmio.is_write) = (0x900_0000, 100, 0);
        // SAFETY: as above.
        let VcpuExit::MmioRead { address, data } = (unsafe { decode(as_run(&mut page)) }) else {
            panic!("not an MMIO read");
        };
        assert_eq!((address, data.len()), (0x900_0000, 8));
    }

    #[test]
    fn emulation_failures_tell_their_bytes() {
        let words = [1, u64::from_le_bytes([3, 0x0f, 0xc7, 0x0f, 9, 9, 9, 9]), 0];
        assert_eq!(
            internal_error(1, &words),
            InternalError::Emulation { instruction: vec![0x0f, 0xc7, 0x0f] }
        );
        assert_eq!(internal_error(1, &[]), InternalError::Emulation { instruction: vec![] });
        assert_eq!(internal_error(1, &[0, 255]), InternalError::Emulation { instruction: vec![] });
        assert_eq!(internal_error(1, &[1, 255]), InternalError::Emulation { instruction: vec![0; 7] });
        assert_eq!(internal_error(3, &[7, 8]), InternalError::Other { suberror: 3, data: vec![7, 8] });
    }

    #[test]
    fn exits_without_payload_are_named() {
        for (reason, name) in [
            (kvm::KVM_EXIT_HLT, "Halt"),
            (kvm::KVM_EXIT_SHUTDOWN, "Shutdown"),
            (kvm::KVM_EXIT_INTR, "Interrupted"),
            (999, "Other(999)"),
        ] {
            let mut page = run_with(reason);
            // SAFETY: as above.
            assert_eq!(format!("{:?}", unsafe { decode(as_run(&mut page)) }), name);
        }
    }
}
