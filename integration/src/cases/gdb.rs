//! Stock gdb on guests that run under `vmm --gdb`.
//!
//! A [`Script`] has two ends. [`serve`] runs where KVM is and starts `vmm`; gdb itself runs on
//! the machine that runs the tests ([`crate::debugger`]), with the commands of the script, and
//! what it prints is what is checked.

use crate::context::{Check, Context, check};
use crate::port;
use crate::process::{Process, Wiring};
use arch::Isa;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// A guest, and what is typed into a debugger.
pub struct Script {
    /// Options of `vmm`, besides `--gdb` and the kernel.
    pub options: &'static str,
    /// The test guest, whose symbols gdb has.
    pub guest: &'static str,
    /// What is typed once gdb is connected.
    pub commands: fn(Isa) -> String,
    /// Texts that gdb prints, in this order.
    pub prints: fn(Isa) -> Vec<String>,
    /// `vmm`'s exit code; `None` where it is still running at the end.
    pub code: Option<i32>,
}

impl std::fmt::Debug for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Script").field("guest", &self.guest).finish_non_exhaustive()
    }
}

/// Breakpoints of both kinds, steps, memory and registers.
pub const BREAKPOINTS: Script = Script {
    options: "",
    guest: "count",
    commands: |isa| {
        let (counter, sp) = match isa {
            Isa::X86_64 => ("rbx", "rsp"),
            Isa::Aarch64 => ("x19", "sp"),
        };
        format!(
            "p $pc == (unsigned long)&_start\n\
             break *&work\ncontinue\n\
             p $pc == (unsigned long)&work\n\
             continue\ncontinue\np/d ${counter}\n\
             x/1xb &work\n\
             delete\n\
             stepi\nstepi\np *(long*)&counter\n\
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

/// Runs `vmm` for the case's script until the debugger is gone and the guest is, too.
///
/// # Errors
/// When `vmm` does not start, or ends with another code.
pub fn serve(c: &mut Context) -> Check {
    let script = crate::cases::find(&c.name).and_then(|case| case.debugger).ok_or("it has no script")?;
    let socket = c.work.join("gdb.sock");
    let kernel = c.guest(script.guest, false)?;
    let arguments = format!("-v --gdb unix:{{}} --kernel {{}} {}", script.options);
    let vmm = c.start(Wiring::Pipes, &arguments, &[&socket, &kernel])?;
    let vmm = Mutex::new(vmm);
    let limit = c.limit(60);
    let result = if c.in_nest { carry(&vmm, &socket, limit) } else { wait(&vmm, limit) };
    let mut vmm = vmm.into_inner().map_err(|error| error.to_string())?;
    let code = match (&result, script.code) {
        (Ok(()), Some(_)) => vmm.wait(c.limit(10)).map(Some),
        _ => Ok(None),
    };
    c.keep("vmm", &vmm);
    result?;
    let code = code?;
    check(code == script.code, || format!("vmm ended with {code:?} instead of {:?}", script.code))
}

/// Whether `vmm` has ended, or the time is over.
fn is_over(vmm: &Mutex<Process>, deadline: Instant) -> bool {
    let has_ended = vmm.lock().is_ok_and(|mut vmm| vmm.has_ended());
    has_ended || Instant::now() >= deadline
}

fn carry(vmm: &Mutex<Process>, socket: &Path, limit: Duration) -> Check {
    let port = port::find(port::GDB).map_err(|error| error.to_string())?;
    let deadline = Instant::now() + limit;
    port::carry(&port, socket, &|| is_over(vmm, deadline)).map_err(|error| format!("the gdb port: {error}"))
}

fn wait(vmm: &Mutex<Process>, limit: Duration) -> Check {
    let deadline = Instant::now() + limit;
    while !is_over(vmm, deadline) {
        std::thread::park_timeout(Duration::from_millis(10));
    }
    Ok(())
}
