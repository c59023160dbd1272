//! Packets that are answered in front of gdbstub: those that it does not know, does not pass on
//! whole, or ends the connection at.
//!
//! | packet | what for |
//! | --- | --- |
//! | `Z0`-`Z4`, `z0`-`z4` | with conditions and commands evaluated in the stub (gdbstub issue 40) |
//! | `vCont`, `c`, `C`, `s`, `S` | every form ([`resume`]) |
//! | `D`, `k`, `vKill`, `vCtrlC` | answered, and then the server acts |
//! | `!`, `vRun`, `R`, `vAttach` | gdb's `target extended-remote`: the guest begins again, is let go and taken |
//! | `H`, `T`, `qC`, `qfThreadInfo`, `qThreadExtraInfo` | threads, with and without their process |
//! | `?` | the stop as it was, for whichever vCPU it was |
//! | `m`, `x`, `X` | memory, fast, with lengths that are checked |
//! | `qSearch:memory`, `qCRC` | gdb's `find` and `compare-sections` (`gdb::search`) |
//! | `qXfer:threads:read` | all threads in one go |
//! | `qqemu...`, `Qqemu...` | physical addresses and steps, as QEMU's stub has them; by these pwndbg and gef know a kernel |
//! | `qOffsets` | where a relocated kernel is: an address for gdb, offsets for lldb |
//! | `qMemoryRegionInfo` | what is mapped, for lldb |
//!
//! A packet that is valid is answered or refused by an error; none ends the connection. Those that
//! nobody here knows are answered with nothing, as the protocol wants it.
//!
//! Source: GDB manual, "Packets", "General Query Packets", "vCont"; QEMU's `docs/system/gdb.rst` and
//! `gdbstub/gdbstub.c`.

use super::answer::{Answer, errno, error, ok, pair};
use super::packet::{LONGEST, escape, from_hex, hex, number, unescape};
use super::regions;
use super::resume::{self, Refused, Thread, Vcpus};
use super::search;
use super::session::{Client, InsertError, OVERLOADED, Process, Session};
use crate::breakpoint::{self, Kind};
use crate::expression::Expression;
use crate::target::Machine;

/// What is served beyond what every stub serves, for `qSupported`.
const FEATURES: &str = "vContSupported+;multiprocess+;QStartNoAckMode+;swbreak+;hwbreak+;\
    ConditionalBreakpoints+;BreakpointCommands+;qXfer:features:read+;qXfer:memory-map:read+;\
    qXfer:threads:read+;PhyMemMode+;binary-upload+";

/// The guest is one process to a debugger, with this number.
const PROCESS: u64 = 1;
const NO_PROCESS: Refused =
    Refused::Words("there is no guest now: 'run' has it begin again, 'attach 1' takes it");

impl From<Refused> for Answer {
    fn from(refused: Refused) -> Answer {
        match refused {
            Refused::Errno(code) => error(code),
            Refused::Words(words) => Answer::Reply(format!("E.{words}").into_bytes()),
        }
    }
}

/// Whether a packet may take long, so that whoever waits is told so.
pub fn may_take_long(data: &[u8]) -> bool {
    let prefixes: [&[u8]; 4] = [b"qSearch:", b"qCRC:", b"qRcmd,", b"qOffsets"];
    prefixes.iter().any(|prefix| data.starts_with(prefix))
}

/// Whether the target may be running when a packet comes: what ends it, or the connection.
pub fn is_urgent(data: &[u8]) -> bool {
    data == b"vCtrlC" || data == b"k" || is_kill(data) || is_detach(data)
}

/// `vKill;pid`: another packet that begins like it must not end the guest.
fn is_kill(data: &[u8]) -> bool {
    data == b"vKill" || data.starts_with(b"vKill;")
}

fn is_detach(data: &[u8]) -> bool {
    data == b"D" || data.starts_with(b"D;")
}

