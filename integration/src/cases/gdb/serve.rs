//! Where KVM is, for the length of a script.

use super::Program;
use crate::context::{Check, Context, check};
use crate::port;
use crate::process::{Process, Wiring};
use std::fs::OpenOptions;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Runs `vmm` for the case's script until the debugger is gone and the guest is, too.
///
/// # Errors
/// When `vmm` does not start, or ends with another code.
pub fn serve(c: &mut Context) -> Check {
    let script = crate::cases::find(&c.name).and_then(|case| case.debugger).ok_or("it has no script")?;
    let socket = c.work.join("gdb.sock");
    let arguments = format!("-v --gdb unix:{{}} {} --kernel {{}}", script.options);
    let vmm = match script.program {
        Program::Guest(name) | Program::Flat(name) => {
            let kernel = c.guest(name, matches!(script.program, Program::Flat(_)))?;
            c.start(Wiring::Pipes, &arguments, &[&socket, &kernel])?
        }
        Program::Monitor => {
            let guest = c.guest("monitor", true)?;
            let arguments = format!("{{}} unix:{{}} {}", script.options);
            c.start_program(&c.monitor(), Wiring::Pipes, &arguments, &[&guest, &socket])?
        }
        Program::Debian(series) => {
            let (kernel, initrd) = (c.kernel(series), c.initrd());
            c.start(Wiring::Pipes, &format!("{arguments} --initrd {{}}"), &[&socket, &kernel, &initrd])?
        }
    };
    let vmm = Mutex::new(vmm);
    let is_long = c.name.starts_with("long_");
    let limit = c.limit(if is_long { c.length().of(90, 3600) } else { 90 });
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
    let deadline = Instant::now() + limit;
    let port = port::find(port::GDB).and_then(|port| OpenOptions::new().read(true).write(true).open(port));
    port.and_then(|port| crate::carry::connect(port, socket, &|| is_over(vmm, deadline)))
        .map_err(|error| format!("the gdb port: {error}"))
}

fn wait(vmm: &Mutex<Process>, limit: Duration) -> Check {
    let deadline = Instant::now() + limit;
    while !is_over(vmm, deadline) {
        std::thread::park_timeout(Duration::from_millis(10));
    }
    Ok(())
}
