//! One vCPU. The thread that runs it owns it.

use super::error::{KvmError, ioctl};
use super::exit::{SystemEvent, VcpuExit, decode, forget_memory_fault, of_failure};
use super::{BootState, HOST_ISA, XenVcpuAttribute, kick, native};
use arch::Isa;
use arch::paging::Regime;
use arch::register::{Bank, RegisterFile};
use debug::arming::{Arming, DebugRegisters};
use debug::live::runner::{Exit, Turn, Visit};
use debug::machine::{Abilities, Activity, Code};
use debug::trap::Injection;
use kvm_bindings::kvm_run;
use kvm_ioctls::{Kvm, KvmRunWrapper, VcpuFd};
use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

/// A vCPU of a [`Vm`](super::Vm).
#[derive(Debug)]
pub struct Vcpu {
    id: u32,
    fd: VcpuFd,
    registers: native::Registers,
    /// An exception has been queued that the guest has not been entered with yet, and what the vCPU runs
    /// with.
    queued: RefCell<Option<(Injection, Arming)>>,
    /// It has been dropped by KVM since, as registers were written.
    is_dropped: Cell<bool>,
    /// It waits, until KVM tells us that there is an interrupt.
    is_waiting: Cell<bool>,
}

impl Vcpu {
    /// A vCPU that a monitor has made itself, with its number from 0 on; registers are set, and it is run, by this
    /// from now on.
    pub fn adopt(kvm: &Kvm, id: u32, fd: VcpuFd) -> Vcpu {
        Vcpu::new(id, fd, native::registers::can_sync(kvm))
    }

