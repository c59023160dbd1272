//! `vmm run`: commands in guests that are booted for them.

use crate::context::{Check, Context, Finished, check};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// What Debian's 6.12 has as modules of what a job needs.
pub const MODULES: &[&str] = &["fs/overlayfs/overlay.ko"];

/// A root with busybox and nothing else.
fn root(c: &Context) -> Result<PathBuf, String> {
    let root = c.work.join("root");
    let make = || -> std::io::Result<()> {
        for folder in ["bin", "dev", "etc", "proc", "root", "run", "sys", "tmp"] {
            fs::create_dir_all(root.join(folder))?;
        }
        fs::copy("/bin/busybox", root.join("bin/busybox"))?;
        for applet in [
            "sh", "uname", "cat", "echo", "seq", "true", "ls", "tty", "stty", "kill", "sleep", "id", "pwd",
            "env",
        ] {
            symlink("busybox", root.join("bin").join(applet))?;
        }
        Ok(())
    };
    make().map_err(|error| format!("cannot make a root: {error}"))?;
    Ok(root)
}

/// Runs a command in a guest.
fn run(c: &mut Context, root: &Path, options: &str, command: &str) -> Result<Finished, String> {
    let (kernel, modules, limit) = (c.kernel("6.12"), c.modules(), c.limit(60));
    let slow = c.slowness;
    let line = format!(
        "run --kernel {{}} --modules {{}} --root {{}} --slow {slow} --memory 256M {options} -- {command}"
    );
    c.run(&line, &[&kernel, &modules, root], limit)
}

/// A command's output, errors and code are the run's.
pub fn commands(c: &mut Context) -> Check {
    let root = root(c)?;
    let run1 = run(c, &root, "", "uname -r")?;
    run1.expect_code(0)?;
    check(run1.output.starts_with("6.12"), || format!("no release: {}", run1.output))?;
    let run2 = run(c, &root, "", "sh -c echo~out;echo~err>&2;exit~7")?;
    run2.expect_code(7)?;
    check(run2.output == "out\n" && run2.errors.contains("err\n"), || format!("{run2:?}"))
}
