//! `vCont`, and what came before it: what each vCPU does when the target is resumed.
//!
//! gdbstub takes some valid forms for a reason to end the connection, and forgets a thread that is
//! not there, so all of them are read here, without a machine: [`Vcpus`] is what has to be known.
//! Signals are read and mean nothing: a vCPU has none.
//!
//! Source: GDB manual, "vCont packet", "Packets" (`c`, `C`, `s`, `S`, `H`, "thread-id syntax").

use super::answer::errno;
use super::packet::number;
use super::session::ids::may_be_task;
use crate::machine::Action;

/// What the forms are read against.
#[derive(Clone, Copy, Debug)]
pub struct Vcpus {
    /// How many there are.
    pub count: u32,
    /// The one that stopped last, or was chosen by `Hg`.
    pub current: u32,
    /// The one that was chosen by `Hc`; then the others stay where they are.
    pub chosen: Option<u32>,
    /// The host does single steps.
    pub can_step: bool,
    /// What there is beside them.
    pub tasks: Tasks,
}

/// Tasks that sleep, as threads.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tasks {
    /// They are.
    pub are_threads: bool,
    /// The one that was chosen by `Hg`.
    pub current: Option<u32>,
    /// The one that was chosen by `Hc`.
    pub chosen: Option<u32>,
}

/// A thread-id: which vCPUs it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thread {
    /// `-1`.
    All,
    /// `0`.
    Any,
    /// That of this number.
    One(u32),
    /// None: it is of a task with this thread-id, which may not be there.
    Task(u32),
}

/// Why a packet is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It is answered with this errno.
    Errno(u8),
    /// In words.
    Words(&'static str),
    /// It is to resume the task with this thread-id, which sleeps, if it is there.
    Task(u32),
}

const WRONG: Refused = Refused::Errno(errno::EINVAL);
const NO_THREAD: Refused = Refused::Errno(errno::ESRCH);
const NO_STEPS: Refused = Refused::Words("this host does no single steps (see 'monitor host')");

/// The one process that there is.
const PROCESS: u64 = 1;

impl Thread {
    /// Parses `TID`, `pPID` or `pPID.TID`.
    ///
    /// # Errors
    /// [`Refused`], also for a thread that is not there.
    pub fn parse(text: &[u8], count: u32) -> Result<Thread, Refused> {
        let one = |text: &[u8]| -> Result<Thread, Refused> {
            match (text, number(text)) {
                (b"-1", _) => Ok(Thread::All),
                (_, Some(0)) => Ok(Thread::Any),
                (_, Some(tid)) => {
                    let vcpu = u32::try_from(tid - 1).ok().filter(|vcpu| *vcpu < count).map(Thread::One);
                    vcpu.or_else(|| may_be_task(tid).map(Thread::Task)).ok_or(NO_THREAD)
                }
                _ => Err(WRONG),
            }
        };
        let Some(both) = text.strip_prefix(b"p") else { return one(text) };
        let dot = both.iter().position(|byte| *byte == b'.');
        let (process, thread) = (&both[..dot.unwrap_or(both.len())], dot.map(|dot| &both[dot + 1..]));
        match (process, number(process)) {
            (b"-1", _) | (_, Some(0 | PROCESS)) => thread.map_or(Ok(Thread::All), one),
            (_, Some(_)) => Err(NO_THREAD),
            _ => Err(WRONG),
        }
    }

    fn names(self, vcpu: u32, current: u32) -> bool {
        match self {
            Thread::All => true,
            Thread::Any => vcpu == current,
            Thread::One(one) => vcpu == one,
            Thread::Task(_) => false,
        }
    }
}

/// Reads what stands behind `vCont`, with its semicolon: an action for each vCPU. The first that
/// names a vCPU counts; one that none names stays where it is.
///
/// # Errors
/// [`Refused`]; also when nothing would move, as then nothing would ever be told.
pub fn vcont(text: &[u8], vcpus: &Vcpus) -> Result<Vec<Action>, Refused> {
    let mut actions: Vec<Option<Action>> = vec![None; vcpus.count as usize];
    for part in text.strip_prefix(b";").ok_or(WRONG)?.split(|byte| *byte == b';') {
        let colon = part.iter().position(|byte| *byte == b':');
        let what = action(&part[..colon.unwrap_or(part.len())])?;
        let thread = colon.map_or(Ok(Thread::All), |colon| Thread::parse(&part[colon + 1..], vcpus.count))?;
        match thread {
            Thread::Task(_) if !vcpus.tasks.are_threads => return Err(NO_THREAD),
            Thread::Task(id) if what != Action::Stay => return Err(Refused::Task(id)),
            Thread::Any if what.is_step() => {
                vcpus.tasks.current.map_or(Ok(()), |id| Err(Refused::Task(id)))?
            }
            _ => {}
        }
        for (vcpu, action) in (0..).zip(&mut actions) {
            if thread.names(vcpu, vcpus.current) {
                action.get_or_insert(what);
            }
        }
    }
    checked(actions.into_iter().map(|action| action.unwrap_or(Action::Stay)).collect(), vcpus)
}

