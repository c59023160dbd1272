//! Which tasks of the guest's Linux kernel breakpoints at an address are for.

use super::super::address::{address, count};
use super::super::kernel::of_kernel;
use super::super::operator::Operator;
use super::{ANY, COMM, PID};
use crate::breakpoint::{Condition, Hit};
use crate::context::CurrentTasks;
use crate::engine::Filter;
use crate::linux::current::Running;
use crate::reply::{Arguments, Refusal};
use crate::view::View;
use arch::GuestVirt;
use arch::plain::plain;
use std::sync::Arc;

/// Bytes of a task's name, as the kernel has it (`TASK_COMM_LEN`, without its zero).
const NAME: usize = 15;

/// Whom breakpoints at an address are for, now and to come, however often a debugger puts them in and takes them out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForTasks {
    /// Where, guest-virtual.
    pub address: u64,
    /// The tasks that they stop; `None`: whoever comes there.
    pub tasks: Option<Tasks>,
}

/// Tasks. What is not said is any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tasks {
    /// A process with all its threads, or one thread.
    pub pid: Option<u32>,
    /// The name.
    pub comm: Option<String>,
}

impl ForTasks {
    /// From what somebody has typed; `None` for nothing.
    ///
    /// # Errors
    /// [`Refusal::Usage`].
    pub fn parse(operator: &dyn Operator, arguments: &Arguments<'_>) -> Result<Option<ForTasks>, Refusal> {
        let usage = |text: &str| Refusal::Usage(text.into());
        let (pid, comm) = (arguments.value(PID), arguments.value(COMM));
        let is_said = pid.is_some() || comm.is_some();
        let at = match arguments.words()[..] {
            [] if !is_said && !arguments.has(ANY) => return Ok(None),
            [at] if is_said != arguments.has(ANY) => at,
            [_] if is_said => return Err(usage("these tasks, or any: not both")),
            [_] => return Err(usage("of which tasks: --pid N, --comm NAME, or --any")),
            [] => return Err(usage("at which address?")),
            _ => return Err(usage("one address at a time")),
        };
        let pid = pid.map(|pid| {
            let number = u32::try_from(count(pid)?).ok().filter(|pid| i32::try_from(*pid).is_ok());
            number.ok_or_else(|| usage("no task has such a number"))
        });
        // Longer ones are cut short by the kernel.
        let comm = comm.map(|name| plain(&String::from_utf8_lossy(&name.as_bytes()[..name.len().min(NAME)])));
        let tasks = is_said.then_some(Tasks { pid: pid.transpose()?, comm });
        Ok(Some(ForTasks { address: address(operator, at)?, tasks }))
    }

    /// Has it be so from now on.
    ///
    /// # Errors
    /// [`Refusal::NotThere`] without a kernel that tells its tasks; [`Refusal::Usage`] for too many addresses;
    /// [`Refusal::Cancelled`].
    pub fn run(&self, view: &View<'_>) -> Result<(), Refusal> {
        let address = GuestVirt(self.address);
        let Some(tasks) = &self.tasks else {
            view.engine.requests().filters.lift(address);
            return Ok(());
        };
        let current = of_kernel(view, |info| CurrentTasks::of_kernel(view, info))?;
        let wanted = tasks.clone();
        // Whose hit cannot be told stops, as with every condition that cannot be evaluated.
        let holds = move |hit: &Hit<'_>| current.of(hit).map_or(true, |running| wanted.has(&running));
        let filter = Filter { condition: Condition::Closure(Arc::new(holds)), words: tasks.words() };
        let set = view.engine.requests().filters.set(address, filter);
        set.map_err(|error| Refusal::Usage(error.to_string()))
    }
}

impl Tasks {
    fn has(&self, running: &Running) -> bool {
        self.pid.is_none_or(|pid| pid == running.pid || pid == running.tgid)
            && self.comm.as_ref().is_none_or(|comm| *comm == running.comm)
    }

