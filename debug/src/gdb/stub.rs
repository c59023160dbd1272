//! What gdbstub does for us: it reads and answers the packets that read registers (`g`, `p`), `qXfer` and `qRcmd`, for
//! which the [`Session`] stands behind its target.
//!
//! It is kept where nothing can end the connection: what resumes the target, what writes, threads and breakpoints
//! are answered in [`front`](super::front), and a packet that gdbstub gives up on costs that packet.
//! So it never runs the target, and has nothing to remember from one packet to the next: the vCPU is the
//! session's [`current`](Session::current) one, whichever it takes for that.

use super::answer::errno;
use super::monitor;
use super::packet::{LONGEST, frame};
use super::session::Session;
use crate::machine::{Machine, MachineError};
use arch::register::{Bank, table};
use gdbstub::common::Tid;
use gdbstub::conn::Connection;
use gdbstub::stub::GdbStub;
use gdbstub::stub::state_machine::GdbStubStateMachine;
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::MultiThreadBase;
use gdbstub::target::ext::base::single_register_access::{SingleRegisterAccess, SingleRegisterAccessOps};
use gdbstub::target::ext::memory_map::{MemoryMap, MemoryMapOps};
use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd, MonitorCmdOps};
use gdbstub::target::ext::target_description_xml_override::{
    TargetDescriptionXmlOverride, TargetDescriptionXmlOverrideOps,
};
use gdbstub::target::{Target, TargetError as StubError, TargetResult};
use std::convert::Infallible;
use std::marker::PhantomData;
use std::num::NonZeroUsize;

/// What gdbstub writes, until it is sent.
#[derive(Debug, Default)]
struct Outbox(Vec<u8>);

impl Connection for Outbox {
    type Error = Infallible;

    fn write(&mut self, byte: u8) -> Result<(), Infallible> {
        self.0.push(byte);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// Bytes behind a packet in which gdbstub has a register read: more than the widest has (AVX-512's have 64, SVE's may have
/// 256).
const MOST_SCRATCH: usize = 512;

/// gdbstub, for one connection.
pub(super) struct Stub<M: Machine> {
    /// What it takes a packet apart in.
    buffer: Vec<u8>,
    session: PhantomData<fn(&mut Session<M>)>,
}

impl<M: Machine> Stub<M> {
    pub fn new() -> Stub<M> {
        Stub { buffer: vec![0; LONGEST + 4], session: PhantomData }
    }

    /// Has it answer a packet; its packets, without an acknowledgement.
    pub fn serve(&mut self, session: &mut Session<M>, data: &[u8]) -> Vec<u8> {
        self.try_serve(&mut Asked(session), data).unwrap_or_else(|error| {
            log::debug!(target: "debug::rsp", "'{}': {error}", String::from_utf8_lossy(data));
            frame(format!("E{:02x}", errno::EINVAL).as_bytes())
        })
    }

    fn try_serve(&mut self, asked: &mut Asked<'_, M>, data: &[u8]) -> Result<Vec<u8>, String> {
        // gdbstub looks through all that it is given for a second `#`, which takes longer than answering where that is
        // as long as the longest packet.
        let size = match data.first() {
            Some(b'g' | b'p') => data.len() + 4 + MOST_SCRATCH,
            _ => self.buffer.len(),
        };
        let buffer = &mut self.buffer[..size.min(LONGEST + 4)];
        let builder = GdbStub::builder(Outbox::default()).with_packet_buffer(buffer);
        let stub = builder.build().map_err(|error| error.to_string())?;
        let mut stub = stub.run_state_machine(asked).map_err(|error| error.to_string())?;
        for byte in frame(data) {
            stub = match stub {
                GdbStubStateMachine::Idle(stub) => {
                    stub.incoming_data(asked, byte).map_err(|error| error.to_string())?
                }
                _ => return Err("gdbstub wants to run the target or to end the connection".into()),
            };
        }
        let GdbStubStateMachine::Idle(mut idle) = stub else {
            return Err("gdbstub wants to run the target or to end the connection".into());
        };
        let mut written = std::mem::take(&mut idle.borrow_conn().0);
        if written.first() == Some(&b'+') {
            written.remove(0);
        }
        Ok(written)
    }
}

/// The session while gdbstub answers a packet: gdbstub's traits are this type's, so that the session's own
/// interface has none of them.
struct Asked<'a, M: Machine>(&'a mut Session<M>);

/// gdbstub's idea of an architecture: ours is a value of the session.
#[derive(Debug)]
enum AnyArch {}

/// Bytes of a `g` packet; `None` for a register that cannot be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct RegisterBytes(Vec<Option<u8>>);

impl gdbstub::arch::Registers for RegisterBytes {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        0
    }

