//! Hypercalls of a guest: what is traced, what is answered, what the user can do wrong.

use super::gdb::{Program, Script, Tool};
use crate::context::{Check, Context, check};
use crate::process::Wiring;
use crate::rsp::Client;
use arch::Isa;
use debug::gdb::packet::{frame, hex};
use std::path::Path;

/// The trace of the test guest `xen`, without vCPU and time. KVM answers a yield itself, where it has
/// a way of its own on x86.
fn expected(isa: Isa, guest: &Path, by_kvm: bool) -> Result<Vec<String>, String> {
    let bytes = std::fs::read(guest).map_err(|error| error.to_string())?;
    let symbols = crate::guests::symbols(&bytes).ok_or("the guest has no symbols")?;
    let address = |name: &str| {
        let found = symbols.iter().find(|(symbol, _)| symbol == name);
        found.map(|(_, address)| format!("{address:#x}")).ok_or_else(|| format!("there is no symbol {name}"))
    };
    let (entries, calls) = (address("entries")?, address("calls")?);
    let features = if isa == Isa::X86_64 { "0x10205" } else { "0x10005" };
    let shared = if isa == Isa::X86_64 { "0x301" } else { "0x40301" };
    let mut lines = vec![
        "xen_version(XENVER_version) = 0x40014".to_string(),
        format!("xen_version(XENVER_get_features, {{submap_idx=0, submap=→{features}}}) = 0"),
        "console_io(CONSOLEIO_write, 6, \"hello\\n\") = 0".into(),
        format!(
            "memory_op(XENMEM_add_to_physmap, {{domid=DOMID_SELF, size=0, space=XENMAPSPACE_shared_info, idx=0, \
             gpfn={shared}}}) = 0"
        ),
        format!("memory_op(XENMEM_memory_map, {{nr_entries=4→1, buffer={entries}}}) = 0"),
    ];
    if isa == Isa::X86_64 {
        lines.push("hvm_op(HVMOP_set_evtchn_upcall_vector, {vcpu=0, vector=0x55}) = 0".into());
    }
    lines.extend([
        "hvm_op(HVMOP_get_param, {domid=DOMID_SELF, index=HVM_PARAM_STORE_PFN, value=→0}) = 0".into(),
        "vcpu_op(VCPUOP_is_up, 0) = 1".into(),
        "vcpu_op(VCPUOP_is_up, 9) = -ENOENT".into(),
        "event_channel_op(EVTCHNOP_bind_ipi, {vcpu=0, port=→1}) = 0".into(),
        "event_channel_op(EVTCHNOP_send, {port=1}) = 0".into(),
        "sched_op(SCHEDOP_yield) = 0".into(),
        format!("multicall([xen_version(XENVER_pagesize) = 0x1000, multicall({calls}, 1) = -EINVAL], 2) = 0"),
        "domctl({cmd=XEN_DOMCTL_pausedomain, interface_version=0x17, domain=5}) = -ENOSYS".into(),
        "hypercall(60) = -ENOSYS".into(),
        "event_channel_op(EVTCHNOP_close, 0x7000000000(unreadable)) = -EFAULT".into(),
        "sched_op(SCHEDOP_shutdown, {reason=SHUTDOWN_poweroff}) = 0".into(),
    ]);
    if by_kvm && isa == Isa::X86_64 {
        lines.retain(|line| !line.contains("SCHEDOP_yield"));
    }
    Ok(lines)
}

/// What is said where KVM has a way of its own.
const BY_KVM: &str = "hypercalls: xen by KVM's";

