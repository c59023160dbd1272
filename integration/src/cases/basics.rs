//! Small guests: what each outcome looks like.

use crate::context::{Check, Context, check};
use crate::process::Wiring;
use arch::Isa;
use std::fs::File;
use std::io::Read;

pub fn embedded_guest(c: &mut Context) -> Check {
    let limit = c.limit(10);
    let run = c.run("", &[], limit)?;
    run.expect_code(0)?;
    for line in
        ["Hello from a guest of vmm!", "CPU: ", "Memory: 512 MiB", "1 vCPU counted to 1000", "Powering off."]
    {
        run.expect_output(line)?;
    }
    check(run.errors.is_empty(), || format!("messages without need: {}", run.errors))
}

pub fn embedded_guest_on_many_vcpus(c: &mut Context) -> Check {
    let limit = c.limit(20);
    for cpus in [2, 3, 8, 16] {
        let run = c.run(&format!("--cpus {cpus}"), &[], limit)?;
        run.expect_code(0)?;
        run.expect_output(&format!("{cpus} vCPUs counted to {cpus}000"))?;
    }
    Ok(())
}

/// A GICv2 has eight CPU interfaces.
pub fn on_gic_v2(c: &mut Context) -> Check {
    let limit = c.limit(20);
    let run = c.run("--cpus 8", &[], limit)?;
    run.expect_code(0)?;
    run.expect_output("8 vCPUs counted to 8000")?;
    let run = c.run("--cpus 9", &[], limit)?;
    run.expect_code(2)?;
    run.expect_one_line("allows 8")
}

pub fn embedded_guest_with_6_gib(c: &mut Context) -> Check {
    let limit = c.limit(10);
    let run = c.run("--memory 6G", &[], limit)?;
    run.expect_code(0)?;
    run.expect_output("Memory: 6144 MiB")
}

pub fn exit_codes(c: &mut Context) -> Check {
    let (guest, limit) = (c.guest("exit", false)?, c.limit(10));
    c.run("--kernel {}", &[&guest], limit)?.expect_code(0x21)?;
    c.run("--exit-device --kernel {}", &[&guest], limit)?.expect_code(0x21)?;
    // Without the device the write goes nowhere.
    let run = c.run("--exit-device off --timeout 1s --kernel {}", &[&guest], limit)?;
    run.expect_code(20)
}

pub fn flat_binary(c: &mut Context) -> Check {
    let (guest, limit) = (c.guest("exit", true)?, c.limit(10));
    let (good, bad) = match c.isa {
        Isa::X86_64 => ("0x200000", "0x7c00"),
        Isa::Aarch64 => ("0x40080000", "0x3ff00000"),
    };
    c.run(&format!("--load-address {good} --kernel {{}}"), &[&guest], limit)?.expect_code(0x21)?;
    let run = c.run(&format!("--load-address {bad} --kernel {{}}"), &[&guest], limit)?;
    run.expect_code(6)?;
    run.expect_one_line(bad)?;
    let run = c.run("--kernel {}", &[&guest], limit)?;
    run.expect_code(6)?;
    run.expect_one_line("--load-address")
}

pub fn multiboot(c: &mut Context) -> Check {
    let (guest, limit) = (c.guest("multiboot", true)?, c.limit(10));
    let (first, second) = (c.work.join("first"), c.work.join("second"));
    c.write(&first, &[b'x'; 5000])?;
    c.write(&second, b"mod1")?;
    let arguments = "--memory 256M --cmdline hello --kernel {} --initrd {} --initrd {}";
    c.run(arguments, &[&guest, &first, &second], limit)?.expect_code(3)
}

