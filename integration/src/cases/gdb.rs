//! Stock gdb on guests that run under `vmm --gdb`.
//!
//! A [`Script`] has two ends. [`serve`] runs where KVM is and starts `vmm`; gdb itself runs on
//! the machine that runs the tests ([`crate::debugger`]), with the commands of the script, and
//! what it prints is what is checked.

pub mod kernel;
mod serve;

pub use serve::serve;

use crate::context::{Check, Context};
use arch::Isa;

/// What is debugged; gdb has its symbols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// A test guest.
    Guest(&'static str),
    /// One that is an ELF file made by hand.
    Flat(&'static str),
    /// A Debian kernel of a series, with the userspace of the tests.
    Debian(&'static str),
    /// Another monitor's guest; the options are that monitor's.
    Monitor,
}

/// A stock debugger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// `gdb-multiarch`.
    Gdb,
    /// `lldb`.
    Lldb,
}

/// A guest, and what is typed into a debugger.
pub struct Script {
    /// Which debugger.
    pub tool: Tool,
    /// Options of `vmm`, besides `--gdb` and the kernel.
    pub options: &'static str,
    /// What is debugged.
    pub program: Program,
    /// What is typed once gdb is connected.
    pub commands: fn(Isa) -> String,
    /// Texts that gdb prints, in this order.
    pub prints: fn(Isa) -> Vec<String>,
    /// `vmm`'s exit code; `None` where it is still running at the end.
    pub code: Option<i32>,
}

impl std::fmt::Debug for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Script").field("program", &self.program).finish_non_exhaustive()
    }
}

/// Breakpoints of both kinds, steps, memory and registers.
pub const BREAKPOINTS: Script = Script {
    tool: Tool::Gdb,
    options: "",
    program: Program::Guest("count"),
    commands: |isa| {
        // `steps` instructions of `work` store the counter.
        let (counter, sp, steps) = match isa {
            Isa::X86_64 => ("rbx", "rsp", 2),
            Isa::Aarch64 => ("x19", "sp", 3),
        };
        format!(
            "p $pc == (unsigned long)&_start\n\
             break *&work\ncontinue\n\
             p $pc == (unsigned long)&work\n\
             continue\ncontinue\np/d ${counter}\n\
             x/1xb &work\n\
             delete\n\
             stepi {steps}\np *(long*)&counter\n\
             hbreak *&again\ncontinue\np $pc == (unsigned long)&again\ndelete\n\
             set var *(long*)&counter = 77\np *(long*)&counter\n\
             set var ${counter} = 99990\np/d ${counter}\n\
             p ${sp} != 0\n\
             break *&done\ncontinue\np $pc == (unsigned long)&done\n\
             delete\ncontinue\n"
        )
    },
    prints: |_| {
        [
            "= 1",
            "Breakpoint 1,",
            "= 1",
            "Breakpoint 1,",
            "Breakpoint 1,",
            "= 2",
            "= 2",
            "Breakpoint 2,",
            "= 1",
            "= 77",
            "= 99990",
            "= 1",
            "Breakpoint 3,",
            "= 1",
            "exited with code 0101",
        ]
        .map(String::from)
        .to_vec()
    },
    code: Some(0x41),
};

/// Where KVM traps no planted instruction and no debug register, as in unmodified QEMU 7.2's
/// emulation: the user is told, breakpoints are refused, the rest works.
pub const NOT_TRAPPED: Script = Script {
    tool: Tool::Gdb,
    options: "",
    program: Program::Guest("count"),
    commands: |_| {
        "monitor host\n\
         break *&work\n\
         continue\n\
         monitor breakpoints\n\
         delete\n\
         p $pc == (unsigned long)&_start\n\
         stepi\nstepi\n\
         p $pc == (unsigned long)&again\n\
         x/2i &work\n\
         kill\n"
            .into()
    },
    prints: |_| {
        [
            "not seen; debug registers take their place",
            "single step: yes",
            "breakpoint registers: 0",
            "vmm: the guest does not run: no breakpoint at",
            "this host has no debug registers for it",
            "there is none",
            "= 1",
            "= 1",
            "<work>",
        ]
        .map(String::from)
        .to_vec()
    },
    code: Some(22),
};

