//! Processors and their tasks, in memory made here.

use super::*;
use crate::made::{self, BASE, CHAR, INT, Made, POINTER, compound};
use crate::symbols::{Builder, Kind, Symbol};
use crate::types::{Shape, TypeId};

/// Where two processors have their own variables, and two tasks.
const OWN: [u64; 2] = [BASE + 0x1000, BASE + 0x2000];
const TASKS: [u64; 2] = [BASE + 0x3000, BASE + 0x4000];
/// The variable.
const VARIABLE: u64 = 0x40;

fn types() -> Types {
    let mut types = made::types();
    types.add("", Shape::Array(TypeId(CHAR), 16)); // 5
    compound(&mut types, "task_struct", 24, &[("pid", INT, 0), ("tgid", INT, 4), ("comm", 5, 8)]);
    compound(&mut types, "pcpu_hot", 16, &[("preempt_count", INT, 0), ("current_task", POINTER, 8)]);
    types
}

fn memory() -> Made {
    let made = Made::new(0x5000);
    for (number, (own, task)) in (1..).zip(OWN.into_iter().zip(TASKS)) {
        made.put(own + VARIABLE, task);
        made.put(own + VARIABLE + 8, task);
        made.put(task, (number << 32) | (number * 10));
        made.text(task + 8, "task\x1b");
    }
    made
}

fn symbols(name: &str) -> Symbols {
    let mut symbols = Builder::default();
    symbols.add(Symbol { name, address: VARIABLE, kind: Kind::Absolute, is_global: true });
    symbols.finish()
}

fn found(isa: Isa, symbol: &str, registers: &[(&str, u64)]) -> Result<(u64, u32, u32), Unknown> {
    let current = Current::new(isa, &symbols(symbol), &types()).unwrap();
    let memory = memory();
    let read = memory.read();
    let register = |name: &str| registers.iter().find(|(it, _)| *it == name).map(|(_, value)| *value);
    current.task(&register, &Reader::new(&read)).map(|running| {
        assert!(running.comm.starts_with("task") && !running.comm.contains('\x1b'));
        (running.address, running.pid, running.tgid)
    })
}

#[test]
fn x86_has_it_where_its_processors_variables_are() {
    let second = (TASKS[1], 20, 2);
    for symbol in ["current_task", "pcpu_hot"] {
        let of = |registers: &[(&str, u64)]| found(Isa::X86_64, symbol, registers);
        // In the kernel; in user space; in the kernel before it has swapped the two.
        assert_eq!(of(&[("cs", 0x10), ("gs_base", OWN[1]), ("k_gs_base", 0x7f00)]), Ok(second), "{symbol}");
        assert_eq!(of(&[("cs", 0x33), ("gs_base", 0x7f00), ("k_gs_base", OWN[1])]), Ok(second), "{symbol}");
        assert_eq!(of(&[("cs", 0x10), ("gs_base", 0), ("k_gs_base", OWN[1])]), Ok(second), "{symbol}");
        // User space that has set what it must not: the kernel's own comes first.
        assert_eq!(of(&[("cs", 0x33), ("gs_base", OWN[0]), ("k_gs_base", OWN[1])]), Ok(second), "{symbol}");
        assert_eq!(of(&[("cs", 0x10), ("gs_base", 0), ("k_gs_base", 0)]), Err(Unknown::Register("gs_base")));
        let nowhere = BASE + 0x10_0000;
        assert!(matches!(of(&[("cs", 0x10), ("gs_base", nowhere)]), Err(Unknown::NotThere(_))));
    }
}

#[test]
fn aarch64_has_it_in_a_register_and_in_user_space_where_its_processors_variables_are() {
    let first = (TASKS[0], 10, 1);
    let of = |symbol, registers: &[(&str, u64)]| found(Isa::Aarch64, symbol, registers);
    assert_eq!(of("none", &[("cpsr", 0x3c5), ("SP_EL0", TASKS[0])]), Ok(first));
    assert_eq!(
        of("__entry_task", &[("cpsr", 0x3c4), ("SP_EL0", TASKS[0]), ("TPIDR_EL1", OWN[1])]),
        Ok(first)
    );
    // In user space SP_EL0 is its own, whatever it says.
    assert_eq!(of("__entry_task", &[("cpsr", 0), ("SP_EL0", TASKS[1]), ("TPIDR_EL1", OWN[0])]), Ok(first));
    assert_eq!(of("none", &[("cpsr", 0), ("SP_EL0", TASKS[0])]), Err(Unknown::Register("TPIDR_EL1")));
    assert_eq!(of("none", &[("cpsr", 0x3c5), ("SP_EL0", 0x7f00)]), Err(Unknown::Register("SP_EL0")));
}

#[test]
fn what_a_kernel_lacks_is_said() {
    let lacks =
        |symbol, types: &Types| Current::new(Isa::X86_64, &symbols(symbol), types).unwrap_err().to_string();
    assert_eq!(
        lacks("other", &types()),
        "the kernel's symbols do not have current_task (CONFIG_KALLSYMS_ALL)"
    );
    assert_eq!(lacks("current_task", &made::types()), "the kernel's types do not have struct task_struct");
    let mut bare = made::types();
    compound(&mut bare, "task_struct", 8, &[("pid", INT, 0), ("tgid", INT, 4)]);
    assert_eq!(lacks("current_task", &bare), "the kernel's types do not have struct task_struct's comm");
    assert_eq!(lacks("pcpu_hot", &bare), "the kernel's types do not have struct pcpu_hot's current_task");
    assert!(Current::new(Isa::Aarch64, &symbols("other"), &types()).is_ok());
}
