// SPDX-License-Identifier: Apache-2.0 OR MIT
/*
 * Wedges a Linux guest, in the ways that `how` names, for tests of what is found out about one that
 * hangs: insmod wedge.ko how=mutexes,rwsem. Threads begin a moment after insmod is done. A debugger that
 * clears wedge_stays lets go of what sleeps and spins. how=calls wedges nothing: a thread calls functions
 * of the module's. It alone can be removed.
 *
 * No function that a test names is inlined, or called from another's end, which would leave no frame
 * of the caller: there is a barrier behind the call. On aarch64 those that call nothing have no frame,
 * and their caller is in the link register: wedge_spins, wedge_interrupts and wedge_oopses.
 */
#include <linux/completion.h>
#include <linux/cpumask.h>
#include <linux/delay.h>
#include <linux/hrtimer.h>
#include <linux/irqflags.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/rwsem.h>
#include <linux/sched.h>
#include <linux/spinlock.h>
#include <linux/string.h>

static char *how = "";
module_param(how, charp, 0444);
MODULE_PARM_DESC(how, "of mutexes, rwsem, sleep, spin, spinlock, interrupt, oops, overflow and calls, with commas between");
MODULE_LICENSE("Dual MIT/GPL");
MODULE_DESCRIPTION("wedges a guest for tests");

static DEFINE_MUTEX(wedge_a);
static DEFINE_MUTEX(wedge_b);
static DECLARE_RWSEM(wedge_sem);
static DEFINE_RAW_SPINLOCK(wedge_lock);
static struct hrtimer wedge_timer;
/* A thread has its first lock. */
static DECLARE_COMPLETION(wedge_a_taken);
static DECLARE_COMPLETION(wedge_b_taken);
static DECLARE_COMPLETION(wedge_taken);

/* Nothing here changes them. The compiler does not know, so what runs for ever ends in its eyes, and has
 * code behind its calls, and addresses that they return to. */
static bool wedge_stays = true;
static int *wedge_nowhere;

static noinline void wedge_sleeps(void)
{
	while (READ_ONCE(wedge_stays)) {
		set_current_state(TASK_UNINTERRUPTIBLE);
		schedule();
	}
}

static noinline void wedge_spins(void)
{
	while (READ_ONCE(wedge_stays))
		cpu_relax();
}

static noinline void wedge_takes_ab(void)
{
	mutex_lock(&wedge_a);
	complete(&wedge_a_taken);
	wait_for_completion(&wedge_b_taken);
	mutex_lock(&wedge_b);
	barrier();
}

static noinline void wedge_takes_ba(void)
{
	mutex_lock(&wedge_b);
	complete(&wedge_b_taken);
	wait_for_completion(&wedge_a_taken);
	mutex_lock(&wedge_a);
	barrier();
}

static noinline void wedge_writes(void)
{
	down_write(&wedge_sem);
	complete(&wedge_taken);
	wedge_sleeps();
	up_write(&wedge_sem);
}

static noinline void wedge_reads(void)
{
	wait_for_completion(&wedge_taken);
	down_read(&wedge_sem);
	up_read(&wedge_sem);
}

static noinline void wedge_masks(void)
{
	unsigned long flags;

	local_irq_save(flags);
	wedge_spins();
	local_irq_restore(flags);
}

static noinline void wedge_holds(void)
{
	unsigned long flags;

	raw_spin_lock_irqsave(&wedge_lock, flags);
	complete(&wedge_taken);
	wedge_spins();
	raw_spin_unlock_irqrestore(&wedge_lock, flags);
}

static noinline void wedge_waits(void)
{
	wait_for_completion(&wedge_taken);
	raw_spin_lock(&wedge_lock);
	raw_spin_unlock(&wedge_lock);
}

static noinline enum hrtimer_restart wedge_interrupts(struct hrtimer *timer)
{
	while (READ_ONCE(wedge_stays))
		cpu_relax();
	return HRTIMER_NORESTART;
}

/* What is interrupted is this thread, in wedge_spins. */
static noinline void wedge_is_interrupted(void)
{
	hrtimer_init(&wedge_timer, CLOCK_MONOTONIC, HRTIMER_MODE_REL_PINNED_HARD);
	wedge_timer.function = wedge_interrupts;
	hrtimer_start(&wedge_timer, ms_to_ktime(20), HRTIMER_MODE_REL_PINNED_HARD);
	wedge_spins();
	barrier();
}

