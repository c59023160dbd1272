//! What is particular to KVM on aarch64.

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
use arch::aarch64::features::{HiddenField, IdRegister, Selection, VcpuOption};
use arch::aarch64::gic::GicVersion;
use arch::aarch64::layout;
use arch::cpu_features::FeatureError;
use arch::cpu_template::IdRegisterMask;
use kvm_bindings as kvm;
use kvm_ioctls::{Cap, DeviceFd, Kvm, VcpuFd, VmFd};

pub use registers::Registers;

/// The architecture of this module.
pub const ISA: Isa = Isa::Aarch64;

/// As many redistributors as there is room for where they are put.
pub const MAX_VCPUS: u32 = layout::MAX_VCPUS;
/// What allows no more.
pub const WHY_NO_MORE_VCPUS: &str = "the room for interrupt redistributors";
/// Guest-physical address width of a VM of type 0, bits (KVM API, `KVM_CREATE_VM`).
const DEFAULT_IPA_BITS: u32 = 40;

/// `ARM64_SYS_REG` of the KVM API ("KVM_SET_ONE_REG"): a system register by its encoding.
const fn system_register(op0: u64, op1: u64, crn: u64, crm: u64, op2: u64) -> u64 {
    kvm::KVM_REG_ARM64
        | kvm::KVM_REG_SIZE_U64
        | kvm::KVM_REG_ARM64_SYSREG as u64
        | op0 << 14
        | op1 << 11
        | crn << 7
        | crm << 3
        | op2
}

/// `ARM64_CORE_REG`: a field of `kvm_regs` by its offset in bytes.
const fn core_register(offset: usize) -> u64 {
    kvm::KVM_REG_ARM64 | kvm::KVM_REG_SIZE_U64 | kvm::KVM_REG_ARM_CORE as u64 | (offset as u64 / 4)
}

const MPIDR_EL1: u64 = system_register(3, 0, 0, 0, 5);
const X0: u64 = core_register(0);
const PC: u64 = core_register(32 * 8);
const PSTATE: u64 = core_register(33 * 8);

/// What lives beside an aarch64 VM.
#[derive(Debug)]
pub struct NativeVm {
    // Devices belong to the VM.
    _its: Option<DeviceFd>,
    _gic: DeviceFd,
    has_its: bool,
    gic_version: GicVersion,
    mpidrs: Vec<u64>,
    has_pmu: bool,
}

/// Creates the VM, with as wide guest-physical addresses as its memory needs.
pub fn create_vm(kvm: &Kvm, config: &VmConfig) -> Result<VmFd, KvmError> {
    let limit = match u32::try_from(kvm.check_extension_int(Cap::ArmVmIPASize)) {
        Ok(0) | Err(_) => DEFAULT_IPA_BITS,
        Ok(bits) => bits,
    };
    let needed = layout::address_bits(config.memory);
    if needed > limit {
        return Err(KvmError::TooMuchMemory { needed, limit });
    }
    let bits = needed.max(DEFAULT_IPA_BITS.min(limit));
    let vm = if bits == DEFAULT_IPA_BITS { kvm.create_vm() } else { kvm.create_vm_with_ipa_size(bits) };
    vm.map_err(ioctl("KVM_CREATE_VM"))
}