    fn words(&self) -> String {
        match (self.pid, &self.comm) {
            (Some(pid), Some(comm)) => format!("task {pid} if it is called '{comm}'"),
            (Some(pid), None) => format!("task {pid}"),
            (None, Some(comm)) => format!("tasks called '{comm}'"),
            (None, None) => "any task".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::breakpoint::{Breakpoint, Kind, Place, Witness};
    use crate::command::run_line;
    use crate::context::Debuggee;
    use crate::fake::Still;
    use crate::gdb::testing::{MadeKernel, MadeTask, SCHEDULE, asleep};
    use crate::machine::Machine as _;
    use arch::Isa;
    use arch::paging::Regime;
    use arch::register::Bank;

    /// A vCPU of a machine that stands still, as if it had hit.
    struct Stood<'a>(&'a Debuggee<Still>, u32);

    impl Witness for Stood<'_> {
        fn isa(&self) -> Isa {
            self.0.isa()
        }

        fn register(&self, row: usize) -> Option<u64> {
            self.0.machine.registers(self.1, &Bank::ALL).ok()?.get_row(row)
        }

        fn read(&self, regime: Regime, address: GuestVirt, bytes: &mut [u8]) -> usize {
            self.0.view().read_in(&crate::memory::Translation::Virtual(regime), address.0, bytes)
        }

        fn regime(&self) -> Option<Regime> {
            self.0.machine.regime(self.1).ok()
        }
    }

    fn made(isa: Isa) -> MadeKernel {
        let swapper = MadeTask { pid: 0, comm: "swapper", on: None, began: 0, is_of_kernel: true };
        let mut made = MadeKernel::new(isa, &[swapper, asleep(42, "sh"), asleep(43, "a-long-name-15-")]);
        made.session.debuggee.attach();
        made.run_on(0, 1);
        made.run_on(1, 2);
        made
    }

    fn answer(made: &mut MadeKernel, line: &str) -> String {
        match run_line(&mut made.session, line) {
            Ok(reply) => reply.to_string(),
            Err(refused) => refused.to_string(),
        }
    }

    /// By vCPU, whether its hit is let through.
    fn stops(made: &MadeKernel) -> [bool; 2] {
        let guest = &made.session.debuggee;
        let address = GuestVirt(SCHEDULE);
        let breakpoint = Breakpoint::new(Kind::Software, address, 1, Place::Off);
        let filter = guest.engine.requests().filters.of(&breakpoint).cloned();
        let Some(Filter { condition: Condition::Closure(holds), .. }) = filter else { return [true; 2] };
        let id =
            crate::breakpoint::Table::new(guest.isa()).insert(guest.machine.memory(), breakpoint).unwrap();
        [0, 1].map(|vcpu| holds(&Hit::new(id, 1, (vcpu, SCHEDULE), &Stood(guest, vcpu))))
    }

    #[test]
    fn breakpoints_at_an_address_are_for_tasks_until_they_are_for_any() {
        for isa in Isa::ALL {
            let mut made = made(isa);
            assert_eq!(stops(&made), [true, true], "{isa}");
            for (line, whom, wanted) in [
                ("breakpoints schedule --pid 42", "task 42", [true, false]),
                ("breakpoints schedule --comm sh", "tasks called 'sh'", [true, false]),
                (
                    "break schedule --comm a-long-name-15-and-more",
                    "tasks called 'a-long-name-15-'",
                    [false, true],
                ),
                ("break schedule --pid=43 --comm sh", "task 43 if it is called 'sh'", [false, false]),
            ] {
                let told = answer(&mut made, line);
                assert_eq!(told, format!("a breakpoint at {SCHEDULE:#x} would stop {whom} alone\n"));
                assert_eq!(stops(&made), wanted, "{isa}: {line}");
            }
            // Whose registers lead nowhere, is told.
            let mut file = arch::register::RegisterFile::new(isa);
            file.set(if isa == Isa::X86_64 { "gs_base" } else { "SP_EL0" }, 0);
            made.session.debuggee.machine.set_registers(1, &file).unwrap();
            assert_eq!(stops(&made), [false, true], "{isa}");
            let told = answer(&mut made, "breakpoints schedule --any");
            assert!(told.starts_with("there is none"), "{told}");
            assert_eq!(stops(&made), [true, true], "{isa}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let mut made = made(Isa::X86_64);
        for (line, why) in [
            ("breakpoints --pid 1", "at which address?"),
            ("breakpoints schedule", "of which tasks: --pid N, --comm NAME, or --any"),
            ("breakpoints schedule --pid 1 --any", "these tasks, or any: not both"),
            ("breakpoints schedule do_wait --any", "one address at a time"),
            ("breakpoints schedule --pid 2147483648", "no task has such a number"),
            ("breakpoints schedule --pid", "--pid is followed by N"),
        ] {
            let told = answer(&mut made, line);
            assert!(told.starts_with(why), "{line}: {told}");
            assert!(
                told.contains("usage: monitor breakpoints [ADDRESS] [--pid N] [--comm NAME] [--any]"),
                "{told}"
            );
        }
        assert_eq!(stops(&made), [true, true]);
    }
}