/// 32-bit code, which gdb is told of when it attaches anew.
pub const BITS_32: Script = Script {
    tool: Tool::Gdb,
    options: "",
    program: Program::Guest("loop"),
    commands: |_| {
        "hbreak *0x100002\ncontinue\ndelete\n\
         monitor description i386\n\
         disconnect\n\
         file\n\
         set architecture auto\n\
         python time.sleep(2)\n\
         python gdb.execute('target remote ' + socket)\n\
         show architecture\n\
         set var $eax = 77\n\
         set var $eip = 0x100002\n\
         x/2i $pc\n\
         stepi\np $eax\n\
         break *0x100002\ncontinue\np $eax\n\
         info registers esp\n\
         monitor description\n\
         kill\n"
            .into()
    },
    prints: |_| {
        [
            "a debugger that attaches is told: i386",
            "currently \"i386\"",
            "add    $0x1,%eax",
            "jmp    0x100002",
            "= 78",
            "Breakpoint 2,",
            "= 78",
            "esp  ",
            "told: i386",
        ]
        .map(String::from)
        .to_vec()
    },
    code: Some(22),
};

/// A 32-bit kernel of one's own, which goes to 64-bit mode: gdb believes its file, and is described an
/// i386 from the first connection on, until it attaches to what the kernel has become.
pub const GROWS: Script = Script {
    tool: Tool::Gdb,
    options: "",
    program: Program::Flat("grows"),
    commands: |_| {
        "show architecture\n\
         p $eip == 0x100100\n\
         stepi\np $eax\nstepi\np $eax\n\
         x/1i $pc\n\
         hbreak *0x100200\ncontinue\n\
         stepi\n\
         delete\n\
         disconnect\n\
         file\n\
         set architecture auto\n\
         python time.sleep(2)\n\
         python gdb.execute('target remote ' + socket)\n\
         show architecture\n\
         p $rax > 0x1122334455667788\n\
         kill\n"
            .into()
    },
    prints: |_| {
        [
            "\"i386\"",
            "= 1",
            "= 77",
            "= 78",
            "movl   $0x202003,0x201000",
            "the guest is in 64-bit mode now",
            "set architecture auto",
            "\"i386:x86-64\"",
            "= 1",
        ]
        .map(String::from)
        .to_vec()
    },
    code: Some(22),
};

/// What a kernel developer does first: stop early, look around, step over lines, watch a
/// variable, go on to userspace.
pub const DEBIAN: Script = Script {
    tool: Tool::Gdb,
    options: "--memory 256M --cmdline quiet~vmm.run=poweroff",
    program: Program::Debian("6.12"),
    commands: |_| {
        "break start_kernel\n\
         continue\n\
         backtrace\n\
         p linux_banner\n\
         monitor breakpoints\n\
         next\nnext\nnext\n\
         monitor translate 0x1000\n\
         watch jiffies_64\n\
         continue\ncontinue\n\
         delete\n\
         monitor exits\n\
         continue\n"
            .into()
    },
    prints: |_| {
        [
            "Breakpoint 1",
            "start_kernel ()",
            "#0 ",
            "start_kernel ()",
            "Linux version 6.12",
            "breakpoint at 0x",
            "hits: 1",
            "Hardware watchpoint 2: jiffies_64",
            "Old value = ",
            "New value = ",
            "Old value = ",
            "New value = ",
            "vCPU 0: ",
            "the guest switched itself off",
            "exited normally",
        ]
        .map(String::from)
        .to_vec()
    },
    code: Some(0),
};

