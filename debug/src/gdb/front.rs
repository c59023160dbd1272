//! Packets that gdbstub does not know, or does not pass on whole; answered in front of it.
//!
//! | packet | what for |
//! | --- | --- |
//! | `Z0`-`Z4`, `z0`-`z4` | with conditions and commands evaluated in the stub (gdbstub issue 40) |
//! | `?` | the stop as it was, for whichever vCPU it was |
//! | `m`, `x`, `X` | memory, fast, with lengths that are checked |
//! | `qSearch:memory` | gdb's `find` |
//! | `qCRC` | gdb's `compare-sections` |
//! | `qXfer:threads:read` | all threads in one go |
//! | `qqemu.PhyMemMode`, `Qqemu.PhyMemMode` | physical addresses, as QEMU's stub has it |
//! | `qOffsets` | where a relocated kernel is |
//! | `qMemoryRegionInfo` | what is mapped, for lldb |
//! | `vKill`, `vCtrlC` | answered, which gdbstub does not |
//!
//! Source: GDB manual, "Packets", "General Query Packets", "vCont"; QEMU's
//! `docs/system/gdb.rst` for the last but two.

use super::packet::{escape, from_hex, number, push_hex, unescape};
use super::search;
use super::session::{InsertError, Session, errno, tid};
use crate::breakpoint::{self, Kind};
use crate::expression::Expression;
use crate::target::{Access, Machine, StopReason};
use arch::GuestVirt;
use arch::paging::Permissions;

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// This is the reply.
    Reply(Vec<u8>),
    /// The reply is memory, which may be much: it is encoded where it is sent.
    Memory {
        /// First byte, as the debugger sees addresses.
        address: u64,
        /// Bytes that one reply can carry, at most.
        length: usize,
        /// In binary, escaped, behind a `b`; else in hexadecimal.
        is_binary: bool,
    },
    /// gdbstub answers it; this is added to its reply.
    PassOn(&'static str),
    /// The reply, and then the debugger wants the guest to end.
    Kill(Vec<u8>),
    /// The target is to be interrupted, after the reply.
    Interrupt(Vec<u8>),
}

/// What we serve beyond gdbstub, for `qSupported`.
const FEATURES: &str =
    ";ConditionalBreakpoints+;BreakpointCommands+;qXfer:threads:read+;PhyMemMode+;binary-upload+";

pub(super) fn error(code: u8) -> Answer {
    Answer::Reply(format!("E{code:02x}").into_bytes())
}

fn ok() -> Answer {
    Answer::Reply(b"OK".to_vec())
}

/// Serves a packet.
pub fn serve<M: Machine>(session: &mut Session<M>, data: &[u8]) -> Answer {
    let text = |prefix: &str| data.strip_prefix(prefix.as_bytes());
    match data.first() {
        // gdb has words of its own for a breakpoint that is refused, which are wrong here; it inserts
        // them when it resumes, and that is answered in words.
        Some(b'Z' | b'z') if !session.machine.can_run() => ok(),
        Some(b'P' | b'G') if let Some(why) = session.machine.read_only() => {
            Answer::Reply(format!("E.{why}").into_bytes())
        }
        Some(b'Z') => insert(session, &data[1..]),
        Some(b'z') => remove(session, &data[1..]),
        Some(b'm') => read_memory(&data[1..], false),
        Some(b'x') => read_memory(&data[1..], true),
        Some(b'X') => write_memory(session, &data[1..]),
        Some(b'?') if data.len() == 1 => Answer::Reply(stop_reply(session).into_bytes()),
        Some(b'H') => {
            select(session, &data[1..]);
            Answer::PassOn("")
        }
        _ if text("qSupported").is_some() => Answer::PassOn(FEATURES),
        _ if let Some(arguments) = text("qSearch:memory:") => search::find(session, arguments),
        _ if let Some(arguments) = text("qCRC:") => search::crc(session, arguments),
        _ if let Some(arguments) = text("qXfer:threads:read::") => threads(session, arguments),
        _ if data == b"qqemu.PhyMemMode" => {
            Answer::Reply(if session.is_physical { b"1".to_vec() } else { b"0".to_vec() })
        }
        _ if let Some(mode) = text("Qqemu.PhyMemMode:") => {
            session.is_physical = mode == b"1";
            ok()
        }
        _ if data == b"qOffsets" => {
            let text = session.kernel_text().map(|text| format!("TextSeg={text:x}"));
            Answer::Reply(text.unwrap_or_default().into_bytes())
        }
        _ if let Some(address) = text("qMemoryRegionInfo:") => memory_region(session, address),
        _ if data == b"vCtrlC" => Answer::Interrupt(b"OK".to_vec()),
        _ if data == b"k" => Answer::Kill(Vec::new()),
        _ if text("vKill").is_some() => Answer::Kill(b"OK".to_vec()),
        _ => Answer::PassOn(""),
    }
}