/// Runs the test guest and compares its trace line by line.
fn trace(c: &mut Context, transport: &str) -> Result<String, String> {
    let (guest, file, limit) = (c.guest("xen", false)?, c.work.join("trace"), c.limit(10));
    let words = format!(
        "-v --hypercalls xen,trace={},transport={transport} --kernel {{}} --memory 64M",
        file.display()
    );
    let run = c.run(&words, &[&guest], limit)?;
    run.expect_code(0)?;
    check(run.output == "hello\n", || format!("the console has {:?}", run.output))?;
    let text = std::fs::read_to_string(&file).map_err(|error| error.to_string())?;
    let lines: Vec<&str> =
        text.lines().map(|line| line.split_once("] ").map_or(line, |(_, call)| call)).collect();
    let wanted = expected(c.isa, &guest, run.errors.contains(BY_KVM))?;
    for (index, wanted) in wanted.iter().enumerate() {
        let line = lines.get(index).copied().unwrap_or("nothing");
        check(line == wanted, || format!("line {index} is\n{line}\ninstead of\n{wanted}"))?;
    }
    check(lines.len() == wanted.len(), || format!("{} lines instead of {}", lines.len(), wanted.len()))?;
    let stamped = text.lines().all(|line| line.starts_with("[vcpu 0 "));
    check(stamped, || format!("lines without a stamp:\n{text}"))?;
    Ok(run.errors)
}

/// Each call of the test guest is decoded and answered, by every way out of the guest.
pub fn traced(c: &mut Context) -> Check {
    let errors = trace(c, "auto")?;
    let is_kvms = errors.contains(BY_KVM);
    let is_ours = errors.contains("hypercalls: xen by a hypercall page of our own");
    check(is_kvms || is_ours, || format!("it does not say by what:\n{errors}"))?;
    if c.isa == Isa::X86_64 {
        let errors = trace(c, "page")?;
        check(errors.contains("a hypercall page of our own"), || format!("not by a page:\n{errors}"))?;
    }
    Ok(())
}

/// On nested KVM, hypercalls come by KVM's own way.
pub fn by_kvm(c: &mut Context) -> Check {
    let errors = trace(c, "auto")?;
    check(errors.contains(BY_KVM), || format!("not by KVM's way:\n{errors}"))
}

/// Runs a guest with a trace, and compares the calls in it.
fn compare(c: &mut Context, guest: &str, words: &str, code: i32, wanted: &[&str]) -> Check {
    let (guest, file, limit) = (c.guest(guest, false)?, c.work.join("trace"), c.limit(10));
    let (words, others) = words.split_once(' ').unwrap_or((words, ""));
    let options =
        format!("--hypercalls {words},trace={} --kernel {{}} --memory 64M {others}", file.display());
    let run = c.run(&options, &[&guest], limit).and_then(|run| run.expect_code(code).map(drop));
    let text = std::fs::read_to_string(&file).map_err(|error| error.to_string())?;
    run.map_err(|error| format!("{error}\nthe trace is\n{text}"))?;
    let calls: Vec<&str> = text.lines().filter_map(|line| Some(line.split_once("] ")?.1)).collect();
    check(calls == wanted, || format!("the trace is\n{text}\ninstead of\n{}", wanted.join("\n")))
}

/// Calls of 32-bit code, by each way out of the guest.
pub fn from_32_bit_code(c: &mut Context) -> Check {
    let wanted = [
        "xen_version(XENVER_version) = 0x40014",
        "console_io(CONSOLEIO_write, 3, \"32\\n\") = 0",
        "set_timer_op(9223090564187803119) = 0",
        "memory_op(XENMEM_add_to_physmap, {domid=DOMID_SELF, size=0, space=XENMAPSPACE_shared_info, idx=0, \
         gpfn=0x301}) = 0",
        "argo_op(XEN_ARGO_OP_register_ring, {aport=5, partner_id=1, len=4096}, 0x1000, 2, \
         XEN_ARGO_REGISTER_FLAG_FAIL_EXIST) = -ENOSYS",
        "sched_op(SCHEDOP_shutdown, {reason=SHUTDOWN_poweroff}) = 0",
    ];
    compare(c, "xen32", "xen", 0, &wanted)?;
    compare(c, "xen32", "xen,transport=page", 0, &wanted)
}