/// Python for gdb: detaches from a kernel that boots and comes again, until its userspace is up.
/// The pause between is for the port that leads into a nest, which does not see a client that
/// goes and comes at once.
const UNTIL_USERSPACE: &str = "python\n\
    for attempt in range(100):\n\
    \x20 log = gdb.execute('monitor dmesg', to_string=True)\n\
    \x20 if 'Run /init' in log:\n\
    \x20   break\n\
    \x20 gdb.execute('disconnect', to_string=True)\n\
    \x20 time.sleep(4)\n\
    \x20 gdb.execute('target remote ' + socket, to_string=True)\n\
    end\n";

/// Python for gdb: loads the kernel's symbols so that those of processors' own data are where they are, as
/// `monitor linux` says where that is needed.
const WITH_PER_CPU: &str = "python\n\
    vmlinux = gdb.current_progspace().filename\n\
    for line in gdb.execute('monitor linux', to_string=True).splitlines():\n\
    \x20 if 'symbol-file' in line:\n\
    \x20   gdb.execute(line.replace('vmlinux', vmlinux), to_string=True)\n\
    end\n";

/// Attaching to a kernel that runs already and has moved itself: its symbols fit, its log can be
/// read, and so can its state.
pub const DEBIAN_RUNNING: Script = Script {
    tool: Tool::Gdb,
    options: "--gdb-no-wait --memory 256M --cmdline vmm.run=naps",
    program: Program::Debian("6.12"),
    commands: |isa| {
        let function = match isa {
            Isa::X86_64 => "do_syscall_64",
            Isa::Aarch64 => "do_el0_svc",
        };
        format!(
            "{UNTIL_USERSPACE}\
             python\n\
             gdb.execute('disconnect', to_string=True)\n\
             time.sleep(2)\n\
             gdb.execute('target remote ' + socket, to_string=True)\n\
             moved = int(gdb.parse_and_eval('(unsigned long)&linux_banner'))\n\
             print('moved' if moved != linked else 'not moved')\n\
             end\n\
             p linux_banner\n\
             monitor linux\n\
             monitor dmesg 3\n\
             info threads\n\
             p init_task.comm\n\
             break {function}\ncontinue\nbacktrace 3\ndelete\n\
             kill\n"
        )
    },
    prints: |isa| {
        let function = match isa {
            Isa::X86_64 => "do_syscall_64 (",
            Isa::Aarch64 => "do_el0_svc (",
        };
        [
            "moved\n",
            "Linux version 6.12",
            "release: 6.12",
            "mapped from 0xffff",
            "[ ",
            "\"CPU#0\"",
            "swapper",
            "Breakpoint 1",
            function,
            "#0 ",
        ]
        .map(String::from)
        .to_vec()
    },
    code: Some(22),
};

/// The kernel's own helpers for gdb, as its documentation has them used
/// (Documentation/process/debugging/gdb-kernel-debugging.rst).
pub const DEBIAN_HELPERS: Script = Script {
    tool: Tool::Gdb,
    options: "--gdb-no-wait --cpus 2 --memory 256M --cmdline vmm.run=naps",
    program: Program::Debian("6.12"),
    commands: |_| {
        format!(
            "{UNTIL_USERSPACE}{WITH_PER_CPU}\
             python gdb.execute('source ' + helpers)\n\
             lx-version\n\
             lx-cmdline\n\
             lx-dmesg\n\
             lx-cpus\n\
             thread 1\n\
             break hrtimer_nanosleep\ncontinue\ndelete\n\
             print int_sqrt(144)\n\
             print get_random_u32() != get_random_u32()\n\
             p $lx_current().comm\n\
             p $lx_per_cpu(runqueues, 1).cpu\n\
             p $lx_task_by_pid(1).comm\n\
             lx-ps\n\
             lx-mounts\n\
             lx-lsmod\n\
             lx-iomem\n\
             lx-timerlist\n\
             echo the end\\n\n\
             kill\n"
        )
    },
    prints: |_| {
        // Calls of the guest's functions return to a page that cannot be executed.
        ["Linux version 6.12", "vmm.run=naps", "Linux version 6.12", "Run /init", "= 12", "= 1", "the end"]
            .map(String::from)
            .to_vec()
    },
    code: Some(22),
};

