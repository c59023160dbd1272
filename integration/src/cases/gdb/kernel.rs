//! gdb with all of a kernel's debugging information, beside what is known of the kernel without it.

use super::{Program, Script, Tool, UNTIL_USERSPACE, WITH_PER_CPU};
use crate::artifacts::Kernel;
use crate::context::Length;
use arch::Isa;
use std::path::Path;

/// Python for gdb: compares stacks.
const COMPARES: &str = include_str!("stacks.py");

/// Python for gdb, which `vmm gdb` starts gdb with: what reads the kernel's symbols anew, as `lx-symbols` does, has them
/// where the kernel is.
const KEEP_SLIDE: &str = include_str!("../../../../vmm/src/cli/gdb/keep_slide.py");

/// gdb is told of the module that wedges guests.
fn knows_wedge(isa: Isa) -> String {
    let wedge = Kernel::new(isa, "6.12").wedge();
    let folder = wedge.parent().unwrap_or(Path::new("/"));
    format!(
        "python\n\
         for line in gdb.execute('monitor symbols {}', to_string=True).splitlines():\n\
         \x20 if 'wedge.ko' in line:\n\
         \x20   gdb.execute(line, to_string=True)\n\
         end\n",
        folder.display()
    )
}

/// Stacks of processors at random moments, and of tasks that sleep, frame by frame.
pub const STACKS: Script = Script {
    tool: Tool::Gdb,
    options: "--gdb-no-wait --cpus 2 --memory 256M --cmdline quiet~arm64.nopauth~vmm.run=stacks",
    program: Program::Debian("6.12"),
    commands: |isa| {
        let length = Length::of_environment();
        format!(
            "{UNTIL_USERSPACE}\
             python\n\
             gdb.execute('disconnect', to_string=True)\n\
             time.sleep(4)\n\
             gdb.execute('target remote ' + socket, to_string=True)\n\
             STOPS, TASKS, SEED, HELPERS = {}, {}, {}, helpers\n\
             end\n\
             {WITH_PER_CPU}{}\
             python\n{COMPARES}end\n\
             kill\n",
            length.of(4, 300),
            length.of(10, 1000),
            length.chance().below(1 << 32),
            knows_wedge(isa)
        )
    },
    prints: |_| vec!["the stacks are the same".into()],
    code: Some(22),
};

/// Python for gdb: a breakpoint where the module begins, in code that the kernel frees then.
const WHERE_IT_BEGINS: &str = "python\n\
    place = re.search('wedge_init is at (0x[0-9a-f]+)', gdb.execute('monitor sym wedge_init', to_string=True))\n\
    gdb.execute('break *' + place[1])\n\
    end\n";

/// The kernel's own `lx-symbols` (which has a breakpoint of its own at `do_init_module`, and gdb 13 ends with a fault where
/// another one there has a condition), for a module that is loaded, removed and loaded again with breakpoints in it, of which one
/// is in what is freed; in a kernel that has moved.
pub const MODULES: Script = Script {
    tool: Tool::Gdb,
    options: "--gdb-no-wait --memory 256M --cmdline arm64.nopauth~vmm.run=module",
    program: Program::Debian("6.12"),
    commands: |isa| {
        let wedge = Kernel::new(isa, "6.12").wedge();
        let folder = wedge.parent().unwrap_or(Path::new("/"));
        // Where it begins is a stop as well if it comes to the same place.
        let rounds = "continue\nbacktrace 3\n".repeat(4);
        format!(
            "{UNTIL_USERSPACE}{WITH_PER_CPU}\
             python\nimport re\nvmm_vmlinux = vmlinux\n{KEEP_SLIDE}\ngdb.execute('source ' + helpers)\nend\n\
             lx-symbols {}\n\
             set breakpoint pending on\n\
             break mod_sysfs_setup if mod->name[0] == 'w'\n\
             continue\n\
             delete\n\
             {WHERE_IT_BEGINS}\
             break wedge_called if turns == 1\n\
             continue\n\
             {rounds}\
             info breakpoints\n\
             monitor breakpoints\n\
             python print('complaints:', re.findall('Oops.*|BUG:.*', gdb.execute('monitor dmesg', to_string=True)))\n\
             kill\n",
            folder.display()
        )
    },
    prints: |_| {
        let round = ["#0  wedge_called (", "in wedge_calls (", "in wedge_thread ("];
        let begins = ["mod_sysfs_setup (", "Breakpoint 2, "];
        begins
            .into_iter()
            .chain([round, round].into_iter().flatten())
            .chain(["complaints: []"])
            .map(String::from)
            .collect()
    },
    code: Some(22),
};
