//! What a packet's answer has done: to the target, and to the connection.

use super::{Client, Goodbye, lock};
use crate::gdb::answer::Answer;
use crate::gdb::front;
use crate::gdb::packet::Item;
use crate::gdb::session::{Process, Session, Stop};
use crate::gdb::stop::{self, console};
use crate::machine::{Action, Machine, MachineError, StopReason};

impl<M: Machine> Client<M> {
    /// Answers a packet.
    pub(super) fn answer(&mut self, session: &mut Session<M>, data: &[u8]) -> Result<(), Goodbye> {
        match front::serve(session, data) {
            Answer::Reply(reply) => self.send(&reply),
            Answer::Memory { address, length, is_binary } => {
                self.send_memory(session, address, length, is_binary);
            }
            Answer::Kill(reply) => {
                if !reply.is_empty() {
                    self.send(&reply);
                }
                if !session.is_extended {
                    return Err(Goodbye::Kill);
                }
                self.is_running = false;
                session.end();
            }
            Answer::Detach(reply) => {
                self.send(&reply);
                if !session.is_extended {
                    return Err(Goodbye::Detach);
                }
                self.is_running = false;
                session.detach();
            }
            Answer::Attach => {
                // What was typed while the guest was not debugged was not meant for it.
                self.has_interrupted = false;
                session.take();
                self.arm(session);
                self.send(&stop::reply(
                    &Stop::Vcpu(session.debuggee.current, StopReason::Interrupt),
                    session,
                ));
            }
            Answer::Restart(replies) => self.restart(session, replies),
            Answer::Interrupt(reply) => {
                self.send(&reply);
                self.interrupt(session)?;
            }
            Answer::Stay { words, thread } => {
                self.send(&console(&session.signed(&words)));
                self.has_told_stop = true;
                self.send(&stop::nothing_happened(&thread));
            }
            Answer::Resume(actions) => self.resume(session, &actions),
            Answer::NoAcknowledgements => {
                self.send(b"OK");
                self.acknowledges = false;
                self.last.clear();
            }
            Answer::PassOn => {
                let written = self.stub.serve(session, data);
                self.queue(&written);
                if session.is_done {
                    return Err(Goodbye::Kill);
                }
            }
        }
        Ok(())
    }

    /// Has the guest begin again; `replies`: the debugger waits for its stop.
    fn restart(&mut self, session: &mut Session<M>, replies: bool) {
        self.has_interrupted = false;
        let before = self.before.take().unwrap_or(session.process);
        if session.process != Process::Attached {
            session.take();
            self.arm(session);
        }
        let result = session.restart();
        if let Err(MachineError::Later) = result {
            self.before = Some(before);
            return;
        }
        if result.is_err() {
            // To the debugger there is no more of a process than there was.
            match before {
                Process::Attached => {}
                Process::Detached => session.detach(),
                Process::Killed => session.end(),
            }
        }
        match result {
            Ok(()) if replies => self.send(&stop::reply(&Stop::Vcpu(0, StopReason::Step), session)),
            Ok(()) => {}
            Err(refused) if replies => self.send(format!("E.{refused}").as_bytes()),
            Err(refused) => log::warn!("the guest does not begin again: {refused}"),
        }
    }

    /// Has the target run, unless the debugger has interrupted it before.
    fn resume(&mut self, session: &mut Session<M>, actions: &[Action]) {
        match session.run(actions) {
            Ok(()) => {
                (self.is_running, self.has_run) = (true, true);
                if std::mem::take(&mut self.has_interrupted) {
                    // Served as one that comes now: vCPUs may have to be asked to stand still first.
                    lock(&self.input).put_back(Item::Interrupt);
                }
            }
            Err(error) => self.send(format!("E.{error}").as_bytes()),
        }
    }
}