/// The stop as it was: what the debugger is told when it comes.
fn stop_reply<M: Machine>(session: &Session<M>) -> String {
    format!("T05thread:p01.{:02x};", tid(session.current))
}

/// `Hg`: which vCPU memory and breakpoints are looked at through.
fn select<M: Machine>(session: &mut Session<M>, arguments: &[u8]) {
    let Some(thread) = arguments.strip_prefix(b"g") else { return };
    let thread = match thread.iter().position(|byte| *byte == b'.') {
        Some(dot) => &thread[dot + 1..],
        None => thread,
    };
    let tid = number(thread).and_then(|tid| usize::try_from(tid).ok()).and_then(std::num::NonZeroUsize::new);
    if let Some(vcpu) = tid.and_then(|tid| session.vcpu(tid)) {
        session.current = vcpu;
    }
}

/// `Zk,address,length`, then perhaps `;Xlength,bytecode...` and `;cmds:persist,Xlength,...`.
struct Point {
    kind: Kind,
    address: u64,
    length: u64,
    conditions: Vec<Vec<u8>>,
    commands: Vec<Vec<u8>>,
}

/// `Xlength,bytecode` again and again.
fn bytecodes(mut text: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut codes = Vec::new();
    while let Some(rest) = text.strip_prefix(b"X") {
        let comma = rest.iter().position(|byte| *byte == b',')?;
        let length = usize::try_from(number(&rest[..comma])?).ok()?.checked_mul(2)?;
        let code = rest.get(comma + 1..)?.get(..length)?;
        codes.push(from_hex(code)?);
        text = &rest[comma + 1 + length..];
    }
    text.is_empty().then_some(codes)
}

fn point(arguments: &[u8]) -> Option<Point> {
    let mut parts = arguments.split(|byte| *byte == b';');
    let mut place = parts.next()?.split(|byte| *byte == b',');
    let kind = match place.next()? {
        [digit] => Kind::from_digit(*digit)?,
        _ => return None,
    };
    let (address, length) = (number(place.next()?)?, number(place.next()?)?);
    let (mut conditions, mut commands) = (Vec::new(), Vec::new());
    for part in parts.filter(|part| !part.is_empty()) {
        if let Some(list) = part.strip_prefix(b"cmds:") {
            let comma = list.iter().position(|byte| *byte == b',')?;
            commands.extend(bytecodes(&list[comma + 1..])?);
        } else {
            conditions.extend(bytecodes(part)?);
        }
    }
    Some(Point { kind, address, length, conditions, commands })
}

fn insert<M: Machine>(session: &mut Session<M>, arguments: &[u8]) -> Answer {
    let Some(Point { kind, address, length, conditions, commands }) = point(arguments) else {
        return error(errno::EINVAL);
    };
    if kind.access().is_some() && length == 0 {
        return error(errno::EINVAL);
    }
    let check = |codes: Vec<Vec<u8>>| codes.into_iter().map(Expression::new).collect::<Result<Vec<_>, _>>();
    let (conditions, commands) = match (check(conditions), check(commands)) {
        (Ok(conditions), Ok(commands)) => (conditions, commands),
        (Err(refused), _) | (_, Err(refused)) => {
            log::warn!(target: "debug::rsp", "a condition at {address:#x} is refused: {refused}");
            return error(errno::EINVAL);
        }
    };
    match session.insert(kind, address, length, conditions, commands) {
        Ok(()) => ok(),
        Err(refused) => {
            log::warn!(target: "debug::rsp", "no {} at {address:#x}: {refused}", kind.name());
            error(match refused {
                InsertError::TooMany(_) => errno::ENOSPC,
                InsertError::Table(breakpoint::InsertError::NotRam(_)) => errno::EFAULT,
                InsertError::Table(breakpoint::InsertError::Duplicate) => errno::EINVAL,
            })
        }
    }
}

fn remove<M: Machine>(session: &mut Session<M>, arguments: &[u8]) -> Answer {
    match point(arguments) {
        // gdb may remove what it never inserted, and takes an error for a broken target.
        Some(Point { kind, address, length, .. }) => {
            session.remove(kind, address, length);
            ok()
        }
        None => error(errno::EINVAL),
    }
}

/// Two numbers with a comma between them.
pub(super) fn pair(arguments: &[u8]) -> Option<(u64, u64)> {
    let comma = arguments.iter().position(|byte| *byte == b',')?;
    Some((number(&arguments[..comma])?, number(&arguments[comma + 1..])?))
}

/// Bytes that one reply carries, in hexadecimal.
const MOST_BYTES: u64 = (super::packet::LONGEST as u64 - 16) / 2;

