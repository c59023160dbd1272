//! `Z` and `z`: breakpoints and watchpoints, with conditions and commands.

use crate::breakpoint::{self, Breakpoint, Condition, Kind, Place};
use crate::expression::Expression;
use crate::gdb::answer::{Answer, errno, error, ok};
use crate::gdb::packet::{from_hex, number};
use crate::gdb::session::{Client, InsertError, Session};
use crate::machine::Machine;
use arch::GuestVirt;

/// `Zk,address,length`, then perhaps `;Xlength,bytecode...` and `;cmds:persist,Xlength,...`.
struct Insertion {
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

fn point(arguments: &[u8]) -> Option<Insertion> {
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
    Some(Insertion { kind, address, length, conditions, commands })
}

/// Conditions, and commands, that one breakpoint may have.
const MOST_EXPRESSIONS: usize = 64;

pub(super) fn insert<M: Machine>(session: &mut Session<M>, arguments: &[u8]) -> Answer {
    let Some(Insertion { kind, address, length, conditions, commands }) = point(arguments) else {
        return error(errno::EINVAL);
    };
    // Each is bounded in time, and all of them are run at one hit.
    let is_much = commands.len() > MOST_EXPRESSIONS || conditions.len() > MOST_EXPRESSIONS;
    if kind.access().is_some() && length == 0 || is_much {
        return error(errno::EINVAL);
    }
    let check = |codes: Vec<Vec<u8>>| codes.into_iter().map(Expression::new).collect::<Result<Vec<_>, _>>();
    let (conditions, commands) = match (check(conditions), check(commands)) {
        (Ok(conditions), Ok(commands)) => {
            (conditions.into_iter().map(Condition::Bytecode).collect(), commands)
        }
        (Err(refused), _) | (_, Err(refused)) => {
            log::warn!(target: "debug::rsp", "a condition at {address:#x} is refused: {refused}");
            return error(errno::EINVAL);
        }
    };
    let mut breakpoint = Breakpoint::new(kind, GuestVirt(address), length, Place::Off);
    (breakpoint.conditions, breakpoint.commands) = (conditions, commands);
    // gdb has words of its own for a refusal, which are wrong here; it inserts breakpoints when it resumes, and that is
    // answered with ours.
    match session.debuggee.insert_or_remember(breakpoint, session.client == Client::Gdb) {
        Ok(()) => ok(),
        Err(InsertError::TooMany(_) | InsertError::NotExecutable | InsertError::Many) => error(errno::ENOSPC),
        Err(InsertError::Table(breakpoint::InsertError::NotRam(_))) => error(errno::EFAULT),
        Err(_) => error(errno::EINVAL),
    }
}

pub(super) fn remove<M: Machine>(session: &mut Session<M>, arguments: &[u8]) -> Answer {
    match point(arguments) {
        // gdb may remove what it never inserted, and takes an error for a broken target.
        Some(Insertion { kind, address, length, .. }) => {
            session.debuggee.remove(kind, address, length);
            ok()
        }
        None => error(errno::EINVAL),
    }
}
