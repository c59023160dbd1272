//! Tasks that sleep as threads: what a debugger is told of them, and what it is refused.

use crate::command;
use crate::fake::Still;
use crate::gdb::client::Scripted;
use crate::gdb::monitor;
use crate::gdb::packet::{frame, from_hex};
use crate::gdb::testing::{KERNEL, MadeKernel, MadeTask, SCHEDULE, USER, asleep};
use crate::gdb::tests::packets;
use arch::Isa;
use arch::register::{row, table};

const INIT: MadeTask = MadeTask { on: Some(0), ..asleep(1, "init") };
const WORKER: MadeTask = MadeTask { is_of_kernel: true, ..asleep(12, "kworker") };

fn kernel(isa: Isa) -> MadeKernel {
    MadeKernel::new(isa, &[INIT, asleep(42, "ba<sh"), WORKER])
}

/// What a debugger is sent for one packet, console output included.
fn ask(client: &mut Scripted<'_, Still>, packet: &str) -> Vec<String> {
    client.send(&frame(packet.as_bytes()));
    assert!(client.serve(), "{packet}");
    packets(&client.read())
}

/// The only answer to a packet.
fn reply(client: &mut Scripted<'_, Still>, packet: &str) -> String {
    let mut replies = ask(client, packet);
    let last = replies.pop().unwrap_or_default();
    assert_eq!(replies, [] as [&str; 0], "{packet}");
    last
}

fn unhexed(text: &str) -> String {
    String::from_utf8(from_hex(text.as_bytes()).unwrap()).unwrap()
}

/// A client of a session whose threads are tasks.
fn with_tasks(made: &mut MadeKernel) -> Scripted<'_, Still> {
    let mut client = Scripted::new(&mut made.session).unwrap();
    assert!(
        monitor::run(client.session, "threads tasks").contains("; from the next stop on, vCPUs and tasks")
    );
    assert!(ask(&mut client, "vCont;s:1").last().unwrap().starts_with("T05thread:01;"));
    client
}

#[test]
fn the_switch_takes_effect_at_the_next_stop() {
    for isa in Isa::ALL {
        let mut made = kernel(isa);
        let mut client = Scripted::new(&mut made.session).unwrap();
        assert!(monitor::run(client.session, "threads").ends_with("threads are vCPUs\n"));
        let said = monitor::run(client.session, "threads tasks");
        assert_eq!(said, "threads are vCPUs; from the next stop on, vCPUs and tasks that sleep\n");
        assert_eq!(reply(&mut client, "qfThreadInfo"), "m01,02");
        assert_eq!(reply(&mut client, "qsThreadInfo"), "l");
        assert_eq!(reply(&mut client, "Hg9896aa"), "E03");
        assert_eq!(reply(&mut client, "T9896aa"), "E03");
        ask(&mut client, "vCont;s:1");
        assert_eq!(reply(&mut client, "qfThreadInfo"), "m01,02");
        assert_eq!(reply(&mut client, "qsThreadInfo"), "m9896aa,98968c");
        assert_eq!(reply(&mut client, "qsThreadInfo"), "l");
        let said = monitor::run(client.session, "threads");
        assert!(
            said.ends_with("threads are vCPUs and tasks that sleep (2; ids: 10000000 and the pid)\n"),
            "{said}"
        );
        monitor::run(client.session, "threads cpus");
        assert_eq!(reply(&mut client, "T9896aa"), "OK");
        ask(&mut client, "vCont;s:1");
        assert_eq!(reply(&mut client, "T9896aa"), "E03");
        assert_eq!(reply(&mut client, "vCont;s:9896aa"), "E03");
    }
}

#[test]
fn threads_are_told_with_their_state_and_where_they_sleep() {
    for isa in Isa::ALL {
        let mut made = kernel(isa);
        let mut client = with_tasks(&mut made);
        for (thread, told) in [
            ("1", "CPU#0 [running, task 1 init]"),
            ("2", "CPU#1 [running, task 0 [swapper/1]]"),
            ("9896aa", "ba<sh, S, in do_wait"),
            ("98968c", "[kworker], S, in do_wait"),
        ] {
            assert_eq!(unhexed(&reply(&mut client, &format!("qThreadExtraInfo,{thread}"))), told, "{isa}");
        }
        let xml = reply(&mut client, "qXfer:threads:read::0,fff");
        for part in [
            // A `#` is escaped in packets.
            "<thread id=\"01\" core=\"0\" name=\"CPU}\u{3}0\">running, task 1 init</thread>",
            "<thread id=\"9896aa\" name=\"ba&lt;sh\">ba&lt;sh, S, in do_wait</thread>",
        ] {
            assert!(xml.contains(part), "{xml}");
        }
        assert_eq!(reply(&mut client, "qXfer:threads:read::0,10").len(), 17);
        // With the process, when the debugger wants it.
        reply(&mut client, "qSupported:multiprocess+");
        assert_eq!(reply(&mut client, "qfThreadInfo"), "mp01.01,p01.02");
        assert_eq!(reply(&mut client, "qsThreadInfo"), "mp01.9896aa,p01.98968c");
        assert_eq!(reply(&mut client, "Hgp1.9896aa"), "OK");
        assert_eq!(reply(&mut client, "qC"), "QCp01.9896aa");
    }
}

