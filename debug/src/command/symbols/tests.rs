//! Names and addresses, by files of kernels.

use super::*;
use crate::command::run_line;
use crate::command::tests::Desk;
use crate::fake::Still;
use crate::gdb::monitor;
use crate::gdb::testing::{HANDLE, MadeKernel, asleep};
use crate::linux::{Described, VmCoreInfo};
use crate::symbols::tests::{kernel, module};
use crate::symbols::{FindSymbols, FoundSymbols, ModuleFile, SymbolFile, Symbols};
use arch::Isa;
use object::Architecture;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

fn desk(isa: Isa) -> Desk<Still> {
    let architecture = match isa {
        Isa::X86_64 => Architecture::X86_64,
        Isa::Aarch64 => Architecture::Aarch64,
    };
    let mut desk = Desk::new(Still::new(isa, 1, 1 << 20).unwrap());
    desk.symbols = SymbolFile::Named(Arc::new(Symbols::new(kernel(architecture)).unwrap()));
    desk
}

#[test]
fn names_and_addresses_lead_to_each_other() {
    for isa in Isa::ALL {
        let mut desk = desk(isa);
        let not_moved = "no Linux kernel has described itself in memory (yet): taken as not moved\n";
        let no_lines = "no source lines: the file has no debug information (CONFIG_DEBUG_INFO)\n";
        for (line, said) in [
            ("sym start_kernel", format!("start_kernel is at 0x10, of 64 bytes\n{no_lines}{not_moved}")),
            ("sym 0x14", format!("0x14 is start_kernel+0x4, of 64 bytes\n{no_lines}{not_moved}")),
            ("sym start_kernel+0x4", format!("0x14 is start_kernel+0x4, of 64 bytes\n{no_lines}{not_moved}")),
            (
                "sym current_task",
                format!("current_task is at 0x8, of 8 bytes, every processor has its own\n{not_moved}"),
            ),
        ] {
            assert_eq!(desk.say(line), said, "{line}");
        }
        let told = desk.json("sym 0x14");
        assert_eq!(told["symbols"][0]["name"], "start_kernel");
        assert_eq!(
            (&told["symbols"][0]["offset"], &told["symbols"][0]["role"]),
            (&json!(4), &json!("function"))
        );
        // Other commands take names for addresses.
        let bytes = desk.say("read start_kernel+2 1");
        assert!(bytes.starts_with("0x0000000000000012  00"), "{bytes}");
    }
}

#[test]
fn what_is_not_in_the_file_is_said() {
    for isa in Isa::ALL {
        let mut desk = desk(isa);
        for (line, why) in [
            ("sym", "write one address, or one name"),
            ("sym a b", "write one address, or one name"),
            ("sym nowhere", "nor has the kernel's file a symbol of this name"),
            ("sym 0x4000", "0x4000 is in no symbol"),
            ("read current_task 8", "every processor has a 'current_task' of its own"),
        ] {
            let said = desk.refusal(line).to_string();
            assert!(said.contains(why), "{line}: {said}");
        }
        desk.symbols = SymbolFile::Absent;
        let said = desk.refusal("sym start_kernel").to_string();
        assert!(said.contains("(symbols are elsewhere)"), "{said}");
        assert!(said.contains("no Linux kernel has described itself"), "{said}");
        assert!(desk.refusal("read start_kernel 8").to_string().contains("symbols are elsewhere"));
    }
    let mut other = desk(Isa::X86_64);
    other.symbols = SymbolFile::Named(Arc::new(Symbols::new(kernel(Architecture::Aarch64)).unwrap()));
    for line in ["sym start_kernel", "read start_kernel 8"] {
        assert!(other.refusal(line).to_string().contains("a file of aarch64"), "{line}");
    }
}