fn checked(actions: Vec<Action>, vcpus: &Vcpus) -> Result<Vec<Action>, Refused> {
    if actions.iter().all(|action| *action == Action::Stay) {
        return Err(WRONG);
    }
    if !vcpus.can_step && actions.iter().any(|action| action.is_step()) {
        return Err(NO_STEPS);
    }
    Ok(actions)
}

fn action(text: &[u8]) -> Result<Action, Refused> {
    match text.split_first() {
        Some((b'c', [])) => Ok(Action::Run),
        Some((b's', [])) => Ok(Action::Step),
        // Where it is: nothing runs while gdb is told to wait.
        Some((b't', [])) => Ok(Action::Stay),
        Some((b'C', signal)) => number(signal).map(|_| Action::Run).ok_or(WRONG),
        Some((b'S', signal)) => number(signal).map(|_| Action::Step).ok_or(WRONG),
        Some((b'r', range)) => {
            let comma = range.iter().position(|byte| *byte == b',').ok_or(WRONG)?;
            let (start, end) = (number(&range[..comma]), number(&range[comma + 1..]));
            start.zip(end).map(|(start, end)| Action::StepRange(start, end)).ok_or(WRONG)
        }
        _ => Err(WRONG),
    }
}

/// Where a vCPU goes on: its number, and an address.
pub type Jump = (u32, u64);