/// A breakpoint at an address of user space, which a system call returns to, and one at a
/// function whose entry the kernel patches while it stands.
pub const DEBIAN_TEXT: Script = Script {
    tool: Tool::Gdb,
    options: "--memory 256M --cmdline quiet~vmm.run=trace",
    program: Program::Debian("6.12"),
    commands: |isa| {
        let (function, regs, pc, user) = match isa {
            Isa::X86_64 => ("do_syscall_64", "$rdi", "ip", "($cs & 3) == 3"),
            Isa::Aarch64 => ("do_el0_svc", "$x0", "pc", "($cpsr & 15) == 0"),
        };
        format!(
            "break start_kernel\ncontinue\ndelete\n\
             break *{function}\ncontinue\n\
             set $back = ((struct pt_regs *){regs})->{pc}\n\
             delete\n\
             break *$back\ncontinue\n\
             p $pc == $back\np {user}\n\
             monitor translate 0x1000\n\
             delete\n\
             break *hrtimer_nanosleep\n\
             monitor breakpoints\n\
             continue\ncontinue\ncontinue\n\
             info breakpoints\n\
             delete\ncontinue\n"
        )
    },
    prints: |_| {
        [
            "start_kernel ()",
            "Breakpoint 2,",
            "Breakpoint 3,",
            "= 1",
            "= 1",
            "Breakpoint 4,",
            "hrtimer_nanosleep (",
            "Breakpoint 4,",
            "hrtimer_nanosleep (",
            "Breakpoint 4,",
            "hrtimer_nanosleep (",
            "already hit 3 times",
            "exited normally",
        ]
        .map(String::from)
        .to_vec()
    },
    code: Some(0),
};

/// Two vCPUs: one that is not started yet, a breakpoint that both hit, one stepped while the
/// other stays, and all together on to userspace.
pub const SMP: Script = Script {
    tool: Tool::Gdb,
    options: "--cpus 2 --memory 512M --cmdline quiet~vmm.run=poweroff",
    program: Program::Debian("6.12"),
    commands: |_| {
        "break start_kernel\n\
         continue\n\
         info threads\n\
         delete\n\
         break *cpu_startup_entry\n\
         continue\n\
         set $first = $_thread\n\
         continue\n\
         p $first + $_thread\n\
         delete\n\
         set scheduler-locking on\n\
         stepi\nstepi\n\
         set scheduler-locking off\n\
         next\n\
         thread 1\n\
         p $_thread\n\
         continue\n"
            .into()
    },
    prints: |_| {
        [
            "start_kernel ()",
            "\"CPU#0\" (running)",
            "\"CPU#1\" (not started)",
            // Which one comes first is a race in the guest.
            "hit Breakpoint 2",
            "cpu_startup_entry",
            "hit Breakpoint 2",
            "cpu_startup_entry",
            "= 3",
            "= 1",
            "exited normally",
        ]
        .map(String::from)
        .to_vec()
    },
    code: Some(0),
};

/// The registers of the Scalable Vector Extension, and V registers as their low ends: gdb clears
/// the rest when it writes one, as an instruction would. A vCPU starts with the shortest vectors
/// of all that it has.
pub const SCALABLE_VECTORS: Script = Script {
    tool: Tool::Gdb,
    options: "",
    program: Program::Guest("count"),
    commands: |_| {
        "p $vg\n\
         p sizeof($z0) >= 32 && sizeof($z0) == 8 * sizeof($p0) && sizeof($ffr) == sizeof($p0)\n\
         set $z3.d.u[1] = 0x1122334455667788\n\
         set $z3.d.u[3] = 0x99\n\
         p/x $v3.d.u[1]\n\
         set $v3.d.u[1] = 0x77\n\
         p/x $z3.d.u[1]\n\
         p/x $z3.d.u[3]\n\
         set $p2[1] = 0x5a\n\
         p/x $p2[1]\n\
         set $fpcr = 0x1000000\n\
         p/x $fpcr\n\
         set $ZCR_EL1 = 1\n\
         p $vg\n\
         break *&work\ncontinue\n\
         p/x $z3.d.u[1]\n\
         kill\n"
            .into()
    },
    prints: |_| {
        ["= 2", "= 1", "= 0x1122334455667788", "= 0x77", "= 0x0", "= 0x5a", "= 0x1000000", "= 4"]
            .into_iter()
            .chain(["Breakpoint 1", "= 0x77"])
            .map(String::from)
            .collect()
    },
    code: Some(22),
};

