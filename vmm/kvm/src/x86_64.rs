//! What is particular to KVM on x86_64.

pub mod capabilities;
pub mod clock;
pub mod guest_debug;
pub mod hypercalls;
pub mod registers;

use super::VmConfig;
use super::debug_exit::DebugExit;
use super::error::{KvmError, ioctl};
use crate::Platform;
use arch::Isa;
use arch::x86::boot_state::{BootState, RFLAGS_RESERVED, Segment};
use arch::x86::cpuid::{Cpuid, Entry, Register};
use arch::x86::layout;
use kvm_bindings as kvm;
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};

pub use registers::Registers;

/// The architecture of this module.
pub const ISA: Isa = Isa::X86_64;

/// APICs' identifiers have eight bits, of which the last is everybody's: what is wider takes `KVM_CAP_X2APIC_API`
/// (KVM API), which no guest here is given.
pub const MAX_VCPUS: u32 = arch::x86::layout::MAX_VCPUS;
/// What allows no more.
pub const WHY_NO_MORE_VCPUS: &str = "an APIC's identifier of eight bits";

/// The leaf of KVM's own features (Linux, `include/uapi/asm/kvm_para.h`)...
const KVM_CPUID_FEATURES: u32 = 0x4000_0001;
/// ...and those for which a guest makes calls: `KVM_FEATURE_PV_UNHALT`, `_PV_SEND_IPI`,
/// `_PV_SCHED_YIELD` and `_HC_MAP_GPA_RANGE`.
const FEATURES_WITH_CALLS: u32 = 1 << 7 | 1 << 11 | 1 << 13 | 1 << 16;

/// What lives beside an x86 VM: nothing, the interrupt controllers belong to KVM.
#[derive(Debug)]
pub struct NativeVm;

/// Creates the VM.
pub fn create_vm(kvm: &Kvm, _config: &VmConfig) -> Result<VmFd, KvmError> {
    kvm.create_vm().map_err(ioctl("KVM_CREATE_VM"))
}

impl NativeVm {
    /// Creates interrupt controllers, timer and vCPUs.
    pub fn new(
        kvm: &Kvm,
        vm: &VmFd,
        config: &VmConfig,
        has_page: bool,
    ) -> Result<(NativeVm, Vec<VcpuFd>), KvmError> {
        if !kvm.check_extension(Cap::Irqchip) {
            return Err(KvmError::Missing("an in-kernel interrupt controller (KVM_CAP_IRQCHIP)"));
        }
        // Intel hosts need the pages for real mode; others take and ignore them.
        let tss = usize::try_from(layout::KVM_TSS).expect("below 4 GiB");
        vm.set_tss_address(tss).map_err(ioctl("KVM_SET_TSS_ADDR"))?;
        if kvm.check_extension(Cap::SetIdentityMapAddr) {
            vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
                .map_err(ioctl("KVM_SET_IDENTITY_MAP_ADDR"))?;
        }
        vm.create_irq_chip().map_err(ioctl("KVM_CREATE_IRQCHIP"))?;
        set_up_pics(vm)?;
        let pit = kvm::kvm_pit_config { flags: kvm::KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        vm.create_pit2(pit).map_err(ioctl("KVM_CREATE_PIT2"))?;

        let cpuid = guest_cpuid(kvm, config)?;
        let fds = (0..config.vcpus)
            .map(|id| {
                let fd = vm.create_vcpu(u64::from(id)).map_err(ioctl("KVM_CREATE_VCPU"))?;
                let mut cpuid = cpuid.for_vcpu(id, config.vcpus);
                if config.hypercalls.is_some_and(|setup| !setup.has_page) {
                    // Calls that are only shown are not to be relied on.
                    cpuid.clear(KVM_CPUID_FEATURES, 0, Register::Eax, FEATURES_WITH_CALLS);
                }
                if let Some(setup) = config.hypercalls.filter(|_| has_page) {
                    (setup.leaves)(id).into_iter().for_each(|leaf| cpuid.replace(leaf));
                }
                let cpuid = to_kvm(&cpuid)?;
                fd.set_cpuid2(&cpuid).map_err(ioctl("KVM_SET_CPUID2"))?;
                Ok(fd)
            })
            .collect::<Result<_, KvmError>>()?;
        Ok((NativeVm, fds))
    }

    /// Its counters' places are the vCPUs'.
    pub fn counter(_: &VmFd) -> clock::Counter {
        clock::Counter::default()
    }

    /// Raises or lowers a GSI.
    pub fn set_line(vm: &VmFd, gsi: u32, level: bool) -> Result<(), KvmError> {
        vm.set_irq_line(gsi, level).map_err(ioctl("KVM_IRQ_LINE"))
    }

    /// Local APICs do.
    #[allow(clippy::unused_self, reason = "the other architecture's depends on the machine")]
    pub fn takes_messages(&self) -> bool {
        true
    }

    /// Nothing: an x86 guest's firmware tables are the same on every host.
    pub fn platform(&self) -> Option<Platform<'_>> {
        None
    }
}

