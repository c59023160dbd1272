//! Calls against memory that a test lays out, on every architecture.

mod bounds;

use super::table::{Kind, Table};
use super::trace::{Filter, Style, Tracer};
use super::xen::{Delivery, Platform, Xen, errno};
use super::{Caller, Effect, Family, Hypercalls, RawCall};
use crate::End;
use crate::ram::Ram;
use arch::GuestPhys;
use arch::address::PhysRange;
use arch::hypercall::Abi;
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, Mutex};

const SIZE: usize = 0x2_0000;

/// Until when it was waited for, and whether that was over at once.
type Wait = (Option<u64>, bool);

/// Memory, a console, and what was asked of the platform; the clones share it. A family's own tests call from it.
#[derive(Clone, Debug)]
pub(super) struct Bench {
    memory: Arc<Mutex<Vec<u8>>>,
    console: Arc<Mutex<Vec<u8>>>,
    interrupts: Arc<Mutex<Vec<(u32, u32)>>>,
    reads: Arc<Mutex<Vec<(u64, usize)>>>,
    waits: Arc<Mutex<Vec<Wait>>>,
    /// It has a delivery of its own...
    delivers: bool,
    /// ...which has been told this.
    told: Arc<Mutex<Vec<String>>>,
}

impl Bench {
    pub fn new() -> Bench {
        Bench {
            memory: Arc::new(Mutex::new(vec![0; SIZE])),
            console: Arc::default(),
            interrupts: Arc::default(),
            reads: Arc::default(),
            waits: Arc::default(),
            delivers: false,
            told: Arc::default(),
        }
    }

    pub fn put(&self, address: u64, bytes: &[u8]) {
        assert_eq!(Caller::write(self, address, bytes), bytes.len());
    }

    pub fn words(&self, address: u64, words: &[u32]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.put(address, &bytes);
    }

    pub fn get(&self, address: usize, size: usize) -> Vec<u8> {
        self.memory.lock().unwrap()[address..address + size].to_vec()
    }
}

impl Caller for Bench {
    fn vcpu(&self) -> u32 {
        0
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> usize {
        self.reads.lock().unwrap().push((address, bytes.len()));
        let memory = self.memory.lock().unwrap();
        let at = usize::try_from(address).unwrap_or(SIZE).min(SIZE);
        let count = bytes.len().min(SIZE - at);
        bytes[..count].copy_from_slice(&memory[at..at + count]);
        count
    }

    fn write(&self, address: u64, bytes: &[u8]) -> usize {
        let mut memory = self.memory.lock().unwrap();
        let at = usize::try_from(address).unwrap_or(SIZE).min(SIZE);
        let count = bytes.len().min(SIZE - at);
        memory[at..at + count].copy_from_slice(&bytes[..count]);
        count
    }
}

impl Ram for Bench {
    fn ranges(&self) -> Vec<PhysRange> {
        vec![PhysRange::new(0, SIZE as u64), PhysRange::new(0x1_0000_0000, 0x10_0000)]
    }

    fn read(&self, address: GuestPhys, bytes: &mut [u8]) -> usize {
        Caller::read(self, address.0, bytes)
    }

    fn write(&self, address: GuestPhys, bytes: &[u8]) -> usize {
        Caller::write(self, address.0, bytes)
    }

    fn update(&self, address: GuestPhys, size: usize, set: u64, clear: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        (Ram::read(self, address, &mut bytes[..size]) == size).then_some(())?;
        let old = u64::from_le_bytes(bytes);
        Ram::write(self, address, &(old & !clear | set).to_le_bytes()[..size]);
        Some(old)
    }

    fn shared(&self, _: GuestPhys, _: usize) -> Option<vm_memory::VolatileSlice<'_>> {
        None
    }

    fn forget_mapping(&self, _: GuestPhys) {}
}

impl Platform for Bench {
    fn console_write(&self, bytes: &[u8]) {
        self.console.lock().unwrap().extend(bytes);
    }

    fn console_read(&self, bytes: &mut [u8]) -> usize {
        let count = bytes.len().min(2);
        bytes[..count].copy_from_slice(&b"hi"[..count]);
        count
    }

    fn ram(&self) -> &dyn Ram {
        self
    }

    fn vcpus(&self) -> u32 {
        2
    }

    fn interrupt(&self, vcpu: u32, number: u32, _: u64) {
        self.interrupts.lock().unwrap().push((vcpu, number));
    }

    fn now(&self) -> u64 {
        1000
    }

    fn wall(&self) -> u64 {
        1_700_000_000_000_001_000
    }

    fn set_timer(&self, _: u32, _: Option<u64>) {}

    fn wait(&self, until: Option<u64>, is_over: &dyn Fn() -> bool) {
        self.waits.lock().unwrap().push((until, is_over()));
    }

