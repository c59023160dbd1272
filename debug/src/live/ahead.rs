//! What only a vCPU's thread can tell, for a debugger that must not wait for one: it is asked for before somebody
//! wants it, and what is written is answered before it is done.
//!
//! Each question is a task of the vCPU's thread, and each answer rings the debugger's [`Wake`], also when it will
//! never come because the thread has ended.

use super::link::{Link, Wake};
use super::vcpus::{Hold, Monitor, Pausing, Vcpus};
use crate::arming::Arming;
use crate::machine::{Activity, Code, Extent, MachineError};
use crate::vcpu::Vcpu;
use arch::Isa;
use arch::paging::Regime;
use arch::register::{Bank, RegisterFile};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::task::Poll;

/// What a vCPU that stands still has said of itself.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub registers: Result<RegisterFile, MachineError>,
    pub code: Result<Code, MachineError>,
    pub regime: Result<Regime, MachineError>,
    pub activity: Activity,
}

impl Facts {
    fn of(vcpu: &impl Vcpu, extent: Extent) -> Facts {
        let banks = match extent {
            Extent::Near => &[Bank::General, Bank::System][..],
            Extent::Whole => &Bank::ALL,
        };
        Facts {
            registers: Ok(vcpu.registers(banks)),
            code: vcpu.code(),
            regime: vcpu.regime(),
            activity: vcpu.activity(),
        }
    }

    /// What is known of a vCPU whose thread has ended, or that was not asked.
    fn none(error: &MachineError) -> Facts {
        let (code, regime) = (Err(error.clone()), Err(error.clone()));
        Facts { registers: Err(error.clone()), code, regime, activity: Activity::NotStarted }
    }
}

/// One vCPU.
#[derive(Debug, Default)]
struct Asked {
    /// What it has said, and how much of that holds.
    known: Option<(Option<Extent>, Facts)>,
    coming: Option<(Extent, Receiver<Facts>)>,
}

impl Asked {
    /// Whether it is known as far as `extent`; takes what has come.
    fn is_known(&mut self, vcpu: u32, extent: Extent) -> bool {
        if let Some((coming, answer)) = &self.coming {
            let facts = match answer.try_recv() {
                Ok(facts) => Some((Some(*coming), facts)),
                // It will not say anything any more.
                Err(TryRecvError::Disconnected) => {
                    Some((Some(Extent::Whole), Facts::none(&MachineError::NoVcpu(vcpu))))
                }
                Err(TryRecvError::Empty) => None,
            };
            if facts.is_some() {
                (self.known, self.coming) = (facts, None);
            }
        }
        self.known.as_ref().is_some_and(|(known, _)| *known >= Some(extent))
    }

    fn is_coming(&self, extent: Extent) -> bool {
        self.coming.as_ref().is_some_and(|(coming, _)| *coming >= extent)
    }
}

/// What has been asked of a guest's vCPUs, and what they have answered.
#[derive(Debug)]
pub(super) struct Ahead<M: Monitor> {
    pausing: Option<Pausing<M>>,
    vcpus: Vec<Asked>,
    /// What has become of writes, when they are made.
    writes: Vec<(u32, Receiver<Result<(), MachineError>>)>,
    refused: Option<MachineError>,
}

impl<M: Monitor> Ahead<M> {
    /// For this many vCPUs, of which nothing is known.
    pub fn new(vcpus: u32) -> Ahead<M> {
        let vcpus = (0..vcpus).map(|_| Asked::default()).collect();
        Ahead { pausing: None, vcpus, writes: Vec::new(), refused: None }
    }

    /// Begins what is needed for vCPUs to stand still, held by `hold`, and to be known as far as `extent`.
    pub fn prepare(
        &mut self,
        (vcpus, link): (&Arc<Vcpus<M>>, &Arc<Link>),
        (hold, running): (&mut Option<Hold<M>>, &mut [bool]),
        extent: Extent,
    ) -> Poll<()> {
        let wake = link.wake();
        if self.look_at_writes().is_pending() {
            return Poll::Pending;
        }
        if hold.is_none() {
            let begin = || vcpus.begin_pause(link, |vcpu| running[vcpu as usize], wake);
            *hold = self.pausing.get_or_insert_with(begin).look();
            if hold.is_none() {
                return Poll::Pending;
            }
            self.pausing = None;
            running.fill(false);
        }
        let mut is_ready = true;
        for (vcpu, asked) in (0..).zip(&mut self.vcpus) {
            if asked.is_known(vcpu, extent) {
                continue;
            }
            is_ready = false;
            if !asked.is_coming(extent) {
                let answer = vcpus.post_question(vcpu, move |vcpu| Facts::of(vcpu, extent), wake);
                asked.coming = Some((extent, answer));
            }
        }
        if is_ready { Poll::Ready(()) } else { Poll::Pending }
    }