/// As ELF64 and, the same bytes with a header of their own in front, as ELF32.
pub fn multiboot2(c: &mut Context) -> Check {
    let limit = c.limit(10);
    let (first, second) = (c.work.join("first"), c.work.join("second"));
    c.write(&first, &[b'x'; 5000])?;
    c.write(&second, b"mod1")?;
    for (flat, name) in [(false, "multiboot2"), (true, "multiboot2.bin")] {
        let guest = c.guest("multiboot2", flat)?;
        let arguments =
            "-v --memory 256M --cmdline hello~caf\u{e9} --kernel {} --initrd {} --initrd {}~root=x";
        let run = c.run(arguments, &[&guest, &first, &second], limit)?;
        run.expect_code(3)?;
        run.expect_output(&format!("tag 1: {name} hello caf\u{e9}"))?;
        run.expect_output("tag 3: first\n")?;
        run.expect_output("tag 3: second root=x\n")?;
        for tag in [2, 4, 6, 14, 15] {
            run.expect_output(&format!("tag {tag}\n"))?;
        }
        let has_sections = run.output.contains("tag 9: symbols");
        check(has_sections != flat, || format!("sections: {has_sections}\n{}", run.output))?;
        check(run.errors.contains("entered by Multiboot 2"), || run.errors.clone())?;
        let arguments = "--cmdline-exact --cmdline hello --kernel {} --initrd {}";
        c.run(arguments, &[&guest, &first], limit)?.expect_output("tag 1: hello\n")?;
    }
    Ok(())
}

pub fn pvh(c: &mut Context) -> Check {
    let (guest, limit, module) = (c.guest("pvh", false)?, c.limit(10), c.work.join("module"));
    c.write(&module, b"mod0")?;
    c.run("--cmdline hello --kernel {} --initrd {}", &[&guest, &module], limit)?.expect_code(3)
}

pub fn reboot(c: &mut Context) -> Check {
    let (guest, limit) = (c.guest("reboot", false)?, c.limit(10));
    c.run("--kernel {}", &[&guest], limit)?.expect_code(10)?;
    let run = c.run("-v --reboot restart --timeout 2s --kernel {}", &[&guest], limit)?;
    run.expect_code(20)?;
    let restarts = run.errors.matches("booted again").count();
    check(restarts >= 2, || format!("restarted {restarts} times in two seconds:\n{}", run.errors))
}

/// By port 0x92, the chipset's register, the keyboard controller's output port, and INIT.
pub fn resets(c: &mut Context) -> Check {
    let (guest, limit) = (c.guest("resets", false)?, c.limit(10));
    for way in ["a", "b", "c", "d"] {
        let mut vmm = c.start(Wiring::Pipes, "--kernel {}", &[&guest])?;
        vmm.send(way)?;
        let code = vmm.wait(limit);
        c.keep(way, &vmm);
        let code = code?;
        check(code == 10, || format!("{way}: exit code {code}\n{}", vmm.errors.text()))?;
    }
    Ok(())
}

pub fn test_device(c: &mut Context) -> Check {
    let (guest, limit) = (c.guest("test_device", false)?, c.limit(10));
    c.run("--test-device --kernel {}", &[&guest], limit)?.expect_code(3)?;
    // Without it nothing is there.
    c.run("--kernel {}", &[&guest], limit)?.expect_code(7)
}

/// QEMU's device is of another architecture's machine.
pub fn no_test_device(c: &mut Context) -> Check {
    let limit = c.limit(10);
    let run = c.run("--test-device", &[], limit)?;
    run.expect_code(2)?;
    run.expect_one_line("x86_64")
}

pub fn triple_fault(c: &mut Context) -> Check {
    let (guest, limit) = (c.guest("triple_fault", false)?, c.limit(10));
    let run = c.run("--kernel {}", &[&guest], limit)?;
    run.expect_code(12)?;
    check(run.errors.contains("triple fault") && run.errors.contains("rip="), || {
        format!("no report: {}", run.errors)
    })
}

pub fn unclaimed(c: &mut Context) -> Check {
    let (guest, limit) = (c.guest("unclaimed", false)?, c.limit(10));
    let run = c.run("-v --kernel {}", &[&guest], limit)?;
    run.expect_code(3)?;
    check(run.errors.contains("where nothing is"), || format!("not told with -v: {}", run.errors))?;
    let quiet = c.run("--kernel {}", &[&guest], limit)?;
    check(quiet.errors.is_empty(), || format!("told without -v: {}", quiet.errors))
}

