//! A live guest's vCPUs, as whoever debugs them sees them.

use super::attention;
use super::link::{Link, Wake};
use super::vcpus::{Hold, Monitor, Vcpus};
use crate::abilities::Abilities;
use crate::arming::Arming;
use crate::machine::{Action, Activity, Code, Control, Event, Machine, Order, TargetError};
use crate::ram::Memory;
use crate::reply::{Arguments, Command, Refusal, Reply};
use crate::vcpu::Vcpu;
use arch::Isa;
use arch::paging::Regime;
use arch::register::{Bank, RegisterFile};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// All vCPUs of a guest, for one thread that debugs it.
#[derive(Debug)]
pub struct LiveMachine<M: Monitor> {
    vcpus: Arc<Vcpus<M>>,
    link: Arc<Link>,
    events: Receiver<Event>,
    /// Events that have arrived and were not asked for yet.
    happened: VecDeque<Event>,
    /// Which vCPUs may be running: what need not be paused is not asked to.
    running: Vec<bool>,
    /// While none of them may.
    hold: Option<Hold<M>>,
    /// What is known of vCPUs that stand still, until something changes it.
    known: RefCell<Vec<Known>>,
    /// Machines in which the guest begins again, or why there is none.
    next: Receiver<Result<Begun<M>, String>>,
    /// The debugger's thread is to end.
    quit: Wake,
    /// The debugger wants the guest to end.
    wants_end: Arc<AtomicBool>,
}

/// A machine whose guest begins, as far as a debugger needs it.
#[derive(Debug)]
pub struct Begun<M: Monitor> {
    /// Its vCPUs.
    pub vcpus: Arc<Vcpus<M>>,
    /// What their threads share with the debugger.
    pub link: Arc<Link>,
    /// What they tell it.
    pub events: Receiver<Event>,
}

/// What is known of a vCPU that stands still.
#[derive(Clone, Debug, Default)]
struct Known {
    /// Its general registers.
    general: Option<RegisterFile>,
    /// How it translates.
    regime: Option<Regime>,
    /// What it does.
    state: Option<Activity>,
}

impl<M: Monitor> LiveMachine<M> {
    /// The machine as it begins; those that `next` tells of take its place.
    pub fn new(
        begun: Begun<M>,
        next: Receiver<Result<Begun<M>, String>>,
        (quit, wants_end): (Wake, Arc<AtomicBool>),
    ) -> LiveMachine<M> {
        let Begun { vcpus, link, events } = begun;
        LiveMachine {
            events,
            happened: VecDeque::new(),
            // Until the first pause nobody knows.
            running: vec![true; vcpus.count() as usize],
            hold: None,
            known: RefCell::new(vec![Known::default(); vcpus.count() as usize]),
            next,
            quit,
            wants_end,
            vcpus,
            link,
        }
    }

    /// Goes over to a machine in which the guest begins again, and lets go of the old one.
    fn adopt(&mut self, begun: Begun<M>) {
        self.hold = None;
        let Begun { vcpus, link, events } = begun;
        (self.vcpus, self.link, self.events) = (vcpus, link, events);
        self.happened.clear();
        self.running.fill(false);
        self.known.borrow_mut().fill(Known::default());
    }

    /// Has the guest begin again, and waits for that.
    fn restart(&mut self) -> Result<(), TargetError> {
        /// Between two looks whether this thread is to end.
        const LOOK: Duration = Duration::from_millis(20);
        /// Longer than a kernel takes to be read and unpacked; a program that has the machine may not obey at all.
        const PATIENCE: Duration = Duration::from_secs(60);
        let begin = Instant::now();
        self.vcpus.monitor().reset()?;
        loop {
            match self.next.recv_timeout(LOOK) {
                Ok(Ok(begun)) => {
                    self.adopt(begun);
                    return Ok(());
                }
                Ok(Err(words)) => return Err(TargetError::Host(words)),
                // One that comes later is taken as a reset of the guest's own.
                Err(RecvTimeoutError::Timeout) if begin.elapsed() > PATIENCE => {
                    return Err(TargetError::Host(
                        "whoever runs the guest does not have it begin again".into(),
                    ));
                }
                Err(RecvTimeoutError::Timeout) if !self.quit.is_rung() => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    return Err(TargetError::Host("the guest has ended".into()));
                }
            }
        }
    }

    fn forget(&self, vcpu: u32) {
        if let Some(known) = self.known.borrow_mut().get_mut(vcpu as usize) {
            *known = Known::default();
        }
    }
}

impl<M: Monitor> Machine for LiveMachine<M> {
    fn isa(&self) -> Isa {
        self.link.engine.isa()
    }

    fn vcpus(&self) -> u32 {
        self.vcpus.count()
    }

    fn activity(&self, vcpu: u32) -> Activity {
        if let Some(state) = self.known.borrow().get(vcpu as usize).and_then(|known| known.state) {
            return state;
        }
        let state = self.vcpus.call(vcpu, |vcpu| vcpu.activity()).unwrap_or(Activity::NotStarted);
        // What waits for an interrupt may get it while others run.
        if self.hold.is_some()
            && let Some(known) = self.known.borrow_mut().get_mut(vcpu as usize)
        {
            known.state = Some(state);
        }
        state
    }

