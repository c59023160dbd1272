//! `symbols`: what a debugger is to be told so that it knows the modules of a Linux kernel in the guest.
//!
//! The lines are commands for gdb, which takes them as they stand: what the guest has in them is nothing but names and
//! numbers. No file is opened here, so where a module's file is remains a guess.
//!
//! Source: GDB manual, "Commands to Specify Files" (`add-symbol-file`).

use super::kernel::of_kernel;
use super::operator::Operator;
use crate::linux::VmCoreInfo;
use crate::linux::module::{Module, ModuleState, Section};
use crate::reply::{Arguments, Command, Json, Refusal, Reply, Value, hex, json};
use crate::view::View;
use std::fmt;

/// `symbols`.
pub const SYMBOLS: Command = Command::new(
    "symbols",
    "[DIR]",
    "add-symbol-file lines for gdb, of the kernel's modules; their files are taken to be in DIR",
);

/// Sections that are told at most, all together: a distribution's modules have some thousand.
const MOST_SECTIONS: usize = 1 << 16;

/// Where a module's symbols belong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadedModule {
    /// The module.
    pub name: String,
    /// Where its `.text` is, guest-virtual.
    pub text: u64,
    /// Its other sections that are in memory, as far as the kernel tells.
    pub sections: Vec<Section>,
}

/// Where the symbols of all modules belong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModuleSymbols {
    /// The folder that their files are taken to be in.
    pub folder: String,
    /// Each of them.
    pub modules: Vec<LoadedModule>,
    /// What of them could not be had, a line each.
    pub remarks: Vec<String>,
}

/// Whether text can stand in a command as one word that means nothing else.
fn is_word(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+' | '~');
    !text.is_empty() && !text.starts_with('-') && text.chars().all(is_plain)
}

impl LoadedModule {
    /// Of a module and its sections; those that it has begun with are gone once it lives.
    fn new(module: Module, sections: Vec<Section>) -> LoadedModule {
        let is_gone = |name: &str| name.starts_with(".init") && module.state == Some(ModuleState::Live);
        let (mut text, mut others) = (module.text, Vec::new());
        for section in sections {
            match section.name.as_str() {
                ".text" => text = section.address,
                name if !is_word(name) || is_gone(name) || section.address == 0 => {}
                _ => others.push(section),
            }
        }
        LoadedModule { name: module.name, text, sections: others }
    }
}

impl ModuleSymbols {
    /// Looks for them.
    ///
    /// # Errors
    /// In words, what lacks for that.
    fn of(view: &View<'_>, info: &VmCoreInfo, folder: Option<&str>) -> Result<ModuleSymbols, String> {
        let found = view.kernel_modules(info)?;
        let mut symbols = ModuleSymbols { remarks: found.remarks, ..ModuleSymbols::default() };
        symbols.folder = match folder {
            Some(folder) => folder.trim_end_matches('/').into(),
            None if is_word(info.release()) => format!("/lib/modules/{}", info.release()),
            None => "/lib/modules".into(),
        };
        let mut left = MOST_SECTIONS;
        for module in found.all {
            if !is_word(&module.name) {
                symbols
                    .remarks
                    .push(format!("a module is left out, whose name no file has: {}", module.name));
                continue;
            }
            let mut sections = view.module_sections(info, &module).unwrap_or_default();
            if sections.len() > left {
                symbols
                    .remarks
                    .push(format!("the sections of {} are left out: there are too many", module.name));
                sections.clear();
            }
            left -= sections.len();
            symbols.modules.push(LoadedModule::new(module, sections));
        }
        Ok(symbols)
    }

    fn file(&self, place: &LoadedModule) -> String {
        format!("{}/{}.ko", self.folder, place.name)
    }
}

