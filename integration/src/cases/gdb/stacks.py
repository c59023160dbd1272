# Runs in gdb, which has the kernel's debugging information: at random moments, each processor's stack, and those of
# tasks that sleep, as gdb unwinds them are compared with those of `monitor bt`, frame by frame. Before it, SEED, STOPS,
# TASKS and HELPERS are set.
#
# gdb knows no unwinding of assembly, nor of functions that change the stack by some. Behind such a frame it is given the
# registers that the kernel has saved where it was interrupted, and goes on there.
import os
import random
import re
import signal
import threading

random.seed(SEED)
gdb.execute('source ' + HELPERS)
from linux import cpus, utils

IS_X86 = 'x86' in gdb.selected_inferior().architecture().name()
if IS_X86:
    GENERAL = ['rax', 'rbx', 'rcx', 'rdx', 'rsi', 'rdi', 'rbp', 'rsp', 'rip'] + ['r%d' % n for n in range(8, 16)]
    SAVED = {name: name[1:] if name[1].isalpha() else name for name in GENERAL}
else:
    GENERAL = ['x%d' % n for n in range(31)] + ['sp', 'pc']
    SAVED = {name: 'regs[%s]' % name[1:] if name[0] == 'x' else name for name in GENERAL}
# Functions of C that go on on another stack.
SWITCHES = re.compile(r'^(common_interrupt|sysvec_\w+|do_softirq(_own_stack)?|irq_exit_rcu|__irq_exit_rcu|invoke_softirq)$')
# What calls one that does, up to what was interrupted.
ON_THE_WAY = re.compile(r'^(do_interrupt_handler|el[01]_\w+|el1h_64_\w+|el0t_64_\w+|__el0_irq_handler_common)\+')

frames_compared = stacks_compared = interrupted = in_modules = 0
ended_early = []
differences = []
places = {}


def number(expression):
    return int(gdb.parse_and_eval('(unsigned long)(%s)' % expression)) & (1 << 64) - 1


def ours(what):
    """Each frame's place, and whether it was interrupted there."""
    text = gdb.execute('monitor bt ' + what, to_string=True)
    frames, is_interrupted = [], False
    for line in text.splitlines():
        if line.strip() == 'interrupted at':
            is_interrupted = True
        found = re.match(r' *#\d+ +0x([0-9a-f]+)(?: \?)? ?(.*)', line)
        if found:
            frames.append((int(found.group(1), 16), is_interrupted, found.group(2)))
            is_interrupted = False
    return frames, text


def is_assembly(pc):
    # Assemblers may make functions of what is in them, and lines of what is in the macros that are included.
    table = gdb.find_pc_line(pc).symtab
    if table is not None and table.filename.endswith('.S'):
        return True
    try:
        block = gdb.block_for_pc(pc)
    except RuntimeError:
        return True
    while block is not None and block.function is None:
        block = block.superblock
    return block is None


def theirs():
    """Each frame's place, up to one that gdb cannot know the caller of; that one's stack pointer; whether there is one."""
    frame, frames = gdb.newest_frame(), []
    while frame is not None and len(frames) < 200:
        # Of what is inlined, and of what has been left by a jump to another function, the stack has nothing.
        if frame.type() not in (gdb.INLINE_FRAME, gdb.TAILCALL_FRAME):
            pc = frame.pc()
            frames.append(pc)
            if is_assembly(pc - (len(frames) > 1)):
                return frames, int(frame.read_register('sp')) & (1 << 64) - 1, True
            if SWITCHES.match(frame.name() or ''):
                return frames, None, True
        try:
            above = frame.older()
            if above is None:
                ended_early.append('%s: %s' % (frame.name(), gdb.frame_stop_reason_string(frame.unwind_stop_reason())))
            frame = above
        except gdb.error as error:
            ended_early.append(str(error))
            break
    return frames, None, False


