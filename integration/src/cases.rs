//! The cases. Each is a function of its surroundings; [`CASES`] lists them.

mod again;
mod bad_input;
mod basics;
mod cell;
mod compared;
mod disks;
pub mod dumps;
mod ends;
pub mod gdb;
pub mod gdb_port;
mod gdb_wire;
mod held;
mod hypercalls;
mod inits;
pub mod job;
mod job_6_1;
mod job_changes;
mod job_hosts;
mod job_logs;
mod job_streams;
mod kicks;
mod library;
mod linux;
mod machines;
mod monitor;
pub mod named;
mod network;
mod program;
pub mod readme;
mod recipes;
mod shares;
mod terminal;
mod together;
mod virtio;
pub mod vsock;
mod wedged;

use crate::context::{Check, Context};
use crate::initramfs;
use crate::measure::job as measured_job;
use crate::tools;
use arch::Isa;
use std::io;
use std::path::Path;

/// What a place must be able to do for a case to run there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Small guests: any KVM.
    SmallGuests,
    /// Debian kernels: all of the processor.
    Linux,
}

/// One case.
#[derive(Clone, Copy)]
pub struct Case {
    /// Its name, as the test runner shows it behind the architecture's.
    pub name: &'static str,
    /// What it needs.
    pub needs: Needs,
    /// The Debian kernels it boots, by series.
    pub kernels: &'static [&'static str],
    /// The one architecture it is for, if it is not for both.
    pub only: Option<Isa>,
    /// The one that is enough where nobody asks for more: what it is about is the same on both.
    pub enough_on: Option<Isa>,
    /// Memory of a nest that it runs in, MiB.
    pub nest_memory: u32,
    /// The version of an aarch64 nest's interrupt controller; another than 3 sends the case to
    /// the nest.
    pub gic: u32,
    /// An aarch64 nest's processor has addresses of 52 bits with pages of 4 KiB (FEAT_LPA2).
    pub lpa2: bool,
    /// The nest runs in Debian's own QEMU, whose SVM does not trap `int3` (docs/testing.md).
    pub debians_qemu: bool,
    /// The userspace of guests with Linux.
    pub initrd: fn(Isa) -> io::Result<Vec<u8>>,
    /// Symbols of the first kernel whose places it is told, in the file `symbols`.
    pub symbols: &'static [&'static str],
    /// Modules of the first kernel, by their paths below `kernel/`, which are in the folder `modules`.
    pub modules: &'static [&'static str],
    /// Programs of Debian's that are to be there.
    pub programs: &'static [&'static str],
    /// A root to be, of Debian's packages, that is there as `root.tar`.
    pub root: Option<&'static str>,
    /// The function.
    pub run: fn(&mut Context) -> Check,
    /// Where it runs on the machine's own KVM it need not run in a nest as well: what it is about is the monitor's, and
    /// takes long there.
    pub here_is_enough: bool,
    /// What a debugger does meanwhile, on the machine that runs the tests.
    pub debugger: Option<&'static gdb::Script>,
    /// What is done afterwards, on the machine that runs the tests, with a file that the case
    /// [exports](Context::export).
    pub tools: Option<fn(Isa, &Path) -> Check>,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl Case {
    /// Whether it may run in one nest after others: it boots nothing that an emulator keeps translations of, needs
    /// nothing from outside, and takes seconds.
    pub fn shares_a_nest(&self) -> bool {
        let is_plain = self.kernels.is_empty() && self.debugger.is_none() && self.tools.is_none();
        let usual = small("", self.run);
        is_plain
            && (self.gic, self.lpa2, self.debians_qemu) == (usual.gic, usual.lpa2, usual.debians_qemu)
            && self.nest_memory == usual.nest_memory
            && !self.name.starts_with("long_")
    }
}

