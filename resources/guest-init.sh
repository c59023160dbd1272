#!/bin/busybox sh
# The first process of Debian guests in the tests and the demo. Words of the kernel's command
# line say what it does: vmm.run=poweroff (the default), reboot, shell, exit, panic, forge, idle,
# naps, stacks, module, hang, held, trace, hypervisor, kdump (which goes on as vmcore).
echo "guest: init"
b=/bin/busybox
$b mount -t devtmpfs dev /dev 2>/dev/null
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
memory=$($b awk '/^MemTotal/ {print $2}' /proc/meminfo)
echo "guest: up kernel=$($b uname -r) cpus=$($b nproc) memory_kib=$memory time=$($b date +%s)"

for module in /modules/*.ko; do
  [ -e "$module" ] && $b insmod "$module"
done

# A console whose driver is among them.
[ -t 0 ] || { (: < /dev/console) 2>/dev/null && exec < /dev/console > /dev/console 2>&1; }

run=poweroff
for word in $($b cat /proc/cmdline); do
  case $word in vmm.run=*) run=${word#vmm.run=} ;; esac
done
case $run in
  poweroff) ;;
  reboot) $b reboot -f ;;
  shell) $b setsid $b cttyhack $b sh 2>&1 ;;
  exit)
    # The exit device of an aarch64 machine; on x86_64 it is a port, which Debian's kernels
    # give no file for.
    node=$(echo /proc/device-tree/exit@*)
    $b devmem "0x${node##*@}" 32 0x10 ;;
  panic) echo c > /proc/sysrq-trigger ;;
  forge)
    # Fills 32 MiB of the page cache with pages that begin like the kernel's description of itself, and crashes.
    { echo OSRELEASE=9.9-forged; echo PAGESIZE=4096; echo "SYMBOL(prb)=ffffffff82000000"
      # Words, as a pattern takes four times as long.
      $b grep -Fw -e _stext -e init_uts_ns -e swapper_pg_dir -e init_top_pgt /proc/kallsyms \
        | $b sed 's/^\([0-9a-f]*\) . \(.*\)$/SYMBOL(\2)=\1/'
      echo "NUMBER(phys_base)=0"; echo "NUMBER(kimage_voffset)=0xffff800040000000"
    } | $b dd of=/tmp/0 bs=4096 conv=sync 2>/dev/null
    for size in 1 2 3 4 5 6 7 8 9 10 11 12 13; do $b cat /tmp/0 /tmp/0 > /tmp/1; $b mv /tmp/1 /tmp/0; done
    $b sync
    echo c > /proc/sysrq-trigger ;;
  clock)
    start=$($b awk '{print int($1 * 100)}' /proc/uptime)
    $b sleep 2
    end=$($b awk '{print int($1 * 100)}' /proc/uptime)
    echo "guest: slept centiseconds=$((end - start)) clocksource=$($b cat /sys/devices/system/clocksource/clocksource0/current_clocksource)" ;;
  held)
    # Both processors are busy and timers of several lengths are pending while it says what time it is. At
    # the word "end" on the console it says what the timers and the kernel made of it.
    now() { $b awk '{print int($1 * 100)}' /proc/uptime; }
    for cpu in 0 1; do $b taskset -c $cpu $b sh -c 'while :; do :; done' & done
    for length in 1 2 3 5 8 13; do
      (start=$(now); $b sleep $length; echo "guest: timer $length took $(($(now) - start)).") &
    done
    (while :; do echo "guest: beat $(now)."; $b usleep 200000; done) &
    while read -r word && [ "$word" != end ]; do :; done
    bad='watchdog: BUG|soft lockup|rcu: INFO|detected stall|clocksource.*(unstable|skew|readout)|blocked for more'
    $b dmesg | $b grep -iE "$bad" | $b sed 's/^/guest: complaint: /'
    echo "guest: complaints=$($b dmesg | $b grep -ciE "$bad")" ;;
  hypervisor)
    for name in type guest_type version/major version/minor properties/features; do
      echo "guest: hypervisor $name=$($b cat /sys/hypervisor/$name)"
    done ;;
  entropy)
    for function in /sys/bus/pci/devices/*; do
      echo "guest: pci ${function##*/} $($b cat $function/vendor):$($b cat $function/device)"
    done
    echo "guest: source $($b cat /sys/class/misc/hw_random/rng_current)"
    $b dd if=/dev/hwrng of=/tmp/random bs=64 count=100 2>/dev/null
    $b dd if=/dev/hwrng of=/tmp/others bs=64 count=100 2>/dev/null
    echo "guest: random bytes=$($b wc -c < /tmp/random) same=$($b cmp -s /tmp/random /tmp/others && echo yes || echo no)"
    echo "guest: zeros=$($b tr -d '\\000' < /tmp/random | $b wc -c)"
    $b grep virtio /proc/interrupts | $b sed 's/^/guest: /'
    $b dmesg | $b grep -iE 'pci|msi|virtio' | $b sed 's/^/guest: log /' ;;
  share)
    # Mounts a folder of the host's, and does what a script in it says: run.sh, or vmm.script=.
    script=run.sh
    for word in $($b cat /proc/cmdline); do
      case $word in vmm.script=*) script=${word#vmm.script=} ;; esac
    done
    $b mkdir /mnt
    $b mount -t virtiofs shared /mnt && $b sh /mnt/$script 2>&1
    bad='oops|bug:|fs/fuse|virtiofs.*(fail|error)|blocked for more'
    $b dmesg | $b grep -iE "$bad" | $b sed 's/^/guest: complaint: /'
    echo "guest: complaints=$($b dmesg | $b grep -ciE "$bad")" ;;
  cpuinfo) $b grep -m1 -iE '^(flags|features)' /proc/cpuinfo ;;
  trace)
    # Has the kernel patch the entry of a function, calls it, and has it patched back.
    $b mount -t tracefs tracing /sys/kernel/tracing
    cd /sys/kernel/tracing
    echo hrtimer_nanosleep > set_ftrace_filter
    $b sleep 0.1
    echo function > current_tracer
    $b sleep 0.1
    echo "guest: traced calls=$($b grep -c hrtimer_nanosleep trace)"
    echo nop > current_tracer
    $b sleep 0.1
    echo "guest: complaints=$($b dmesg | $b grep -ciE 'ftrace bug|warning|oops|bug:')" ;;
  kdump)
    # Loads the kernel for after a crash, and crashes.
    words=$($b sed 's/crashkernel=[^ ]*//; s/vmm.run=[^ ]*//' /proc/cmdline)
    /crash/loader --library-path /crash/lib /crash/kexec -p /crash/kernel --initrd=/crash/initrd \
      --append="$words nr_cpus=1 reset_devices vmm.run=vmcore"
    echo c > /proc/sysrq-trigger ;;
  vmcore)
    # What the kernel was that crashed.
    for words in info threads regs; do
      echo "guest: vmm core $words"
      /bin/vmm core /proc/vmcore $words
    done
    echo "guest: vmm core dmesg"
    /bin/vmm core /proc/vmcore dmesg | $b grep -A3 sysrq
    echo "guest: looked" ;;
  stacks)
    # Busy in many ways: programs begin, a device interrupts, a module is at work, and at times there is nothing to do.
    $b insmod /wedge.ko how=calls
    (while :; do $b dd if=/dev/hwrng of=/dev/null bs=64 count=20 2>/dev/null; $b usleep 20000; done) &
    (while :; do $b ls -R /proc/self > /dev/null 2>&1; $b usleep 30000; done) &
    echo "guest: busy."
    while :; do $b sh -c :; $b usleep 10000; done ;;
  module)
    # Loads a module and removes it, again and again; another takes the place meanwhile.
    bad='warning:|oops|bug:|general protection'
    while :; do
      $b insmod /wedge.ko how=calls && $b sleep 0.5 && $b rmmod wedge
      for module in /modules/*.ko; do $b rmmod "$module"; $b insmod "$module"; done
      $b dd if=/dev/hwrng of=/dev/null bs=64 count=1 2>/dev/null
      echo "guest: round, complaints=$($b dmesg | $b grep -ciE "$bad")."
    done ;;
  hang)
    # Says that it hangs: on the console, which is not believed, and then in the kernel's log.
    says='watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [init:1]'
    echo "$says"
    $b sleep 2
    echo "guest: runs on."
    echo "<0>$says" > /dev/kmsg
    while :; do $b sleep 1000; done ;;
  naps) while :; do $b sleep 0.2; done ;;
  idle) while :; do $b sleep 1000; done ;;
esac
$b poweroff -f