    fn delivery(&self) -> Option<&dyn Delivery> {
        self.delivers.then_some(self as &dyn Delivery)
    }
}

impl Delivery for Bench {
    fn share(&self, address: u64, abi: Abi) -> bool {
        self.told.lock().unwrap().push(format!("share {address:#x} {abi:?}"));
        true
    }

    fn place(&self, vcpu: u32, info: u64) {
        self.told.lock().unwrap().push(format!("place {vcpu} {info:#x}"));
    }

    fn set_vector(&self, vcpu: u32, vector: u8) {
        self.told.lock().unwrap().push(format!("vector {vcpu} {vector:#x}"));
    }

    fn set_callback(&self, vector: u8) -> bool {
        self.told.lock().unwrap().push(format!("callback {vector:#x}"));
        true
    }

    fn send(&self, vcpu: u32, port: u32) -> bool {
        self.told.lock().unwrap().push(format!("send {vcpu} {port}"));
        true
    }
}

/// A sink that a test can look at.
#[derive(Clone, Debug, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A guest that calls a family, and the trace of its calls. A family's own tests have one as well.
pub(super) struct Guest {
    pub bench: Bench,
    lines: Lines,
    calls: Hypercalls,
    abi: Abi,
}

impl Guest {
    fn with(abi: Abi, style: Style) -> Guest {
        Guest::on(Bench::new(), abi, style)
    }

    fn on(bench: Bench, abi: Abi, style: Style) -> Guest {
        Guest::calling(Arc::new(Xen::new(Box::new(bench.clone()))), bench, abi, style)
    }

    /// One that calls this family, and has this memory.
    pub fn calling(family: Arc<dyn Family>, bench: Bench, abi: Abi, style: Style) -> Guest {
        let lines = Lines::default();
        let tracer = Tracer::new(Some(Box::new(lines.clone())), style, Filter::default());
        Guest { bench, lines, calls: Hypercalls::new(family, tracer, true), abi }
    }

    /// Makes calls of all kinds, with memory full of ones, where every count is as large as can be and every pointer is
    /// wild: it panics where the family does. How often one call has read memory at most, by its number.
    pub fn takes_anything(&self) -> BTreeMap<u64, usize> {
        self.bench.put(0, &vec![0xff; SIZE]);
        let mut seen = BTreeMap::new();
        for number in 0..64 {
            for op in (0..40).chain([u64::MAX]) {
                for pointer in [0, 0x1000, SIZE as u64 - 5, u64::MAX - 3] {
                    let before = self.bench.reads.lock().unwrap().len();
                    self.call(number, &[op, pointer, pointer, pointer, pointer, pointer]);
                    self.call(number, &[pointer, op, u64::MAX, pointer, pointer, pointer]);
                    let reads = self.bench.reads.lock().unwrap().len() - before;
                    let most = seen.entry(number).or_insert(0);
                    *most = reads.max(*most);
                    self.bench.put(0, &vec![0xff; SIZE]);
                }
            }
        }
        seen
    }

    fn new(abi: Abi) -> Guest {
        Guest::with(abi, Style::Lines)
    }

    fn raw(&self, number: u64, arguments: &[u64]) -> RawCall {
        // What is in the registers behind the arguments is nobody's business.
        let mut all = [0xdead_beef_dead_beef; 6];
        all[..arguments.len()].copy_from_slice(arguments);
        RawCall { abi: self.abi, number, arguments: all }
    }

    /// Makes a call; its result.
    pub fn call(&self, number: u64, arguments: &[u64]) -> i64 {
        self.calls.serve(self.raw(number, arguments), &self.bench).result
    }

    /// The last line of the trace, without vCPU and time.
    fn line(&self) -> String {
        let lines = String::from_utf8(self.lines.0.lock().unwrap().clone()).unwrap();
        let line = lines.lines().last().unwrap_or_default();
        line.split_once("] ").map_or(line, |(_, line)| line).to_string()
    }

    /// Makes a call; its line of the trace, without vCPU and time.
    pub fn traced(&self, number: u64, arguments: &[u64]) -> String {
        self.call(number, arguments);
        self.line()
    }
}

fn table() -> &'static Table {
    Xen::new(Box::new(Bench::new())).table()
}

