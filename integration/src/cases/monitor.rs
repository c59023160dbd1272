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
fn commands(isa: Isa, vcpus: usize) -> String {
    let (counter, vcpu_0) = match isa {
        Isa::X86_64 => ("$rax", "$rdi == (long)&words"),
        Isa::Aarch64 => ("$x0", "$x1 == (long)&words"),
    };
    // How many of its own breakpoint instructions each vCPU has had; gdb itself goes past one that it stands at, so it
    // stops in their handler.
    let (first, second) = ("((long*)&words)[1]", "((long*)((char*)&words + 4096))[1]");
    let own = format!("({first} + {second})");
    let (other, both) = match vcpus {
        1 => (String::new(), String::new()),
        _ => (
            format!(
                "break *&store if !({vcpu_0})\ncontinue\np !({vcpu_0}) && $pc == (long)&store && $_thread == 2\ndelete\n"
            ),
            format!("p {first} > 0 && {second} > 0\n"),
        ),
    };
    format!(
        "python print(len(gdb.selected_inferior().threads()), 'vCPUs')\n\
         break *&store if {vcpu_0}\ncontinue\np $pc == (long)&store\nset var $before = {counter}\ncontinue\n\
         p {counter} - $before <= 1\nstepi\np $pc > (long)&store\ndelete\n\
         hbreak *&round if {vcpu_0}\ncontinue\np $pc == (long)&round && {vcpu_0}\ndelete\n\
         {other}\
         watch *(long*)&words\ncontinue\ndelete\n\
         set var {counter} = 7\np {counter}\n\
         break *&handler\nset var $own = {own}\ncontinue\ncontinue\ncontinue\n\
         p $pc == (long)&handler\ndelete\np {own} > $own\n\
         detach\npython gdb.execute('target remote ' + socket)\n\
         p {own} > $own\n{both}\
         break *&store\ncontinue\np $pc == (long)&store\nkill\n"
    )
}

/// What gdb says to that.
fn prints(vcpus: usize) -> Vec<String> {
    let mut number = 0;
    let mut next = |kind: &str| {
        number += 1;
        format!("{kind} {number}")
    };
    let yes = || "= 1".to_string();
    let first = next("Breakpoint") + ",";
    let mut said = vec![format!("{vcpus} vCPUs"), first.clone(), yes(), first, yes(), yes()];
    said.extend([next("Breakpoint") + ",", yes()]);
    if vcpus > 1 {
        said.extend([next("Breakpoint") + ",", yes()]);
    }
    said.extend([next("atchpoint") + ":", "= 7".into()]);
    let handler = next("Breakpoint") + ",";
    said.extend([handler.clone(), handler.clone(), handler, yes(), yes(), yes()]);
    said.extend((vcpus > 1).then(yes));
    said.extend([next("Breakpoint") + ",", yes(), "killed".into()]);
    said
}

const fn script(how: &'static str, commands: fn(Isa) -> String, prints: fn(Isa) -> Vec<String>) -> Script {
    Script { tool: Tool::Gdb, options: how, program: Program::Monitor, commands, prints, code: Some(0) }
}

/// With a thread that serves gdb.
pub const THREAD: Script = script("", |isa| commands(isa, 2), |_| prints(2));
/// In the monitor's event loop.
pub const LOOP: Script = script("--loop", |isa| commands(isa, 2), |_| prints(2));
/// All on the thread of its only vCPU.
pub const ALONE: Script = script("--alone", |isa| commands(isa, 1), |_| prints(1));

/// It is as short as is said of it, and clients of the bare protocol come and go, in the midst of what they do, as its
/// guest runs or stands still.
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