/// Gives the interrupt controllers of a PC the vectors that firmware gives them: 0x08 and 0x70 and those behind.
/// Code in real mode relies on it.
fn set_up_pics(vm: &VmFd) -> Result<(), KvmError> {
    for (chip_id, base) in [(kvm::KVM_IRQCHIP_PIC_MASTER, 0x08), (kvm::KVM_IRQCHIP_PIC_SLAVE, 0x70)] {
        let mut chip = kvm::kvm_irqchip { chip_id, ..Default::default() };
        vm.get_irqchip(&mut chip).map_err(ioctl("KVM_GET_IRQCHIP"))?;
        // SAFETY: KVM has filled in what the chip is that was asked for, and every value of its bytes is one.
        let pic = unsafe { &mut chip.chip.pic };
        pic.irq_base = base;
        vm.set_irqchip(&chip).map_err(ioctl("KVM_SET_IRQCHIP"))?;
    }
    Ok(())
}

/// What guests see: what KVM supports, under the template.
fn guest_cpuid(kvm: &Kvm, config: &VmConfig) -> Result<Cpuid, KvmError> {
    let supported =
        kvm.get_supported_cpuid(kvm::KVM_MAX_CPUID_ENTRIES).map_err(ioctl("KVM_GET_SUPPORTED_CPUID"))?;
    let entries = supported.as_slice().iter().map(|entry| Entry {
        leaf: entry.function,
        subleaf: entry.index,
        has_subleaf: entry.flags & kvm::KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0,
        eax: entry.eax,
        ebx: entry.ebx,
        ecx: entry.ecx,
        edx: entry.edx,
    });
    let mut cpuid = Cpuid { entries: entries.collect() };
    // KVM leaves the name to us (leaves 0x8000_0002 to 0x8000_0004): the guest sees the host's.
    for leaf in 0x8000_0002..=0x8000_0004 {
        let answer = host_cpuid(leaf, 0);
        cpuid.replace(Entry {
            leaf,
            eax: answer.eax,
            ebx: answer.ebx,
            ecx: answer.ecx,
            edx: answer.edx,
            ..Entry::default()
        });
    }
    cpuid.set_platform(kvm.check_extension(Cap::TscDeadlineTimer));
    config.cpu.apply_x86(&mut cpuid)?;
    Ok(cpuid)
}