impl NativeVm {
    /// Creates vCPUs and the interrupt controller.
    pub fn new(
        _kvm: &Kvm,
        vm: &VmFd,
        config: &VmConfig,
        _has_page: bool,
    ) -> Result<(NativeVm, Vec<VcpuFd>), KvmError> {
        let (selection, edits) = config.cpu.select_aarch64()?;
        // The version decides how many vCPUs there can be, and trying is the way to know it.
        let gic_version = [GicVersion::V3, GicVersion::V2]
            .into_iter()
            .find(|version| try_device(vm, gic_type(*version)))
            .ok_or(KvmError::Missing("an in-kernel interrupt controller (GICv3 or GICv2)"))?;
        if gic_version == GicVersion::V2 && config.vcpus > layout::GICV2_MAX_VCPUS {
            return Err(KvmError::TooManyVcpus {
                asked: config.vcpus,
                limit: layout::GICV2_MAX_VCPUS,
                whose: "this host's interrupt controller, a GICv2,",
            });
        }
        // Accesses that the hardware does not describe come to us instead of failing KVM_RUN.
        let nisv = kvm::kvm_enable_cap { cap: kvm::KVM_CAP_ARM_NISV_TO_USER, ..Default::default() };
        if let Err(error) = vm.enable_cap(&nisv) {
            log::debug!("this host's KVM has no KVM_CAP_ARM_NISV_TO_USER: {error}");
        }
        let fds: Vec<VcpuFd> = (0..config.vcpus)
            .map(|id| {
                let fd = vm.create_vcpu(u64::from(id)).map_err(ioctl("KVM_CREATE_VCPU"))?;
                init_vcpu(vm, &fd, id, &selection)?;
                let value = |register| {
                    get(&fd, id_register(register)).map_err(ioctl("KVM_GET_ONE_REG of an ID register"))
                };
                selection.check_level(value, |option| has_option(vm, option))?;
                edit_id_registers(&fd, &selection, &edits)?;
                Ok(fd)
            })
            .collect::<Result<_, KvmError>>()?;
        let mpidrs = fds
            .iter()
            .map(|fd| get(fd, MPIDR_EL1).map_err(ioctl("KVM_GET_ONE_REG MPIDR_EL1")))
            .collect::<Result<_, _>>()?;
        let gic = create_gic(vm, gic_version, config.vcpus)?;
        let its_type = kvm::kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS;
        let has_its = config.has_messages && gic_version == GicVersion::V3 && try_device(vm, its_type);
        let its = has_its.then(|| create_its(vm)).transpose()?;
        let has_pmu = has_pmu(vm, &selection)?;
        if has_pmu {
            // The interrupt controller has to be there.
            fds.iter().try_for_each(start_pmu)?;
        }
        Ok((NativeVm { _its: its, _gic: gic, has_its, gic_version, mpidrs, has_pmu }, fds))
    }

    /// Where its counter is counted from.
    pub fn counter(vm: &VmFd) -> clock::Counter {
        clock::Counter::begin(vm)
    }

    /// Raises or lowers an SPI (KVM API, `KVM_IRQ_LINE`).
    pub fn set_line(vm: &VmFd, spi: u32, level: bool) -> Result<(), KvmError> {
        /// Interrupts of the GIC below it are private to vCPUs.
        const FIRST_SPI: u32 = 32;
        let line = kvm::KVM_ARM_IRQ_TYPE_SPI << kvm::KVM_ARM_IRQ_TYPE_SHIFT | (FIRST_SPI + spi);
        vm.set_irq_line(line, level).map_err(ioctl("KVM_IRQ_LINE"))
    }

    /// The translation service does.
    pub fn takes_messages(&self) -> bool {
        self.has_its
    }

    /// What boot code must know.
    pub fn platform(&self) -> Option<Platform<'_>> {
        let its = self.has_its;
        Some(Platform { gic: self.gic_version, mpidrs: &self.mpidrs, its, pmu: self.has_pmu })
    }
}

fn gic_type(version: GicVersion) -> kvm::kvm_device_type {
    match version {
        GicVersion::V2 => kvm::kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2,
        GicVersion::V3 => kvm::kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
    }
}

/// Whether KVM would create a device of this type.
fn try_device(vm: &VmFd, kind: kvm::kvm_device_type) -> bool {
    let mut device = kvm::kvm_create_device { type_: kind, fd: 0, flags: kvm::KVM_CREATE_DEVICE_TEST };
    match vm.create_device(&mut device) {
        Ok(device) => {
            // A test makes no device, so what kvm-ioctls wraps is not a descriptor of ours: if it
            // were dropped, descriptor 0 would be closed.
            std::mem::forget(device);
            true
        }
        Err(_) => false,
    }
}

