//! What only a vCPU's thread can tell, for a debugger that waits for it. What has been told holds until something
//! changes it.

use super::vcpus::{Monitor, Vcpus};
use crate::arming::Arming;
use crate::machine::{Activity, Code, MachineError};
use crate::vcpu::Vcpu;
use arch::Isa;
use arch::paging::Regime;
use arch::register::{Bank, RegisterFile};
use std::cell::RefCell;

/// What is known of a vCPU that stands still.
#[derive(Clone, Debug, Default)]
struct Known {
    /// Its general registers.
    general: Option<RegisterFile>,
    /// What its stop was told with, if that is less.
    at_stop: Option<RegisterFile>,
    /// How it translates.
    regime: Option<Regime>,
    /// How it reads its code.
    code: Option<Code>,
    /// What it does.
    activity: Option<Activity>,
}

/// What is known of a guest's vCPUs.
#[derive(Debug)]
pub(super) struct Waited(RefCell<Vec<Known>>);

impl Waited {
    /// Nothing, of this many vCPUs.
    pub fn new(vcpus: u32) -> Waited {
        Waited(RefCell::new(vec![Known::default(); vcpus as usize]))
    }

    /// The vCPU may be another than before.
    pub fn forget(&self, vcpu: u32) {
        if let Some(known) = self.0.borrow_mut().get_mut(vcpu as usize) {
            *known = Known::default();
        }
    }

    /// vCPUs run: one that waits for an interrupt may get it.
    pub fn forget_activities(&self) {
        self.0.borrow_mut().iter_mut().for_each(|known| known.activity = None);
    }

    /// The vCPU has stopped, with these registers.
    pub fn stopped(&self, vcpu: u32, registers: RegisterFile) {
        if let Some(known) = self.0.borrow_mut().get_mut(vcpu as usize) {
            *known = match registers.has_bank(Bank::General) {
                true => Known { general: Some(registers), ..Known::default() },
                false => Known { at_stop: Some(registers), ..Known::default() },
            };
        }
    }

    /// What its stop was told with, or its general registers.
    pub fn at_stop<M: Monitor>(
        &self,
        vcpus: &Vcpus<M>,
        vcpu: u32,
        stays: bool,
    ) -> Result<RegisterFile, MachineError> {
        if let Some(general) = self.0.borrow().get(vcpu as usize).and_then(|known| known.general.clone()) {
            return Ok(general);
        }
        let ask = || vcpus.call(vcpu, |vcpu| vcpu.at_stop()).ok_or(MachineError::NoVcpu(vcpu));
        self.ask(vcpu, stays, |known| &mut known.at_stop, ask)
    }

    /// What `known` says, or the vCPU, which is remembered if it `stays` so.
    fn ask<T: Clone>(
        &self,
        vcpu: u32,
        stays: bool,
        known: impl Fn(&mut Known) -> &mut Option<T>,
        ask: impl FnOnce() -> Result<T, MachineError>,
    ) -> Result<T, MachineError> {
        if let Some(value) = self.0.borrow_mut().get_mut(vcpu as usize).and_then(|it| known(it).clone()) {
            return Ok(value);
        }
        let value = ask()?;
        if stays && let Some(it) = self.0.borrow_mut().get_mut(vcpu as usize) {
            *known(it) = Some(value.clone());
        }
        Ok(value)
    }

    pub fn activity<M: Monitor>(&self, vcpus: &Vcpus<M>, vcpu: u32, stays: bool) -> Activity {
        let ask = || vcpus.call(vcpu, |vcpu| vcpu.activity()).ok_or(MachineError::NoVcpu(vcpu));
        self.ask(vcpu, stays, |known| &mut known.activity, ask).unwrap_or(Activity::NotStarted)
    }

    pub fn registers<M: Monitor>(
        &self,
        vcpus: &Vcpus<M>,
        vcpu: u32,
        banks: &[Bank],
        stays: bool,
    ) -> Result<RegisterFile, MachineError> {
        let wanted = banks.to_vec();
        let ask = || {
            let file = vcpus.call(vcpu, move |vcpu| vcpu.registers(&wanted));
            file.ok_or(MachineError::NoVcpu(vcpu))
        };
        match banks {
            [Bank::General] => self.ask(vcpu, stays, |known| &mut known.general, ask),
            _ => ask(),
        }
    }

    pub fn code<M: Monitor>(&self, vcpus: &Vcpus<M>, vcpu: u32, stays: bool) -> Result<Code, MachineError> {
        let ask = || vcpus.call(vcpu, |vcpu| vcpu.code()).ok_or(MachineError::NoVcpu(vcpu))?;
        self.ask(vcpu, stays, |known| &mut known.code, ask)
    }

    pub fn regime<M: Monitor>(
        &self,
        vcpus: &Vcpus<M>,
        vcpu: u32,
        stays: bool,
    ) -> Result<Regime, MachineError> {
        let ask = || vcpus.call(vcpu, |vcpu| vcpu.regime()).ok_or(MachineError::NoVcpu(vcpu))?;
        self.ask(vcpu, stays, |known| &mut known.regime, ask)
    }

    pub fn set_registers<M: Monitor>(
        &self,
        vcpus: &Vcpus<M>,
        vcpu: u32,
        file: &RegisterFile,
    ) -> Result<(), MachineError> {
        self.forget(vcpu);
        let file = file.clone();
        let set = vcpus.call(vcpu, move |vcpu| vcpu.set_registers(&file));
        set.ok_or(MachineError::NoVcpu(vcpu))?
    }

    pub fn nmi<M: Monitor>(&self, vcpus: &Vcpus<M>, vcpu: u32) -> Result<(), MachineError> {
        self.forget(vcpu);
        vcpus.call(vcpu, |vcpu| vcpu.nmi()).ok_or(MachineError::NoVcpu(vcpu))?
    }

    pub fn disarm<M: Monitor>(vcpus: &Vcpus<M>, isa: Isa) {
        let off = Arming::off(isa);
        let results = vcpus.for_each(move |vcpu| vcpu.set_debug(&off));
        for error in results.into_iter().filter_map(Result::err) {
            log::warn!("guest debugging cannot be switched off: {error}");
        }
    }
}