    fn gdb_serialize(&self, mut write_byte: impl FnMut(Option<u8>)) {
        self.0.iter().for_each(|byte| write_byte(*byte));
    }

    fn gdb_deserialize(&mut self, bytes: &[u8]) -> Result<(), ()> {
        self.0 = bytes.iter().copied().map(Some).collect();
        Ok(())
    }
}

/// A register by its row.
#[derive(Clone, Copy, Debug)]
struct RegisterNumber(usize);

impl gdbstub::arch::RegId for RegisterNumber {
    fn from_raw_id(id: usize) -> Option<(Self, Option<NonZeroUsize>)> {
        Some((RegisterNumber(id), None))
    }

    fn to_raw_id(&self) -> Option<usize> {
        Some(self.0)
    }
}

impl gdbstub::arch::Arch for AnyArch {
    type Usize = u64;
    type Registers = RegisterBytes;
    type BreakpointKind = usize;
    type RegId = RegisterNumber;
}

impl<M: Machine> Target for Asked<'_, M> {
    type Arch = AnyArch;
    type Error = MachineError;

    fn base_ops(&mut self) -> BaseOps<'_, AnyArch, MachineError> {
        BaseOps::MultiThread(self)
    }

    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }

    fn support_memory_map(&mut self) -> Option<MemoryMapOps<'_, Self>> {
        Some(self)
    }

    fn support_target_description_xml_override(
        &mut self,
    ) -> Option<TargetDescriptionXmlOverrideOps<'_, Self>> {
        Some(self)
    }

    fn guard_rail_implicit_sw_breakpoints(&self) -> bool {
        true
    }

    fn use_fork_stop_reason(&self) -> bool {
        false
    }

    fn use_vfork_stop_reason(&self) -> bool {
        false
    }

    fn use_vforkdone_stop_reason(&self) -> bool {
        false
    }

    /// Run-length encoding saves little on loopback, and some clients read it wrong.
    fn use_rle(&self) -> bool {
        false
    }
}

/// Makes gdbstub's error of an errno.
fn refuse<T>(code: u8) -> Result<T, StubError<MachineError>> {
    Err(StubError::Errno(code))
}

impl<M: Machine> MultiThreadBase for Asked<'_, M> {
    fn read_registers(&mut self, registers: &mut RegisterBytes, _: Tid) -> TargetResult<(), Self> {
        let vcpu = self.0.debuggee.current;
        let banks = [Bank::General, Bank::System];
        let Ok(file) = self.0.debuggee.machine.registers(vcpu, &banks) else { return refuse(errno::EIO) };
        registers.0.clear();
        for row in self.0.registers.general() {
            let size = self.0.registers.size(row);
            match file.bytes(row) {
                Some(bytes) => registers.0.extend(bytes.into_iter().take(size).map(Some)),
                None => registers.0.extend(vec![None; size]),
            }
        }
        Ok(())
    }

    /// Answered in front.
    fn write_registers(&mut self, _: &RegisterBytes, _: Tid) -> TargetResult<(), Self> {
        refuse(errno::EINVAL)
    }

    fn support_single_register_access(&mut self) -> Option<SingleRegisterAccessOps<'_, Tid, Self>> {
        Some(self)
    }

    fn read_addrs(&mut self, start: u64, data: &mut [u8], _: Tid) -> TargetResult<usize, Self> {
        match self.0.read(start, data) {
            0 if !data.is_empty() => refuse(errno::EFAULT),
            count => Ok(count),
        }
    }

    /// Answered in front.
    fn write_addrs(&mut self, _: u64, _: &[u8], _: Tid) -> TargetResult<(), Self> {
        refuse(errno::EINVAL)
    }

    fn list_active_threads(&mut self, thread_is_active: &mut dyn FnMut(Tid)) -> Result<(), MachineError> {
        let ids = 0..self.0.debuggee.machine.vcpus() as usize;
        ids.for_each(|vcpu| thread_is_active(Tid::MIN.saturating_add(vcpu)));
        Ok(())
    }
}