/// Knows one build's file, and how often it was asked.
#[derive(Debug)]
struct Finder(&'static str, Arc<Symbols>, AtomicUsize);

impl FindSymbols for Finder {
    fn find(&self, build_id: &str, release: &str) -> Option<FoundSymbols> {
        assert_eq!(release, "6.12.0");
        self.2.fetch_add(1, Ordering::Relaxed);
        let (symbols, place) = (Arc::clone(&self.1), "/cache/\u{1b}debuginfo".into());
        (build_id == self.0).then_some(FoundSymbols { symbols, place })
    }
}

#[test]
fn a_file_that_nobody_has_named_is_found_by_the_kernels_build() {
    const ID: &str = "6af9f7bf27b71c4ef3ee0ac7a1a4a4d4d1c5c9e0";
    for (isa, architecture) in [(Isa::X86_64, Architecture::X86_64), (Isa::Aarch64, Architecture::Aarch64)] {
        let with = |its: &str| {
            let text = format!("OSRELEASE=6.12.0\nPAGESIZE=4096\nKERNELOFFSET=1000\nBUILD-ID={its}\n");
            let mut machine = Still::new(isa, 1, 1 << 20).unwrap();
            let info = VmCoreInfo::parse(text.as_bytes());
            machine.kernel = Some(Described { info, remarks: Vec::new() });
            let symbols = Arc::new(Symbols::new(kernel(architecture)).unwrap());
            let finder = Arc::new(Finder(ID, symbols, AtomicUsize::new(0)));
            let mut desk = Desk::new(machine);
            desk.symbols = SymbolFile::Sought(Arc::clone(&finder) as Arc<dyn FindSymbols>);
            (desk, finder)
        };
        let (mut desk, finder) = with(ID);
        // What needs no names has nothing looked for.
        desk.say("read 0x1000 8");
        desk.say("info");
        assert_eq!(finder.2.load(Ordering::Relaxed), 0);
        let no_lines = "no source lines: the file has no debug information (CONFIG_DEBUG_INFO)\n";
        let said = desk.say("sym start_kernel");
        assert_eq!(said, format!("start_kernel is at 0x1010, of 64 bytes\n{no_lines}"));
        assert!(desk.say("read start_kernel+2 1").starts_with("0x0000000000001012  00"));
        let said = desk.say("linux");
        assert!(said.contains("symbols: /cache/\u{fffd}debuginfo, found by its build id\n"), "{said}");
        assert_eq!(desk.json("linux")["symbols"], "/cache/\u{fffd}debuginfo");
        // Another build's is none of this kernel's.
        let (mut other, finder) = with("0af9f7bf27b71c4ef3ee0ac7a1a4a4d4d1c5c9e0");
        assert!(matches!(other.refusal("sym start_kernel"), Refusal::NotThere(_)));
        assert_eq!((finder.2.load(Ordering::Relaxed), &other.json("linux")["symbols"]), (1, &Json::Null));
        // Nor is one of another architecture.
        let (mut odd, _) = with(ID);
        let wrong = if isa == Isa::X86_64 { Architecture::Aarch64 } else { Architecture::X86_64 };
        let wrong = Arc::new(Symbols::new(kernel(wrong)).unwrap());
        odd.symbols = SymbolFile::Sought(Arc::new(Finder(ID, wrong, AtomicUsize::new(0))));
        assert!(matches!(odd.refusal("sym start_kernel"), Refusal::NotThere(_)));
    }
}

#[test]
fn what_modules_have_is_found_by_name_and_by_address() {
    for isa in Isa::ALL {
        let mut made = MadeKernel::new(isa, &[asleep(0, "swapper/0")]);
        let mut say = |line: &str| monitor::run(&mut made.session, line);
        let handle = "handle is at 0xffffffffc0100040, of 32 bytes [virtio_net]\n";
        assert_eq!(say("sym handle"), handle);
        assert_eq!(say("sym counter"), "counter is at 0xffffffffc0102000, of 8 bytes [virtio_net]\n");
        let within = "0xffffffffc0100044 is handle+0x4, of 32 bytes [virtio_net]\n";
        assert_eq!([say("sym handle+4"), say("sym 0xffffffffc0100044")], [within; 2]);
        let within = "0xffffffffc0102004 is counter+0x4, of 8 bytes [virtio_net]\n";
        assert_eq!([say("sym counter+4"), say("sym 0xffffffffc0102004")], [within; 2]);
        // What has no name is none of the variable in front of it, nor of the code.
        for place in ["0xffffffffc0102008", "0xffffffffc0101ff8", "0xffffffffc0104000"] {
            assert!(say(&format!("sym {place}")).contains("is in no symbol"), "{place}");
        }
        assert_eq!(say("sym twice").lines().count(), 2);
        // Wherever an address is to be written.
        assert!(say("read counter+4 4").contains("0xffffffffc0102004"), "{}", say("read counter+4 4"));
        assert!(say("read handle 4").contains("0xffffffffc0100040"));
        assert!(say("read twice 4").contains("there are 2 symbols 'twice' of modules"));
        assert!(say("print &counter").contains("0xffffffffc0102000"), "{}", say("print &counter"));
        assert!(say("print (long)handle").contains("long"), "{}", say("print (long)handle"));
        assert!(say("sym nowhere").contains("nor has the kernel's own table a symbol of this name"));
        assert!(say("read nowhere 4").contains("nor has the kernel's own table a symbol of this name"));
    }
}

/// Knows a module's file.
#[derive(Debug)]
struct OfModule(Arc<ModuleFile>);

impl FindSymbols for OfModule {
    fn find(&self, _: &str, _: &str) -> Option<FoundSymbols> {
        None
    }

    fn find_module(&self, build_id: &str) -> Option<Arc<ModuleFile>> {
        (build_id == "78563412").then(|| Arc::clone(&self.0))
    }
}

#[test]
fn frames_in_modules_have_lines_by_the_files_of_their_builds() {
    for (isa, architecture) in [(Isa::X86_64, Architecture::X86_64), (Isa::Aarch64, Architecture::Aarch64)] {
        let mut made = MadeKernel::new(isa, &[asleep(0, "swapper/0"), asleep(7, "waits")]);
        let file = Arc::new(ModuleFile::new(module(architecture)).unwrap());
        made.session.symbols = SymbolFile::Sought(Arc::new(OfModule(file)));
        made.returns_to(1, HANDLE + 0x14);
        let mut lines = |id: Option<u32>| {
            id.into_iter().for_each(|id| made.tell_build(id));
            let json = run_line(&mut made.session, "bt 7").unwrap().json();
            let frames = json["stacks"][0]["frames"].as_array().unwrap();
            let frame = frames.iter().find(|frame| frame["module"] == "virtio_net").unwrap();
            assert_eq!(frame["function"], "handle");
            frame["lines"].as_array().unwrap().len()
        };
        // Nothing tells its build, then it is the file's, and then another one.
        assert_eq!([lines(None), lines(Some(0x1234_5678)), lines(Some(0x1234_5679))], [0, 1, 0]);
    }
}