/// Watchpoints of every kind, where the host has them.
pub const WATCHPOINTS: Script = Script {
    tool: Tool::Gdb,
    options: "",
    program: Program::Guest("count"),
    commands: |_| {
        "watch *(long*)&counter\n\
         continue\ncontinue\ndelete\n\
         rwatch *(long*)&counter\n\
         continue\ndelete\n\
         awatch *(long*)&counter\n\
         continue\ncontinue\ndelete\n\
         watch *(char*)((char*)&counter+1)\n\
         continue\np *(long*)&counter\ndelete\n\
         kill\n"
            .into()
    },
    prints: |_| {
        [
            "Hardware watchpoint 1",
            "Old value = 0",
            "New value = 1",
            "Old value = 1",
            "New value = 2",
            "Hardware read watchpoint 2",
            "Value = ",
            "Hardware access (read/write) watchpoint 3",
            "alue = ",
            "alue = ",
            "Hardware watchpoint 4",
            "Old value = 0",
            "New value = 1",
            "= 256",
        ]
        .map(String::from)
        .to_vec()
    },
    code: Some(22),
};

/// A guest that uses breakpoint instructions and steps of its own, while the debugger has a
/// breakpoint and a step of its own: the guest sees what it sees without a debugger. Before the
/// guest steps by itself the breakpoints go: KVM on aarch64 takes `MDSCR_EL1.SS` away from a
/// guest while any guest debugging is on.
pub const OWN_TRAPS: Script = Script {
    tool: Tool::Gdb,
    options: "",
    program: Program::Guest("own_traps"),
    commands: |isa| {
        let handler = match isa {
            Isa::X86_64 => "on_breakpoint",
            Isa::Aarch64 => "own_synchronous",
        };
        // A step over the guest's own breakpoint instruction ends in the guest's handler. gdb
        // would skip the instruction if it had a breakpoint there.
        format!(
            "break *&work\nbreak *&failed\nbreak *&own_step\nbreak *&before_own\n\
             continue\n\
             stepi\n\
             continue\n\
             stepi 2\n\
             p $pc == (unsigned long)&{handler}\n\
             continue\n\
             delete\n\
             continue\n"
        )
    },
    prints: |_| {
        ["Breakpoint 1,", "in work ()", "Breakpoint 4,", "= 1", "Breakpoint 3,", "exited with code 0101"]
            .map(String::from)
            .to_vec()
    },
    code: Some(0x41),
};

/// Conditions and `dprintf` in the stub, range steps, the packets that gdbstub lacks.
pub const CONDITIONS: Script = Script {
    tool: Tool::Gdb,
    options: "",
    program: Program::Guest("count"),
    commands: |isa| {
        let (counter, argument) = match isa {
            Isa::X86_64 => ("rbx", "rdi"),
            Isa::Aarch64 => ("x19", "x0"),
        };
        format!(
            "set breakpoint condition-evaluation target\n\
             break *&work if ${argument} == 300\ncontinue\np/d ${counter}\n\
             monitor breakpoints\ndelete\n\
             set dprintf-style agent\n\
             dprintf *&work,\"counted %d\\n\", ${argument}\n\
             tbreak *&again if ${counter} == 303\ncontinue\ndelete\n\
             set var *(long*)&counter = 0x1122334455667788\n\
             find /w &counter, +64, 0x55667788\n\
             maintenance packet qqemu.PhyMemMode\n\
             monitor physical on\nmonitor physical off\n\
             monitor nonsense\nmonitor regs\nmonitor map\n\
             monitor threads\nmonitor info\nmonitor read &counter 8\nmonitor read $sp-8 16\n\
             kill\n"
        )
    },
    prints: |_| {
        [
            "Breakpoint 1,",
            "= 300",
            "conditional; hits: 301",
            "counted 301",
            "counted 302",
            "in again ()",
            "1 pattern found",
            "received: \"0\"",
            "guest-physical",
            "guest-virtual",
            "there is no command",
            "vCPU 0 at",
            "vCPU 0 [running]: pc 0x",
            "architecture: ",
            "translation: ",
            "'&counter' is no number",
            "usage: monitor read ADDRESS LENGTH [--physical]",
        ]
        .map(String::from)
        .to_vec()
    },
    code: Some(22),
};