impl<M: Machine> SingleRegisterAccess<Tid> for Asked<'_, M> {
    fn read_register(
        &mut self,
        _: Tid,
        register: RegisterNumber,
        buffer: &mut [u8],
    ) -> TargetResult<usize, Self> {
        let vcpu = self.0.debuggee.current;
        let row = register.0;
        if !self.0.registers.contains(row) {
            return refuse(errno::EINVAL);
        }
        let bank = table(self.0.isa())[row].bank();
        let Ok(file) = self.0.debuggee.machine.registers(vcpu, &[bank]) else { return refuse(errno::EIO) };
        let Some(mut bytes) = file.bytes(row) else { return refuse(errno::EIO) };
        bytes.truncate(self.0.registers.size(row));
        let Some(place) = buffer.get_mut(..bytes.len()) else { return refuse(errno::EINVAL) };
        place.copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    /// Answered in front.
    fn write_register(&mut self, _: Tid, _: RegisterNumber, _: &[u8]) -> TargetResult<(), Self> {
        refuse(errno::EINVAL)
    }
}

/// Copies the part of `text` that an `qXfer` packet asks for.
fn transfer(text: &str, offset: u64, length: usize, buffer: &mut [u8]) -> usize {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
    let part = &text.as_bytes()[start..];
    let count = part.len().min(length).min(buffer.len());
    buffer[..count].copy_from_slice(&part[..count]);
    count
}

impl<M: Machine> TargetDescriptionXmlOverride for Asked<'_, M> {
    fn target_description_xml(
        &self,
        annex: &[u8],
        offset: u64,
        length: usize,
        buffer: &mut [u8],
    ) -> TargetResult<usize, Self> {
        if annex != b"target.xml" {
            return refuse(errno::EINVAL);
        }
        Ok(transfer(&self.0.registers.xml(), offset, length, buffer))
    }
}

impl<M: Machine> MemoryMap for Asked<'_, M> {
    /// All of the address space is RAM to gdb: where a guest maps its memory is known only
    /// to its page tables, and gdb refuses what the map leaves out.
    fn memory_map_xml(&self, offset: u64, length: usize, buffer: &mut [u8]) -> TargetResult<usize, Self> {
        let map = "<?xml version=\"1.0\"?><!DOCTYPE memory-map PUBLIC \"+//IDN gnu.org//DTD GDB Memory Map V1.0//EN\" \
                   \"http://sourceware.org/gdb/gdb-memory-map.dtd\"><memory-map>\
                   <memory type=\"ram\" start=\"0x0\" length=\"0x8000000000000000\"/>\
                   <memory type=\"ram\" start=\"0x8000000000000000\" length=\"0x8000000000000000\"/></memory-map>";
        Ok(transfer(map, offset, length, buffer))
    }
}

impl<M: Machine> MonitorCmd for Asked<'_, M> {
    fn handle_monitor_cmd(&mut self, command: &[u8], mut out: ConsoleOutput<'_>) -> Result<(), MachineError> {
        let text = monitor::run(self.0, &String::from_utf8_lossy(command));
        out.write_raw(text.as_bytes());
        Ok(())
    }
}