/// Names and argument counts of Xen 4.20's `hypercall-defs.c`, on 64-bit architectures; the last
/// column is whether Arm has it. Calls that it has not are from older releases.
const PUBLIC: &[(u64, &str, usize, bool)] = &[
    (0, "set_trap_table", 1, false),
    (1, "mmu_update", 4, false),
    (2, "set_gdt", 2, false),
    (3, "stack_switch", 2, false),
    (4, "set_callbacks", 3, false),
    (5, "fpu_taskswitch", 1, false),
    (6, "sched_op_compat", 2, true),
    (7, "platform_op", 1, true),
    (8, "set_debugreg", 2, false),
    (9, "get_debugreg", 1, false),
    (10, "update_descriptor", 2, false),
    (12, "memory_op", 2, true),
    (13, "multicall", 2, true),
    (14, "update_va_mapping", 3, false),
    (15, "set_timer_op", 1, false),
    (16, "event_channel_op_compat", 1, true),
    (17, "xen_version", 2, true),
    (18, "console_io", 3, true),
    (19, "physdev_op_compat", 1, true),
    (20, "grant_table_op", 3, true),
    (21, "vm_assist", 2, true),
    (22, "update_va_mapping_otherdomain", 4, false),
    (23, "iret", 0, false),
    (24, "vcpu_op", 3, true),
    (25, "set_segment_base", 2, false),
    (26, "mmuext_op", 4, false),
    (27, "xsm_op", 1, true),
    (28, "nmi_op", 2, false),
    (29, "sched_op", 2, true),
    (30, "callback_op", 2, false),
    (31, "xenoprof_op", 2, false),
    (32, "event_channel_op", 2, true),
    (33, "physdev_op", 2, true),
    (34, "hvm_op", 2, true),
    (35, "sysctl", 1, true),
    (36, "domctl", 1, true),
    (37, "kexec_op", 2, false),
    (38, "tmem_op", 1, false),
    (39, "argo_op", 5, true),
    (40, "xenpmu_op", 2, false),
    (41, "dm_op", 3, true),
    (42, "hypfs_op", 5, true),
    (48, "mca", 1, false),
    (49, "paging_domctl_cont", 1, false),
];

#[test]
fn the_table_has_xens_numbers_names_and_counts() {
    let calls: Vec<(u64, &str, usize, bool)> = table()
        .calls
        .iter()
        .filter(|call| call.callers.contains(&Abi::X86_64))
        .map(|call| (call.number, call.name, call.count, call.callers.contains(&Abi::Aarch64)))
        .collect();
    assert_eq!(calls, PUBLIC);
    // The arguments that a call decodes are as many as it has: those of its longest sub-operation.
    for call in &table().calls {
        let rest = call.arguments.iter().map(|argument| match argument.kind {
            Kind::Ops(name) => 1 + table().ops(name).iter().map(|op| op.arguments.len()).max().unwrap_or(0),
            _ => 1,
        });
        assert_eq!(rest.sum::<usize>(), call.count, "{}", call.name);
    }
}

