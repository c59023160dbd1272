//! What `vmm run` makes of a kernel's log of which some is gone, and of a kernel that does not describe itself.

use super::job::run;
use super::linux::unpacked;
use crate::context::{Check, Context, check};
use arch::Isa;
use std::fs;

/// Records that nobody has read before they were written over are told of, and what came before and behind them is seen.
pub fn overwritten(c: &mut Context) -> Check {
    let root = c.root()?;
    // A record has 1000 bytes, so 131 fill the log; of nine who want the processor, the first process reads it.
    let flood = "b=/bin/busybox;r=$(printf~%0998d~7);$b~yes~$r|$b~head~-c~1000000~>/tmp/records;\
                 for~i~in~1~2~3~4~5~6~7~8;do~$b~dd~if=/tmp/records~of=/dev/kmsg~bs=999~2>/dev/null&done;wait";
    let options = "--append printk.devkmsg=on";
    let lossy = run(c, &root, options, &format!("sh -c {flood};exit~3"))?;
    lossy.expect_code(3)?;
    lossy.expect_one_line("records of the guest's log are gone before --fail-on has seen them")?;
    let bad = run(c, &root, options, &format!("sh -c {flood};echo~'Oops:~0'>/dev/kmsg;sleep~1000"))?;
    bad.expect_code(118)?;
    let last = bad.errors.lines().last().unwrap_or_default();
    check(last.contains("the log has oops: "), || format!("the last line is '{last}'"))
}

/// Takes away what a kernel describes itself by (`VMCOREINFO`).
fn undescribed(c: &Context) -> Result<Vec<u8>, String> {
    let mut kernel = match c.isa {
        Isa::X86_64 => unpacked(c)?,
        Isa::Aarch64 => fs::read(c.kernel("6.12")).map_err(|error| error.to_string())?,
    };
    for word in [&b"VMCOREINFO"[..], b"OSRELEASE="] {
        let at = kernel.windows(word.len()).position(|window| window == word);
        let at = at.ok_or_else(|| format!("the kernel has no {}", word.escape_ascii()))?;
        kernel[at] = b'X';
    }
    Ok(kernel)
}

/// A kernel that does not describe itself is judged by what it prints and by what its first process tells.
pub fn of_a_kernel_undescribed(c: &mut Context) -> Check {
    let (root, kernel, limit) = (c.root()?, c.work.join("kernel"), c.limit(60));
    c.write(&kernel, &undescribed(c)?)?;
    let slow = c.slowness;
    for (command, code, says) in [
        ("sh -c echo~c>/proc/sysrq-trigger;sleep~1000", 120, "the guest's kernel panicked"),
        ("sh -c echo~'Oops:~0'>/dev/kmsg;sleep~1000", 118, "the log has oops: "),
        ("sh -c exit~4", 4, ""),
    ] {
        let line = format!(
            "run --kernel {{}} --modules {{}} --root {{}} --slow {slow} --memory 256M --cpus 1 -- {command}"
        );
        let run = c.run(&line, &[&kernel, &c.modules(), &root], limit)?;
        run.expect_code(code)?;
        let last = run.errors.lines().last().unwrap_or_default();
        check(last.contains(says), || format!("{command}: the last line is '{last}'"))?;
    }
    Ok(())
}