/// `maddress,length` and `xaddress,length`.
fn read_memory(arguments: &[u8], is_binary: bool) -> Answer {
    match pair(arguments) {
        Some((address, length)) => Answer::Memory {
            address,
            length: usize::try_from(length.min(MOST_BYTES)).unwrap_or(0),
            is_binary,
        },
        None => error(errno::EINVAL),
    }
}

/// `Xaddress,length:data`, escaped. gdb tries it with no data to see whether it is served.
fn write_memory<M: Machine>(session: &mut Session<M>, arguments: &[u8]) -> Answer {
    let Some(colon) = arguments.iter().position(|byte| *byte == b':') else { return error(errno::EINVAL) };
    let bytes = unescape(&arguments[colon + 1..]);
    match pair(&arguments[..colon]) {
        Some((address, length)) if length == bytes.len() as u64 => {
            if session.write(session.current, address, &bytes) { ok() } else { error(errno::EFAULT) }
        }
        _ => error(errno::EINVAL),
    }
}

/// `qXfer:threads:read::offset,length`.
fn threads<M: Machine>(session: &Session<M>, arguments: &[u8]) -> Answer {
    let Some((offset, length)) = pair(arguments) else { return error(errno::EINVAL) };
    let mut xml = String::from("<?xml version=\"1.0\"?><threads>");
    for vcpu in 0..session.machine.vcpus() {
        let state = session.machine.state(vcpu).name();
        xml.push_str(&format!(
            "<thread id=\"p1.{:x}\" core=\"{vcpu}\" name=\"CPU#{vcpu}\">{state}</thread>",
            tid(vcpu)
        ));
    }
    xml.push_str("</threads>");
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(xml.len());
    let end = start.saturating_add(usize::try_from(length.min(MOST_BYTES)).unwrap_or(0)).min(xml.len());
    let mark = if end == xml.len() { b'l' } else { b'm' };
    Answer::Reply([&[mark][..], &escape(&xml.as_bytes()[start..end])].concat())
}

/// lldb's `qMemoryRegionInfo:address`: the page there, or the gap (LLDB, "GDB Remote Protocol
/// Extensions").
fn memory_region<M: Machine>(session: &Session<M>, address: &[u8]) -> Answer {
    let (Some(address), Ok(regime)) = (number(address), session.regime(session.current)) else {
        return error(errno::EINVAL);
    };
    let (start, last, permissions) = match regime.translate(session.machine.memory(), GuestVirt(address)) {
        Ok(_) if !regime.is_on() => ram_region(session, address),
        Ok(mapping) => {
            let letter = |on, letter| if on { letter } else { "" };
            let Permissions { write, execute, .. } = mapping.permissions;
            let permissions = ["r", letter(write, "w"), letter(execute, "x")].concat();
            let span = mapping.page_size - 1;
            (address & !span, address | span, permissions)
        }
        Err(fault) => (address & !(fault.span() - 1), address | (fault.span() - 1), String::new()),
    };
    // The end must be a number of 64 bits, too.
    let size = (last - start).saturating_add(1).min(u64::MAX - start);
    let permissions =
        if permissions.is_empty() { String::new() } else { format!("permissions:{permissions};") };
    Answer::Reply(format!("start:{start:x};size:{size:x};{permissions}").into_bytes())
}

/// Without translation: a range of RAM, or what lies between two.
fn ram_region<M: Machine>(session: &Session<M>, address: u64) -> (u64, u64, String) {
    let (mut start, mut last) = (0, u64::MAX);
    for range in session.machine.memory().ranges() {
        let (first, end) = (range.start.0, range.end().0);
        if (first..end).contains(&address) {
            return (first, end - 1, "rwx".into());
        }
        if end <= address {
            start = start.max(end);
        } else {
            last = last.min(first - 1);
        }
    }
    (start, last, String::new())
}

/// An `O` packet's data: text for the debugger's console.
pub fn console(text: &str) -> Vec<u8> {
    let mut data = b"O".to_vec();
    push_hex(&mut data, text.as_bytes());
    data
}

/// What a person is told about a stop beyond its signal.
pub fn words(vcpu: u32, reason: &StopReason) -> Option<String> {
    match reason {
        StopReason::Fatal(text) => Some(format!("vmm: vCPU {vcpu}: {text}\n")),
        StopReason::Refused(text) => Some(format!("vmm: {text}\n")),
        StopReason::Hypercall(text) => Some(format!("vmm: vCPU {vcpu}: hypercall {text}\n")),
        StopReason::Watchpoint { address, access: Access::Read } => {
            log::debug!(target: "debug::rsp", "read watchpoint at {address:#x}");
            None
        }
        _ => None,
    }
}
