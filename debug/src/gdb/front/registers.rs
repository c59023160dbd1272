//! `G` and `P`: registers are written. gdbstub takes a `G` of any length for one that fits. And `g` and `p` of a task that
//! sleeps: it has saved a few, and the others are told as unavailable, which gdbstub cannot for `p`.
//!
//! Source: GDB manual, "Packets" (`g`); gdb takes the same for `p`.

use crate::gdb::answer::{Answer, errno, error, ok};
use crate::gdb::packet::{from_hex, number, push_hex};
use crate::gdb::resume::Refused;
use crate::gdb::session::Session;
use crate::machine::Machine;
use arch::register::{RegisterFile, table};

/// A register of `size` bytes, of which a debugger sees the lower part.
fn whole(value: &[u8], size: usize) -> Vec<u8> {
    let mut bytes = value.to_vec();
    bytes.resize(size, 0);
    bytes
}

fn write<M: Machine>(session: &Session<M>, file: &RegisterFile) -> Answer {
    let vcpu = session.debuggee.current;
    session.debuggee.machine.set_registers(vcpu, file).map_or_else(|_| error(errno::EIO), |()| ok())
}

/// `Gdata`: what `g` answers, or less of it, as long as it is whole registers.
pub(super) fn write_all<M: Machine>(session: &Session<M>, data: &[u8]) -> Answer {
    let Some(bytes) = from_hex(data).filter(|bytes| !bytes.is_empty()) else { return error(errno::EINVAL) };
    let mut file = RegisterFile::new(session.isa());
    let mut rest = bytes.as_slice();
    for row in session.registers.general() {
        if rest.is_empty() {
            break;
        }
        let Some((value, after)) = rest.split_at_checked(session.registers.size(row)) else {
            return error(errno::EINVAL);
        };
        file.set_bytes(row, &whole(value, table(session.isa())[row].bytes()));
        rest = after;
    }
    if rest.is_empty() { write(session, &file) } else { error(errno::EINVAL) }
}

/// `Pnumber=value`.
pub(super) fn write_one<M: Machine>(session: &Session<M>, arguments: &[u8]) -> Answer {
    let row_and_value = || {
        let equals = arguments.iter().position(|byte| *byte == b'=')?;
        let row = usize::try_from(number(&arguments[..equals])?).ok()?;
        let value = from_hex(&arguments[equals + 1..])?;
        (session.registers.contains(row) && value.len() == session.registers.size(row))
            .then_some((row, value))
    };
    let Some((row, value)) = row_and_value() else { return error(errno::EINVAL) };
    let mut file = RegisterFile::new(session.isa());
    file.set_bytes(row, &whole(&value, table(session.isa())[row].bytes()));
    write(session, &file)
}

/// Why registers of a task that sleeps are not written.
pub(super) const SAVED: Refused =
    Refused::Words("a task that sleeps has its registers on its stack: they cannot be written");

/// `g` and `pnumber` of a task that sleeps; `None` of other packets, and of a vCPU.
pub(super) fn saved<M: Machine>(session: &Session<M>, packet: &[u8]) -> Option<Answer> {
    let file = &session.threads.chosen()?.registers;
    let set = &session.registers;
    match packet.split_first()? {
        (b'g', []) => {
            let mut text = Vec::new();
            set.general().for_each(|row| push_saved(&mut text, file, row, set.size(row)));
            Some(Answer::Reply(text))
        }
        (b'p', digits) => {
            let row = number(digits).and_then(|row| usize::try_from(row).ok());
            let Some(row) = row.filter(|row| set.contains(*row)) else { return Some(error(errno::EINVAL)) };
            let mut text = Vec::new();
            push_saved(&mut text, file, row, set.size(row));
            Some(Answer::Reply(text))
        }
        _ => None,
    }
}

fn push_saved(text: &mut Vec<u8>, file: &RegisterFile, row: usize, size: usize) {
    match file.bytes(row) {
        Some(bytes) => push_hex(text, &whole(&bytes, size)),
        None => text.extend(vec![b'x'; 2 * size]),
    }
}
