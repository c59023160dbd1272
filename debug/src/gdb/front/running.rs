//! `vCont?`, `c`, `s` and their like: what each vCPU is to do. A task that sleeps does nothing.

use crate::gdb::answer::{Answer, errno};
use crate::gdb::resume::{self, Refused, Tasks, Vcpus};
use crate::gdb::session::Session;
use crate::machine::Machine;

pub(super) fn vcpus<M: Machine>(session: &Session<M>) -> Vcpus {
    Vcpus {
        count: session.debuggee.machine.vcpus(),
        current: session.debuggee.current,
        chosen: session.chosen,
        can_step: session.debuggee.machine.abilities().single_step || !session.debuggee.machine.can_run(),
        tasks: Tasks {
            are_threads: session.threads.has_tasks(),
            current: session.threads.chosen().map(|chosen| chosen.id),
            chosen: session.threads.resumes(),
        },
    }
}

/// `vCont?`: gdb uses it only where both `c` and `s` are there.
pub(super) fn resumes<M: Machine>(session: &Session<M>) -> Vec<u8> {
    let can_step = vcpus(session).can_step;
    if can_step { b"vCont;c;C;s;S;r;t".to_vec() } else { b"vCont;c;C;t".to_vec() }
}

/// `c`, `C`, `s` and `S`.
pub(super) fn go_on<M: Machine>(session: &mut Session<M>, packet: &[u8]) -> Result<Answer, Refused> {
    let (actions, place) = resume::plain(packet, &vcpus(session))?;
    if let Some((vcpu, address)) = place {
        session.debuggee.set_pc(vcpu, address).map_err(|refused| {
            log::warn!(target: "debug::rsp", "vCPU {vcpu} cannot go on at {address:#x}: {refused}");
            Refused::Errno(errno::EIO)
        })?;
    }
    Ok(Answer::Resume(actions))
}

/// Refuses to resume. A task that sleeps is then the thread that is looked at, as a debugger has it behind a stop of that.
pub(super) fn refuse<M: Machine>(session: &mut Session<M>, refused: Refused) -> Answer {
    let Refused::Task(id) = refused else { return refused.into() };
    if !session.choose_task(id) {
        return Refused::Errno(errno::ESRCH).into();
    }
    let task = session.threads.chosen().map_or_else(String::new, |chosen| chosen.words.clone());
    let words = format!(
        "{task} sleeps: it goes on when the kernel has it run, and cannot be stepped; the guest stands still. \
         'thread 1' and 'continue' let the guest run\n"
    );
    Answer::Stay { words, thread: session.task_id(id) }
}