#[test]
fn structures_have_xens_sizes() {
    // By sizeof() of the headers of Xen 4.20, for x86-64, i386 and Arm. Structures that are decoded
    // in part are not here.
    for (name, sizes) in [
        ("xen_compile_info", [144, 144, 144]),
        ("xen_platform_parameters", [8, 4, 8]),
        ("xen_feature_info", [8, 8, 8]),
        ("sched_shutdown", [4, 4, 4]),
        ("sched_poll", [24, 16, 24]),
        ("sched_remote_shutdown", [8, 8, 8]),
        ("sched_watchdog", [8, 8, 8]),
        ("sched_pin_override", [4, 4, 4]),
        ("evtchn_alloc_unbound", [8, 8, 8]),
        ("evtchn_bind_interdomain", [12, 12, 12]),
        ("evtchn_bind_virq", [12, 12, 12]),
        ("evtchn_bind_pirq", [12, 12, 12]),
        ("evtchn_bind_ipi", [8, 8, 8]),
        ("evtchn_close", [4, 4, 4]),
        ("evtchn_send", [4, 4, 4]),
        ("evtchn_status", [24, 24, 24]),
        ("evtchn_bind_vcpu", [8, 8, 8]),
        ("evtchn_unmask", [4, 4, 4]),
        ("evtchn_reset", [2, 2, 2]),
        ("evtchn_init_control", [24, 24, 24]),
        ("evtchn_expand_array", [8, 8, 8]),
        ("evtchn_set_priority", [8, 8, 8]),
        ("evtchn_op", [28, 28, 28]),
        ("xen_memory_reservation", [32, 20, 32]),
        ("xen_memory_exchange", [72, 44, 72]),
        ("xen_memory_domain", [2, 2, 2]),
        ("xen_machphys_mfn_list", [24, 12, 24]),
        ("xen_machphys_mapping", [24, 12, 24]),
        ("xen_add_to_physmap", [24, 16, 24]),
        ("xen_add_to_physmap_batch", [32, 20, 32]),
        ("xen_remove_from_physmap", [16, 8, 16]),
        ("xen_memory_map", [16, 8, 16]),
        ("xen_foreign_memory_map", [24, 12, 24]),
        ("xen_pod_target", [40, 36, 40]),
        ("xen_mem_paging_op", [24, 24, 24]),
        ("xen_mem_access_op", [32, 24, 32]),
        ("xen_reserved_device_memory_map", [24, 16, 24]),
        ("xen_mem_acquire_resource", [32, 28, 32]),
        ("xen_hvm_set_param", [16, 16, 16]),
        ("xen_hvm_get_param", [16, 16, 16]),
        ("xen_hvm_pagetable_dying", [16, 16, 16]),
        ("xen_hvm_get_time", [8, 8, 8]),
        ("xen_hvm_get_mem_type", [16, 16, 16]),
        ("vcpu_runstate_info", [48, 44, 48]),
        ("vcpu_memory_area", [8, 8, 8]),
        ("vcpu_set_periodic_timer", [8, 8, 8]),
        ("vcpu_set_singleshot_timer", [16, 12, 16]),
        ("vcpu_register_vcpu_info", [16, 16, 16]),
        ("vcpu_get_physid", [8, 8, 8]),
        ("gnttab_map_grant_ref", [32, 32, 32]),
        ("gnttab_unmap_grant_ref", [24, 24, 24]),
        ("gnttab_setup_table", [24, 16, 24]),
        ("gnttab_dump_table", [4, 4, 4]),
        ("gnttab_transfer", [24, 16, 24]),
        ("gnttab_copy_ptr", [16, 8, 16]),
        ("gnttab_copy", [40, 24, 40]),
        ("gnttab_query_size", [16, 16, 16]),
        ("gnttab_unmap_and_replace", [24, 24, 24]),
        ("gnttab_set_version", [4, 4, 4]),
        ("gnttab_get_status_frames", [16, 12, 16]),
        ("gnttab_get_version", [8, 8, 8]),
        ("gnttab_swap_grant_ref", [12, 12, 12]),
        ("gnttab_cache_flush", [16, 16, 16]),
        ("physdev_eoi", [4, 4, 4]),
        ("physdev_pirq_eoi_gmfn", [8, 4, 8]),
        ("physdev_irq_status_query", [8, 8, 8]),
        ("physdev_set_iopl", [4, 4, 4]),
        ("physdev_set_iobitmap", [16, 8, 16]),
        ("physdev_apic_read", [16, 12, 16]),
        ("physdev_apic_write", [16, 12, 16]),
        ("physdev_irq", [8, 8, 8]),
        ("physdev_map_pirq", [40, 36, 40]),
        ("physdev_unmap_pirq", [8, 8, 8]),
        ("physdev_manage_pci", [2, 2, 2]),
        ("physdev_manage_pci_ext", [16, 16, 16]),
        ("physdev_setup_gsi", [8, 8, 8]),
        ("physdev_get_free_pirq", [8, 8, 8]),
        ("physdev_pci_mmcfg_reserved", [16, 16, 16]),
        ("physdev_pci_device_add", [12, 12, 12]),
        ("physdev_pci_device", [4, 4, 4]),
        ("physdev_pci_device_reset", [8, 8, 8]),
        ("physdev_dbgp_op", [6, 6, 6]),
        ("physdev_op", [24, 16, 24]),
        ("mmu_update", [16, 16, 16]),
        ("mmuext_op", [24, 12, 24]),
        ("xen_argo_register_ring", [12, 12, 12]),
        ("xen_argo_unregister_ring", [8, 8, 8]),
        ("xen_argo_addr", [8, 8, 8]),
        ("xen_argo_send_addr", [16, 16, 16]),
        ("xen_argo_iov", [16, 12, 16]),
        ("xen_argo_ring_data", [8, 8, 8]),
        ("xen_dm_op_create_ioreq_server", [6, 6, 6]),
        ("xen_dm_op_get_ioreq_server_info", [24, 24, 24]),
        ("xen_dm_op_ioreq_server_range", [24, 24, 24]),
        ("xen_dm_op_set_ioreq_server_state", [4, 4, 4]),
        ("xen_dm_op_destroy_ioreq_server", [4, 4, 4]),
        ("xen_dm_op_track_dirty_vram", [16, 16, 16]),
        ("xen_dm_op_set_pci_intx_level", [6, 6, 6]),
        ("xen_dm_op_set_isa_irq_level", [2, 2, 2]),
        ("xen_dm_op_set_pci_link_route", [2, 2, 2]),
        ("xen_dm_op_modified_memory", [8, 8, 8]),
        ("xen_dm_op_set_mem_type", [16, 16, 16]),
        ("xen_dm_op_inject_event", [24, 24, 24]),
        ("xen_dm_op_inject_msi", [16, 16, 16]),
        ("xen_dm_op_map_mem_type_to_ioreq_server", [16, 16, 16]),
        ("xen_dm_op_remote_shutdown", [4, 4, 4]),
        ("xen_dm_op_relocate_memory", [24, 24, 24]),
        ("xen_dm_op_pin_memory_cacheattr", [24, 24, 24]),
        ("xen_dm_op_set_irq_level", [8, 8, 8]),
        ("xen_dm_op_nr_vcpus", [4, 4, 4]),
        ("xen_dm_op_buf", [16, 8, 16]),
        ("domctl_vcpuaffinity_a", [40, 40, 40]),
        ("domctl_nodeaffinity", [16, 16, 16]),
        ("domctl_max_mem", [8, 8, 8]),
        ("domctl_max_vcpus", [4, 4, 4]),
        ("domctl_vcpucontext", [16, 16, 16]),
        ("domctl_setdomainhandle", [16, 16, 16]),
        ("domctl_iomem_permission", [24, 24, 24]),
        ("domctl_ioport_permission", [12, 12, 12]),
        ("domctl_irq_permission_14", [8, 8, 8]),
        ("domctl_hypercall_init", [8, 8, 8]),
        ("domctl_settimeoffset_b", [8, 8, 8]),
        ("domctl_hvmcontext", [16, 16, 16]),
        ("domctl_address_size", [4, 4, 4]),
        ("domctl_memory_mapping", [32, 32, 32]),
        ("domctl_set_target", [2, 2, 2]),
        ("domctl_tsc_info", [24, 24, 24]),
        ("domctl_getpageframeinfo3", [16, 16, 16]),
        ("domctl_paging_mempool", [8, 8, 8]),
        ("domctl_cacheflush", [16, 8, 16]),
        ("sysctl_readconsole", [24, 24, 24]),
        ("sysctl_getdomaininfolist", [24, 24, 24]),
        ("sysctl_getcpuinfo", [24, 24, 24]),
        ("sysctl_availheap", [24, 24, 24]),
        ("sysctl_cputopoinfo", [16, 16, 16]),
        ("sysctl_numainfo", [24, 24, 24]),
        ("sysctl_debug_keys", [16, 16, 16]),
        ("sysctl_cpupool_op", [40, 40, 40]),
        ("callback_unregister", [4, 4, 4]),
    ] {
        let actual = Abi::ALL.map(|abi| table().layout_of(name, abi).0);
        assert_eq!(actual, sizes, "{name}");
    }
}

