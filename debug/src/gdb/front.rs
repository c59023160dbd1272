//! Packets that are answered in front of gdbstub: those that it does not know, does not pass on
//! whole, or ends the connection at.
//!
//! | packet | what for |
//! | --- | --- |
//! | `Z0`-`Z4`, `z0`-`z4` | with conditions and commands evaluated in the stub (gdbstub issue 40) |
//! | `vCont`, `c`, `C`, `s`, `S` | every form ([`resume`](super::resume)) |
//! | `D`, `k`, `vKill`, `vCtrlC` | answered, and then the server acts |
//! | `!`, `vRun`, `R`, `vAttach` | gdb's `target extended-remote`: the guest begins again, is let go and taken |
//! | `H`, `T`, `qC`, `qfThreadInfo`, `qThreadExtraInfo` | threads, with and without their process |
//! | `g`, `p` | of a task that sleeps: the registers that it has saved |
//! | `?` | the stop as it was, for whichever vCPU it was |
//! | `m`, `x`, `M`, `X` | memory, fast, with lengths that are checked |
//! | `G`, `P` | registers written, with lengths that are checked |
//! | `qSearch:memory`, `qCRC` | gdb's `find` and `compare-sections` (`front::search`) |
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

mod memory;
mod points;
mod qemu;
mod regions;
mod registers;
mod running;
mod search;
#[cfg(all(test, feature = "linux"))]
mod tests;
mod threads;

use super::answer::{Answer, errno, error, ok};
use super::packet::{LONGEST, number};
use super::resume::{Refused, vcont};
use super::session::{Client, Process, Session};
use crate::machine::{Extent, Machine};
use memory::{read_memory, write_memory};
use points::{insert, remove};
use qemu::qemu;
use running::{go_on, refuse, resumes, vcpus};
use threads::{choose, extra_info, ids, is_alive, threads};

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
            // Whoever knows tasks has words for it.
            Refused::Task(_) => error(errno::ESRCH),
        }
    }
}

/// Whether a packet may take long, so that whoever waits is told so. The first that is about threads has tasks looked for.
pub fn may_take_long<M: Machine>(session: &Session<M>, data: &[u8]) -> bool {
    let prefixes: [&[u8]; 4] = [b"qSearch:", b"qCRC:", b"qRcmd,", b"qOffsets"];
    let about_threads: [&[u8]; 5] = [b"H", b"T", b"qfThreadInfo", b"qThreadExtraInfo,", b"qXfer:threads:"];
    let has = |prefixes: &[&[u8]]| prefixes.iter().any(|prefix| data.starts_with(prefix));
    has(&prefixes) || session.threads.is_to_look() && has(&about_threads)
}

/// Whether the target may be running when a packet comes: what ends it, or the connection.
pub fn is_urgent(data: &[u8]) -> bool {
    data == b"vCtrlC" || data == b"k" || is_kill(data) || is_detach(data)
}

/// What of the target has to stand still and to be known for a packet to be served.
pub fn takes<M: Machine>(session: &Session<M>, is_running: bool, data: &[u8]) -> Option<Extent> {
    let text = |prefix: &str| data.starts_with(prefix.as_bytes());
    let is_end = data == b"k" || is_kill(data) && means_guest(session, data);
    let comes = data == b"vRun" || text("vRun;") || text("R") || attaches(session, data) == Some(true);
    match session.process {
        // It is refused.
        _ if is_running && !is_urgent(data) => None,
        _ if is_end => session.is_extended.then_some(Extent::Whole),
        _ if comes => Some(Extent::Whole),
        Process::Attached if is_running => means_guest(session, data).then_some(Extent::Near),
        Process::Attached => Some(match data.first() {
            // Those of which there are many.
            Some(b'm' | b'x' | b'X' | b'Z' | b'z' | b'c' | b's' | b'C' | b'S') => Extent::Near,
            _ if text("vCont") => Extent::Near,
            _ => Extent::Whole,
        }),
        Process::Detached | Process::Killed => None,
    }
}

/// `vKill;pid`: another packet that begins like it must not end the guest.
fn is_kill(data: &[u8]) -> bool {
    data == b"vKill" || data.starts_with(b"vKill;")
}

