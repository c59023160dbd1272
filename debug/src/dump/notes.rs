//! Notes of a core: vCPUs' registers, and the kernel's description of itself. Ours, QEMU's, and those of Linux
//! ([`arch::register::note`]).

use super::contents::DumpedVcpu;
use crate::disassemble::OperatingMode;
use crate::linux::VmCoreInfo;
use crate::machine::Activity;
use arch::Isa;
use arch::bytes::u32_at;
use arch::register::note::{self, Note};

/// vCPUs that one file may have notes of.
const MOST_CPUS: usize = 4096;

/// What our own note has beside registers: what the vCPU was doing, a byte.
pub(super) const STATE: &[u8] = b"state";

/// And, a byte that is not 0, that the registers are [earlier](DumpedVcpu::is_earlier) ones.
pub(super) const EARLIER: &[u8] = b"earlier";

fn activity_of(number: u8) -> Activity {
    match number {
        1 => Activity::Running,
        2 => Activity::Halted,
        3 => Activity::NotStarted,
        _ => Activity::Unknown,
    }
}

/// The number of an activity in our own note.
pub(super) fn number_of(activity: Activity) -> u8 {
    match activity {
        Activity::Unknown => 0,
        Activity::Running => 1,
        Activity::Halted => 2,
        Activity::NotStarted => 3,
    }
}

/// The architecture whose general registers the first note has, by their size.
pub(super) fn isa_of_notes(bytes: &[u8]) -> Option<Isa> {
    let (name_size, size, number) = (u32_at(bytes, 0)?, u32_at(bytes, 4)?, u32_at(bytes, 8)?);
    let name = bytes.get(12..12usize.checked_add(usize::try_from(name_size).ok()?)?)?;
    let note = Note::of(name.strip_suffix(&[0]).unwrap_or(name), number)?;
    Isa::ALL.into_iter().find(|isa| note.size(*isa) == usize::try_from(size).ok())
}

/// Numbers in words, not too many.
pub(super) fn numbers(all: &[usize]) -> String {
    const MOST: usize = 8;
    let mut words: Vec<String> = all.iter().take(MOST).map(usize::to_string).collect();
    if all.len() > MOST {
        words.push("...".into());
    }
    words.join(", ")
}

/// What notes tell.
#[derive(Debug)]
pub(super) struct Notes {
    isa: Isa,
    cpus: Vec<DumpedVcpu>,
    /// How many of QEMU's and of our own notes there were: each is the next vCPU's.
    qemu: usize,
    own: usize,
    info: Option<VmCoreInfo>,
    too_many: bool,
}

impl Notes {
    /// Of a target of this architecture.
    pub fn new(isa: Isa) -> Notes {
        Notes { isa, cpus: Vec::new(), qemu: 0, own: 0, info: None, too_many: false }
    }

    fn cpu(&mut self, index: usize) -> Option<&mut DumpedVcpu> {
        if index >= MOST_CPUS {
            self.too_many = true;
            return None;
        }
        while self.cpus.len() <= index {
            self.cpus.push(DumpedVcpu::unknown(self.isa));
        }
        self.cpus.get_mut(index)
    }

    /// Takes a segment's notes; `false` if they are cut off or damaged.
    pub fn take(&mut self, mut bytes: &[u8]) -> bool {
        loop {
            // Some writers leave room behind the last note.
            let begin = &bytes[..bytes.len().min(12)];
            if begin.iter().all(|byte| *byte == 0) {
                return true;
            }
            let (Some(name_size), Some(size), Some(number)) =
                (u32_at(bytes, 0), u32_at(bytes, 4), u32_at(bytes, 8))
            else {
                return false;
            };
            let piece = |start: usize, size: u32| {
                let end = start.checked_add(usize::try_from(size).ok()?)?;
                Some((bytes.get(start..end)?, end.checked_next_multiple_of(4)?))
            };
            let Some((name, at)) = piece(12, name_size) else { return false };
            let Some((value, next)) = piece(at, size) else { return false };
            self.note(name.strip_suffix(&[0]).unwrap_or(name), number, value);
            bytes = bytes.get(next..).unwrap_or(&[]);
        }
    }

    fn note(&mut self, name: &[u8], number: u32, value: &[u8]) {
        if name == b"VMCOREINFO" {
            self.info = VmCoreInfo::parse(value);
        } else if name == note::ALL_NAME.as_bytes() && number == note::ALL_NUMBER {
            self.own += 1;
            if let Some(cpu) = self.cpu(self.own - 1) {
                note::parse_all(value, &mut cpu.registers, |name, value| match (name, value) {
                    (STATE, [state]) => cpu.activity = activity_of(*state),
                    (EARLIER, [earlier]) => cpu.is_earlier = *earlier != 0,
                    _ => {}
                });
            }
        } else if let Some(note) = Note::of(name, number) {
            let index = match note {
                Note::Status => self.cpus.len(),
                Note::Float | Note::PointerMasks => self.cpus.len().saturating_sub(1),
                Note::Qemu => {
                    self.qemu += 1;
                    self.qemu - 1
                }
            };
            let Some(cpu) = self.cpu(index) else { return };
            note.parse(value, &mut cpu.registers);
            if note == Note::Qemu {
                cpu.mode = match note::code_width(value) {
                    Some(32) => OperatingMode::Protected32,
                    Some(16) => OperatingMode::Real16,
                    _ => OperatingMode::Bits64,
                };
            }
        }
    }

    /// Whose core it is, by the notes that it has.
    pub fn format(&self) -> String {
        match (self.own, self.qemu) {
            (0, 0) => "ELF core",
            (0, _) => "ELF core of QEMU",
            _ => "ELF core of vmm",
        }
        .into()
    }

    /// The vCPUs, and the kernel's description of itself; what there is to say of them goes to the remarks.
    pub fn finish(self, remarks: &mut Vec<String>) -> (Vec<DumpedVcpu>, Option<VmCoreInfo>) {
        if self.too_many {
            remarks.push(format!("there are notes of more than {MOST_CPUS} vCPUs; the rest is left out"));
        }
        let earlier: Vec<usize> = (0..self.cpus.len()).filter(|vcpu| self.cpus[*vcpu].is_earlier).collect();
        if !earlier.is_empty() {
            remarks.push(format!(
                "vCPU {} has the registers of when it last left the guest before a reset or a triple fault, \
                 which has lost later ones",
                numbers(&earlier)
            ));
        }
        (self.cpus, self.info)
    }
}