const fn small(name: &'static str, run: fn(&mut Context) -> Check) -> Case {
    Case {
        name,
        needs: Needs::SmallGuests,
        kernels: &[],
        only: None,
        enough_on: None,
        nest_memory: 1024,
        gic: 3,
        lpa2: true,
        debians_qemu: false,
        initrd: initramfs::guest,
        symbols: &[],
        modules: &[],
        programs: &[],
        root: None,
        run,
        here_is_enough: false,
        debugger: None,
        tools: None,
    }
}

const fn linux(name: &'static str, kernels: &'static [&'static str], run: fn(&mut Context) -> Check) -> Case {
    Case { needs: Needs::Linux, kernels, nest_memory: 2048, ..small(name, run) }
}

/// A small guest with a debugger.
const fn debugged(name: &'static str, script: &'static gdb::Script) -> Case {
    Case { debugger: Some(script), ..small(name, gdb::serve) }
}

/// A Debian kernel with a debugger.
const fn debian_debugged(name: &'static str, script: &'static gdb::Script) -> Case {
    Case { kernels: &["6.12"], needs: Needs::Linux, nest_memory: 2048, ..debugged(name, script) }
}

/// Commands in guests.
const fn job(name: &'static str, run: fn(&mut Context) -> Check) -> Case {
    Case { modules: job::MODULES, ..linux(name, &["6.12"], run) }
}

/// Guests with networks.
const fn networked(name: &'static str, run: fn(&mut Context) -> Check) -> Case {
    Case { modules: network::MODULES, ..linux(name, &["6.12"], run) }
}

/// With tools that look at what it exports.
const fn with_tools(case: Case, tools: fn(Isa, &Path) -> Check) -> Case {
    Case { tools: Some(tools), ..case }
}

/// On a host that can do all of guest debugging.
const fn nested_only(case: Case) -> Case {
    Case { needs: Needs::Linux, ..case }
}

const fn only(isa: Isa, case: Case) -> Case {
    Case { only: Some(isa), ..case }
}

/// With Linux 6.12's driver of disks.
const fn with_disk_6_12(name: &'static str, run: fn(&mut Context) -> Check) -> Case {
    Case { initrd: initramfs::guest_with_disks_6_12, ..linux(name, &["6.12"], run) }
}

/// What the machine's own KVM shows well enough.
const fn enough_here(case: Case) -> Case {
    Case { here_is_enough: true, ..case }
}

/// What one architecture shows well enough where nobody asks for more: what only the host's side of the monitor decides,
/// with Linux as the one who asks, and what other cases show of its kind on the other. Guests' boots are most of what these
/// take. Each device is on both in `long_all_devices`, and one of its cases on each.
const fn enough_on(isa: Isa, case: Case) -> Case {
    Case { enough_on: Some(isa), ..case }
}

/// On a host with a GICv2 only.
const fn gic_v2(case: Case) -> Case {
    Case { gic: 2, ..only(Isa::Aarch64, case) }
}

/// Every case.
pub const CASES: &[Case] = &[
    small("embedded_guest", basics::embedded_guest),
    small("embedded_guest_on_many_vcpus", basics::embedded_guest_on_many_vcpus),
    small("embedded_guest_with_6_gib", basics::embedded_guest_with_6_gib),
    small("exit_codes", basics::exit_codes),
    small("flat_binary", basics::flat_binary),
    only(Isa::X86_64, small("multiboot", basics::multiboot)),
    only(Isa::X86_64, small("multiboot_2", basics::multiboot2)),
    only(Isa::X86_64, small("pvh", basics::pvh)),
    small("reboot_of_a_small_guest", basics::reboot),
    small("reboot_with_devices", again::with_devices),
    only(Isa::X86_64, small("resets_of_a_pc", basics::resets)),
    only(Isa::X86_64, small("test_device", basics::test_device)),
    only(Isa::Aarch64, small("no_test_device", basics::no_test_device)),
    only(Isa::X86_64, small("triple_fault", basics::triple_fault)),
    small("unclaimed_ports_and_memory", basics::unclaimed),
    only(Isa::X86_64, small("instruction_that_kvm_cannot_emulate", basics::cannot_emulate)),
    only(Isa::Aarch64, small("undescribed_accesses", basics::undescribed)),
    small("timeout", basics::timeout),
    enough_here(small("console_input", basics::console_input)),
    small("console_file_pty_and_none", basics::console_kinds),
    small("messages_and_log", basics::messages),
    small("check_command", basics::check_command),
    small("signals", terminal::signals),
    small("terminal_keys", terminal::keys),
    small("terminal_comes_back", terminal::comes_back),
    small("stuck_console_reader", terminal::stuck_reader),
    small("terminal_keys_of_a_hung_guest", terminal::keys_of_a_hung_guest),
    small("terminal_jobs", terminal::jobs),
    enough_here(small("unread_messages", ends::unread_messages)),
    small("limited_messages", ends::limited_messages),
    enough_here(small("lost_messages", ends::lost_messages)),
    enough_here(small("file_size_limit", ends::file_size_limit)),
    small("too_many_clients", ends::too_many_clients),
    small("library_in_a_process", library::in_a_process),
    small("library_of_the_readme", readme::boots_a_guest),
    small("library_of_the_documentation", readme::debugs_a_guest),
    enough_here(small("library_of_fifty_machines", machines::come_and_go)),
    small("program_debugs_a_guest", program::small),
    Case { symbols: program::SYMBOLS, ..linux("program_debugs_debian", &["6.12"], program::debian) },
    enough_here(small("kicks_under_load", kicks::under_load)),
    small("cell_forbids", cell::forbids),
    small("cell_bounds_paths", cell::bounds_paths),
    small("cell_of_a_monitor", cell::of_a_monitor),
    small("cell_is_refused", cell::is_refused),
    small("cell_is_left", cell::is_left),
    small("bad_options", bad_input::options),
    small("bad_kernels", bad_input::kernels),
    small("bad_initrds", bad_input::initrds),
    small("kvm_absent_or_forbidden", bad_input::kvm_absent),
    enough_on(Isa::X86_64, linux("bad_debian_kernels", &["6.12"], bad_input::debian_kernels)),
    linux("debian_6_1", &["6.1"], linux::debian_6_1),
    linux("debian_6_12", &["6.12"], linux::debian_6_12),
    linux("debian_on_8_vcpus", &["6.1"], linux::on_8_vcpus),
    enough_on(Isa::X86_64, linux("debian_with_6_gib", &["6.12"], linux::with_6_gib)),
    enough_on(Isa::X86_64, linux("debian_reboot", &["6.12"], linux::reboot)),
    Case {
        initrd: initramfs::guest_with_devices_6_1,
        // Of the first one: the nest's.
        modules: network::MODULES,
        ..linux("debian_reboot_restarts", &["6.12", "6.1"], again::uses_them_again)
    },
    enough_on(Isa::X86_64, linux("debian_shell", &["6.12"], linux::shell)),
    enough_on(
        Isa::Aarch64,
        Case {
            initrd: initramfs::guest_with_console_6_1,
            ..linux("debian_virtio_console", &["6.12", "6.1"], linux::virtio_console)
        },
    ),
    linux("debian_clock", &["6.12"], linux::clock),
    linux("debian_seed", &["6.12"], linux::seed),
    enough_on(
        Isa::X86_64,
        Case {
            initrd: initramfs::guest_with_entropy_6_12,
            ..linux("virtio_entropy_6_12", &["6.12"], virtio::entropy)
        },
    ),
    enough_on(Isa::X86_64, job("job_commands", job::commands)),
    Case { modules: job_6_1::MODULES, ..linux("job_6_1", &["6.1"], job_6_1::everything) },
    enough_on(
        Isa::X86_64,
        Case { root: Some("systemd"), ..job("job_beside_systemd", inits::beside_systemd) },
    ),
    enough_on(
        Isa::X86_64,
        Case { modules: job_hosts::MODULES, ..linux("job_on_hosts", &["6.12"], job_hosts::of_all_kinds) },
    ),
    enough_on(Isa::X86_64, job("job_of_what_vanishes", job_changes::vanish)),
    enough_on(
        Isa::X86_64,
        Case {
            modules: job_changes::WITH_LOOPS,
            ..linux("job_of_a_frozen_host", &["6.12"], job_changes::frozen)
        },
    ),
    enough_on(Isa::X86_64, job("job_log_overwritten", job_logs::overwritten)),
    enough_on(Isa::Aarch64, job("job_of_a_kernel_undescribed", job_logs::of_a_kernel_undescribed)),
    enough_on(Isa::X86_64, job("job_streams", job_streams::streams)),
    enough_on(Isa::X86_64, job("job_exec", job::exec)),
    enough_on(Isa::X86_64, job("job_of_a_tree", job::of_a_tree)),
    enough_on(Isa::X86_64, job("job_images", job::images)),
    enough_on(Isa::Aarch64, job("job_kept", job::kept)),
    enough_on(Isa::X86_64, job("job_many", job::many)),
    enough_on(Isa::Aarch64, job("job_in_a_shell", job::in_a_shell)),
    enough_on(Isa::X86_64, job("job_nobody_answers", job::nobody_answers)),
    enough_on(Isa::X86_64, job("job_of_a_user", job::of_a_user)),
    enough_on(Isa::X86_64, job("job_recipes", recipes::tests_of_a_kernel)),
    enough_on(Isa::Aarch64, job("job_recipes_in_a_container", recipes::in_a_container)),
    enough_on(Isa::X86_64, job("job_stuck", job::stuck)),
    Case { modules: wedged::MODULES, ..linux("job_wedged", &["6.12"], wedged::locked) },
    Case { modules: compared::MODULES, ..linux("job_compared", &["6.12"], compared::with_its_own) },
    Case { modules: wedged::MODULES, ..linux("long_job_wedged", &["6.12"], wedged::hangs_and_crashes) },
    enough_on(Isa::Aarch64, linux("dump_on_a_hang", &["6.12"], dumps::hung)),
    enough_on(Isa::X86_64, job("job_wrong_ways", job::wrong_ways)),
    enough_on(Isa::Aarch64, job("job_judged_by_the_host", job::judged_by_the_host)),
    enough_on(Isa::X86_64, networked("long_job_network", network::of_its_own)),
    enough_on(Isa::X86_64, networked("job_network_apart", network::apart)),
    enough_on(
        Isa::X86_64,
        Case { programs: &["passt"], ..networked("job_network_by_passt", network::by_passt) },
    ),
    enough_on(Isa::Aarch64, networked("long_job_network_tap", network::tap)),
    small("long_named_guests", named::guests),
    small("named_guest_followed", named::followed),
    small("bad_networks", network::bad),
    enough_on(Isa::X86_64, linux("virtio_share_6_12", &["6.12"], shares::everything)),
    enough_on(
        Isa::Aarch64,
        Case {
            initrd: initramfs::guest_with_shares_6_1,
            ..linux("virtio_share_of_a_user_6_1", &["6.1"], shares::of_a_user)
        },
    ),
    enough_on(Isa::X86_64, linux("long_virtio_share", &["6.12"], shares::random)),
    enough_on(Isa::X86_64, linux("virtio_share_killed", &["6.12"], shares::killed)),
    small("bad_shares", shares::bad),
    enough_on(Isa::X86_64, with_disk_6_12("long_virtio_disk", disks::everything)),
    enough_on(Isa::Aarch64, with_disk_6_12("virtio_disk_killed", disks::killed)),
    enough_on(Isa::X86_64, with_disk_6_12("virtio_disk_of_two_guests", disks::two_guests)),
    enough_on(Isa::X86_64, with_disk_6_12("virtio_disk_full", disks::full)),
    small("bad_disks", disks::bad),
    enough_on(
        Isa::X86_64,
        Case {
            initrd: initramfs::guest_with_devices_6_12,
            ..linux("long_all_devices", &["6.12"], together::under_load)
        },
    ),
    enough_on(
        Isa::X86_64,
        Case {
            initrd: initramfs::guest_with_vsock,
            ..linux("long_virtio_vsock", &["6.12"], vsock::both_ways)
        },
    ),
    enough_on(
        Isa::Aarch64,
        Case {
            initrd: initramfs::guest_with_vsock,
            modules: vsock::MODULES,
            ..linux("long_virtio_vsock_by_the_kernel", &["6.12"], vsock::by_the_kernel)
        },
    ),
    only(Isa::X86_64, linux("debian_acpi_timer", &["6.12"], linux::acpi_timer)),
    linux("debian_cpu_features", &["6.12"], linux::cpu_features),
    linux("debian_panic", &["6.1"], linux::panic),
    only(Isa::Aarch64, linux("long_compressed_image", &["6.12"], linux::compressed_image)),
    only(Isa::Aarch64, linux("debian_exit_device", &["6.12"], linux::exit_device)),
    small("gdb_connections", gdb_wire::connections),
    small("gdb_halted_guest", gdb_wire::halted),
    small("gdb_bad_packets", gdb_wire::bad_packets),
    small("gdb_port_strangers", gdb_port::strangers),
    small("gdb_port_sockets", gdb_port::sockets),
    small("gdb_port_lost", gdb_port::lost),
    small("gdb_port_takeover", gdb_port::takeover),
    small("gdb_port_comes_and_leaves", gdb_port::comes_and_leaves),
    small("gdb_guest_begins_again", gdb_port::begins_again),
    small("gdb_port_long_commands", gdb_port::long_commands),
    small("gdb_many_breakpoints_and_vcpus", gdb_wire::many_breakpoints_and_vcpus),
    debugged("gdb_breakpoints_and_steps", &gdb::BREAKPOINTS),
    nested_only(debugged("gdb_watchpoints", &gdb::WATCHPOINTS)),
    only(Isa::Aarch64, nested_only(debugged("gdb_scalable_vectors", &gdb::SCALABLE_VECTORS))),
    nested_only(small("own_traps_without_a_debugger", gdb::own_traps_alone)),
    nested_only(debugged("gdb_own_traps", &gdb::OWN_TRAPS)),
    nested_only(small("gdb_own_traps_in_both_rings", gdb_wire::own_traps_in_both_rings)),
    nested_only(small("gdb_hard_steps", gdb_wire::hard_steps)),
    only(Isa::X86_64, nested_only(small("gdb_hard_steps_of_32_bits", gdb_wire::hard_steps_of_32_bits))),
    small("gdb_steps_over_devices", gdb_wire::device_steps),
    small("gdb_steps_from_a_halt", gdb_wire::steps_from_a_halt),
    debugged("gdb_conditions_and_more", &gdb::CONDITIONS),
    debian_debugged("gdb_debian", &gdb::DEBIAN),
    debian_debugged("gdb_debian_smp", &gdb::SMP),
    enough_on(Isa::X86_64, debian_debugged("gdb_debian_running", &gdb::DEBIAN_RUNNING)),
    enough_on(Isa::Aarch64, debian_debugged("gdb_debian_text", &gdb::DEBIAN_TEXT)),
    enough_on(Isa::X86_64, debian_debugged("gdb_debian_helpers", &gdb::DEBIAN_HELPERS)),
    Case {
        initrd: initramfs::guest_with_wedge,
        ..debian_debugged("long_gdb_debian_stacks", &gdb::kernel::STACKS)
    },
    Case {
        initrd: initramfs::guest_with_wedge,
        ..debian_debugged("gdb_debian_modules", &gdb::kernel::MODULES)
    },
    only(
        Isa::X86_64,
        nested_only(Case {
            debians_qemu: true,
            ..debugged("gdb_where_int3_is_not_trapped", &gdb::NOT_TRAPPED)
        }),
    ),
    only(Isa::X86_64, debugged("gdb_32_bit_code", &gdb::BITS_32)),
    only(Isa::X86_64, debugged("gdb_32_bit_kernel", &gdb::GROWS)),
    debugged("lldb_on_a_guest", &gdb::LLDB),
    enough_on(Isa::Aarch64, debian_debugged("lldb_on_debian", &gdb::LLDB_DEBIAN)),
    nested_only(debugged("gdb_on_another_monitor", &monitor::THREAD)),
    nested_only(debugged("gdb_in_another_monitors_event_loop", &monitor::LOOP)),
    nested_only(debugged("gdb_on_another_monitors_only_thread", &monitor::ALONE)),
    small("another_monitor", monitor::comes_and_goes),
    nested_only(small("gdb_simulated_instructions", gdb_wire::simulated_instructions)),
    nested_only(small("gdb_remapped_page", gdb_wire::remapped_page)),
    nested_only(small("gdb_loaded_code", gdb_wire::loaded_code)),
    small("hypercalls_traced", hypercalls::traced),
    nested_only(small("hypercalls_by_kvm", hypercalls::by_kvm)),
    only(Isa::X86_64, small("hypercalls_from_32_bit_code", hypercalls::from_32_bit_code)),
    only(Isa::X86_64, nested_only(small("hypercalls_of_kvm", hypercalls::of_kvm))),
    nested_only(small("hypercall_events", hypercalls::events)),
    small("hypercall_console", hypercalls::console),
    nested_only(small("hypercall_styles", hypercalls::styles)),
    nested_only(small("hypercall_bad_options", hypercalls::bad_options)),
    nested_only(debugged("gdb_stop_at_a_hypercall", &hypercalls::STOP)),
    nested_only(small("gdb_code_by_a_hypercall", hypercalls::code)),
    only(Isa::X86_64, linux("debian_under_xens_interface", &["6.12"], hypercalls::debian)),
    enough_on(
        Isa::X86_64,
        with_tools(linux("dump_of_debian_6_12", &["6.12"], dumps::debian_6_12), tools::debian_6_12),
    ),
    enough_on(
        Isa::Aarch64,
        with_tools(linux("dump_of_debian_6_1", &["6.1"], dumps::debian_6_1), tools::debian_6_1),
    ),
    // Most processors have no more than 48 bits, and neither has crash.
    Case {
        lpa2: false,
        ..with_tools(
            only(Isa::Aarch64, linux("dump_of_debian_6_12_with_48_bits", &["6.12"], dumps::debian_6_12)),
            tools::debian_6_12_with_48_bits,
        )
    },
    enough_on(
        Isa::X86_64,
        with_tools(
            Case {
                kernels: &["6.12"],
                nest_memory: 2048,
                run: dumps::live,
                ..nested_only(debugged("dump_says_what_the_guest_did", &dumps::LIVE))
            },
            tools::live,
        ),
    ),
    enough_on(Isa::X86_64, linux("dump_at_the_end", &["6.12"], dumps::at_the_end)),
    only(Isa::X86_64, linux("dump_of_a_triple_fault", &["6.12"], dumps::triple_fault)),
    with_tools(linux("dump_of_a_panic", &["6.12"], dumps::panicked), tools::panicked),
    Case {
        initrd: initramfs::guest_with_pvpanic,
        ..only(Isa::X86_64, linux("dump_when_linux_says_that_it_panics", &["6.12"], dumps::by_linuxs_driver))
    },
    enough_on(
        Isa::X86_64,
        Case {
            initrd: initramfs::guest_with_kdump,
            nest_memory: 3072,
            ..linux("vmcore_of_a_crashed_guest", &["6.12"], dumps::vmcore)
        },
    ),
    small("dumps_of_small_guests", dumps::of_small_guests),
    small("dumps_broken_off", dumps::broken_off),
    small("dump_files", dumps::files),
    small("dumps_of_plain_memory", dumps::of_plain_memory),
    small("long_ticks_over_holds", held::ticks),
    small("long_two_holders", held::two_holders),
    enough_on(Isa::X86_64, linux("long_debian_held", &["6.12"], held::debian)),
    small("gdb_range_run", gdb_wire::range_run),
    small("gdb_range_step", gdb_wire::range_step),
    gic_v2(small("gic_v2_embedded_guest", basics::on_gic_v2)),
    gic_v2(Case {
        initrd: initramfs::guest_with_entropy_6_1,
        ..linux("gic_v2_debian_6_1", &["6.1"], virtio::entropy)
    }),
    only(Isa::X86_64, linux("debian_vmlinux", &["6.12"], linux::vmlinux)),
];

/// The cases for an architecture; without those that are [enough on](Case::enough_on) the other, if not all are wanted.
pub fn for_isa(isa: Isa, all: bool) -> impl Iterator<Item = &'static Case> {
    let is_wanted = move |case: &&Case| all || case.enough_on.is_none_or(|enough| enough == isa);
    CASES.iter().filter(move |case| case.only.is_none_or(|only| only == isa)).filter(is_wanted)
}