/// Whether `vAttach;pid` means a guest that is there; `None` of other packets.
fn attaches<M: Machine>(session: &Session<M>, data: &[u8]) -> Option<bool> {
    let pid = data.strip_prefix(b"vAttach;")?;
    Some(session.process != Process::Killed && number(pid) == Some(PROCESS))
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
        _ if text("vAttach;").is_some() => match attaches(session, data) {
            Some(true) => Answer::Attach,
            _ if session.process == Process::Killed => NO_PROCESS.into(),
            _ => error(errno::ESRCH),
        },
        _ if data == b"vRun" || text("vRun;").is_some() => Answer::Restart(true),
        _ if text("R").is_some() => Answer::Restart(false),
        _ if session.process != Process::Attached => without_process(session, data),
        _ => serve_attached(session, data),
    }
}

fn serve_attached<M: Machine>(session: &mut Session<M>, data: &[u8]) -> Answer {
    match data.first() {
        // gdb has words of its own for a breakpoint that is refused, which are wrong here; it inserts
        // them when it resumes, and that is answered in words.
        Some(b'Z' | b'z') if !session.debuggee.machine.can_run() => ok(),
        Some(letter @ (b'P' | b'G')) => match session.debuggee.machine.read_only() {
            Some(why) => Answer::Reply(format!("E.{why}").into_bytes()),
            None if session.threads.chosen().is_some() => registers::SAVED.into(),
            None if *letter == b'P' => registers::write_one(session, &data[1..]),
            None => registers::write_all(session, &data[1..]),
        },
        Some(b'Z') => insert(session, &data[1..]),
        Some(b'z') => remove(session, &data[1..]),
        Some(b'm') => read_memory(&data[1..], false),
        Some(b'x') => read_memory(&data[1..], true),
        Some(letter @ (b'M' | b'X')) => write_memory(session, &data[1..], *letter == b'X'),
        Some(b'?') if data.len() == 1 => Answer::Reply(stop_reply(session).into_bytes()),
        Some(b'H') => choose(session, &data[1..]).unwrap_or_else(Answer::from),
        Some(b'T') => is_alive(session, &data[1..]).unwrap_or_else(Answer::from),
        Some(b'c' | b's' | b'C' | b'S') => {
            go_on(session, data).unwrap_or_else(|refused| refuse(session, refused))
        }
        _ if is_detach(data) && means_guest(session, data) => Answer::Detach(b"OK".to_vec()),
        _ if is_detach(data) => error(errno::ESRCH),
        _ if data == b"vCont?" => Answer::Reply(resumes(session)),
        _ if data == b"vCtrlC" => Answer::Interrupt(b"OK".to_vec()),
        Some(b'q' | b'Q') => query(session, data),
        _ => match data.strip_prefix(b"vCont") {
            Some(actions) => vcont(actions, &vcpus(session))
                .map_or_else(|refused| refuse(session, refused), Answer::Resume),
            None => registers::saved(session, data).unwrap_or(Answer::PassOn),
        },
    }
}

/// Serves `q` and `Q`.
fn query<M: Machine>(session: &mut Session<M>, data: &[u8]) -> Answer {
    match data {
        b"qC" => Answer::Reply(format!("QC{}", session.looked_at()).into_bytes()),
        b"qfThreadInfo" => ids(session, true),
        b"qsThreadInfo" => ids(session, false),
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
        _ => query_about(session, data),
    }
}

/// Serves those that say what they ask about.
fn query_about<M: Machine>(session: &mut Session<M>, data: &[u8]) -> Answer {
    let text = |prefix: &str| data.strip_prefix(prefix.as_bytes());
    if let Some(features) = text("qSupported") {
        let has = |name: &[u8]| features.split(|byte| matches!(byte, b':' | b';')).any(|it| it == name);
        session.names_process = has(b"multiprocess+");
        // Of those that are known, gdb alone asks for this one.
        session.client = if has(b"no-resumed+") { Client::Gdb } else { session.client };
        session.takes_words = has(b"error-message+");
        Answer::Reply(format!("PacketSize={LONGEST:x};{FEATURES}").into_bytes())
    } else if let Some(arguments) = text("qSearch:memory:") {
        search::find(session, arguments)
    } else if let Some(arguments) = text("qCRC:") {
        search::crc(session, arguments)
    } else if let Some(arguments) = text("qXfer:threads:read::") {
        threads(session, arguments)
    } else if let Some(thread) = text("qThreadExtraInfo,") {
        extra_info(session, thread).unwrap_or_else(Answer::from)
    } else if let Some(address) = text("qMemoryRegionInfo:") {
        regions::region(session, address)
    } else if let Some(what) = text("qqemu.").or_else(|| text("Qqemu.")) {
        qemu(session, what)
    } else {
        Answer::PassOn
    }
}

/// The stop as it was: what the debugger is told when it comes.
fn stop_reply<M: Machine>(session: &Session<M>) -> String {
    format!("T05thread:{};", session.looked_at())
}