#[test]
fn event_channels_as_strace_would() {
    for abi in Abi::ALL {
        let guest = Guest::new(abi);
        guest.bench.words(0x1000, &[0x7ff0, 0]);
        assert_eq!(
            guest.traced(32, &[6, 0x1000]),
            "event_channel_op(EVTCHNOP_alloc_unbound, {dom=DOMID_SELF, remote_dom=0, port=→1}) = 0"
        );
        assert_eq!(guest.bench.get(0x1004, 4), [1, 0, 0, 0]);
        guest.bench.words(0x1000, &[99]);
        assert_eq!(guest.traced(32, &[4, 0x1000]), "event_channel_op(EVTCHNOP_send, {port=99}) = -EINVAL");
        guest.bench.words(0x1000, &[0x7ff0, 1]);
        assert_eq!(
            guest.traced(32, &[5, 0x1000]),
            "event_channel_op(EVTCHNOP_status, {dom=DOMID_SELF, port=1, status=→EVTCHNSTAT_unbound, vcpu=→0}) = 0"
        );
        assert_eq!(guest.traced(32, &[77, 0x1000]), "event_channel_op(77) = -ENOSYS");
    }
}

#[test]
fn only_arguments_are_read() {
    let guest = Guest::new(Abi::X86_64);
    assert_eq!(guest.traced(29, &[0]), "sched_op(SCHEDOP_yield) = 0");
    assert_eq!(guest.traced(24, &[3, 1]), "vcpu_op(VCPUOP_is_up, 1) = 1");
    assert_eq!(guest.traced(17, &[0]), "xen_version(XENVER_version) = 0x40014");
    assert!(guest.bench.reads.lock().unwrap().is_empty());
    assert_eq!(guest.traced(99, &[]), "hypercall(99) = -ENOSYS");
    // Nor is a text read twice, or a call within a call.
    guest.bench.put(0x2000, b"once");
    guest.call(18, &[0, 4, 0x2000]);
    assert_eq!(std::mem::take(&mut *guest.bench.reads.lock().unwrap()), [(0x2000, 4)]);
    guest.call(13, &[0x2800, 1]);
    assert_eq!(std::mem::take(&mut *guest.bench.reads.lock().unwrap()), [(0x2800, 64)]);
    // A structure that is only written is not read; one that is answered and shown is read once.
    guest.call(17, &[1, 0x1000]);
    assert!(guest.bench.reads.lock().unwrap().is_empty());
    assert_eq!(guest.line(), "xen_version(XENVER_extraversion, {extraversion=→\".0-vmm\"}) = 0");
    guest.call(17, &[6, 0x1000]);
    assert_eq!(*guest.bench.reads.lock().unwrap(), [(0x1000, 8)]);
}