/// Whether a packet that names a process means the guest. A debugger that was not told a number has one of its
/// own for it.
fn means_guest<M: Machine>(session: &Session<M>, data: &[u8]) -> bool {
    let pid = data.iter().position(|byte| *byte == b';').map(|at| &data[at + 1..]);
    pid.is_none_or(|pid| !session.names_process || number(pid) == Some(PROCESS))
}

/// Serves a packet of a debugger that has let go of the guest, or ended it, and is still connected.
fn without_process<M: Machine>(session: &mut Session<M>, data: &[u8]) -> Answer {
    let text = |prefix: &str| data.strip_prefix(prefix.as_bytes());
    match data {
        b"?" => Answer::Reply(b"W00".to_vec()),
        b"qfThreadInfo" => Answer::Reply(b"l".to_vec()),
        b"qC" => Answer::Reply(Vec::new()),
        _ if text("qXfer:threads:read::").is_some() => Answer::Reply(b"l<threads></threads>".to_vec()),
        _ if text("qSupported").is_some() || text("qXfer:features:read:").is_some() => query(session, data),
        _ if text("H").is_some() || text("z").is_some() => ok(),
        _ if is_detach(data) => error(errno::ESRCH),
        _ if text("qRcmd,").is_some() => NO_PROCESS.into(),
        _ if text("q").is_some() || text("Q").is_some() || text("v").is_some() => Answer::Reply(Vec::new()),
        _ => NO_PROCESS.into(),
    }
}

/// Serves a packet.
pub fn serve<M: Machine>(session: &mut Session<M>, data: &[u8]) -> Answer {
    let text = |prefix: &str| data.strip_prefix(prefix.as_bytes());
    match data {
        b"!" => {
            session.is_extended = true;
            ok()
        }
        b"k" => Answer::Kill(Vec::new()),
        b"QStartNoAckMode" => Answer::NoAcknowledgements,
        _ if is_kill(data) && means_guest(session, data) => Answer::Kill(b"OK".to_vec()),
        _ if is_kill(data) => error(errno::ESRCH),
        _ if let Some(pid) = text("vAttach;") => match (session.process, number(pid)) {
            (Process::Killed, _) => NO_PROCESS.into(),
            (_, Some(PROCESS)) => Answer::Attach,
            _ => error(errno::ESRCH),
        },
        _ if data == b"vRun" || text("vRun;").is_some() => Answer::Restart(true),
        _ if text("R").is_some() => Answer::Restart(false),
        _ if session.process != Process::Attached => without_process(session, data),
        _ => serve_attached(session, data),
    }
}

fn serve_attached<M: Machine>(session: &mut Session<M>, data: &[u8]) -> Answer {
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
        Some(b'H') => choose(session, &data[1..]).unwrap_or_else(Answer::from),
        Some(b'T') => Thread::parse(&data[1..], session.machine.vcpus()).map_or_else(Answer::from, |_| ok()),
        Some(b'c' | b's' | b'C' | b'S') => go_on(session, data).unwrap_or_else(Answer::from),
        _ if is_detach(data) && means_guest(session, data) => Answer::Detach(b"OK".to_vec()),
        _ if is_detach(data) => error(errno::ESRCH),
        _ if data == b"vCont?" => Answer::Reply(resumes(session)),
        _ if let Some(actions) = text("vCont") => {
            resume::vcont(actions, &vcpus(session)).map_or_else(Answer::from, Answer::Resume)
        }
        _ if data == b"vCtrlC" => Answer::Interrupt(b"OK".to_vec()),
        Some(b'q' | b'Q') => query(session, data),
        _ => Answer::PassOn,
    }
}

