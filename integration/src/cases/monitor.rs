//! Another monitor, `vmm/kvm/examples/monitor.rs`, which has all of the debugger in few lines.

use super::gdb::{Program, Script, Tool};
use crate::context::{Check, Context, check};
use crate::process::Wiring;
use crate::rsp::Client;
use arch::Isa;
use debug::gdb::packet::frame;

/// As many lines as it may have.
const MOST_LINES: usize = 300;

/// What a person does with it: software and hardware breakpoints, a watchpoint, steps, both vCPUs, the guest's own
/// breakpoint instructions, which go on being counted by their handler, detaching and coming again.
const fn script(how: &'static str) -> Script {
    Script {
        tool: Tool::Gdb,
        options: how,
        program: Program::Monitor,
        commands: |isa| {
            let (counter, vcpu_0) = match isa {
                Isa::X86_64 => ("$rax", "$rdi == (long)&words"),
                Isa::Aarch64 => ("$x0", "$x1 == (long)&words"),
            };
            // How many of its own breakpoint instructions the guest has had; gdb itself goes past one that it stands at,
            // so it stops in their handler.
            let own = "(((long*)&words)[1] + ((long*)((char*)&words + 4096))[1])";
            format!(
                "python print(len(gdb.selected_inferior().threads()), 'vCPUs')\n\
                 break *&store if {vcpu_0}\ncontinue\np $pc == (long)&store\nset var $before = {counter}\ncontinue\n\
                 p {counter} - $before <= 1\nstepi\np $pc > (long)&store\ndelete\n\
                 hbreak *&round if {vcpu_0}\ncontinue\np $pc == (long)&round && {vcpu_0}\ndelete\n\
                 watch *(long*)&words\ncontinue\ndelete\n\
                 set var {counter} = 7\np {counter}\n\
                 break *&handler\nset var $own = {own}\ncontinue\ncontinue\ncontinue\n\
                 p $pc == (long)&handler\ndelete\np {own} > $own\n\
                 detach\npython gdb.execute('target remote ' + socket)\n\
                 p {own} > $own\n\
                 break *&store\ncontinue\np $pc == (long)&store\nkill\n"
            )
        },
        prints: |_| {
            let prints = [
                " vCPUs",
                "Breakpoint 1,",
                "= 1",
                "Breakpoint 1,",
                "= 1",
                "= 1",
                "Breakpoint 2,",
                "= 1",
                "atchpoint 3:",
                "= 7",
                "Breakpoint 4,",
                "Breakpoint 4,",
                "Breakpoint 4,",
                "= 1",
                "= 1",
                "= 1",
                "Breakpoint 5,",
                "= 1",
                "killed",
            ];
            prints.map(String::from).to_vec()
        },
        code: Some(0),
    }
}

/// With a thread that serves gdb.
pub const THREAD: Script = script("");
/// In the monitor's event loop.
pub const LOOP: Script = script("--loop");
/// All on the thread of its only vCPU.
pub const ALONE: Script = script("--alone");

/// It is as short as is said of it, and clients of the bare protocol come and go, in the midst of what they do, while
/// its guest goes on counting.
pub fn comes_and_goes(c: &mut Context) -> Check {
    let source = include_str!("../../../vmm/kvm/examples/monitor.rs");
    let lines = source.lines().count();
    check(lines < MOST_LINES, || format!("the other monitor has {lines} lines"))?;
    for how in ["", "--loop", "--alone"] {
        let socket = c.work.join(format!("monitor{how}.sock"));
        // Not every host traps its own breakpoint instructions.
        let guest = c.guest("loop", true)?;
        let arguments = format!("{{}} unix:{{}} {how}");
        let mut monitor = c.start_program(&c.monitor(), Wiring::Pipes, &arguments, &[&guest, &socket])?;
        let result = clients(c, &socket);
        monitor.send("\n")?;
        let code = monitor.wait(c.limit(30));
        c.keep("monitor", &monitor);
        result.map_err(|error| format!("{how}: {error}"))?;
        let code = code?;
        check(code == 0, || format!("{how}: it ends with {code}"))?;
    }
    Ok(())
}

fn clients(c: &Context, socket: &std::path::Path) -> Check {
    for round in 0..6 {
        let mut client = Client::attach(socket, c.limit(30))?;
        match round % 3 {
            // It goes away while the guest stands still.
            0 => {}
            // In a step.
            1 => client.send(&frame(b"vCont;s:p1.1"))?,
            // While the guest runs, without a word.
            _ => client.send(&frame(b"vCont;c"))?,
        }
    }
    let mut client = Client::attach(socket, c.limit(30))?;
    for _ in 0..20 {
        let stop = client.ask("vCont;s:p1.1")?;
        check(stop.starts_with("T05"), || format!("a step ends in {stop}"))?;
    }
    Ok(())
}