#[test]
fn the_console() {
    let guest = Guest::new(Abi::Aarch64);
    guest.bench.put(0x2000, b"hello\n\x01\"");
    assert_eq!(
        guest.traced(18, &[0, 8, 0x2000]),
        "console_io(CONSOLEIO_write, 8, \"hello\\n\\x01\\\"\") = 0"
    );
    assert_eq!(*guest.bench.console.lock().unwrap(), b"hello\n\x01\"");
    assert_eq!(guest.traced(18, &[1, 8, 0x2000]), "console_io(CONSOLEIO_read, 8, →\"hi\") = 2");
    // A count beyond memory: what is there is written, and shown as far as is sensible.
    let line = guest.traced(18, &[0, 1 << 31, SIZE as u64 - 3]);
    assert_eq!(
        line,
        "console_io(CONSOLEIO_write, 2147483648, \"\"...(2147483645 more)) = -EFAULT"
            .replace("\"\"", "\"\\x00\\x00\\x00\"")
    );
}

#[test]
fn memory_and_parameters() {
    for abi in Abi::ALL {
        let guest = Guest::new(abi);
        let long = |value: u64| value.to_le_bytes()[..abi.word()].to_vec();
        let mut bytes = [0xf0, 0x7f, 0, 0, 0, 0, 0, 0].to_vec();
        bytes.extend(long(0));
        bytes.extend(long(3));
        guest.bench.put(0x1000, &bytes);
        assert_eq!(
            guest.traced(12, &[7, 0x1000]),
            "memory_op(XENMEM_add_to_physmap, {domid=DOMID_SELF, size=0, space=XENMAPSPACE_shared_info, idx=0, gpfn=3}) = 0"
        );
        guest.bench.words(0x1000, &[0x7ff0, 1, 0, 0]);
        assert_eq!(
            guest.traced(34, &[1, 0x1000]),
            "hvm_op(HVMOP_get_param, {domid=DOMID_SELF, index=HVM_PARAM_STORE_PFN, value=→0}) = 0"
        );
        guest.bench.put(0x1000, &[2u32.to_le_bytes().to_vec(), vec![0; 12]].concat());
        guest.bench.put(0x1000 + abi.word() as u64, &long(0x1800));
        assert_eq!(
            guest.traced(12, &[9, 0x1000]),
            "memory_op(XENMEM_memory_map, {nr_entries=2→2, buffer=0x1800}) = 0"
        );
        assert_eq!(guest.bench.get(0x1814, 8), 0x1_0000_0000u64.to_le_bytes());
    }
}

#[test]
fn events_reach_the_vcpu_that_is_bound() {
    let guest = Guest::new(Abi::X86_64);
    guest.bench.put(0x1000, &[&[0xf0, 0x7f, 0, 0, 0, 0, 0, 0][..], &[0; 8], &4u64.to_le_bytes()].concat());
    assert_eq!(guest.call(12, &[7, 0x1000]), 0);
    guest.bench.words(0x1000, &[1, 0x55]);
    assert_eq!(guest.call(34, &[23, 0x1000]), 0);
    guest.bench.words(0x1000, &[1, 0]);
    assert_eq!(guest.traced(32, &[7, 0x1000]), "event_channel_op(EVTCHNOP_bind_ipi, {vcpu=1, port=→1}) = 0");
    guest.bench.words(0x1000, &[1]);
    assert_eq!((guest.call(32, &[4, 0x1000]), guest.call(32, &[4, 0x1000])), (0, 0));
    // Pending already, so only one interrupt.
    assert_eq!(*guest.bench.interrupts.lock().unwrap(), [(1, 0x55)]);
    // vCPU 1's upcall is pending, its selector names word 0, and port 1 is pending.
    assert_eq!((guest.bench.get(0x4040, 1), guest.bench.get(0x4048, 1)), (vec![1], vec![1]));
    assert_eq!(guest.bench.get(0x4800, 1), [2]);
}