/// Serves `q` and `Q`.
fn query<M: Machine>(session: &mut Session<M>, data: &[u8]) -> Answer {
    let text = |prefix: &str| data.strip_prefix(prefix.as_bytes());
    let is_qemus = text("qqemu.").or_else(|| text("Qqemu."));
    match data {
        _ if let Some(features) = text("qSupported") => {
            let has = |name: &[u8]| features.split(|byte| matches!(byte, b':' | b';')).any(|it| it == name);
            session.names_process = has(b"multiprocess+");
            // Of those that are known, gdb alone asks for this one.
            session.client = if has(b"no-resumed+") { Client::Gdb } else { session.client };
            session.takes_words = has(b"error-message+");
            Answer::Reply(format!("PacketSize={LONGEST:x};{FEATURES}").into_bytes())
        }
        _ if let Some(arguments) = text("qSearch:memory:") => search::find(session, arguments),
        _ if let Some(arguments) = text("qCRC:") => search::crc(session, arguments),
        _ if let Some(arguments) = text("qXfer:threads:read::") => threads(session, arguments),
        b"qC" => Answer::Reply(format!("QC{}", session.thread_id(session.current)).into_bytes()),
        b"qfThreadInfo" => {
            let ids: Vec<String> = (0..session.machine.vcpus()).map(|vcpu| session.thread_id(vcpu)).collect();
            Answer::Reply(format!("m{}", ids.join(",")).into_bytes())
        }
        b"qsThreadInfo" => Answer::Reply(b"l".to_vec()),
        _ if let Some(thread) = text("qThreadExtraInfo,") => extra_info(session, thread),
        b"qOffsets" => {
            let text = match session.client {
                Client::Lldb => {
                    session.view().kernel_slide().map(|by| format!("Text={by:x};Data={by:x};Bss={by:x}"))
                }
                Client::Gdb | Client::Unknown => {
                    session.view().kernel_text().map(|text| format!("TextSeg={text:x}"))
                }
            };
            Answer::Reply(text.unwrap_or_default().into_bytes())
        }
        // lldb alone asks for this, before anything else.
        b"QThreadSuffixSupported" => {
            session.client = Client::Lldb;
            Answer::Reply(Vec::new())
        }
        _ if let Some(address) = text("qMemoryRegionInfo:") => regions::region(session, address),
        _ if let Some(what) = is_qemus => qemu(session, what),
        _ => Answer::PassOn,
    }
}

/// Bits of QEMU's `qemu.sstep`: steps at all, without interrupts, without timers. Timers of a guest of
/// KVM cannot be held up by a step, so the third is none that we have.
const SSTEP_ENABLE: u8 = 1;
const SSTEP_NOIRQ: u8 = 2;

/// What QEMU's stub answers beyond the manual. pwndbg and gef ask in this way whether they see a kernel.
fn qemu<M: Machine>(session: &mut Session<M>, what: &[u8]) -> Answer {
    match what {
        b"Supported" => Answer::Reply(b"sstepbits;sstep;PhyMemMode".to_vec()),
        b"sstepbits" => Answer::Reply(format!("ENABLE={SSTEP_ENABLE:x},NOIRQ={SSTEP_NOIRQ:x}").into_bytes()),
        b"sstep" => {
            let falls = session.engine.state().step_interrupts;
            let bits = SSTEP_ENABLE | if falls { 0 } else { SSTEP_NOIRQ };
            Answer::Reply(format!("0x{bits:x}").into_bytes())
        }
        _ if let Some(bits) = what.strip_prefix(b"sstep=") => {
            // QEMU takes both ways of writing it.
            match number(bits.strip_prefix(b"0x").unwrap_or(bits)) {
                Some(bits) if bits & !u64::from(SSTEP_ENABLE | SSTEP_NOIRQ) == 0 => {
                    session.engine.state().step_interrupts = bits & u64::from(SSTEP_NOIRQ) == 0;
                    ok()
                }
                _ => error(errno::EINVAL),
            }
        }
        b"PhyMemMode" => Answer::Reply(if session.is_physical { b"1".to_vec() } else { b"0".to_vec() }),
        _ if let Some(mode) = what.strip_prefix(b"PhyMemMode:") => {
            session.is_physical = mode == b"1";
            ok()
        }
        _ => Answer::Reply(Vec::new()),
    }
}

/// The stop as it was: what the debugger is told when it comes.
fn stop_reply<M: Machine>(session: &Session<M>) -> String {
    format!("T05thread:{};", session.thread_id(session.current))
}

