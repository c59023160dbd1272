//! `H`, `qThreadExtraInfo` and `qXfer:threads`: vCPUs as gdb's threads.

use super::memory::MOST_BYTES;
use crate::gdb::answer::{Answer, errno, error, ok, pair};
use crate::gdb::packet::{escape, hex};
use crate::gdb::resume::{Refused, Thread};
use crate::gdb::session::Session;
use crate::machine::Machine;

/// `Hg`: which vCPU registers, memory and breakpoints are looked at through; `Hc`: which `c` and `s`
/// are of.
pub(super) fn choose<M: Machine>(session: &mut Session<M>, arguments: &[u8]) -> Result<Answer, Refused> {
    let (operation, thread) = arguments.split_first().ok_or(Refused::Errno(errno::EINVAL))?;
    let thread = Thread::parse(thread, session.debuggee.machine.vcpus())?;
    match (operation, thread) {
        (b'g', Thread::One(vcpu)) => session.debuggee.current = vcpu,
        // Any one: the one that it is.
        (b'g', Thread::Any | Thread::All) => {}
        (b'c', Thread::One(vcpu)) => session.chosen = Some(vcpu),
        (b'c', Thread::Any | Thread::All) => session.chosen = None,
        _ => return Err(Refused::Errno(errno::EINVAL)),
    }
    Ok(ok())
}

/// `qThreadExtraInfo,thread-id`: what `info threads` shows.
pub(super) fn extra_info<M: Machine>(session: &Session<M>, thread: &[u8]) -> Answer {
    match Thread::parse(thread, session.debuggee.machine.vcpus()) {
        Ok(Thread::One(vcpu)) => {
            Answer::Reply(hex(
                format!("CPU#{vcpu} [{}]", session.debuggee.machine.activity(vcpu).name()).as_bytes()
            ))
        }
        Ok(_) => error(errno::EINVAL),
        Err(refused) => refused.into(),
    }
}

/// `qXfer:threads:read::offset,length`.
pub(super) fn threads<M: Machine>(session: &Session<M>, arguments: &[u8]) -> Answer {
    let Some((offset, length)) = pair(arguments) else { return error(errno::EINVAL) };
    let mut xml = String::from("<?xml version=\"1.0\"?><threads>");
    for vcpu in 0..session.debuggee.machine.vcpus() {
        let state = session.debuggee.machine.activity(vcpu).name();
        xml.push_str(&format!(
            "<thread id=\"{}\" core=\"{vcpu}\" name=\"CPU#{vcpu}\">{state}</thread>",
            session.thread_id(vcpu)
        ));
    }
    xml.push_str("</threads>");
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(xml.len());
    let end = start.saturating_add(usize::try_from(length.min(MOST_BYTES)).unwrap_or(0)).min(xml.len());
    let mark = if end == xml.len() { b'l' } else { b'm' };
    Answer::Reply([&[mark][..], &escape(&xml.as_bytes()[start..end])].concat())
}