pub fn cannot_emulate(c: &mut Context) -> Check {
    let (guest, limit) = (c.guest("cannot_emulate", false)?, c.limit(10));
    let run = c.run("--kernel {}", &[&guest], limit)?;
    run.expect_code(16)?;
    for word in ["emulation failure", "aesenc", "rip="] {
        check(run.errors.contains(word), || format!("no {word:?}: {}", run.errors))?;
    }
    Ok(())
}

/// What the hardware does not describe to KVM is the guest's own fault, as on hardware.
pub fn undescribed(c: &mut Context) -> Check {
    let (guest, limit) = (c.guest("undescribed", false)?, c.limit(10));
    let run = c.run("-v --kernel {}", &[&guest], limit)?;
    run.expect_code(7)?;
    check(run.errors.contains("external abort"), || format!("not told with -v: {}", run.errors))
}

pub fn timeout(c: &mut Context) -> Check {
    let limit = c.limit(10);
    for guest in ["spin", "halt"] {
        let guest = c.guest(guest, false)?;
        let start = std::time::Instant::now();
        c.run("--timeout 500ms --kernel {}", &[&guest], limit)?.expect_code(20)?;
        let elapsed = start.elapsed();
        check(elapsed.as_millis() >= 500, || format!("ended after {elapsed:?}"))?;
    }
    Ok(())
}

pub fn console_input(c: &mut Context) -> Check {
    let (guest, limit) = (c.guest("echo", false)?, c.limit(20));
    let mut vmm = c.start(Wiring::Pipes, "--kernel {}", &[&guest])?;
    vmm.expect("ready", limit)?;
    // Far more than the port's FIFO of 64 bytes, all at once; escape keys are for terminals.
    let text = "The brown fox jumps \x01x ".repeat(500);
    vmm.send(&text)?;
    vmm.expect(&text, limit)?;
    vmm.send("q")?;
    let code = vmm.wait(limit);
    c.keep("vmm", &vmm);
    check(code? == 0, || "no clean end".into())?;
    // Input from a file, which cannot be polled.
    let path = c.work.join("input");
    c.write(&path, "x".repeat(10_000).as_bytes())?;
    let mut command = std::process::Command::new("/bin/sh");
    if !std::path::Path::new("/bin/sh").exists() {
        command = std::process::Command::new("/bin/busybox");
        command.arg("sh");
    }
    let script = format!(
        "(cat {}; echo q) > {0}.2; exec {} --kernel {} < {0}.2",
        path.display(),
        c.vmm.display(),
        guest.display()
    );
    command.arg("-c").arg(script);
    let mut vmm = crate::process::Process::start("vmm", command, Wiring::Pipes).map_err(|e| e.to_string())?;
    let code = vmm.wait(limit);
    c.keep("vmm", &vmm);
    check(code? == 0, || "no clean end with input from a file".into())?;
    check(vmm.output.text().matches('x').count() == 10_000, || "input from a file was lost".into())
}

pub fn console_kinds(c: &mut Context) -> Check {
    let limit = c.limit(10);
    let path = c.work.join("console");
    let run = c.run("--console file:{}", &[&path], limit)?;
    run.expect_code(0)?;
    let mut text = String::new();
    File::open(&path).and_then(|mut file| file.read_to_string(&mut text)).map_err(|e| e.to_string())?;
    check(text.contains("Powering off.") && run.output.is_empty(), || format!("the file has {text:?}"))?;

    let run = c.run("--console none", &[], limit)?;
    run.expect_code(0)?;
    check(run.output.is_empty(), || format!("output with no console: {}", run.output))?;

    let guest = c.guest("echo", false)?;
    let mut vmm = c.start(Wiring::Pipes, "--console pty --kernel {}", &[&guest])?;
    let mut other = None;
    let deadline = std::time::Instant::now() + limit;
    while other.is_none() && std::time::Instant::now() < deadline {
        let errors = vmm.errors.text();
        other = errors.lines().find_map(|line| Some(line.split_once("console is ")?.1.trim().to_string()));
        std::thread::park_timeout(std::time::Duration::from_millis(2));
    }
    let path = other.ok_or("the pseudo-terminal's name is not told")?;
    // The greeting came before anybody listened; what is typed now must come back.
    let mut end = File::options().read(true).write(true).open(&path).map_err(|e| format!("{path}: {e}"))?;
    std::io::Write::write_all(&mut end, b"typed").map_err(|e| e.to_string())?;
    let mut seen = Vec::new();
    let mut byte = [0];
    while !seen.ends_with(b"typed") {
        end.read_exact(&mut byte).map_err(|e| format!("{e}; read {seen:?}"))?;
        seen.push(byte[0]);
    }
    std::io::Write::write_all(&mut end, b"q").map_err(|e| e.to_string())?;
    let code = vmm.wait(limit);
    c.keep("vmm", &vmm);
    check(code? == 0, || "no clean end".into())
}