#[test]
fn registers_are_those_that_were_saved() {
    for isa in Isa::ALL {
        let mut made = kernel(isa);
        let stack = made.stack_of(1);
        let (known, unknown): (&[(&str, u64)], &[&str]) = match isa {
            Isa::X86_64 => (
                &[
                    ("rip", SCHEDULE + 0x20),
                    ("rsp", stack),
                    ("rbp", 0xbb),
                    ("rbx", 0xb),
                    ("r12", 0x12),
                    ("r15", 0x15),
                ],
                &["rax", "r8", "eflags", "cs", "cr3", "gs_base"],
            ),
            Isa::Aarch64 => (
                &[("pc", SCHEDULE + 0x20), ("sp", stack), ("x19", 19), ("x28", 28)],
                &["x0", "x18", "x30", "cpsr", "TTBR0_EL1"],
            ),
        };
        let mut client = with_tasks(&mut made);
        let before = reply(&mut client, "g");
        assert_eq!(reply(&mut client, "Hg9896aa"), "OK");
        let all = reply(&mut client, "g");
        assert_eq!(all.len(), before.len());
        assert!(all.contains("xxxxxxxx") && !before.contains('x'));
        let row = |name: &str| row(isa, name).unwrap();
        for (name, value) in known {
            let bytes: String = value.to_le_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(reply(&mut client, &format!("p{:x}", row(name))), bytes, "{name}");
            assert!(all.contains(&bytes), "{name}");
        }
        for name in unknown {
            let size = 2 * table(isa)[row(name)].bytes();
            assert_eq!(reply(&mut client, &format!("p{:x}", row(name))), "x".repeat(size), "{name}");
        }
        assert_eq!(reply(&mut client, "pffff"), "E16");
        assert_eq!(reply(&mut client, "p"), "E16");
        // They are not written, and a vCPU's are as they were.
        for packet in ["P0=1122334455667788", "G0000000000000000"] {
            assert!(
                reply(&mut client, packet).starts_with("E.a task that sleeps has its registers on its stack")
            );
        }
        assert_eq!(reply(&mut client, "Hg1"), "OK");
        assert_eq!(reply(&mut client, "g"), before);
    }
}

#[test]
fn memory_is_the_tasks_own_or_nobodys() {
    for isa in Isa::ALL {
        let mut made = kernel(isa);
        let mut client = with_tasks(&mut made);
        reply(&mut client, "qSupported:error-message+");
        let user = format!("m{USER:x},4");
        let read = |client: &mut Scripted<'_, Still>, packet: &str| unhexed(&reply(client, packet));
        assert_eq!(read(&mut client, &user), "vcpu");
        assert_eq!(reply(&mut client, "Hg9896aa"), "OK");
        assert_eq!(read(&mut client, &user), "task");
        assert_eq!(reply(&mut client, &format!("M{USER:x},1:54")), "OK");
        assert_eq!(read(&mut client, &user), "Task");
        assert!(reply(&mut client, &format!("qMemoryRegionInfo:{USER:x}")).starts_with("start:400000;"));
        let word = reply(&mut client, &format!("m{KERNEL:x},8"));
        assert_eq!(word, "0".repeat(16));
        // One of the kernel's own has no user space, and sees nobody else's.
        assert_eq!(reply(&mut client, "Hg98968c"), "OK");
        assert_eq!(reply(&mut client, &user), "E.0x400000: task 12 has no user space");
        assert_eq!(reply(&mut client, &format!("M{USER:x},1:54")), "E0e");
        assert_eq!(reply(&mut client, &format!("m{KERNEL:x},8")), word);
        assert_eq!(reply(&mut client, "Hg1"), "OK");
        assert_eq!(read(&mut client, &user), "vcpu");
    }
}

#[test]
fn a_task_that_sleeps_is_not_resumed_and_its_user_is_told_why() {
    for isa in Isa::ALL {
        let mut made = kernel(isa);
        let mut client = with_tasks(&mut made);
        for packet in ["vCont;s:9896aa", "vCont;c:9896aa", "vCont;s:p1.9896aa;c:p1.-1"] {
            let [words, stop] = &ask(&mut client, packet)[..] else { panic!("{packet}") };
            assert!(unhexed(&words[1..]).contains("task 42 ba<sh sleeps: "), "{packet}");
            assert_eq!(stop, "T00thread:9896aa;", "{packet}");
            // As a debugger has it behind a stop.
            assert_eq!(reply(&mut client, "qC"), "QC9896aa");
        }
        assert_eq!(ask(&mut client, "s").last().unwrap(), "T00thread:9896aa;");
        assert_eq!(reply(&mut client, "Hg1"), "OK");
        assert_eq!(reply(&mut client, "Hc98968c"), "OK");
        assert_eq!(ask(&mut client, "c").last().unwrap(), "T00thread:98968c;");
        assert_eq!(reply(&mut client, "Hc-1"), "OK");
        // All that there is runs, and the stop is a vCPU's.
        assert_eq!(reply(&mut client, "Hg9896aa"), "OK");
        assert!(ask(&mut client, "vCont;c").last().unwrap().starts_with("T05thread:01;"));
        assert_eq!(reply(&mut client, "qC"), "QC01");
    }
}