fn vcpus<M: Machine>(session: &Session<M>) -> Vcpus {
    Vcpus {
        count: session.machine.vcpus(),
        current: session.current,
        chosen: session.chosen,
        can_step: session.machine.host().single_step || !session.machine.can_run(),
    }
}

/// `vCont?`: gdb uses it only where both `c` and `s` are there.
fn resumes<M: Machine>(session: &Session<M>) -> Vec<u8> {
    let can_step = vcpus(session).can_step;
    if can_step { b"vCont;c;C;s;S;r;t".to_vec() } else { b"vCont;c;C;t".to_vec() }
}

/// `c`, `C`, `s` and `S`.
fn go_on<M: Machine>(session: &mut Session<M>, packet: &[u8]) -> Result<Answer, Refused> {
    let (actions, place) = resume::plain(packet, &vcpus(session))?;
    if let Some((vcpu, address)) = place {
        session.set_pc(vcpu, address).map_err(|refused| {
            log::warn!(target: "debug::rsp", "vCPU {vcpu} cannot go on at {address:#x}: {refused}");
            Refused::Errno(errno::EIO)
        })?;
    }
    Ok(Answer::Resume(actions))
}

/// `Hg`: which vCPU registers, memory and breakpoints are looked at through; `Hc`: which `c` and `s`
/// are of.
fn choose<M: Machine>(session: &mut Session<M>, arguments: &[u8]) -> Result<Answer, Refused> {
    let (operation, thread) = arguments.split_first().ok_or(Refused::Errno(errno::EINVAL))?;
    let thread = Thread::parse(thread, session.machine.vcpus())?;
    match (operation, thread) {
        (b'g', Thread::One(vcpu)) => session.current = vcpu,
        // Any one: the one that it is.
        (b'g', Thread::Any | Thread::All) => {}
        (b'c', Thread::One(vcpu)) => session.chosen = Some(vcpu),
        (b'c', Thread::Any | Thread::All) => session.chosen = None,
        _ => return Err(Refused::Errno(errno::EINVAL)),
    }
    Ok(ok())
}

/// `qThreadExtraInfo,thread-id`: what `info threads` shows.
fn extra_info<M: Machine>(session: &Session<M>, thread: &[u8]) -> Answer {
    match Thread::parse(thread, session.machine.vcpus()) {
        Ok(Thread::One(vcpu)) => {
            Answer::Reply(hex(format!("CPU#{vcpu} [{}]", session.machine.state(vcpu).name()).as_bytes()))
        }
        Ok(_) => error(errno::EINVAL),
        Err(refused) => refused.into(),
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

/// Conditions, and commands, that one breakpoint may have.
const MOST_EXPRESSIONS: usize = 64;

fn insert<M: Machine>(session: &mut Session<M>, arguments: &[u8]) -> Answer {
    let Some(Point { kind, address, length, conditions, commands }) = point(arguments) else {
        return error(errno::EINVAL);
    };
    // Each is bounded in time, and all of them are run at one hit.
    let is_much = commands.len() > MOST_EXPRESSIONS || conditions.len() > MOST_EXPRESSIONS;
    if kind.access().is_some() && length == 0 || is_much {
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
    match session.insert_or_remember((kind, address, length), conditions, commands) {
        Ok(()) => ok(),
        Err(InsertError::TooMany(_) | InsertError::NotExecutable | InsertError::Many) => error(errno::ENOSPC),
        Err(InsertError::Unaligned) => error(errno::EINVAL),
        Err(InsertError::Table(breakpoint::InsertError::NotRam(_))) => error(errno::EFAULT),
        Err(InsertError::Table(breakpoint::InsertError::Duplicate)) => error(errno::EINVAL),
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

/// Bytes that one reply carries, in hexadecimal.
const MOST_BYTES: u64 = (LONGEST as u64 - 16) / 2;

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
            match session.write(session.current, address, &bytes) {
                true => ok(),
                false if session.takes_words && session.is_overloaded() => Refused::Words(OVERLOADED).into(),
                false => error(errno::EFAULT),
            }
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