    /// The same for a monitor that calls KVM by itself, or through another version of kvm-ioctls: `kvm` is `/dev/kvm`,
    /// and `vcpu` a duplicate of the vCPU's descriptor. What is shared with the monitor's own mapping of it stays shared:
    /// it may look into its `kvm_run` for exits that it decodes by itself. When an exit is [taken](Self::take), that is
    /// as KVM has left it until the next entry; but while a [`VcpuExit`] lives, it borrows the same bytes: look when that is
    /// dropped. Calls of its own that ask for registers come behind
    /// [`Self::flush`], and those that set some are followed by [`Self::forget`].
    ///
    /// # Errors
    /// [`KvmError::Ioctl`] when KVM does not say how large its mapping is, or it cannot be mapped.
    ///
    /// # Safety
    /// The descriptor must be a vCPU's of KVM: what is mapped from it is believed to be its `kvm_run`.
    pub unsafe fn adopt_descriptor(kvm: BorrowedFd<'_>, id: u32, vcpu: OwnedFd) -> Result<Vcpu, KvmError> {
        let duplicate = |fd: BorrowedFd<'_>| {
            let owned = fd.try_clone_to_owned().map_err(|error| {
                ioctl("F_DUPFD_CLOEXEC")(kvm_ioctls::Error::new(error.raw_os_error().unwrap_or(libc::EMFILE)))
            });
            owned.map(IntoRawFd::into_raw_fd)
        };
        // SAFETY: a new duplicate has one owner, which this is.
        let kvm = unsafe { Kvm::from_raw_fd(duplicate(kvm)?) };
        // kvm-ioctls maps vCPUs by what it keeps with the machine, which is but the size: a descriptor stands for it
        // that is asked for nothing.
        // SAFETY: as above.
        let vm = unsafe { kvm.create_vmfd_from_rawfd(duplicate(vcpu.as_fd())?) };
        let vm = vm.map_err(ioctl("KVM_GET_VCPU_MMAP_SIZE"))?;
        // SAFETY: the caller says that it is a vCPU, and has given it away.
        let fd = unsafe { vm.create_vcpu_from_rawfd(vcpu.into_raw_fd()) };
        Ok(Vcpu::adopt(&kvm, id, fd.map_err(ioctl("mmap"))?))
    }

    /// `can_sync` is [`native::registers::can_sync`]'s answer.
    pub(super) fn new(id: u32, fd: VcpuFd, can_sync: bool) -> Vcpu {
        Vcpu {
            id,
            fd,
            registers: native::Registers::new(can_sync),
            queued: RefCell::new(None),
            is_dropped: Cell::new(false),
            is_waiting: Cell::new(false),
        }
    }

    /// Its number, from 0.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// What KVM has of it, for the other parts of this module.
    pub(super) fn descriptor(&self) -> &VcpuFd {
        &self.fd
    }

    /// Sets the registers that a guest starts with; the state is the boot vCPU's.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn set_boot_state(&self, state: &BootState) -> Result<(), KvmError> {
        self.registers.forget();
        native::set_boot_state(&self.fd, state)
    }

    /// Hands KVM the registers that it was to take with the next entry: to be called before the monitor asks for
    /// registers, or sets some, by calls of its own.
    ///
    /// # Errors
    /// [`KvmError::Register`], or [`KvmError::Ioctl`].
    pub fn flush(&mut self) -> Result<(), KvmError> {
        self.registers.flush(&self.fd)
    }

    /// Forgets what was read of the vCPU's registers: to be called when the monitor has set some by calls of its own,
    /// behind [`Self::flush`]. An exception that waits for the next entry waits on, though KVM drops it with
    /// `KVM_SET_REGS`; what the debugger has set the vCPU to run with stays.
    pub fn forget(&mut self) {
        self.registers.forget();
        if self.has_queued() && !native::guest_debug::has_exception(&self.fd) {
            self.is_dropped.set(true);
        }
    }

    /// Forgets an exception that waits for the next entry, and that the vCPU waits for an interrupt: to be called, with
    /// [`Self::forget`], when the monitor has reset it by calls of its own.
    pub fn drop_queued(&mut self) {
        self.queued.replace(None);
        self.is_dropped.set(false);
        self.is_waiting.set(false);
    }

    /// Makes kicks of the calling thread reach this vCPU, as long as the result lives. The signal gets its handler, if it
    /// has none yet ([`kick::install_handler`]).
    ///
    /// # Errors
    /// [`KvmError::Signal`] when no signal is free, or the thread's kicks reach another vCPU already: a thread has one;
    /// [`KvmError::Ioctl`] when the vCPU's `kvm_run` cannot be mapped once more.
    pub fn accept_kicks(&mut self) -> Result<kick::KickGuard<'static>, KvmError> {
        if kick::has_vcpu() {
            let why = "this thread is kicked out of another vCPU already";
            return Err(KvmError::Signal(std::io::Error::new(std::io::ErrorKind::AlreadyExists, why)));
        }
        kick::install_handler().map_err(KvmError::Signal)?;
        // A mapping of its own: nobody says which of the two is dropped first.
        let run = KvmRunWrapper::mmap_from_fd(&self.fd, size_of::<kvm_run>()).map_err(ioctl("mmap"))?;
        Ok(kick::KickGuard::of(run))
    }

    /// The same, of kicks by `kicker`, which others have.
    ///
    /// # Errors
    /// As [`Self::accept_kicks`].
    pub fn accept_kicks_by(&mut self, kicker: &kick::Kicker) -> Result<kick::KickGuard<'static>, KvmError> {
        Ok(self.accept_kicks()?.by(kicker))
    }

    /// Runs the guest until it needs us. `EINTR` is [`VcpuExit::Interrupted`], and a fault on guest memory,
    /// which comes with an error, [`VcpuExit::MemoryFault`].
    ///
    /// # Errors
    /// [`KvmError::Ioctl`] for every other failure of `KVM_RUN`.
    pub fn run(&mut self) -> Result<VcpuExit<'_>, KvmError> {
        let queued = self.queue_again()?;
        self.registers.enter(&mut self.fd);
        let result = self.enter();
        self.registers.leave();
        if let Err(error) = result {
            // It may not have been entered at all; then what was queued still waits.
            if queued.is_some() && native::guest_debug::has_exception(&self.fd) {
                self.queued.replace(queued);
            }
            return match error.errno() {
                libc::EINTR => Ok(VcpuExit::Interrupted),
                // Linux before 6.1 returns it for a vCPU that is not ready to run.
                libc::EAGAIN => Ok(VcpuExit::Interrupted),
                errno => of_failure(errno, self.fd.get_kvm_run()).ok_or_else(|| ioctl("KVM_RUN")(error)),
            };
        }
        if self.is_waiting.get() {
            // SAFETY: as below.
            let exit = unsafe { decode(self.fd.get_kvm_run()) };
            if matches!(exit, VcpuExit::SystemEvent(SystemEvent::Wakeup)) {
                self.is_waiting.set(false);
                native::hypercalls::wake(&self.fd)?;
                return Ok(VcpuExit::Interrupted);
            }
        }
        // SAFETY: the reference is to the start of the vCPU's mapping, which `self` has to
        // itself while the result borrows it.
        Ok(unsafe { decode(self.fd.get_kvm_run()) })
    }

    fn enter(&mut self) -> Result<(), kvm_ioctls::Error> {
        forget_memory_fault(self.fd.get_kvm_run());
        self.fd.run().map(drop)
    }

    /// Finishes a port or memory access that was served, without running the guest: KVM does the
    /// instruction's last part when it is entered again (KVM API, "KVM_EXIT_IO"). `None` when it is
    /// finished; an access in several parts has further exits, and a step may end here.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn finish_access(&mut self) -> Result<Option<VcpuExit<'_>>, KvmError> {
        self.registers.enter(&mut self.fd);
        self.fd.set_kvm_immediate_exit(1);
        let result = self.enter();
        self.fd.set_kvm_immediate_exit(0);
        // One that came meanwhile is not lost with it: it has been noted before, or sets the byte again.
        if kick::is_pending() {
            self.fd.set_kvm_immediate_exit(1);
        }
        self.registers.leave();
        match result {
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => Ok(None),
            Err(error) => Err(ioctl("KVM_RUN")(error)),
            // SAFETY: as in `run`.
            Ok(()) => Ok(Some(unsafe { decode(self.fd.get_kvm_run()) })),
        }
    }

    /// Enters the guest for a [`Runner`](debug::live::runner::Runner)'s turn, or finishes what the last exit has left,
    /// and has `serve` deal with what comes of it.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`], in the answer that a runner takes for the guest's end.
    pub fn take(
        &mut self,
        turn: Turn<'_>,
        serve: impl FnOnce(VcpuExit<'_>, &mut Visit<'_>) -> Exit,
    ) -> Result<Exit, KvmError> {
        if turn.is_finish() {
            let mut visit = turn.visit();
            return Ok(match self.finish_access()? {
                Some(exit) => serve(exit, &mut visit),
                None => Exit::Interrupted,
            });
        }
        let (inside, mut visit) = turn.enter();
        let exit = self.run();
        drop(inside);
        Ok(serve(exit?, &mut visit))
    }

    /// x86: has a vCPU that waits in `HLT` go on behind it.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn end_halt(&self) -> Result<(), KvmError> {
        match self.activity() {
            Activity::Halted => native::guest_debug::set_runnable(&self.fd),
            _ => Ok(()),
        }
    }

    /// Gives the guest the external abort that an access to nothing is on hardware, where this host can.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn abort_access(&self) -> Result<(), KvmError> {
        self.registers.flush(&self.fd)?;
        let aborted = native::guest_debug::abort_access(&self.fd);
        self.registers.forget();
        aborted
    }

    /// x86: its time-stamp counter and that counter's frequency in kHz.
    pub fn tsc(&self) -> Option<(u64, u32)> {
        native::hypercalls::tsc(&self.fd)
    }

    /// Has the vCPU wait for an interrupt, as far as this host can.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn halt(&self) -> Result<(), KvmError> {
        self.is_waiting.set(native::hypercalls::halt(&self.fd)?);
        Ok(())
    }

    /// Tells KVM something of a vCPU of a guest that uses Xen's interface.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`]; [`KvmError::Missing`] on aarch64.
    pub fn set_xen_attribute(&self, attribute: XenVcpuAttribute) -> Result<(), KvmError> {
        native::hypercalls::set_xen_vcpu_attribute(&self.fd, attribute)
    }

    /// Sets what `KVM_EXIT_XEN` results in when the guest is entered again.
    pub fn set_hypercall_result(&mut self, value: u64) {
        let exit = &mut self.fd.get_kvm_run().__bindgen_anon_1;
        // A field of a union may be written at any time; KVM reads it only after such an exit.
        exit.xen.u.hcall.result = value;
    }

    /// Reads the registers of some banks, as far as KVM gives them.
    pub fn registers(&self, banks: &[Bank]) -> RegisterFile {
        self.registers.read(&self.fd, banks)
    }

    /// Writes every register that the file has a value for.
    ///
    /// # Errors
    /// [`KvmError::Register`], [`KvmError::Registers`] or [`KvmError::Msr`] for a value that KVM does not
    /// take, [`KvmError::Ioctl`].
    /// Registers written before it keep their new values.
    pub fn set_registers(&self, file: &RegisterFile) -> Result<(), KvmError> {
        self.is_dropped.set(true);
        self.registers.write(&self.fd, file)
    }

    /// Writes a few registers of up to 64 bits, by their rows.
    ///
    /// # Errors
    /// As [`Self::set_registers`].
    pub fn set_rows(&self, values: &[(usize, u64)]) -> Result<(), KvmError> {
        self.is_dropped.set(true);
        self.registers.write_rows(&self.fd, values)
    }

    /// Whether an exception that was given to the guest ([`Self::inject`]) waits for it to be entered.
    pub fn has_queued(&self) -> bool {
        self.queued.borrow().is_some()
    }

    /// Before the guest is entered: writing registers has dropped what was queued (KVM API, `KVM_SET_REGS`),
    /// so it is queued once more. What the guest is entered with.
    fn queue_again(&self) -> Result<Option<(Injection, Arming)>, KvmError> {
        let queued = self.queued.take();
        if let Some((injection, arming)) = queued.as_ref().filter(|_| self.is_dropped.get()) {
            self.registers.flush(&self.fd)?;
            native::guest_debug::inject(&self.fd, &injection.again(), arming)?;
            self.registers.forget();
        }
        self.is_dropped.set(false);
        Ok(queued)
    }

    /// Program counter (RIP, PC) and flags (RFLAGS, PSTATE).
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn pc_and_flags(&self) -> Result<(u64, u64), KvmError> {
        self.registers.pc_and_flags(&self.fd)
    }

    /// Program counter, and the base of the tables that translate it.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn pc_and_base(&self) -> Result<(u64, u64), KvmError> {
        self.registers.pc_and_base(&self.fd)
    }

    /// Whether it executes a kernel's code.
    pub fn is_privileged(&self) -> bool {
        self.registers.is_privileged(&self.fd)
    }

    /// Has KVM hand registers over with each exit for good, if it can.
    pub fn always_sync(&self) {
        self.registers.always_sync();
    }

    /// Keeps what registers were when the vCPU last left the guest with paging on, where a reset or a triple
    /// fault loses them.
    pub fn keep_before(&self) {
        self.registers.keep_before();
    }

    /// Looks at the vCPU as it was then, if paging is off now: general, segment and control registers are those
    /// of then, the others have outlived it. `None` where what there is now is what there is.
    pub fn with_before<R>(&self, look: impl FnOnce(&Vcpu) -> R) -> Option<R> {
        self.registers.with_before(&self.fd, || look(self))
    }

    /// How it translates addresses now.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn regime(&self) -> Result<Regime, KvmError> {
        self.registers.regime(&self.fd)
    }

    /// How it reads its code now.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn code(&self) -> Result<Code, KvmError> {
        self.registers.code(&self.fd)
    }

    /// Reads the registers that a stop is told with ([`arch::register::at_stop`]), and what comes with them.
    pub fn at_stop(&self) -> RegisterFile {
        self.registers.at_stop(&self.fd)
    }

    /// Reads one register of up to 64 bits by its row.
    pub fn register(&self, row: usize) -> Option<u64> {
        self.registers.read_row(&self.fd, row)
    }

    /// The debug registers that the guest has armed for itself, as many as the host has the abilities to arm.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn own_debug_registers(&self, abilities: &Abilities) -> Result<DebugRegisters, KvmError> {
        self.registers.own_debug_registers(&self.fd, abilities)
    }

    /// Sets what the vCPU runs with: `KVM_SET_GUEST_DEBUG`.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn set_debug(&self, arming: &Arming) -> Result<(), KvmError> {
        self.registers.flush(&self.fd)?;
        self.registers.sync(!arming.is_off());
        if let Some((_, queued_with)) = &mut *self.queued.borrow_mut() {
            queued_with.clone_from(arming);
        }
        native::guest_debug::set(&self.fd, arming)
    }

    /// Gives the guest an exception of its own that came to us. What the vCPU runs with is
    /// set anew.
    ///
    /// # Errors
    /// [`KvmError`].
    pub fn inject(&self, injection: &Injection, arming: &Arming) -> Result<(), KvmError> {
        self.registers.flush(&self.fd)?;
        let injected = native::guest_debug::inject(&self.fd, injection, arming);
        self.registers.forget();
        if HOST_ISA == Isa::X86_64 && injected.is_ok() {
            self.queued.replace(Some((*injection, arming.clone())));
            self.is_dropped.set(false);
        }
        injected
    }

    /// Keeps interrupts out of the next instruction where KVM does not
    /// (`KVM_GUESTDBG_BLOCKIRQ`): an interrupt shadow on x86; aarch64 has another way
    /// (`arch::aarch64::step`).
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn shadow_interrupts(&self) -> Result<(), KvmError> {
        native::guest_debug::shadow_interrupts(&self.fd)
    }

    /// What it is doing, as KVM sees it (`KVM_GET_MP_STATE`).
    pub fn activity(&self) -> Activity {
        native::guest_debug::activity(&self.fd)
    }

    /// Raises a non-maskable interrupt.
    ///
    /// # Errors
    /// [`KvmError::Missing`] on aarch64, [`KvmError::Ioctl`].
    pub fn nmi(&self) -> Result<(), KvmError> {
        native::guest_debug::nmi(&self.fd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsRawFd;

    /// The descriptor of a machine's vCPU, as a monitor with ioctls of its own has it.
    fn bare() -> Option<(File, kvm_ioctls::VmFd, VcpuFd)> {
        let device = File::options().read(true).write(true).open("/dev/kvm");
        let device =
            device.inspect_err(|error| log::warn!("there is no KVM to adopt a vCPU of: {error}")).ok()?;
        let vm = Kvm::new().ok()?.create_vm().ok()?;
        let vcpu = vm.create_vcpu(0).ok()?;
        Some((device, vm, vcpu))
    }

    /// Nothing says in which order a vCPU and the guard of its thread's kicks are dropped.
    #[test]
    fn a_thread_is_kicked_behind_its_vcpus_end() {
        let Some((device, vm, fd)) = bare() else { return };
        let kvm = Kvm::new().unwrap();
        let mut vcpu = Vcpu::adopt(&kvm, 0, fd);
        let kicker = kick::Kicker::default();
        let kicks = vcpu.accept_kicks_by(&kicker).unwrap();
        assert_ne!(kick::signal(), 0, "whoever accepts kicks can be kicked");
        kicker.kick();
        assert_eq!(vcpu.fd.get_kvm_run().immediate_exit, 1);
        drop((vcpu, vm, device));
        kicker.kick();
        assert!(kick::is_pending());
        kick::clear();
        drop(kicks);
        kicker.kick();
        assert!(!kick::is_pending());
    }

    #[test]
    fn a_bare_descriptor_is_adopted() {
        let Some((device, _vm, theirs)) = bare() else { return };
        // SAFETY: the descriptor is open as long as `theirs`.
        let fd = unsafe { BorrowedFd::borrow_raw(theirs.as_raw_fd()) }.try_clone_to_owned().unwrap();
        // SAFETY: it is a vCPU's.
        let mut ours = unsafe { Vcpu::adopt_descriptor(device.as_fd(), 7, fd) }.unwrap();
        assert_eq!(ours.id(), 7);
        // What one of them maps is what the other does.
        let mut theirs = theirs;
        let flag = &raw mut theirs.get_kvm_run().immediate_exit;
        ours.fd.set_kvm_immediate_exit(1);
        // SAFETY: the mapping lives as long as `theirs`, and a volatile read is one byte.
        assert_eq!(unsafe { flag.read_volatile() }, 1);
        drop(theirs);
        assert!(matches!(ours.activity(), Activity::Running | Activity::NotStarted));
    }

    #[test]
    fn a_thread_is_kicked_out_of_one_vcpu() {
        let Some((_device, _vm, fd)) = bare() else { return };
        let kvm = Kvm::new().unwrap();
        let mut vcpu = Vcpu::adopt(&kvm, 0, fd);
        let kicks = vcpu.accept_kicks().unwrap();
        let error = vcpu.accept_kicks().unwrap_err();
        assert!(error.to_string().contains("out of another vCPU already"), "{error}");
        drop(kicks);
        assert!(vcpu.accept_kicks().is_ok());
    }

    #[test]
    fn what_the_monitor_has_set_by_itself_is_seen_when_the_rest_is_forgotten() {
        let Some((device, _vm, fd)) = bare() else { return };
        let kvm = Kvm::new().unwrap();
        let mut vcpu = Vcpu::adopt(&kvm, 0, fd);
        let row = 3;
        let set = |vcpu: &mut Vcpu, value| vcpu.set_rows(&[(row, value)]).unwrap();
        set(&mut vcpu, 0x1234);
        vcpu.flush().unwrap();
        assert_eq!(vcpu.register(row), Some(0x1234));
        // By a call of its own.
        let descriptor = vcpu.fd.as_raw_fd();
        // SAFETY: the descriptor is open as long as `vcpu`.
        let again = unsafe { BorrowedFd::borrow_raw(descriptor) }.try_clone_to_owned().unwrap();
        // SAFETY: it is a vCPU's.
        let mut theirs = unsafe { Vcpu::adopt_descriptor(device.as_fd(), 0, again) }.unwrap();
        set(&mut theirs, 0x5678);
        vcpu.forget();
        assert_eq!(vcpu.register(row), Some(0x5678));
    }

    #[test]
    fn what_is_no_vcpu_is_refused() {
        let Some((device, ..)) = bare() else { return };
        let no_vcpu = std::io::pipe().unwrap().0;
        // SAFETY: nothing can be mapped of a pipe.
        let adopted = unsafe { Vcpu::adopt_descriptor(device.as_fd(), 0, no_vcpu.into()) };
        assert!(matches!(adopted, Err(KvmError::Ioctl { call: "mmap", .. })), "{adopted:?}");
    }
}
