//! `H`, `T`, `qC`, `qfThreadInfo`, `qThreadExtraInfo` and `qXfer:threads`: vCPUs as gdb's threads, and tasks that sleep if
//! the user wants them.
//!
//! What is told of a task is the guest's: it does nothing to a terminal, and is escaped for XML here.

use super::memory::MOST_BYTES;
use crate::gdb::answer::{Answer, errno, error, ok, pair};
use crate::gdb::packet::{escape, hex};
use crate::gdb::resume::{Refused, Thread};
use crate::gdb::session::Session;
use crate::machine::Machine;
use arch::plain::plain;
use std::fmt::Write;

/// Ids of tasks in one packet: the longest have twelve bytes.
const MOST_IDS: usize = 4096;

fn parse<M: Machine>(session: &Session<M>, thread: &[u8]) -> Result<Thread, Refused> {
    Thread::parse(thread, session.debuggee.machine.vcpus())
}

/// `Hg`: which vCPU registers, memory and breakpoints are looked at through, or the task whose registers and memory are;
/// `Hc`: which `c` and `s` are of.
pub(super) fn choose<M: Machine>(session: &mut Session<M>, arguments: &[u8]) -> Result<Answer, Refused> {
    let (operation, thread) = arguments.split_first().ok_or(Refused::Errno(errno::EINVAL))?;
    let is_there = match (operation, parse(session, thread)?) {
        (b'g', Thread::One(vcpu)) => {
            session.choose_vcpu(vcpu);
            true
        }
        (b'g', Thread::Task(id)) => session.choose_task(id),
        // Any one: the one that it is.
        (b'g', Thread::Any | Thread::All) => true,
        (b'c', Thread::One(vcpu)) => {
            session.choose_to_resume(Some(vcpu), None);
            true
        }
        (b'c', Thread::Task(id)) => {
            let is_there = session.has_task(id);
            if is_there {
                session.choose_to_resume(None, Some(id));
            }
            is_there
        }
        (b'c', Thread::Any | Thread::All) => {
            session.choose_to_resume(None, None);
            true
        }
        _ => return Err(Refused::Errno(errno::EINVAL)),
    };
    Ok(if is_there { ok() } else { error(errno::ESRCH) })
}

/// `T`: whether a thread is there.
pub(super) fn is_alive<M: Machine>(session: &mut Session<M>, thread: &[u8]) -> Result<Answer, Refused> {
    match parse(session, thread)? {
        Thread::Task(id) if !session.has_task(id) => Ok(error(errno::ESRCH)),
        _ => Ok(ok()),
    }
}

/// `qfThreadInfo`: vCPUs; and `qsThreadInfo`: tasks, until there are no more.
pub(super) fn ids<M: Machine>(session: &mut Session<M>, is_first: bool) -> Answer {
    let vcpus = if is_first { 0..session.debuggee.machine.vcpus() } else { 0..0 };
    let most = if is_first { 0 } else { MOST_IDS };
    let tasks = session.next_tasks(most, is_first);
    let all: Vec<String> = vcpus
        .map(|vcpu| session.thread_id(vcpu))
        .chain(tasks.into_iter().map(|id| session.task_id(id)))
        .collect();
    Answer::Reply(if all.is_empty() { b"l".to_vec() } else { format!("m{}", all.join(",")).into_bytes() })
}

/// What is told of a vCPU: what it does, and the task that it runs, if tasks are threads.
fn state<M: Machine>(session: &mut Session<M>, vcpu: u32) -> String {
    let state = session.debuggee.machine.activity(vcpu).name();
    match session.tasks().and_then(|tasks| tasks.on(vcpu)) {
        Some(task) => format!("{state}, {task}"),
        None => state.into(),
    }
}

/// `qThreadExtraInfo,thread-id`: what `info threads` shows.
pub(super) fn extra_info<M: Machine>(session: &mut Session<M>, thread: &[u8]) -> Result<Answer, Refused> {
    let text = match parse(session, thread)? {
        Thread::One(vcpu) => Some(format!("CPU#{vcpu} [{}]", state(session, vcpu))),
        Thread::Task(id) => session.tasks().and_then(|tasks| tasks.told(id)).map(|(_, what)| what),
        Thread::Any | Thread::All => return Err(Refused::Errno(errno::EINVAL)),
    };
    Ok(text.map_or_else(|| error(errno::ESRCH), |text| Answer::Reply(hex(text.as_bytes()))))
}

/// Text within XML, in an attribute or an element. A character that XML has not would end the list for gdb.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in plain(text).chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&apos;"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// All threads (GDB manual, "Thread List Format").
fn xml<M: Machine>(session: &mut Session<M>) -> String {
    let mut xml = String::from("<?xml version=\"1.0\"?><threads>");
    for vcpu in 0..session.debuggee.machine.vcpus() {
        let (id, state) = (session.thread_id(vcpu), escaped(&state(session, vcpu)));
        write!(xml, "<thread id=\"{id}\" core=\"{vcpu}\" name=\"CPU#{vcpu}\">{state}</thread>").ok();
    }
    let tasks = session.tasks().map_or_else(Vec::new, |tasks| {
        tasks.ids().iter().filter_map(|id| tasks.told(*id).map(|told| (*id, told))).collect()
    });
    for (id, (name, what)) in tasks {
        let (id, name, what) = (session.task_id(id), escaped(&name), escaped(&what));
        write!(xml, "<thread id=\"{id}\" name=\"{name}\">{what}</thread>").ok();
    }
    xml.push_str("</threads>");
    xml
}

/// `qXfer:threads:read::offset,length`.
pub(super) fn threads<M: Machine>(session: &mut Session<M>, arguments: &[u8]) -> Answer {
    let Some((offset, length)) = pair(arguments) else { return error(errno::EINVAL) };
    let xml = xml(session);
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(xml.len());
    let end = start.saturating_add(usize::try_from(length.min(MOST_BYTES)).unwrap_or(0)).min(xml.len());
    let mark = if end == xml.len() { b'l' } else { b'm' };
    Answer::Reply([&[mark][..], &escape(&xml.as_bytes()[start..end])].concat())
}
