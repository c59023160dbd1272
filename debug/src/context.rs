//! A guest for a program that debugs it: its contexts, and what can be done with each.
//!
//! A [`Debuggee`] has a [`Machine`](crate::machine::Machine) (a live guest, a dump, a simulated one) and does with it
//! what a person does with gdb. gdb's own session is a client of it, so nothing here is another debugger than the one
//! that gdb has. The words are those of the field: contexts, groups and resume modes as the Target Communication
//! Framework's services have them (Eclipse TCF, "Run Control", "Memory", "Breakpoints", "Contexts").
//!
//! # A test of a kernel
//! Boot, break, step out, look, go on:
//!
//! ```
//! use arch::Isa;
//! use debug::context::{Mode, Point};
//! use debug::fake::simulated::{self, CODE, DATA};
//! use std::time::Duration;
//!
//! # for isa in Isa::ALL {
//! let limit = Duration::from_secs(60);
//! let code = simulated::calling(isa);
//! let mut guest = simulated::debuggee(isa, 1, &code.code)?;
//! let all = guest.root();
//!
//! guest.add(Point::execute(CODE + code.leaf))?;
//! let stop = guest.go_until(all, Mode::Run, limit)?;
//! assert_eq!(guest.pc(stop.context)?, CODE + code.leaf);
//!
//! let stop = guest.go_until(stop.context, Mode::StepOut, limit)?;
//! assert_eq!(guest.pc(stop.context)?, CODE + code.behind);
//! assert_eq!(guest.read_u64(stop.context, DATA)?, 0);
//!
//! guest.detach();
//! # }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The tree, and what contexts have in common
//! A [`Context`] has an [`Id`] that stays its own, also when the guest begins again, a parent and a [`Kind`]: the
//! machine, and below it its vCPUs; of a guest with a Linux kernel also its tasks, below their address spaces, when they have been
//! looked for ([`Debuggee::find_tasks`]). For a context and a [`Group`], one context stands
//! for the group: what must stop for memory to be stable, what shares breakpoints, what stops together, what shares an
//! address space, a kind of CPU, symbols.
//!
//! ```
//! use arch::Isa;
//! use debug::context::{Group, Kind};
//! use debug::fake::simulated;
//!
//! let guest = simulated::debuggee(Isa::Aarch64, 2, &simulated::calling(Isa::Aarch64).code)?;
//! let machine = guest.root();
//! let vcpus = guest.children(machine);
//! assert_eq!(guest.context(vcpus[1]).map(|it| (it.parent, it.kind)), Some((Some(machine), Kind::Vcpu(1))));
//! assert_eq!(guest.group(vcpus[1], Group::Stop), Some(machine));
//! assert_eq!(guest.group(vcpus[1], Group::Process), Some(vcpus[1]));
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! # States, and modes of resuming
//! A [`ContextState`] comes with its reason. A context is resumed in a [`Mode`], and its intercept group with it; whether it
//! can be is known by asking ([`Debuggee::can`]), and what is in the way is told by type ([`Unable`]).
//!
//! ```
//! use arch::Isa;
//! use debug::context::{Mode, ContextState, Unable};
//! use debug::fake::simulated::{self, CODE};
//! use std::time::Duration;
//!
//! let code = simulated::calling(Isa::X86_64);
//! let mut guest = simulated::debuggee(Isa::X86_64, 2, &code.code)?;
//! let vcpu = guest.vcpu(0).ok_or("no vCPU")?;
//! assert_eq!(guest.can(vcpu, Mode::StepOver), Ok(()));
//! assert_eq!(guest.can(vcpu, Mode::StepOver.backwards()), Err(Unable::Backwards));
//! assert_eq!(guest.can(vcpu, Mode::UntilActive), Err(Unable::UntilActive));
//! assert_eq!(guest.can(guest.root(), Mode::StepInto), Err(Unable::ManyVcpus));
//!
//! // It stands in front of a call.
//! guest.go_until(vcpu, Mode::StepOver, Duration::from_secs(60))?;
//! assert_eq!(guest.pc(vcpu)?, CODE + code.back);
//! assert!(matches!(guest.state(vcpu)?, ContextState::Stopped(stop) if stop.context == vcpu));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Memory
//! A context's memory has [spaces](Space): virtual (as its vCPU translates now), physical, x86's ports. An access ends
//! where something is not there, and says how many bytes were good and why the next was not ([`Partial`]). Whatever
//! address is asked for, there is one [`Canonical`] place behind it, with the block around it that stays in one piece.
//! Planted instructions are never seen, and what is written under one is kept.
//!
//! ```
//! use arch::{GuestPhys, Isa};
//! use debug::context::{Address, Missing, Point};
//! use debug::fake::simulated::{self, CODE, DATA};
//!
//! let code = simulated::calling(Isa::X86_64);
//! let mut guest = simulated::debuggee(Isa::X86_64, 1, &code.code)?;
//! let vcpu = guest.vcpu(0).ok_or("no vCPU")?;
//! guest.add(Point::execute(CODE))?;
//! let mut bytes = [0; 8];
//! guest.read(vcpu, CODE, &mut bytes)?;
//! assert_eq!(bytes, code.code[..8]);
//!
//! // 64 KiB of RAM.
//! let end = guest.read(vcpu, Address::physical(0xfffa), &mut bytes).unwrap_err();
//! assert_eq!((end.good, end.missing), (6, Missing::NotRam(GuestPhys(0x1_0000))));
//!
//! let place = guest.canonical(vcpu, DATA + 8)?;
//! assert_eq!((place.place, place.block), (GuestPhys(DATA + 8), DATA..DATA + 0x1000));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Breakpoints
//! A [`Point`] says where, for which accesses, on a debug register or not, and when it stops: by agent bytecode, or by a
//! closure that is called on the vCPU's thread ([`Condition`](crate::breakpoint::Condition) says what it may do). A
//! breakpoint keeps its id for as long as it is there; it is added, changed, switched off and removed while the guest
//! stands or runs, for which that stands still for a moment.
//!
//! ```
//! use arch::Isa;
//! use debug::context::{Mode, Point};
//! use debug::fake::simulated::{self, CODE, DATA};
//! use std::time::Duration;
//!
//! let code = simulated::calling(Isa::X86_64);
//! let mut guest = simulated::debuggee(Isa::X86_64, 1, &code.code)?;
//! let (all, limit) = (guest.root(), Duration::from_secs(60));
//! let hundredth = guest.add(Point::execute(CODE + code.leaf).when(|hit| hit.register("rax") >= Some(100)))?;
//! let stop = guest.go_until(all, Mode::Run, limit)?;
//! assert_eq!((stop.breakpoints.as_slice(), guest.register(stop.context, "rax")?), (&[hundredth][..], 100));
//! assert_eq!(guest.known(hundredth)?.hits, 51);
//!
//! guest.enable(hundredth, false)?;
//! let written = guest.add(Point::write(DATA, 8))?;
//! assert_eq!(guest.go_until(all, Mode::Run, limit)?.breakpoints, [written]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Listeners
//! Any number of [listeners](Listener) hear what happens: contexts are created, started, stopped, changed, exited,
//! disposed of. One is added from any thread, also while the guest runs, and holds nobody up; one that does not read
//! loses notices, and is told how many.
//!
//! ```
//! use arch::Isa;
//! use debug::context::{Mode, Notice};
//! use debug::fake::simulated;
//! use std::time::Duration;
//!
//! let mut guest = simulated::debuggee(Isa::Aarch64, 1, &simulated::calling(Isa::Aarch64).code)?;
//! let listener = guest.listeners().add(16);
//! let all = guest.root();
//! guest.resume(all, Mode::Run)?;
//! guest.suspend()?;
//! let heard: Vec<Notice> = std::iter::from_fn(|| listener.take()).collect();
//! assert!(matches!(
//!     heard.as_slice(),
//!     [Notice::Created(_), Notice::Created(_), Notice::Started(_), Notice::Stopped(..)]
//! ));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#[cfg(feature = "linux")]
mod current;
mod debuggee;
mod listen;
mod mode;
mod space;
mod stop;
mod tree;
mod walk;

#[cfg(feature = "linux")]
pub use current::CurrentTasks;
#[cfg(feature = "linux")]
pub use debuggee::TasksError;
pub use debuggee::{Debuggee, GoError, InsertError, Known, Point, ResumeError, WaitError};
pub use listen::{Change, Listener, Listeners, Notice};
pub use mode::{Mode, Resume, Unable};
pub use space::{Address, Canonical, Missing, Partial, Space};
pub use stop::{ContextState, Stop, Stopped};
pub use tree::{Context, Group, Id, Kind};

#[cfg(test)]
mod tests;