#[test]
fn a_host_that_delivers_events_is_told() {
    let guest = Guest::on(Bench { delivers: true, ..Bench::new() }, Abi::X86_64, Style::Lines);
    let told = || std::mem::take(&mut *guest.bench.told.lock().unwrap());
    guest.bench.words(0x1000, &[0x7ff0, 0, 0, 0, 4, 0]);
    assert_eq!(guest.call(12, &[7, 0x1000]), 0);
    assert_eq!(told(), ["share 0x4000 X86_64", "place 0 0x4000", "place 1 0x4040"]);
    guest.bench.words(0x1000, &[1, 0x55]);
    assert_eq!(guest.call(34, &[23, 0x1000]), 0);
    // A vCPU's own place, which stays when the shared page moves; the other's moves with it.
    guest.bench.words(0x1000, &[6, 0, 0x80, 0]);
    assert_eq!(guest.call(24, &[10, 1, 0x1000]), 0);
    guest.bench.words(0x1000, &[0x7ff0, 0, 0, 0, 5, 0]);
    assert_eq!(guest.call(12, &[7, 0x1000]), 0);
    assert_eq!(told(), ["vector 1 0x55", "place 1 0x6080", "share 0x5000 X86_64", "place 0 0x5000"]);
    // A vector for all vCPUs, and none again.
    for (value, word) in [(0x200_0000, "callback 0x33"), (0, "callback 0x0")] {
        guest.bench.words(0x1000, &[0x7ff0, 0, u32::from(value != 0) * 0x33, value]);
        assert_eq!(guest.call(34, &[0, 0x1000]), 0);
        assert_eq!(told(), [word]);
    }
    // Events go to it, with the vCPU that they are bound to; nothing is interrupted from here.
    guest.bench.interrupts.lock().unwrap().clear();
    guest.bench.words(0x1000, &[1, 0]);
    assert_eq!(guest.call(32, &[7, 0x1000]), 0);
    guest.bench.words(0x1000, &[1]);
    assert_eq!(guest.call(32, &[4, 0x1000]), 0);
    assert_eq!(told(), ["send 1 1"]);
    // One that came while it was masked is sent again when it is unmasked.
    guest.bench.put(0x5000 + 2048, &[2]);
    guest.bench.put(0x5000 + 2560, &[2]);
    assert_eq!(guest.call(32, &[9, 0x1000]), 0);
    assert_eq!((told(), guest.bench.get(0x5000 + 2560, 1)), (vec!["send 1 1".to_string()], vec![0]));
    assert!(guest.bench.interrupts.lock().unwrap().is_empty());
}

#[test]
fn a_vector_for_all_vcpus_needs_the_hosts_delivery() {
    let guest = Guest::new(Abi::X86_64);
    guest.bench.words(0x1000, &[0x7ff0, 0, 0x33, 0x200_0000]);
    assert_eq!(guest.call(34, &[0, 0x1000]), errno::EOPNOTSUPP);
}

#[test]
fn polls() {
    let guest = Guest::new(Abi::X86_64);
    guest.bench.words(0x1000, &[0x7ff0, 0, 0, 0, 4, 0]);
    assert_eq!(guest.call(12, &[7, 0x1000]), 0);
    let poll = |ports: u64, count: u32, timeout: u64| {
        let structure = [ports.to_le_bytes(), u64::from(count).to_le_bytes(), timeout.to_le_bytes()].concat();
        guest.bench.put(0x1000, &structure);
        guest.bench.reads.lock().unwrap().clear();
        guest.traced(29, &[3, 0x1000])
    };
    let waits = || std::mem::take(&mut *guest.bench.waits.lock().unwrap());
    guest.bench.words(0x1100, &[5, 70]);
    assert_eq!(
        poll(0x1100, 2, 5000),
        "sched_op(SCHEDOP_poll, {ports=[5, 70], nr_ports=2, timeout=5000}) = 0"
    );
    assert_eq!(waits(), [(Some(5000), false)]);
    // The ports are read once, though they are shown as well.
    let reads =
        guest.bench.reads.lock().unwrap().iter().filter(|(at, _)| *at >= 0x1100 && *at < 0x1108).count();
    assert_eq!(reads, 2);
    // Port 70 is bit 6 of word 1.
    guest.bench.put(0x4000 + 2048 + 8, &[0x40]);
    poll(0x1100, 2, 0);
    assert_eq!(waits(), [(None, true)]);
    for (ports, count, error) in
        [(0x1100, 129, "-EINVAL"), (0x7000_0000, 1, "-EFAULT"), (0x1000, 1, "-EINVAL")]
    {
        guest.bench.words(0x1100, &[5, 4096]);
        let line = poll(ports, count, 0);
        assert!(line.ends_with(error), "{line}");
    }
    assert_eq!(waits(), []);
}