/// Events that come as the guest has chosen: by a vector for all vCPUs, by a private interrupt. It waits
/// and polls for its timer's, as often as it has to.
pub fn events(c: &mut Context) -> Check {
    let (shared, callback) = match c.isa {
        Isa::X86_64 => ("0x301", "0x200000000000033"),
        Isa::Aarch64 => ("0x40301", "0x20000000000001f"),
    };
    let page = format!(
        "memory_op(XENMEM_add_to_physmap, {{domid=DOMID_SELF, size=0, space=XENMAPSPACE_shared_info, idx=0, \
         gpfn={shared}}}) = 0"
    );
    let callback = format!(
        "hvm_op(HVMOP_set_param, {{domid=DOMID_SELF, index=HVM_PARAM_CALLBACK_IRQ, value={callback}}}) = 0"
    );
    let mut wanted = vec![
        page.as_str(),
        &callback,
        "event_channel_op(EVTCHNOP_bind_ipi, {vcpu=0, port=→1}) = 0",
        "event_channel_op(EVTCHNOP_send, {port=1}) = 0",
    ];
    let bind_timer = "event_channel_op(EVTCHNOP_bind_virq, {virq=VIRQ_TIMER, vcpu=0, port=→2}) = 0";
    if c.isa == Isa::X86_64 {
        wanted.extend([
            "event_channel_op(EVTCHNOP_send, {port=1}) = 0",
            "event_channel_op(EVTCHNOP_unmask, {port=1}) = 0",
            bind_timer,
            "vcpu_op(VCPUOP_register_vcpu_info, 1, {mfn=0x41, offset=0}) = 0",
            "event_channel_op(EVTCHNOP_bind_ipi, {vcpu=1, port=→3}) = 0",
            "event_channel_op(EVTCHNOP_send, {port=3}) = 0",
        ]);
    } else {
        wanted.push(bind_timer);
    }
    wanted.push("sched_op(SCHEDOP_shutdown, {reason=SHUTDOWN_poweroff}) = 0");
    let words = "xen,filter=memory_op+HVMOP_set_param+VCPUOP_register_vcpu_info+event_channel_op+SCHEDOP_shutdown --cpus 2";
    compare(c, "xen_events", words, 0, &wanted)
}

/// Input and output by Xen's console, which is the serial port's.
pub fn console(c: &mut Context) -> Check {
    let (guest, limit) = (c.guest("xen_console", false)?, c.limit(20));
    let mut vmm = c.start(Wiring::Pipes, "--hypercalls xen,trace=off --kernel {}", &[&guest])?;
    vmm.expect("ready", limit)?;
    let text = "The brown fox jumps. ".repeat(20);
    vmm.send(&text)?;
    vmm.expect(&text, limit)?;
    vmm.send("q")?;
    let code = vmm.wait(limit);
    c.keep("vmm", &vmm);
    check(code? == 0, || "no clean end".into())
}

/// KVM's own calls, decoded only.
pub fn of_kvm(c: &mut Context) -> Check {
    let wanted = [
        "kick_cpu(0, 1) = -KVM_ENOSYS",
        "map_gpa_range(0x1000, 2, KVM_MAP_GPA_RANGE_ENCRYPTED) = -KVM_ENOSYS",
    ];
    compare(c, "kvm_calls", "kvm", 0x41, &wanted)
}