impl fmt::Display for ModuleSymbols {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "# files are taken to be {}/NAME.ko; for a _ of NAME a file's name may have a -",
            self.folder
        )?;
        for place in &self.modules {
            write!(f, "add-symbol-file {} {:#x}", self.file(place), place.text)?;
            for Section { name, address } in &place.sections {
                write!(f, " -s {name} {address:#x}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

impl Value for ModuleSymbols {
    fn json(&self) -> Json {
        let section = |it: &Section| json!({ "name": it.name, "address": hex(it.address) });
        let module = |it: &LoadedModule| {
            json!({
                "name": it.name, "file": self.file(it), "text": hex(it.text),
                "sections": it.sections.iter().map(section).collect::<Vec<_>>(),
            })
        };
        json!({ "modules": self.modules.iter().map(module).collect::<Vec<_>>(), "remarks": self.remarks })
    }

    fn shortfall(&self) -> Option<String> {
        (!self.remarks.is_empty()).then(|| self.remarks.join("; "))
    }
}

pub(super) fn run(operator: &mut dyn Operator, arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
    let folder = match arguments.words()[..] {
        [] => None,
        [folder] if folder.chars().all(arch::plain::is_plain) => Some(folder),
        _ => return Err(Refusal::Usage("write one folder, or nothing".into())),
    };
    let view = operator.view();
    Ok(Box::new(of_kernel(&view, |info| ModuleSymbols::of(&view, info, folder))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(name: &str, state: ModuleState) -> Module {
        Module {
            address: 0xffff_ffff_c012_0000,
            name: name.into(),
            state: Some(state),
            text: 0xffff_ffff_c010_0000,
            text_size: 0x3000,
            init: (0, 0),
            memory: Vec::new(),
            orc: None,
            size: 86016,
            references: None,
            users: Vec::new(),
        }
    }

    fn sections(all: &[(&str, u64)]) -> Vec<Section> {
        all.iter().map(|(name, address)| Section { name: (*name).into(), address: *address }).collect()
    }

    #[test]
    fn lines_that_gdb_takes_as_they_stand() {
        let all = sections(&[
            (".text", 0xffff_ffff_c010_0040),
            (".init.text", 0xffff_ffff_c013_0000),
            (".data", 0xffff_ffff_c011_0000),
            (".bss", 0),
            ("a b", 1),
            ("-o", 1),
            ("`x`", 1),
        ]);
        let modules = vec![
            LoadedModule::new(module("virtio_net", ModuleState::Live), all.clone()),
            LoadedModule::new(module("coming", ModuleState::Coming), all[..2].to_vec()),
            LoadedModule::new(module("bare", ModuleState::Live), Vec::new()),
        ];
        let symbols = ModuleSymbols { folder: "/lib/modules/6.12".into(), modules, remarks: Vec::new() };
        let expected = "# files are taken to be /lib/modules/6.12/NAME.ko; for a _ of NAME a file's name may have a -\n\
             add-symbol-file /lib/modules/6.12/virtio_net.ko 0xffffffffc0100040 -s .data 0xffffffffc0110000\n\
             add-symbol-file /lib/modules/6.12/coming.ko 0xffffffffc0100040 -s .init.text 0xffffffffc0130000\n\
             add-symbol-file /lib/modules/6.12/bare.ko 0xffffffffc0100000\n";
        assert_eq!(symbols.to_string(), expected);
        let json = symbols.json();
        assert_eq!(
            json["modules"][0]["sections"],
            json!([{ "name": ".data", "address": "0xffffffffc0110000" }])
        );
        assert_eq!(json["modules"][2]["file"], "/lib/modules/6.12/bare.ko");
        assert_eq!(symbols.shortfall(), None);
    }

    #[test]
    fn words_are_words() {
        for word in ["virtio_net", "6.12.0-amd64", ".data..percpu", "a+b~c"] {
            assert!(is_word(word), "{word}");
        }
        for not in ["", "-s", "a b", "a;b", "a\"b", "a\\b", "a\u{fffd}b", "ä", "$x", "#"] {
            assert!(!is_word(not), "{not}");
        }
    }
}
