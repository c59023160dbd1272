//! Names and addresses, by files of kernels.

use super::*;
use crate::command::tests::Desk;
use crate::fake::Still;
use crate::symbols::{Symbols, tests::kernel};
use arch::Isa;
use object::Architecture;

fn desk(isa: Isa) -> Desk<Still> {
    let architecture = match isa {
        Isa::X86_64 => Architecture::X86_64,
        Isa::Aarch64 => Architecture::Aarch64,
    };
    let mut desk = Desk::new(Still::new(isa, 1, 1 << 20).unwrap());
    desk.symbols = Some(Symbols::new(kernel(architecture)).unwrap());
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
        desk.symbols = None;
        let said = desk.refusal("sym start_kernel").to_string();
        assert!(said.contains("(symbols are elsewhere)"), "{said}");
        assert!(said.contains("no Linux kernel has described itself"), "{said}");
        assert!(desk.refusal("read start_kernel 8").to_string().contains("symbols are elsewhere"));
    }
    let mut other = desk(Isa::X86_64);
    other.symbols = Some(Symbols::new(kernel(Architecture::Aarch64)).unwrap());
    for line in ["sym start_kernel", "read start_kernel 8"] {
        assert!(other.refusal(line).to_string().contains("a file of aarch64"), "{line}");
    }
}