/// JSON, a filter, counts at the end, and nothing at all.
pub fn styles(c: &mut Context) -> Check {
    let (guest, limit) = (c.guest("xen", false)?, c.limit(10));
    let run = c.run(
        "--hypercalls xen,json,filter=console_io+EVTCHNOP_close+EVTCHNOP_send,summary --kernel {} --memory 64M",
        &[&guest],
        limit,
    )?;
    run.expect_code(0)?;
    let objects: Vec<serde_json::Value> = run
        .errors
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str(line).map_err(|error| format!("{error} in {line}")))
        .collect::<Result<_, _>>()?;
    let calls: Vec<&str> = objects.iter().filter_map(|object| object["call"].as_str()).collect();
    let wanted = ["console_io", "event_channel_op", "event_channel_op"];
    check(calls == wanted, || format!("the filter lets {calls:?} through"))?;
    check(objects[2]["error"] == "EFAULT" && objects[0]["result"] == 0, || format!("{objects:?}"))?;
    let has_total = run.errors.lines().any(|line| line.ends_with(" total") && line.contains("100.00"));
    check(has_total, || format!("no counts:\n{}", run.errors))?;
    let run = c.run("--hypercalls xen,trace=off --kernel {} --memory 64M", &[&guest], limit)?;
    run.expect_code(0)?;
    check(!run.errors.contains("xen_version"), || format!("it is traced:\n{}", run.errors))
}

/// A hypercall writes code over a breakpoint: what it has written is what runs, and what other calls read, and the
/// breakpoint is met all the same.
pub fn code(c: &mut Context) -> Check {
    let (guest, socket) = (c.guest("written_code", false)?, c.work.join("gdb.sock"));
    let symbols =
        std::fs::read(&guest).ok().and_then(|bytes| crate::guests::symbols(&bytes)).unwrap_or_default();
    let place = symbols.iter().find(|(name, _)| name == "place").ok_or("there is no symbol place")?.1;
    let (code, pc, kind): ([u8; 4], _, _) = match c.isa {
        // Three times NOP, and RET; RET.
        Isa::X86_64 => ([0x90, 0x90, 0x90, 0xc3], "10", 1),
        Isa::Aarch64 => ([0xc0, 0x03, 0x5f, 0xd6], "20", 4),
    };
    let in_hex = |bytes: &[u8]| String::from_utf8_lossy(&hex(bytes)).into_owned();
    let little = in_hex(&place.to_le_bytes());
    let mut vmm = c.start(
        Wiring::Pipes,
        "--gdb unix:{} --hypercalls xen,trace=off --kernel {} --memory 64M",
        &[&socket, &guest],
    )?;
    let driven = Client::attach(&socket, c.limit(10)).and_then(|mut client| {
        client.expect(&format!("Z0,{place:x},{kind}"), "OK")?;
        client.send(&frame(&[b"qRcmd,", &hex(b"breakpoints")[..]].concat()))?;
        let told = client.console_reply()?;
        // Nothing but what is planted is there to meet it.
        check(told.contains("planted") && !told.contains("register"), || format!("breakpoints: {told}"))?;
        client.run()?;
        vmm.expect("ready", c.limit(10))?;
        vmm.send_bytes(&code)?;
        let stop = client.reply()?;
        let is_there = stop.contains(&format!("{pc}:{little}")) && stop.contains("swbreak");
        check(is_there, || format!("it stops with {stop}"))?;
        client.expect(&format!("m{place:x},4"), &in_hex(&code))?;
        client.expect(&format!("z0,{place:x},{kind}"), "OK")?;
        client.expect(&format!("m{place:x},4"), &in_hex(&code))?;
        client.run()?;
        let end = client.reply()?;
        check(end.starts_with("W21"), || format!("the guest ends with {end}"))?;
        vmm.wait(c.limit(10))
    });
    c.keep("vmm", &vmm);
    let ended = driven.map_err(|error| format!("{error}\n{}", vmm.errors.text()))?;
    check(ended == 0x21, || format!("vmm ended with {ended}"))?;
    let output = vmm.output.bytes();
    check(output.ends_with(&code), || format!("the console has {output:02x?}"))
}