def compare(what, cpu):
    global frames_compared, stacks_compared, interrupted, in_modules
    expected, text = ours(what)
    saved = {name: number('$' + name) for name in GENERAL} if cpu is not None else {}
    at, has_irq = 0, cpu is not None and number('*(unsigned long *)%d' % irq_regs(cpu)) != 0
    try:
        while at < len(expected):
            found, stack, is_known = theirs()
            part = [pc for pc, _, _ in expected[at:at + len(found)]]
            if found != part:
                there = '\n'.join('  %#x %s' % (pc, gdb.execute('info symbol %d' % pc, to_string=True).strip()) for pc in found)
                differences.append('%s from frame %d on, %s; gdb has\n%s\nand monitor bt\n%s' % (what, at, gdb.selected_thread().ptid, there, text))
                return
            frames_compared += len(found)
            in_modules += sum('[wedge]' in place for _, _, place in expected[at:at + len(found)])
            for _, _, place in expected[at:at + 1]:
                name = place.split('+')[0]
                places[name] = places.get(name, 0) + 1
            at += len(found)
            # What is in assembly up to where something was interrupted.
            while at < len(expected) and not expected[at][1] and (
                    is_assembly(expected[at][0] - 1) or ON_THE_WAY.match(expected[at][2])):
                at += 1
            if at == len(expected):
                break
            if not expected[at][1] or not is_known:
                ended_early.append('%s behind %s' % (what, expected[at - 1][2]))
                return
            if cpu is None:
                differences.append('%s sleeps and was interrupted\n%s' % (what, text))
                return
            regs = number('*(unsigned long *)%d' % irq_regs(cpu)) if has_irq else stack
            has_irq = False
            if regs is None:
                ended_early.append('%s behind %s' % (what, expected[at - 1][2]))
                return
            new = {name: number('((struct pt_regs *)%d)->%s' % (regs, field)) for name, field in SAVED.items()}
            for name, value in new.items():
                gdb.execute('set $%s = %d' % (name, value))
            interrupted += 1
        stacks_compared += 1
    finally:
        for name, value in saved.items():
            if number('$' + name) != value:
                gdb.execute('set $%s = %d' % (name, value))


def irq_regs(cpu):
    return int(cpus.per_cpu(gdb.parse_and_eval('&__irq_regs'), cpu).address) & (1 << 64) - 1


def stop():
    """Lets the guest run for a moment of random length."""
    threading.Timer(random.uniform(0.02, 0.4), os.kill, (os.getpid(), signal.SIGINT)).start()
    gdb.execute('continue', to_string=True)


def threads():
    return sorted(gdb.selected_inferior().threads(), key=lambda thread: thread.ptid[1])


def compare_all():
    for cpu, thread in enumerate(threads()):
        thread.switch()
        compare('vcpu%d' % cpu, cpu)


for _ in range(STOPS):
    stop()
    compare_all()

# And once in each of these, whatever chance has brought: a system call, a page fault, an interrupt, nothing to do, a module.
if IS_X86:
    KINDS = ['__x64_sys_newfstatat', 'handle_mm_fault', 'hrtimer_interrupt', 'default_idle_call', 'wedge_turns']
else:
    KINDS = ['__arm64_sys_newfstatat', 'handle_mm_fault', 'hrtimer_interrupt', 'default_idle_call', 'wedge_turns']
kinds_compared = []
for kind in KINDS:
    gdb.execute('tbreak *' + kind)
    gdb.execute('continue', to_string=True)
    before = stacks_compared
    compare_all()
    if stacks_compared > before:
        kinds_compared.append(kind)

# A breakpoint that all tasks come by, for one of them.
caller = re.search(r'^ *(\d+) .*wedge/calls', gdb.execute('monitor ps', to_string=True), re.M)
place = '0x%x' % number('&schedule')
stopped_for = []
for whom in ['--comm wedge/calls', '--pid ' + caller[1]]:
    gdb.execute('monitor breakpoints %s %s' % (place, whom))
    gdb.execute('tbreak *schedule')
    gdb.execute('continue', to_string=True)
    stopped_for.append(gdb.parse_and_eval('$lx_current().comm').string())
    gdb.execute('monitor breakpoints %s --any' % place)

gdb.execute('monitor threads tasks')
stop()
asleep = [thread for thread in threads() if thread.ptid[1] >= 10000000]
chosen = random.sample(asleep, min(TASKS, len(asleep)))
# One that sleeps in a module.
chosen += [thread for thread in asleep if thread.ptid[1] == 10000000 + int(caller[1]) and thread not in chosen]
for thread in chosen:
    thread.switch()
    compare('%d' % (thread.ptid[1] - 10000000), None)
gdb.execute('monitor threads cpus')
stop()

print('%d stacks are the same, %d frames, %d interrupted, %d in modules, %d tasks of %d' % (
    stacks_compared, frames_compared, interrupted, in_modules, len(chosen), len(asleep)))
print('they stand in', ', '.join('%s %d' % one for one in sorted(places.items(), key=lambda one: -one[1])[:40]))
print('gdb knew no further %d times' % len(ended_early), ended_early[:20])
for difference in differences[:5]:
    print('DIFFERENT:', difference)
print('in each of', ', '.join(kinds_compared))
wanted = (STOPS + len(KINDS)) * 2 + len(chosen)
is_enough = len(asleep) > 20 and in_modules and kinds_compared == KINDS and stacks_compared * 10 >= wanted * 8
# One in three stops is in the middle of something that was interrupted.
print('stopped for', ', '.join(stopped_for))
is_enough = is_enough and stopped_for == ['wedge/calls'] * 2
is_same = not differences and is_enough and interrupted * 20 >= STOPS - 19
print('the stacks are', 'the same' if is_same else 'NOT the same')