static noinline void wedge_oopses(void)
{
	WRITE_ONCE(*READ_ONCE(wedge_nowhere), 1);
}

static noinline void wedge_outer(void)
{
	wedge_oopses();
	barrier();
}

static noinline __noclone int wedge_recurses(int depth)
{
	volatile char frame[128];

	frame[depth % sizeof(frame)] = depth;
	if (!READ_ONCE(wedge_stays))
		return depth;
	return wedge_recurses(depth + 1) + frame[depth % sizeof(frame)];
}

static noinline void wedge_overflows(void)
{
	wedge_recurses(0);
	barrier();
}

static noinline void wedge_turns(int turns)
{
	while (turns-- && READ_ONCE(wedge_stays))
		cpu_relax();
}

static noinline void wedge_called(int turns)
{
	wedge_turns(turns);
	barrier();
}

static noinline void wedge_calls(void)
{
	int turns = 1;

	/* The first call is told from the others by what it is called with. */
	while (!kthread_should_stop()) {
		wedge_called(turns);
		turns = 1000;
		usleep_range(500, 1000);
	}
}

static const struct wedge {
	const char *how, *name;
	void (*does)(void);
	enum { ANYWHERE, FIRST, LAST, OTHER } on;
} wedges[] = {
	{ "mutexes", "wedge/ab", wedge_takes_ab },
	{ "mutexes", "wedge/ba", wedge_takes_ba },
	{ "rwsem", "wedge/writer", wedge_writes },
	{ "rwsem", "wedge/reader", wedge_reads },
	{ "sleep", "wedge/sleep", wedge_sleeps },
	{ "spin", "wedge/spin", wedge_masks, LAST },
	{ "spinlock", "wedge/holder", wedge_holds, FIRST },
	{ "spinlock", "wedge/waiter", wedge_waits, OTHER },
	{ "interrupt", "wedge/interrupt", wedge_is_interrupted, LAST },
	{ "oops", "wedge/oops", wedge_outer },
	{ "overflow", "wedge/overflow", wedge_overflows },
	{ "calls", "wedge/calls", wedge_calls },
};

/* What calls, until the module is removed. */
static struct task_struct *wedge_caller;

static int wedge_thread(void *data)
{
	const struct wedge *wedge = data;

	/* The loader forgets the memory of wedge_init when no other CPU has to answer it any more; then
	 * insmod has to come back to who called it. */
	while (READ_ONCE(THIS_MODULE->mem[MOD_INIT_TEXT].base))
		msleep(10);
	msleep(200);
	wedge->does();
	barrier();
	return 0;
}

static bool __init wedge_wants(const char *word)
{
	const char *at = how;
	size_t length = strlen(word);

	while (strncmp(at, word, length) || (at[length] && at[length] != ',')) {
		at = strchr(at, ',');
		if (!at)
			return false;
		at++;
	}
	return true;
}

static int __init wedge_init(void)
{
	unsigned int first = cpumask_first(cpu_online_mask), last = cpumask_last(cpu_online_mask);
	int i, started = 0;

	for (i = 0; i < ARRAY_SIZE(wedges); i++) {
		const struct wedge *wedge = &wedges[i];
		struct task_struct *thread;

		if (!wedge_wants(wedge->how) || (wedge->on == OTHER && first == last))
			continue;
		thread = kthread_create(wedge_thread, (void *)wedge, "%s", wedge->name);
		if (IS_ERR(thread)) {
			/* One that has been started needs the module to stay. */
			if (!started)
				return PTR_ERR(thread);
			continue;
		}
		if (wedge->on != ANYWHERE)
			kthread_bind(thread, wedge->on == FIRST ? first : last);
		if (wedge->does == wedge_calls)
			wedge_caller = get_task_struct(thread);
		else
			__module_get(THIS_MODULE);
		wake_up_process(thread);
		started++;
	}
	if (!started)
		return -EINVAL;
	pr_info("wedge: %s\n", how);
	return 0;
}

static void __exit wedge_exit(void)
{
	kthread_stop(wedge_caller);
	put_task_struct(wedge_caller);
}

module_init(wedge_init);
module_exit(wedge_exit);