/// The ids of tasks that sleep, at a stop.
fn ids(made: &mut MadeKernel) -> Vec<u32> {
    made.session.interrupt();
    made.session.next_tasks(100, true)
}

#[test]
fn a_task_that_has_ended_is_gone_at_the_next_stop() {
    let mut made = MadeKernel::new(Isa::X86_64, &[INIT, WORKER, asleep(42, "sleep")]);
    monitor::run(&mut made.session, "threads tasks");
    assert_eq!(ids(&mut made), [10_000_012, 10_000_042]);
    made.set_tasks(&[INIT, WORKER]);
    // At this stop all is as it was.
    assert!(made.session.has_task(10_000_042));
    assert_eq!(ids(&mut made), [10_000_012]);
    assert!(!made.session.has_task(10_000_042) && !made.session.choose_task(10_000_042));
    // Another one has its pid.
    made.set_tasks(&[INIT, WORKER, MadeTask { began: 6, ..asleep(42, "other") }]);
    assert_eq!(ids(&mut made), [10_000_012, 20_000_042]);
    made.set_tasks(&[INIT]);
    assert_eq!(ids(&mut made), [0; 0]);
}

#[test]
fn a_list_that_is_broken_is_told_of_once() {
    let mut made = MadeKernel::new(Isa::X86_64, &[INIT, WORKER, asleep(42, "sleep")]);
    made.break_list(1);
    let mut client = with_tasks(&mut made);
    assert_eq!(reply(&mut client, "qfThreadInfo"), "m01,02");
    let told = |client: &mut Scripted<'_, Still>| {
        let sent = ask(client, "vCont;s:1");
        let words = sent.iter().filter(|packet| packet.starts_with('O'));
        words.map(|words| unhexed(&words[1..])).collect::<String>()
    };
    let first = told(&mut client);
    assert!(first.contains("threads may lack: a list is broken behind "), "{first}");
    assert_eq!(reply(&mut client, "qfThreadInfo"), "m01,02");
    assert_eq!(told(&mut client), "");
}

#[test]
fn hostile_packets_find_no_thread() {
    let mut made = kernel(Isa::Aarch64);
    let mut client = with_tasks(&mut made);
    for thread in ["989680", "9896ab", "7fffffff", "80000000", "ffffffff", "ffffffffffffffff", "p2.9896aa"] {
        for packet in ["Hg", "Hc", "T", "qThreadExtraInfo,", "vCont;s:", "vCont;c:"] {
            assert_eq!(reply(&mut client, &format!("{packet}{thread}")), "E03", "{packet}{thread}");
        }
    }
    assert_eq!(reply(&mut client, "qThreadExtraInfo,-1"), "E16");
}

#[test]
fn without_a_kernel_there_are_vcpus_and_words() {
    let mut made = kernel(Isa::X86_64);
    made.session.debuggee.machine.kernel = Some(crate::linux::Described::default());
    let mut client = with_tasks(&mut made);
    assert_eq!(reply(&mut client, "qfThreadInfo"), "m01,02");
    assert_eq!(reply(&mut client, "qsThreadInfo"), "l");
    let said = monitor::run(client.session, "threads");
    assert!(said.contains("(none: no Linux kernel has described itself in memory"), "{said}");
    // And once on the console.
    let told = |client: &mut Scripted<'_, Still>| {
        let sent = ask(client, "vCont;s:1");
        sent.iter()
            .filter(|packet| packet.starts_with('O'))
            .map(|words| unhexed(&words[1..]))
            .collect::<String>()
    };
    assert!(told(&mut client).contains("threads are vCPUs only: no Linux kernel"));
    assert_eq!(reply(&mut client, "qfThreadInfo"), "m01,02");
    assert_eq!(told(&mut client), "");
}

#[test]
fn modules_symbols_are_told_as_gdb_takes_them() {
    for isa in Isa::ALL {
        let mut made = kernel(isa);
        let text = monitor::run(&mut made.session, "symbols");
        let line = "\nadd-symbol-file /lib/modules/6.12.0-made/virtio_net.ko 0xffffffffc0100040 \
                    -s .data 0xffffffffc0110000\n";
        assert!(text.starts_with("# ") && text.ends_with(line), "{text}");
        assert!(
            monitor::run(&mut made.session, "symbols /m/").contains("\nadd-symbol-file /m/virtio_net.ko 0x")
        );
        assert!(monitor::run(&mut made.session, "symbols a b").starts_with("write one folder"));
        let json = command::run_line(&mut made.session, "symbols").unwrap().json();
        assert_eq!(json["modules"][0]["text"], "0xffffffffc0100040");
    }
}
