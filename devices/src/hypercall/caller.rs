//! Who makes a call, and the call as it comes.

use arch::hypercall::Abi;

/// A vCPU's time-stamp counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tsc {
    /// Its value now.
    pub value: u64,
    /// Its frequency, kHz.
    pub khz: u32,
}

/// Arguments that a call has at most.
pub const MOST_ARGUMENTS: usize = 6;

/// A call as its transport hands it over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawCall {
    /// How the caller passes arguments.
    pub abi: Abi,
    /// The call's number.
    pub number: u64,
    /// Argument registers; those that the call has no argument for mean nothing.
    pub arguments: [u64; MOST_ARGUMENTS],
}

/// The vCPU that made a call.
pub trait Caller {
    /// Its number.
    fn vcpu(&self) -> u32;

    /// Reads memory as it sees it; bytes read before the first that cannot be.
    fn read(&self, address: u64, bytes: &mut [u8]) -> usize;

    /// Writes memory as it sees it; bytes written before the first that cannot be.
    fn write(&self, address: u64, bytes: &[u8]) -> usize;

    /// x86: its time-stamp counter.
    fn tsc(&self) -> Option<Tsc> {
        None
    }
}