fn to_kvm(cpuid: &Cpuid) -> Result<kvm::CpuId, KvmError> {
    let entries: Vec<kvm::kvm_cpuid_entry2> = cpuid
        .entries
        .iter()
        .map(|entry| kvm::kvm_cpuid_entry2 {
            function: entry.leaf,
            index: entry.subleaf,
            flags: if entry.has_subleaf { kvm::KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
            eax: entry.eax,
            ebx: entry.ebx,
            ecx: entry.ecx,
            edx: entry.edx,
            ..Default::default()
        })
        .collect();
    kvm::CpuId::from_entries(&entries).map_err(|_| KvmError::Missing("room for this many CPUID entries"))
}

fn segment(segment: &Segment) -> kvm::kvm_segment {
    let page_granular = segment.limit > 0xf_ffff;
    kvm::kvm_segment {
        selector: segment.selector,
        base: segment.base,
        limit: segment.limit,
        type_: segment.kind,
        present: 1,
        dpl: 0,
        db: u8::from(segment.is_32_bit),
        s: u8::from(segment.is_code_or_data),
        l: u8::from(segment.is_long),
        g: u8::from(page_granular),
        ..Default::default()
    }
}

/// Sets the boot vCPU's registers. The others wait for a start-up interrupt, as after reset.
pub fn set_boot_state(vcpu: &VcpuFd, state: &super::BootState) -> Result<(), KvmError> {
    let super::BootState::X86(state) = state else {
        return Err(KvmError::Missing("the other architecture's guests"));
    };
    set_registers(vcpu, state)?;
    // The reset values of an x87 and SSE unit (Intel SDM vol. 3, table 10-1).
    let fpu = kvm::kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() };
    vcpu.set_fpu(&fpu).map_err(ioctl("KVM_SET_FPU"))?;
    set_boot_msrs(vcpu);
    Ok(())
}

fn set_registers(vcpu: &VcpuFd, state: &BootState) -> Result<(), KvmError> {
    let mut sregs = vcpu.get_sregs().map_err(ioctl("KVM_GET_SREGS"))?;
    sregs.cs = segment(&state.cs);
    let data = segment(&state.data);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segment(&state.tr);
    sregs.gdt = kvm::kvm_dtable { base: state.gdt.0.0, limit: state.gdt.1, ..Default::default() };
    sregs.idt = kvm::kvm_dtable { base: state.idt.0.0, limit: state.idt.1, ..Default::default() };
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (state.cr0, state.cr3, state.cr4, state.efer);
    vcpu.set_sregs(&sregs).map_err(ioctl("KVM_SET_SREGS"))?;
    let regs = kvm::kvm_regs {
        rip: state.rip,
        rsp: state.rsp,
        rax: state.rax,
        rbx: state.rbx,
        rsi: state.rsi,
        rflags: RFLAGS_RESERVED,
        ..Default::default()
    };
    vcpu.set_regs(&regs).map_err(ioctl("KVM_SET_REGS"))
}

/// What firmware would have set: fast strings, and write-back as the default memory type.
/// Hosts that lack one of them run guests all the same.
fn set_boot_msrs(vcpu: &VcpuFd) {
    const IA32_MISC_ENABLE: u32 = 0x1a0;
    const MISC_ENABLE_FAST_STRING: u64 = 1 << 0;
    const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
    const MTRR_ENABLE: u64 = 1 << 11;
    const MTRR_WRITE_BACK: u64 = 6;
    for (index, data) in
        [(IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING), (IA32_MTRR_DEF_TYPE, MTRR_ENABLE | MTRR_WRITE_BACK)]
    {
        let entry = kvm::kvm_msr_entry { index, data, ..Default::default() };
        let set = kvm::Msrs::from_entries(&[entry]).map(|msrs| vcpu.set_msrs(&msrs));
        if !matches!(set, Ok(Ok(1))) {
            log::debug!("this host's KVM does not take MSR {index:#x}");
        }
    }
}

/// Decodes `KVM_EXIT_DEBUG`.
pub fn debug_exit(debug: &kvm::kvm_debug_exit_arch) -> DebugExit {
    DebugExit::X86 { exception: debug.exception, pc: debug.pc, dr6: debug.dr6, dr7: debug.dr7 }
}

/// A leaf of the host processor's CPUID.
#[allow(unused_unsafe, reason = "the intrinsic is safe in newer compilers, and unsafe in the oldest one")]
fn host_cpuid(leaf: u32, subleaf: u32) -> core::arch::x86_64::CpuidResult {
    // SAFETY: every x86-64 processor has the instruction, and it changes nothing but its results.
    unsafe { core::arch::x86_64::__cpuid_count(leaf, subleaf) }
}