#[test]
fn calls_within_calls() {
    let guest = Guest::new(Abi::X86_64);
    let entry = |at: u64, number: u64, arguments: &[u64]| {
        let words = [&[number, 0], arguments].concat();
        guest.bench.put(at, &words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>());
    };
    entry(0x3000, 17, &[0]);
    entry(0x3040, 13, &[0x3000, 1]);
    entry(0x3080, 1000, &[]);
    assert_eq!(
        guest.traced(13, &[0x3000, 3]),
        "multicall([xen_version(XENVER_version) = 0x40014, multicall(0x3000, 1) = -EINVAL, \
         hypercall(1000) = -ENOSYS], 3) = 0"
    );
    let result = |at: usize| i64::from_le_bytes(guest.bench.get(at + 8, 8).try_into().unwrap());
    assert_eq!((result(0x3000), result(0x3040), result(0x3080)), (0x4_0014, errno::EINVAL, errno::ENOSYS));
    // The guest may end within one.
    guest.bench.words(0x1000, &[1]);
    entry(0x3080, 29, &[2, 0x1000]);
    let answer = guest.calls.serve(guest.raw(13, &[0x3000, 3]), &guest.bench);
    assert_eq!(answer.effect, Effect::End(End::Reset));
    let line = guest.traced(13, &[0x3000, u64::MAX]);
    assert!(
        line.ends_with("more], 18446744073709551615) = -EINVAL") || line.ends_with("= -EFAULT"),
        "{line}"
    );
}

#[test]
fn toolstack_calls_by_version() {
    let guest = Guest::new(Abi::X86_64);
    guest.bench.words(0x1000, &[11, 0x17, 3, 0, 0x1000, 0]);
    assert_eq!(
        guest.traced(36, &[0x1000]),
        "domctl({cmd=XEN_DOMCTL_max_mem, interface_version=0x17, domid=3, max_mem={max_memkb=4096}}) = -ENOSYS"
            .replace("domid=3", "domain=3")
    );
    guest.bench.words(0x1000, &[2, 0x8, 3, 0]);
    assert_eq!(
        guest.traced(36, &[0x1000]),
        "domctl({cmd=XEN_DOMCTL_destroydomain, interface_version=8, domain=3}) = -ENOSYS"
    );
    guest.bench.words(0x1000, &[11, 0x99, 3, 0]);
    assert_eq!(guest.traced(36, &[0x1000]), "domctl({cmd=11, interface_version=0x99, ...}) = -ENOSYS");
    guest.bench.words(0x1000, &[6, 0x15, 0, 64, 0x4000, 0, 0, 0]);
    assert_eq!(
        guest.traced(35, &[0x1000]),
        "sysctl({cmd=XEN_SYSCTL_getdomaininfolist, interface_version=0x15, \
         getdomaininfolist={first_domain=0, max_domains=64, buffer=0x4000}}) = -ENOSYS"
    );
}

#[test]
fn ends_and_waits() {
    let guest = Guest::new(Abi::X86_64);
    for (reason, end) in [(0, End::PowerOff), (1, End::Reset), (3, End::Crash)] {
        guest.bench.words(0x1000, &[reason]);
        let answer = guest.calls.serve(guest.raw(29, &[2, 0x1000]), &guest.bench);
        assert_eq!(answer.effect, Effect::End(end));
    }
    assert_eq!(guest.line(), "sched_op(SCHEDOP_shutdown, {reason=SHUTDOWN_crash}) = 0");
    assert_eq!(guest.calls.serve(guest.raw(29, &[1]), &guest.bench).effect, Effect::Halt);
}

#[test]
fn arguments_of_64_bits_take_two_registers_of_32_bits() {
    let guest = Guest::new(Abi::X86_32);
    assert_eq!(
        guest.traced(14, &[0xffff_ffff_1000_0000, 0x67, 0x1, 3]),
        "update_va_mapping(0x10000000, 0x100000067, UVMF_TLB_FLUSH|UVMF_INVLPG) = -ENOSYS"
    );
}

#[test]
fn json_and_counts() {
    let guest = Guest::with(Abi::X86_64, Style::Json);
    guest.bench.words(0x1000, &[0x7ff0, 0]);
    guest.call(32, &[6, 0x1000]);
    guest.call(36, &[0x1000]);
    let lines = String::from_utf8(guest.lines.0.lock().unwrap().clone()).unwrap();
    let first: serde_json::Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!((&first["call"], &first["operation"]), (&"event_channel_op".into(), &"alloc_unbound".into()));
    assert_eq!(first["arguments"]["arg"]["dom"]["name"], "DOMID_SELF");
    assert_eq!(first["arguments"]["arg"]["port"]["written"], 1);
    assert_eq!(first["result"], 0);
    let summary = guest.calls.summary();
    let has = |calls: &str, errors: &str, name: &str| {
        let mut rows = summary.lines();
        rows.any(|row| {
            let words: Vec<&str> = row.split_whitespace().collect();
            words.last() == Some(&name)
                && words.get(3) == Some(&calls)
                && (errors.is_empty() || words[4] == errors)
        })
    };
    assert!(
        has("1", "", "event_channel_op") && has("1", "1", "domctl") && has("2", "1", "total"),
        "{summary}"
    );
}
