//! Tasks of a kernel in memory made here, as contexts.

use super::*;
use crate::context::listen::Notice;
use crate::context::{Group, Missing, Mode, Resume};
use crate::gdb::testing::{DO_WAIT, KERNEL, MadeKernel, MadeTask, SCHEDULE, USER, asleep};
use crate::view::OnVcpu;
use arch::Isa;

fn tasks() -> [MadeTask; 3] {
    let swapper = MadeTask { pid: 0, comm: "swapper", on: Some(0), began: 0, is_of_kernel: true };
    [swapper, asleep(1, "init"), MadeTask { is_of_kernel: true, ..asleep(2, "kthreadd") }]
}

fn made(isa: Isa) -> MadeKernel {
    let mut made = MadeKernel::new(isa, &tasks());
    made.session.debuggee.attach();
    made.run_on(0, 0);
    made
}

#[test]
fn tasks_are_contexts_below_their_address_spaces() {
    for isa in Isa::ALL {
        let mut made = made(isa);
        let guest = &mut made.session.debuggee;
        let (root, listener) = (guest.root(), guest.listeners().add(64));
        while listener.take().is_some() {}
        let ids = guest.find_tasks().unwrap();
        let kinds: Vec<Kind> = ids.iter().map(|id| guest.context(*id).unwrap().kind).collect();
        assert_eq!(kinds, [Kind::Task(0), Kind::Task(1), Kind::Task(2)], "{isa}");
        assert_eq!((guest.parent(ids[0]), guest.parent(ids[2])), (Some(root), Some(root)));
        let space = guest.parent(ids[1]).unwrap();
        assert!(matches!(guest.context(space).unwrap().kind, Kind::AddressSpace(_)));
        assert_eq!((guest.parent(space), guest.children(space)), (Some(root), vec![ids[1]]));
        assert_eq!(guest.group(ids[1], Group::Process), Some(space));
        assert_eq!(guest.group(ids[2], Group::Process), Some(root));
        assert_eq!(guest.group(ids[1], Group::Stop), Some(root));
        assert_eq!(guest.task(ids[1]).map(|task| task.comm.as_str()), Some("init"));
        assert_eq!((guest.task(space), guest.task(root)), (None, None));
        let created: Vec<Id> = std::iter::from_fn(|| listener.take())
            .map(|notice| match notice {
                Notice::Created(context) => context.id,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(created.len(), 4);
        assert!(ids.iter().all(|id| created.contains(id)));
        // Whoever listens from now on begins with all of them.
        let late = guest.listeners().add(64);
        assert_eq!(std::iter::from_fn(|| late.take()).count(), 7);
    }
}

#[test]
fn tasks_keep_their_contexts_and_what_has_ended_goes() {
    for isa in Isa::ALL {
        let mut made = made(isa);
        let before = made.session.debuggee.find_tasks().unwrap();
        let space = made.session.debuggee.parent(before[1]).unwrap();
        let listener = made.session.debuggee.listeners().add(64);
        while listener.take().is_some() {}
        // Another task has the number of one that has ended.
        made.set_tasks(&[tasks()[0], tasks()[1], MadeTask { began: 9, ..tasks()[2] }, asleep(3, "sh")]);
        let guest = &mut made.session.debuggee;
        let after = guest.find_tasks().unwrap();
        assert_eq!(after[..2], before[..2], "{isa}");
        assert!(!before.contains(&after[2]) && guest.context(before[2]).is_none());
        assert_eq!((guest.parent(after[1]), guest.parent(after[3])), (Some(space), Some(space)));
        let gone: Vec<Id> = std::iter::from_fn(|| listener.take())
            .filter_map(|notice| match notice {
                Notice::Disposed(id) => Some(id),
                _ => None,
            })
            .collect();
        assert_eq!(gone, [before[2]]);
        // All of its tasks have gone, and the address space with them.
        made.set_tasks(&[tasks()[0]]);
        let guest = &mut made.session.debuggee;
        assert_eq!(guest.find_tasks().unwrap(), before[..1]);
        assert_eq!(guest.context(space), None);
        // A new beginning has none.
        guest.forget_tasks();
        assert_eq!(guest.children(guest.root()).len(), 2);
    }
}

#[test]
fn what_is_broken_is_said() {
    for isa in Isa::ALL {
        let mut made = made(isa);
        let is_told = |remarks: &[String]| remarks.iter().any(|it| it.starts_with("a list is broken"));
        made.session.debuggee.find_tasks().unwrap();
        assert!(!is_told(made.session.debuggee.task_remarks()), "{isa}");
        made.break_list(1);
        let guest = &mut made.session.debuggee;
        assert_eq!(guest.find_tasks().unwrap().len(), 2);
        assert!(is_told(guest.task_remarks()), "{isa}");
        guest.forget_tasks();
        assert_eq!(guest.task_remarks(), [] as [&str; 0]);
    }
}

#[test]
fn memory_and_registers_are_the_tasks_own() {
    for isa in Isa::ALL {
        let mut made = made(isa);
        let (task, stack) = (made.session.debuggee.find_tasks().unwrap(), made.stack_of(1));
        let guest = &made.session.debuggee;
        let read = |context, at: u64| {
            let mut bytes = [0; 4];
            guest.read(context, at, &mut bytes).map(|()| bytes)
        };
        assert_eq!(read(task[1], USER), Ok(*b"task"), "{isa}");
        assert_eq!(read(guest.parent(task[1]).unwrap(), USER), Ok(*b"task"));
        assert_eq!(read(guest.vcpu(0).unwrap(), USER), Ok(*b"vcpu"));
        let none = read(task[2], USER).unwrap_err();
        assert_eq!((none.good, none.missing), (0, Missing::Host("task 2 has no user space".into())));
        assert_eq!(guest.read_u64(task[1], MadeKernel::task(1) + 96), Ok(5));
        assert_eq!(guest.read_u64(task[2], KERNEL + 0x4000), guest.read_u64(task[1], KERNEL + 0x4000));
        assert_eq!(guest.stack(task[1]).unwrap(), stack);
        assert_eq!(guest.pc(task[1]).unwrap(), SCHEDULE + 0x20);
        // One that is on a vCPU has that one's.
        let on = guest.registers(task[0], &[]).unwrap();
        let name = if isa == Isa::X86_64 { "gs_base" } else { "SP_EL0" };
        assert_eq!(on.get(name), guest.machine.registers(0, &arch::register::Bank::ALL).unwrap().get(name));
        let refused =
            made.session.debuggee.set_register(task[1], if isa == Isa::X86_64 { "rbx" } else { "x0" }, 1);
        assert!(refused.is_err());
    }
}

#[test]
fn what_a_task_can_be_told_to_do() {
    for isa in Isa::ALL {
        let mut made = made(isa);
        let tasks = made.session.debuggee.find_tasks().unwrap();
        let guest = &made.session.debuggee;
        let can = |context, mode: Mode| guest.can(context, Resume::from(mode));
        assert_eq!(can(tasks[1], Mode::StepInto), Err(Unable::Task), "{isa}");
        assert_eq!(can(tasks[1], Mode::UntilActive), Ok(()));
        assert_eq!(can(tasks[0], Mode::UntilActive), Err(Unable::Active));
        assert_eq!(can(guest.vcpu(1).unwrap(), Mode::UntilActive), Err(Unable::UntilActive));
        // It is known where the kernel goes over to one that is on no vCPU.
        assert!(guest.activation(tasks[1]).is_ok_and(|(at, _)| at == DO_WAIT + 0x100));
        assert_eq!(guest.activation(tasks[0]).map(|(at, _)| at), Err(Unable::Active));
        assert_eq!(guest.activation(guest.root()).map(|(at, _)| at), Err(Unable::UntilActive));
        assert_eq!(guest.activation(guest.vcpu(1).unwrap()).map(|(at, _)| at), Err(Unable::UntilActive));
    }
}

#[test]
fn who_is_current_at_a_hit() {
    for isa in Isa::ALL {
        let mut made = made(isa);
        made.run_on(1, 1);
        let guest = &made.session.debuggee;
        let info = guest.kernel_info().unwrap();
        let current = guest.view().kernel_current(&info).unwrap();
        let on =
            |vcpu| guest.view().task_on(&info, &current, vcpu).map(|running| (running.pid, running.comm));
        assert_eq!((on(0), on(1)), (Ok((0, "swapper".into())), Ok((1, "init".into()))), "{isa}");
        assert!(guest.current_tasks().is_ok());
        // Also by what the list says of no processor, or of another one.
        let tasks = guest.view().kernel_tasks(&info).unwrap().all;
        let on = |vcpu| guest.view().on_vcpu(&info, &tasks, vcpu);
        assert_eq!(on(0), Some(OnVcpu::Idle("swapper".into())));
        assert!(matches!(on(1), Some(OnVcpu::Task(task)) if task.pid == 1 && task.is_on_cpu == Some(false)));
        let none = guest.view().on_vcpu(&info, &tasks[..1], 1);
        assert_eq!(none, Some(OnVcpu::Unlisted(1, "init".into())));
        made.session.debuggee.detach();
        let refused = made.session.debuggee.find_tasks().unwrap_err();
        assert_eq!(refused, TasksError::Unable(Unable::Detached));
    }
}