/// lldb on a test guest: breakpoints, registers, steps, memory, a watchpoint.
pub const LLDB: Script = Script {
    tool: Tool::Lldb,
    options: "",
    program: Program::Guest("count"),
    commands: |isa| {
        let (pc, counter, start) = match isa {
            Isa::X86_64 => ("rip", "rbx", "0x100000"),
            Isa::Aarch64 => ("pc", "x19", "0x40200000"),
        };
        format!(
            "register read {pc}\n\
             breakpoint set --name work\n\
             process continue\n\
             register read {pc}\n\
             process continue\nprocess continue\n\
             register read {counter}\n\
             breakpoint delete -f\n\
             thread step-inst\nthread step-inst\n\
             register write {counter} 99990\n\
             breakpoint set --name done\n\
             process continue\n\
             register read {counter}\n\
             memory read --size 4 --count 2 --format x {start}\n\
             thread list\n\
             breakpoint delete -f\n\
             process continue\n"
        )
    },
    prints: |isa| {
        let pc = if isa == Isa::X86_64 { "rip = 0x" } else { "pc = 0x" };
        [
            "_start",
            pc,
            "stop reason = breakpoint 1.1",
            "work",
            pc,
            "stop reason = breakpoint 1.1",
            "stop reason = breakpoint 1.1",
            "= 0x0000000000000002",
            "stop reason = instruction step into",
            "stop reason = instruction step into",
            "stop reason = breakpoint 2.1",
            "= 0x00000000000186a0",
            "00000: 0x",
            "exited with status = 65",
        ]
        .map(String::from)
        .to_vec()
    },
    code: Some(0x41),
};

/// lldb on a Debian kernel with its symbols.
pub const LLDB_DEBIAN: Script = Script {
    tool: Tool::Lldb,
    options: "--memory 256M --cmdline quiet~vmm.run=naps",
    program: Program::Debian("6.12"),
    commands: |_| {
        // It pauses where it comes again: see UNTIL_USERSPACE.
        "breakpoint set --name start_kernel\n\
         process continue\n\
         thread backtrace\n\
         target variable linux_banner\n\
         thread step-over\nthread step-over\n\
         breakpoint delete -f\n\
         breakpoint set --name hrtimer_nanosleep\n\
         process continue\n\
         process detach\n\
         platform shell -h -- sleep 4\n\
         process connect --plugin gdb-remote unix-connect://{socket}\n\
         target variable linux_banner\n\
         process continue\n\
         process kill\n"
            .into()
    },
    prints: |_| {
        [
            "stop reason = breakpoint 1.1",
            "start_kernel",
            "frame #0: 0xffff",
            "Linux version 6.12",
            "stop reason = step over",
            "stop reason = step over",
            "stop reason = breakpoint 2.1",
            // To a kernel that runs: symbols stay where they are.
            "Linux version 6.12",
            "stop reason = breakpoint 2.1",
        ]
        .map(String::from)
        .to_vec()
    },
    code: Some(22),
};

/// What [`OWN_TRAPS`] compares with.
///
/// # Errors
/// When the guest's checks fail.
pub fn own_traps_alone(c: &mut Context) -> Check {
    let (guest, limit) = (c.guest("own_traps", false)?, c.limit(10));
    c.run("--kernel {}", &[&guest], limit)?.expect_code(0x41)
}