pub fn messages(c: &mut Context) -> Check {
    let (guest, limit) = (c.guest("exit", false)?, c.limit(10));
    let run = c.run("-v --kernel {}", &[&guest], limit)?;
    check(run.errors.contains("vmm: ELF") && run.errors.contains("exit device"), || run.errors.clone())?;
    let run = c.run("-vv --kernel {}", &[&guest], limit)?;
    let exit = match c.isa {
        Isa::X86_64 => "PortWrite { port: f4",
        Isa::Aarch64 => "MmioWrite { address: 9020000",
    };
    check(run.errors.contains(exit), || format!("no exit with -vv: {}", run.errors))?;
    let path = c.work.join("log");
    let run = c.run("-v --log {} --kernel {}", &[&path, &guest], limit)?;
    check(run.errors.is_empty(), || format!("messages beside the log: {}", run.errors))?;
    let log = std::fs::read_to_string(&path).map_err(|e| e.to_string())?;
    check(log.contains("ELF"), || format!("the log has {log:?}"))?;
    let run = c.run("--version", &[], limit)?;
    run.expect_code(0)?;
    run.expect_output("vmm 0.")?;
    for shell in ["bash", "zsh", "fish"] {
        let run = c.run(&format!("completions {shell}"), &[], limit)?;
        run.expect_code(0)?;
        run.expect_output("VMM_COMPLETE")?;
    }
    let run = c.run("--help", &[], limit)?;
    run.expect_code(0)?;
    for text in ["Guest:", "Machine:", "Run:", "Messages:", "Exit codes:", "--timeout ended the guest"] {
        run.expect_output(text)?;
    }
    Ok(())
}

pub fn check_command(c: &mut Context) -> Check {
    let limit = c.limit(60);
    let run = c.run("check --json", &[], limit)?;
    run.expect_code(0)?;
    let json: serde_json::Value =
        serde_json::from_str(&run.output).map_err(|error| format!("{error}:\n{}", run.output))?;
    check(json["isa"] == c.isa.name(), || format!("isa is {}", json["isa"]))?;
    check(json["small_guests"]["works"] == true, || format!("small guests do not work: {}", run.output))?;
    // In a nest everything works; elsewhere that is what the command is there to find out.
    if c.in_nest {
        let mut keys =
            vec!["linux_guests", "single_step", "software_breakpoint", "hardware_breakpoint", "watchpoint"];
        keys.extend(match c.isa {
            Isa::X86_64 => ["cmpxchg16b", "xen_hvm"],
            Isa::Aarch64 => ["brk", "smccc_filter"],
        });
        for key in keys {
            check(json[key]["works"] == true, || format!("{key}: {}", json[key]))?;
        }
    }
    let table = c.run("check", &[], limit)?;
    table.expect_code(0)?;
    table.expect_output("small guests")?;
    // Ours is lower than KVM's on hosts of today, and is what is told.
    let most = json["max_vcpus"].as_u64().unwrap_or(0);
    let run = c.run(&format!("--cpus {}", most + 1), &[], limit)?;
    run.expect_code(2)?;
    let whose = match (json["kvm_max_vcpus"].as_u64() > Some(most), c.isa) {
        (true, Isa::X86_64) => "too many: an APIC's identifier",
        (true, Isa::Aarch64) => "too many: the room for interrupt redistributors",
        (false, _) => "too many: this host's KVM",
    };
    run.expect_one_line(whose)?;
    run.expect_one_line(&format!("allows {most}"))
}