/// Words that `--hypercalls` does not take, and a trace that cannot be written.
pub fn bad_options(c: &mut Context) -> Check {
    let limit = c.limit(10);
    for (words, code, text) in [
        ("vmware", 2, "xen or kvm"),
        ("xen,colour", 2, "none of json"),
        ("xen,filter=console_io+nonsense", 2, "'nonsense'"),
        ("xen,trace=", 2, "needs a path"),
        ("xen,transport=pigeon", 2, "none of json"),
        ("xen,trace=/no/such/place", 8, "/no/such/place"),
    ] {
        let run = c.run(&format!("--hypercalls {words}"), &[], limit)?;
        run.expect_code(code).map_err(|error| format!("{words}: {error}"))?;
        check(run.errors.contains(text), || format!("{words}: no {text:?} in {}", run.errors))?;
    }
    Ok(())
}

/// Debian's kernel finds Xen, says so, and comes to userspace.
pub fn debian(c: &mut Context) -> Check {
    let (kernel, initrd, limit) = (c.kernel("6.12"), c.initrd(), c.limit(60));
    let trace = c.work.join("trace");
    let words = format!(
        "--hypercalls xen,trace={} --kernel {{}} --initrd {{}} --memory 512M --cpus 2 \
         --cmdline loglevel=7~vmm.run=hypervisor",
        trace.display()
    );
    let run = c.run(&words, &[&kernel, &initrd], limit)?;
    run.expect_output("guest: hypervisor type=xen")?;
    run.expect_output("guest: hypervisor guest_type=HVM")?;
    run.expect_output("guest: hypervisor version/major=4")?;
    run.expect_output("Hypervisor detected: Xen HVM")?;
    run.expect_code(0)?;
    let text = std::fs::read_to_string(&trace).map_err(|error| error.to_string())?;
    for part in ["XENMAPSPACE_shared_info", "XENVER_get_features", "VCPUOP_register_vcpu_info"] {
        check(text.contains(part), || format!("no {part} in the trace:\n{text}"))?;
    }
    Ok(())
}

/// Stops at hypercalls, with the call in words and the program counter at it.
pub const STOP: Script = Script {
    tool: Tool::Gdb,
    options: "--hypercalls xen,trace=off --memory 64M",
    program: Program::Guest("xen"),
    commands: |isa| {
        let (number, argument) = match isa {
            Isa::X86_64 => ("rax", "rdi"),
            Isa::Aarch64 => ("x16", "x0"),
        };
        // The register that the call's result goes to.
        let result = if isa == Isa::X86_64 { "rax" } else { "x0" };
        format!(
            "monitor catch\n\
             monitor catch hypercall nonsense\n\
             monitor catch hypercall event_channel_op\n\
             continue\n\
             p ${number}\np ${argument}\n\
             x/i $pc\n\
             monitor catch hypercall EVTCHNOP_send multicall\n\
             continue\n\
             continue\n\
             monitor hypercalls\n\
             set $at = $pc\nset $before = ${result}\n\
             monitor catch off\n\
             stepi\n\
             set $pc = $at\nset ${result} = $before\n\
             monitor catch hypercall multicall\n\
             continue\n\
             monitor catch off\n\
             stepi\n\
             continue\n"
        )
    },
    prints: |isa| {
        let call = match isa {
            Isa::X86_64 => "=> 0x",
            Isa::Aarch64 => "hvc\t#0xea1",
        };
        [
            "no hypercall is caught",
            "there is no hypercall and no operation 'nonsense'",
            "hypercalls that are caught: event_channel_op",
            "hypercall event_channel_op(EVTCHNOP_bind_ipi, {vcpu=0})",
            "SIGTRAP",
            "= 32",
            "= 7",
            call,
            "hypercalls that are caught: EVTCHNOP_send multicall",
            "hypercall event_channel_op(EVTCHNOP_send, {port=1})",
            "hypercall multicall([xen_version(XENVER_pagesize), multicall(",
            "hvm_op",
            "total",
            "no hypercall is caught",
            // Made again where it was served while nothing was caught, it is caught.
            "hypercalls that are caught: multicall",
            "hypercall multicall([xen_version(XENVER_pagesize), multicall(",
            "no hypercall is caught",
            "exited normally",
        ]
        .map(String::from)
        .to_vec()
    },
    code: Some(0),
};