/// Reads `c [addr]`, `C sig[;addr]`, `s [addr]` and `S sig[;addr]`: an action for each vCPU, and the
/// vCPU and address where it goes on, if that is said. Where `Hc` has chosen none, the current one steps
/// and the others run.
///
/// # Errors
/// [`Refused`].
pub fn plain(packet: &[u8], vcpus: &Vcpus) -> Result<(Vec<Action>, Option<Jump>), Refused> {
    let (letter, rest) = packet.split_first().ok_or(WRONG)?;
    let address = match letter {
        b'c' | b's' => rest,
        _ => {
            let semicolon = rest.iter().position(|byte| *byte == b';');
            number(&rest[..semicolon.unwrap_or(rest.len())]).ok_or(WRONG)?;
            semicolon.map_or(&[][..], |semicolon| &rest[semicolon + 1..])
        }
    };
    let address = match address {
        [] => None,
        digits => Some(number(digits).ok_or(WRONG)?),
    };
    let one = vcpus.chosen.unwrap_or(vcpus.current);
    let is_step = matches!(letter, b's' | b'S');
    let task = vcpus.tasks.chosen.or(vcpus.tasks.current.filter(|_| is_step && vcpus.chosen.is_none()));
    if let Some(task) = task {
        return Err(Refused::Task(task));
    }
    let what = if is_step { Action::Step } else { Action::Run };
    let others = if vcpus.chosen.is_some() { Action::Stay } else { Action::Run };
    let actions = (0..vcpus.count).map(|vcpu| if vcpu == one { what } else { others }).collect();
    Ok((checked(actions, vcpus)?, address.map(|address| (one, address))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use Action::{Run, Stay, Step, StepRange};

    const NO_TASKS: Tasks = Tasks { are_threads: false, current: None, chosen: None };
    const VCPUS: Vcpus = Vcpus { count: 3, current: 1, chosen: None, can_step: true, tasks: NO_TASKS };
    /// Task 1's thread-id.
    const TASK: u32 = 10_000_001;

    #[test]
    fn thread_ids() {
        for (text, thread) in [
            ("-1", Ok(Thread::All)),
            ("0", Ok(Thread::Any)),
            ("1", Ok(Thread::One(0))),
            ("03", Ok(Thread::One(2))),
            ("p1.2", Ok(Thread::One(1))),
            ("p1.989681", Ok(Thread::Task(TASK))),
            ("98967f", Err(NO_THREAD)),
            ("80000000", Err(NO_THREAD)),
            ("p1.-1", Ok(Thread::All)),
            ("p-1.-1", Ok(Thread::All)),
            ("p0.0", Ok(Thread::Any)),
            ("p1", Ok(Thread::All)),
            ("4", Err(NO_THREAD)),
            ("p1.9", Err(NO_THREAD)),
            ("p2.1", Err(NO_THREAD)),
            ("ffffffffffffffff", Err(NO_THREAD)),
            ("", Err(WRONG)),
            ("-2", Err(WRONG)),
            ("p", Err(WRONG)),
            ("p1.", Err(WRONG)),
            ("p.1", Err(WRONG)),
            ("zz", Err(WRONG)),
        ] {
            assert_eq!(Thread::parse(text.as_bytes(), 3), thread, "{text}");
        }
    }

    #[test]
    fn every_form_of_vcont() {
        for (text, actions) in [
            (";c", Ok([Run, Run, Run])),
            (";s", Ok([Step, Step, Step])),
            (";s:0", Ok([Stay, Step, Stay])),
            (";s:p1.1", Ok([Step, Stay, Stay])),
            (";s:p1.1;c", Ok([Step, Run, Run])),
            (";s:1;c:2", Ok([Step, Run, Stay])),
            // The first that names a thread counts.
            (";c:p1.-1;s:1", Ok([Run, Run, Run])),
            (";C05", Ok([Run, Run, Run])),
            (";S05:3", Ok([Stay, Stay, Step])),
            (";r1000,1010:p1.2;c:p1.-1", Ok([Run, StepRange(0x1000, 0x1010), Run])),
            (";t:1;c", Ok([Stay, Run, Run])),
            (";t", Err(WRONG)),
            ("", Err(WRONG)),
            (";", Err(WRONG)),
            (";c;", Err(WRONG)),
            (";x", Err(WRONG)),
            (";C", Err(WRONG)),
            (";Szz", Err(WRONG)),
            (";r1:1", Err(WRONG)),
            (";cc", Err(WRONG)),
            (";c:", Err(WRONG)),
            (";s:p1.9", Err(NO_THREAD)),
            (";s:p1.1;c:p1.9", Err(NO_THREAD)),
        ] {
            let actions = actions.map(|actions| actions.to_vec());
            assert_eq!(vcont(text.as_bytes(), &VCPUS), actions, "vCont{text}");
        }
        let no_steps = Vcpus { can_step: false, ..VCPUS };
        assert_eq!(vcont(b";s", &no_steps), Err(NO_STEPS));
        assert!(vcont(b";c", &no_steps).is_ok());
    }

    #[test]
    fn a_task_that_sleeps_is_not_resumed() {
        let tasks = Tasks { are_threads: true, ..NO_TASKS };
        let vcpus = Vcpus { tasks, ..VCPUS };
        for (text, actions) in [
            (";c", Ok([Run, Run, Run])),
            (";c:-1", Ok([Run, Run, Run])),
            (";s:0", Ok([Stay, Step, Stay])),
            (";t:989681;c", Ok([Run, Run, Run])),
            (";s:989681", Err(Refused::Task(TASK))),
            (";c:p1.989681", Err(Refused::Task(TASK))),
            (";s:p1.989681;c:p1.-1", Err(Refused::Task(TASK))),
            (";r1000,1010:989681;c", Err(Refused::Task(TASK))),
        ] {
            let actions = actions.map(|actions| actions.to_vec());
            assert_eq!(vcont(text.as_bytes(), &vcpus), actions, "vCont{text}");
        }
        assert_eq!(vcont(b";s:989681", &VCPUS), Err(NO_THREAD));
        let looked_at = Vcpus { tasks: Tasks { current: Some(TASK), ..tasks }, ..VCPUS };
        assert_eq!(vcont(b";s:0", &looked_at), Err(Refused::Task(TASK)));
        assert_eq!(plain(b"s", &looked_at), Err(Refused::Task(TASK)));
        assert_eq!(plain(b"c", &looked_at), Ok((vec![Run, Run, Run], None)));
        assert_eq!(plain(b"s", &Vcpus { chosen: Some(2), ..looked_at }), Ok((vec![Stay, Stay, Step], None)));
        let chosen = Vcpus { tasks: Tasks { chosen: Some(TASK), ..tasks }, ..VCPUS };
        assert_eq!(plain(b"c", &chosen), Err(Refused::Task(TASK)));
    }

    #[test]
    fn every_form_that_came_before() {
        for (text, result) in [
            ("c", Ok(([Run, Run, Run], None))),
            ("c1000", Ok(([Run, Run, Run], Some((1, 0x1000))))),
            ("s", Ok(([Run, Step, Run], None))),
            ("s1000", Ok(([Run, Step, Run], Some((1, 0x1000))))),
            ("C05", Ok(([Run, Run, Run], None))),
            ("C05;10", Ok(([Run, Run, Run], Some((1, 0x10))))),
            ("S05", Ok(([Run, Step, Run], None))),
            ("S05;10", Ok(([Run, Step, Run], Some((1, 0x10))))),
            ("C", Err(WRONG)),
            ("S;10", Err(WRONG)),
            ("cx", Err(WRONG)),
        ] {
            let result = result.map(|(actions, pc)| (actions.to_vec(), pc));
            assert_eq!(plain(text.as_bytes(), &VCPUS), result, "{text}");
        }
        let chosen = Vcpus { chosen: Some(2), ..VCPUS };
        assert_eq!(plain(b"s", &chosen), Ok((vec![Stay, Stay, Step], None)));
        assert_eq!(plain(b"c10", &chosen), Ok((vec![Stay, Stay, Run], Some((2, 0x10)))));
    }
}
