# What the tests do with drgn: check.py CORE VMLINUX. Lists tasks, reads the banner, and prints stack traces
# of the first process, which waits, and of the first processor's idle task, which ran.
import sys

import drgn
from drgn.helpers.linux.pid import find_task, for_each_task

program = drgn.Program()
program.set_core_dump(sys.argv[1])
program.load_debug_info([sys.argv[2]])
print("banner:", program["linux_banner"].string_().decode().strip())
names = [task.comm.string_().decode() for task in for_each_task(program)]
print("tasks:", len(names), " ".join(names))
print(program.stack_trace(find_task(program, 1)))
print(program.stack_trace(program["init_task"].address_of_()))
