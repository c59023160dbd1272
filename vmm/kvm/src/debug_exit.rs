//! A debug exit, of either architecture.

use debug::trap::Trap;

/// `KVM_EXIT_DEBUG`, as each architecture tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DebugExit {
    /// x86.
    X86 {
        /// Vector: 1 is #DB, 3 is #BP.
        exception: u32,
        /// The code segment's base and RIP, added.
        pc: u64,
        /// DR6 as the processor would have set it.
        dr6: u64,
        /// DR7 in force.
        dr7: u64,
    },
    /// aarch64.
    Aarch64 {
        /// `ESR_EL2`: the syndrome.
        syndrome: u64,
        /// `FAR_EL2`: for a watchpoint, the address of the access.
        far: u64,
    },
}

impl DebugExit {
    /// The trap that it is; `None` for a syndrome that is no debug exception's.
    pub fn trap(&self) -> Option<Trap> {
        match *self {
            DebugExit::X86 { exception: 3, .. } => Some(Trap::Int3),
            DebugExit::X86 { dr6, .. } => Some(Trap::Debug { dr6 }),
            DebugExit::Aarch64 { syndrome, far } => {
                let exception = arch::aarch64::syndrome::decode(syndrome)?;
                Some(Trap::Aarch64 { exception, far })
            }
        }
    }
}
