//! Hypercalls of a live guest: from an exit to a call, and back.
//!
//! `devices::hypercall` knows what calls mean; this module knows which families there are ([`family`]), how calls come
//! out of a guest on each architecture and host (`calling`), and what a vCPU does behind one.

mod caller;
mod calling;
pub mod family;

use crate::machine::guest_ram::GuestRam;
use crate::machine::mailbox::Mailbox;
use arch::{End, GuestPhys};
use caller::GuestCaller;
use calling::{Calling, is_privileged, refuse_smccc, rewind};
use debug::machine::Memory;
use devices::hypercall::trace::Tracer;
use devices::hypercall::xen::{cpuid, errno};
use devices::hypercall::{Effect, Hypercalls};
use family::{FamilyName, Helper, Parts, Timers};
use kvm::exit::HypercallExit;
use kvm::{KvmError, Transport, Vcpu};
use std::fmt;
use std::sync::Arc;

/// Hypercalls of one machine.
pub struct LiveHypercalls {
    calls: Hypercalls,
    calling: Calling,
    ram: GuestRam,
    helper: Option<Box<dyn Helper>>,
}

impl fmt::Debug for LiveHypercalls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveHypercalls").field("transport", &self.calling.transport).finish_non_exhaustive()
    }
}

/// What is to be done with a vCPU behind a call.
#[derive(Debug)]
pub(super) enum AfterCall {
    /// It goes on.
    GoOn,
    /// The guest ends.
    End(End),
    /// A debugger wants to see this call, which has not been answered.
    Catch(String),
}

impl LiveHypercalls {
    /// A family's calls over a transport, of a machine.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn new(
        family: FamilyName,
        transport: Transport,
        (tracer, is_timed): (Tracer, bool),
        parts: &Parts<'_>,
    ) -> std::io::Result<LiveHypercalls> {
        let made = (family.facts().make)(parts)?;
        Ok(LiveHypercalls {
            calls: Hypercalls::new(made.family, tracer, is_timed),
            calling: Calling::new(family, transport, parts.vcpus),
            ram: parts.ram.clone(),
            helper: made.helper,
        })
    }

    /// The vCPUs' threads have been started; none has run its guest.
    pub(super) fn introduce(&self, mailboxes: Vec<Mailbox>) {
        if let Some(helper) = &self.helper {
            helper.introduce(mailboxes);
        }
    }

    /// The guest's timers, if its family has any.
    pub(super) fn timers(&self) -> Option<&Arc<Timers>> {
        self.helper.as_ref().and_then(|helper| helper.timers())
    }

    /// Whether calls look at registers, so that KVM had better hand them over with each exit.
    pub(super) fn looks_at_registers(&self) -> bool {
        self.calling.looks_at_registers()
    }

    /// The calls.
    pub fn calls(&self) -> &Hypercalls {
        &self.calls
    }

    /// Whether a write to a port is a hypercall.
    pub(super) fn is_port(&self, port: u16) -> bool {
        matches!(self.calling.transport, Transport::Page { port: ours } if u16::from(ours) == port)
    }

    /// The guest writes an MSR that was kept for us; whether it may.
    pub(super) fn write_msr(&self, index: u32, value: u64) -> bool {
        const PAGE: u64 = 4096;
        // The lower bits say which of the pages; there is one.
        let Transport::Page { port } = self.calling.transport else { return false };
        if index != cpuid::HYPERCALL_MSR || !value.is_multiple_of(PAGE) {
            return false;
        }
        let page = cpuid::page(port);
        self.ram.write(GuestPhys(value), &page) == page.len()
    }

    /// Serves a call of `vcpu`, or shows it to a debugger if `may_catch`.
    ///
    /// # Errors
    /// [`KvmError`].
    pub(super) fn serve(
        &self,
        vcpu: &mut Vcpu,
        exit: HypercallExit,
        may_catch: bool,
    ) -> Result<AfterCall, KvmError> {
        let Some(raw) = self.calling.take(vcpu, exit, &self.calls, &self.ram)? else {
            return refuse_smccc(vcpu).map(|()| AfterCall::GoOn);
        };
        let caller = GuestCaller::new(vcpu, &self.ram);
        if may_catch && self.calls.is_caught() {
            let seen = self.calls.look(raw, &caller);
            if self.calls.catches(&seen) {
                let text = seen.text();
                rewind(vcpu, exit)?;
                return Ok(AfterCall::Catch(text));
            }
        }
        let answer =
            if is_privileged(vcpu, exit) { self.calls.serve(raw, &caller) } else { errno::EPERM.into() };
        self.calling.give(vcpu, exit, raw.abi, answer.result)?;
        Ok(match answer.effect {
            Effect::None => AfterCall::GoOn,
            Effect::Halt => {
                vcpu.halt()?;
                AfterCall::GoOn
            }
            Effect::End(end) => AfterCall::End(end),
        })
    }
}

impl Drop for LiveHypercalls {
    fn drop(&mut self) {
        // What it still says is to be in the trace.
        self.helper = None;
        self.calls.tracer().flush();
    }
}