fn create_gic(vm: &VmFd, version: GicVersion, vcpus: u32) -> Result<DeviceFd, KvmError> {
    let mut device = kvm::kvm_create_device { type_: gic_type(version), fd: 0, flags: 0 };
    let gic = vm.create_device(&mut device).map_err(ioctl("KVM_CREATE_DEVICE for the GIC"))?;
    let set = |group: u32, attr: u32, value: Option<&u64>| {
        let addr = value.map_or(0, |value| std::ptr::from_ref(value) as u64);
        let attribute = kvm::kvm_device_attr { group, attr: u64::from(attr), addr, flags: 0 };
        gic.set_device_attr(&attribute).map_err(ioctl("KVM_SET_DEVICE_ATTR of the GIC"))
    };
    let address = |attr, place: u64| set(kvm::KVM_DEV_ARM_VGIC_GRP_ADDR, attr, Some(&place));
    match version {
        GicVersion::V2 => {
            address(kvm::KVM_VGIC_V2_ADDR_TYPE_DIST, layout::GIC_DISTRIBUTOR.start.0)?;
            address(kvm::KVM_VGIC_V2_ADDR_TYPE_CPU, layout::GIC_CPU_INTERFACE.start.0)?;
        }
        GicVersion::V3 => {
            address(kvm::KVM_VGIC_V3_ADDR_TYPE_DIST, layout::GIC_DISTRIBUTOR.start.0)?;
            // The region's vCPU count is in bits 63 to 52, its index 0 in the lowest (KVM
            // documentation, "ARM Virtual Generic Interrupt Controller v3").
            let region = u64::from(vcpus) << 52 | layout::GIC_REDISTRIBUTORS.0;
            address(kvm::KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION, region)?;
        }
    }
    let interrupts = u64::from(layout::GIC_INTERRUPTS);
    set(kvm::KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, Some(&interrupts))?;
    set(kvm::KVM_DEV_ARM_VGIC_GRP_CTRL, kvm::KVM_DEV_ARM_VGIC_CTRL_INIT, None)?;
    Ok(gic)
}

/// KVM documentation, "ARM Virtual Interrupt Translation Service (ITS)".
fn create_its(vm: &VmFd) -> Result<DeviceFd, KvmError> {
    let kind = kvm::kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS;
    let mut device = kvm::kvm_create_device { type_: kind, fd: 0, flags: 0 };
    let its = vm.create_device(&mut device).map_err(ioctl("KVM_CREATE_DEVICE for the ITS"))?;
    let place = layout::GIC_ITS.start.0;
    for (group, attr, addr) in [
        (kvm::KVM_DEV_ARM_VGIC_GRP_ADDR, kvm::KVM_VGIC_ITS_ADDR_TYPE, std::ptr::from_ref(&place) as u64),
        (kvm::KVM_DEV_ARM_VGIC_GRP_CTRL, kvm::KVM_DEV_ARM_VGIC_CTRL_INIT, 0),
    ] {
        let attribute = kvm::kvm_device_attr { group, attr: u64::from(attr), addr, flags: 0 };
        its.set_device_attr(&attribute).map_err(ioctl("KVM_SET_DEVICE_ATTR of the ITS"))?;
    }
    Ok(its)
}

/// Whether a vCPU can have an option.
fn has_option(vm: &VmFd, option: VcpuOption) -> bool {
    let capabilities: &[Cap] = match option {
        VcpuOption::Sve => &[Cap::ArmSve],
        VcpuOption::PointerAuthentication => &[Cap::ArmPtrAuthAddress, Cap::ArmPtrAuthGeneric],
        VcpuOption::PerformanceMonitors => &[Cap::ArmPmuV3],
    };
    capabilities.iter().all(|capability| vm.check_extension(*capability))
}

/// Whether an option is to be switched on, if it is there.
fn wanted(vm: &VmFd, selection: &Selection, option: VcpuOption, name: &str) -> Result<bool, KvmError> {
    let there = has_option(vm, option);
    if selection.required_options.contains(&option) && !there {
        return Err(FeatureError::NotOnHost(name.into()).into());
    }
    Ok(there && !selection.without_options.contains(&option))
}

fn has_pmu(vm: &VmFd, selection: &Selection) -> Result<bool, KvmError> {
    wanted(vm, selection, VcpuOption::PerformanceMonitors, "pmuv3")
}

/// Gives a vCPU's performance monitors their interrupt and starts them (KVM documentation, "Generic vcpu
/// interface", `KVM_ARM_VCPU_PMU_V3_CTRL`).
fn start_pmu(vcpu: &VcpuFd) -> Result<(), KvmError> {
    /// Interrupts below it are sent by software.
    const FIRST_PPI: u32 = 16;
    let interrupt = FIRST_PPI + layout::PMU_PPI;
    let address = std::ptr::from_ref(&interrupt) as u64;
    for (attr, addr) in [(kvm::KVM_ARM_VCPU_PMU_V3_IRQ, address), (kvm::KVM_ARM_VCPU_PMU_V3_INIT, 0)] {
        let group = kvm::KVM_ARM_VCPU_PMU_V3_CTRL;
        let attribute = kvm::kvm_device_attr { group, attr: u64::from(attr), addr, flags: 0 };
        vcpu.set_device_attr(&attribute).map_err(ioctl("KVM_SET_DEVICE_ATTR of the PMU"))?;
    }
    Ok(())
}