    fn registers(&self, vcpu: u32, banks: &[Bank]) -> Result<RegisterFile, TargetError> {
        if banks == [Bank::General]
            && let Some(file) =
                self.known.borrow().get(vcpu as usize).and_then(|known| known.general.as_ref())
        {
            return Ok(file.clone());
        }
        let wanted = banks.to_vec();
        let file = self.vcpus.call(vcpu, move |vcpu| vcpu.registers(&wanted));
        let file = file.ok_or(TargetError::NoVcpu(vcpu))?;
        if banks == [Bank::General] && !self.running[vcpu as usize] {
            self.known.borrow_mut()[vcpu as usize].general = Some(file.clone());
        }
        Ok(file)
    }

    fn code(&self, vcpu: u32) -> Result<Code, TargetError> {
        self.vcpus.call(vcpu, |vcpu| vcpu.code()).ok_or(TargetError::NoVcpu(vcpu))?
    }

    fn regime(&self, vcpu: u32) -> Result<Regime, TargetError> {
        if let Some(regime) = self.known.borrow().get(vcpu as usize).and_then(|known| known.regime) {
            return Ok(regime);
        }
        let regime = self.vcpus.call(vcpu, |vcpu| vcpu.regime());
        let regime = regime.ok_or(TargetError::NoVcpu(vcpu))??;
        if !self.running[vcpu as usize] {
            self.known.borrow_mut()[vcpu as usize].regime = Some(regime);
        }
        Ok(regime)
    }

    fn set_registers(&self, vcpu: u32, file: &RegisterFile) -> Result<(), TargetError> {
        self.forget(vcpu);
        let file = file.clone();
        let set = self.vcpus.call(vcpu, move |vcpu| vcpu.set_registers(&file));
        set.ok_or(TargetError::NoVcpu(vcpu))?
    }

    fn memory(&self) -> &dyn Memory {
        &*self.link.memory
    }

    fn abilities(&self) -> &Abilities {
        self.link.engine.abilities()
    }

    fn resume(&mut self, orders: Vec<Order>) -> Result<(), TargetError> {
        self.known.borrow_mut().iter_mut().for_each(|known| known.state = None);
        let ends_soon = orders.iter().any(|order| order.action == Action::Step);
        self.hold = None;
        if ends_soon {
            self.link.attention().begin();
        }
        for (vcpu, order) in (0..).zip(orders) {
            if order.action != Action::Stay {
                self.forget(vcpu);
                self.running[vcpu as usize] = true;
                self.vcpus.order(vcpu, order);
            }
        }
        if ends_soon {
            self.happened.extend(attention::poll(|| self.events.try_recv().ok()));
            self.link.attention().end();
            self.happened.extend(self.events.try_iter());
        }
        Ok(())
    }

    fn pause(&mut self) {
        if self.hold.is_none() {
            self.hold = Some(self.vcpus.pause(|vcpu| self.running[vcpu as usize]));
            self.running.fill(false);
        }
    }

    fn next_event(&mut self) -> Option<Event> {
        if let Ok(next) = self.next.try_recv() {
            match next {
                Ok(begun) => {
                    self.adopt(begun);
                    return Some(Event::Restarted);
                }
                Err(words) => log::error!("the guest does not begin again: {words}"),
            }
        }
        if self.happened.is_empty() {
            // Nothing there is no error; the count is of no interest. What is told from here on
            // makes the descriptor readable again.
            self.link.wake().take();
            self.happened.extend(self.events.try_iter());
        }
        let event = self.happened.pop_front()?;
        if let Event::Stopped { vcpu, registers, .. } = &event {
            self.running[*vcpu as usize] = false;
            let known = Known { general: Some(registers.clone()), ..Known::default() };
            self.known.borrow_mut()[*vcpu as usize] = known;
        }
        Some(event)
    }

    fn settle(&mut self) -> Option<Duration> {
        self.hold.as_ref().and_then(Hold::settle)
    }

    fn stays(&mut self) {
        if let Some(hold) = &self.hold {
            hold.stays();
        }
    }

    fn event_fd(&self) -> BorrowedFd<'_> {
        self.link.wake().as_fd()
    }

    fn disarm(&mut self) {
        let off = Arming::off(self.isa());
        let results = self.vcpus.for_each(move |vcpu| vcpu.set_debug(&off));
        for error in results.into_iter().filter_map(Result::err) {
            log::warn!("guest debugging cannot be switched off: {error}");
        }
    }

    fn control(&mut self, control: Control) -> Result<(), TargetError> {
        match control {
            Control::Nmi(vcpu) => {
                self.forget(vcpu);
                self.vcpus.call(vcpu, |vcpu| vcpu.nmi()).ok_or(TargetError::NoVcpu(vcpu))?
            }
            Control::Reset => self.restart(),
            Control::Quit => {
                self.wants_end.store(true, Ordering::SeqCst);
                if let Ok(Ok(begun)) = self.next.try_recv() {
                    self.adopt(begun);
                }
                self.vcpus.monitor().quit();
                Ok(())
            }
        }
    }

    fn exits(&self) -> Vec<Vec<(&'static str, u64)>> {
        self.vcpus.monitor().exits()
    }

    fn read_port(&self, port: u16, bytes: &mut [u8]) -> Result<(), TargetError> {
        self.vcpus.monitor().read_port(port, bytes)
    }

    fn write_port(&self, port: u16, bytes: &[u8]) -> Result<(), TargetError> {
        self.vcpus.monitor().write_port(port, bytes)
    }

    fn commands(&self) -> Vec<Command> {
        self.vcpus.monitor().commands()
    }

    fn run_command(&mut self, name: &str, arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
        self.vcpus.monitor().run_command(name, arguments)
    }
}