    /// All vCPUs may do something else from now on: nothing is known of them.
    pub fn forget(&mut self) {
        self.vcpus.iter_mut().for_each(|asked| *asked = Asked::default());
    }

    /// Nobody waits for vCPUs to stand still any more; whether somebody did.
    pub fn pause_no_more(&mut self) -> bool {
        self.pausing.take().is_some()
    }

    /// What is known of a vCPU.
    pub fn facts(&self, vcpu: u32) -> Facts {
        let asked = self.vcpus.get(vcpu as usize);
        let Some(asked) = asked else { return Facts::none(&MachineError::NoVcpu(vcpu)) };
        asked.known.as_ref().map_or_else(|| Facts::none(&MachineError::Later), |(_, facts)| facts.clone())
    }

    /// Writes registers. They are taken for written until the vCPU is asked again.
    pub fn set_registers(&mut self, vcpus: &Vcpus<M>, vcpu: u32, file: &RegisterFile, wake: &Wake) {
        let ours = file.clone();
        let answer = vcpus.post_question(vcpu, move |vcpu| vcpu.set_registers(&ours), wake);
        self.writes.push((vcpu, answer));
        // Whoever looks before it is asked again sees what was written; how it translates by then is asked.
        if let Some(asked) = self.vcpus.get_mut(vcpu as usize) {
            asked.coming = None;
            if let Some((extent, facts)) = &mut asked.known {
                *extent = None;
                if let Ok(registers) = &mut facts.registers {
                    registers.take_from(file);
                }
            }
        }
    }

    /// Raises a non-maskable interrupt.
    pub fn nmi(&mut self, vcpus: &Vcpus<M>, vcpu: u32, wake: &Wake) {
        self.writes.push((vcpu, vcpus.post_question(vcpu, |vcpu| vcpu.nmi(), wake)));
        self.vcpus.iter_mut().for_each(|asked| *asked = Asked::default());
    }

    /// Switches all guest debugging off, before a vCPU enters the guest again.
    pub fn disarm(vcpus: &Vcpus<M>, isa: Isa) {
        let off = Arming::off(isa);
        vcpus.post_each(move |vcpu| {
            if let Err(error) = vcpu.set_debug(&off) {
                log::warn!("guest debugging cannot be switched off: {error}");
            }
        });
    }

    fn look_at_writes(&mut self) -> Poll<()> {
        let refused = &mut self.refused;
        self.writes.retain(|(vcpu, answer)| match answer.try_recv() {
            Ok(Ok(())) => false,
            Ok(Err(error)) => {
                refused.get_or_insert(error);
                false
            }
            Err(TryRecvError::Disconnected) => {
                refused.get_or_insert(MachineError::NoVcpu(*vcpu));
                false
            }
            Err(TryRecvError::Empty) => true,
        });
        if self.writes.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// What has become of what was written.
    pub fn written(&mut self) -> Poll<Result<(), MachineError>> {
        self.look_at_writes().map(|()| self.refused.take().map_or(Ok(()), Err))
    }

    /// Takes what has come.
    pub fn look(&mut self) {
        (0..).zip(&mut self.vcpus).for_each(|(vcpu, asked)| {
            asked.is_known(vcpu, Extent::Near);
        });
        // Whether all has come is asked where it is wanted.
        let _is_written = self.look_at_writes();
    }

    /// Whether somebody has been asked who has not answered.
    pub fn is_asking(&self) -> bool {
        let is_written = self.writes.is_empty() && self.refused.is_none();
        self.pausing.is_some() || !is_written || self.vcpus.iter().any(|it| it.coming.is_some())
    }
}