fn init_vcpu(vm: &VmFd, fd: &VcpuFd, id: u32, selection: &Selection) -> Result<(), KvmError> {
    let mut init = kvm::kvm_vcpu_init::default();
    vm.get_preferred_target(&mut init).map_err(ioctl("KVM_ARM_PREFERRED_TARGET"))?;
    let mut enable = |feature: u32| init.features[0] |= 1 << feature;
    enable(kvm::KVM_ARM_VCPU_PSCI_0_2);
    if id > 0 {
        enable(kvm::KVM_ARM_VCPU_POWER_OFF);
    }
    if has_pmu(vm, selection)? {
        enable(kvm::KVM_ARM_VCPU_PMU_V3);
    }
    let sve = wanted(vm, selection, VcpuOption::Sve, "sve")?;
    if sve {
        enable(kvm::KVM_ARM_VCPU_SVE);
    }
    if wanted(vm, selection, VcpuOption::PointerAuthentication, "paca")? {
        enable(kvm::KVM_ARM_VCPU_PTRAUTH_ADDRESS);
        enable(kvm::KVM_ARM_VCPU_PTRAUTH_GENERIC);
    }
    fd.vcpu_init(&init).map_err(ioctl("KVM_ARM_VCPU_INIT"))?;
    if sve {
        let feature = i32::try_from(kvm::KVM_ARM_VCPU_SVE).expect("a small number");
        fd.vcpu_finalize(&feature).map_err(ioctl("KVM_ARM_VCPU_FINALIZE for SVE"))?;
    }
    Ok(())
}

fn id_register(register: IdRegister) -> u64 {
    system_register(3, 0, 0, u64::from(register.crm), u64::from(register.op2))
}

/// Hides features and applies a template's bits. A register that KVM does not let us write is
/// an error only when its value would have to change.
fn edit_id_registers(fd: &VcpuFd, selection: &Selection, edits: &[IdRegisterMask]) -> Result<(), KvmError> {
    for HiddenField { name, register, shift, without, off } in &selection.required {
        let field = HiddenField { name, register: *register, shift: *shift, without: *without, off: *off };
        let value = get(fd, id_register(*register)).map_err(ioctl("KVM_GET_ONE_REG of an ID register"))?;
        if !field.is_shown(value) {
            return Err(FeatureError::NotOnHost((*name).into()).into());
        }
    }
    let change =
        |register: IdRegister, what: &'static str, edit: &dyn Fn(u64) -> u64| -> Result<(), KvmError> {
            let id = id_register(register);
            let old = get(fd, id).map_err(ioctl("KVM_GET_ONE_REG of an ID register"))?;
            let new = edit(old);
            if new != old {
                fd.set_one_reg(id, &new.to_le_bytes()).map_err(|source| KvmError::FixedIdRegister {
                    register: register.name,
                    what,
                    source,
                })?;
            }
            Ok(())
        };
    for field in &selection.hidden {
        change(field.register, field.name, &|value| field.hide(value))?;
    }
    for (register, clear, set) in edits {
        change(*register, "the template's bits", &|value| value & !clear | set)?;
    }
    Ok(())
}

fn get(fd: &VcpuFd, register: u64) -> Result<u64, kvm_ioctls::Error> {
    let mut bytes = [0; 8];
    fd.get_one_reg(register, &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// Sets the boot vCPU's registers. The others are powered off until PSCI `CPU_ON`.
pub fn set_boot_state(vcpu: &VcpuFd, state: &super::BootState) -> Result<(), KvmError> {
    let super::BootState::Aarch64(state) = state else {
        return Err(KvmError::Missing("the other architecture's guests"));
    };
    for (name, register, value) in
        [("pc", PC, state.pc), ("x0", X0, state.x0), ("cpsr", PSTATE, state.pstate)]
    {
        vcpu.set_one_reg(register, &value.to_le_bytes()).map_err(registers::refused(name))?;
    }
    Ok(())
}

/// Decodes `KVM_EXIT_DEBUG`.
pub fn debug_exit(debug: &kvm::kvm_debug_exit_arch) -> DebugExit {
    DebugExit::Aarch64 { syndrome: u64::from(debug.hsr_high) << 32 | u64::from(debug.hsr), far: debug.far }
}