/// What `make bench` runs in nests; it is no test.
pub const BENCH: [Case; 2] = [
    linux("bench_vmm", &["6.12"], crate::measure::vmm),
    linux("bench_qemu", &["6.12"], crate::measure::qemu),
];

/// How fast gdb servers are, likewise.
pub const BENCH_DEBUG: [Case; 2] = [
    linux("bench_vmm_debug", &[], crate::measure::debugging::vmm),
    linux("bench_qemu_debug", &[], crate::measure::debugging::qemu),
];

/// What a kernel is asked without symbols, likewise.
pub const BENCH_LINUX: Case = Case {
    modules: wedged::MODULES,
    tools: Some(crate::measure::linux::tools),
    ..linux("bench_linux", &["6.12"], crate::measure::linux::guest)
};

/// What hypercalls cost, likewise.
pub const BENCH_CALLS: Case = nested_only(small("bench_calls", crate::measure::calls::vmm));

/// The whole of a command in a guest, likewise.
pub const BENCH_RUN: [Case; 2] = [
    measured("bench_vmm_run", measured_job::vmm),
    measured("bench_qemu_run", measured_job::qemu_and_virtiofsd),
];

/// The same of ours with all devices.
pub const BENCH_RUN_ALL: Case = measured("bench_vmm_run_all", measured_job::vmm_with_devices);

/// What printing takes on each console, likewise.
pub const BENCH_CONSOLES: Case = measured("bench_vmm_consoles", measured_job::consoles);

/// What devices do, likewise.
pub const BENCH_DEVICES: [Case; 2] = [
    measured("bench_vmm_devices", measured_job::vmm_devices),
    measured("bench_qemu_devices", measured_job::qemu_devices),
];

const fn measured(name: &'static str, run: fn(&mut Context) -> Check) -> Case {
    Case { modules: measured_job::MODULES, ..linux(name, &["6.12"], run) }
}

/// What `make demo` shows; it is no test.
pub const DEMO: Case = linux("demo", &["6.12"], crate::demo::run);

/// Looks a case up.
pub fn find(name: &str) -> Option<&'static Case> {
    let bench = BENCH.iter().chain(&BENCH_DEBUG).chain(&BENCH_RUN).chain(&BENCH_DEVICES);
    let others = bench.chain([&BENCH_CALLS, &BENCH_LINUX, &BENCH_RUN_ALL, &BENCH_CONSOLES, &DEMO]);
    CASES.iter().chain(others).find(|case| case.name == name)
}
