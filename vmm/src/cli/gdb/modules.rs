//! The symbols of the modules in a guest's kernel, for a gdb that is started for it: where the guest has them, and files
//! that have them on this machine.
//!
//! Source: GDB manual, "Commands to Specify Files" (`add-symbol-file`) and "Basic Python" (`gdb.execute`).

use super::quoted;
use crate::control::client::ask;
use crate::control::protocol::{Answer, MonitorLine, Request, Response};
use crate::job::modules::Modules;
use crate::symbols::search::{is_name, is_private, is_trusted};
use serde_json::Value;
use std::collections::HashSet;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The most modules of a guest that gdb is told of, and bytes that are unpacked for it.
const MOST_MODULES: usize = 2048;
const MOST_BYTES: u64 = 1 << 30;

/// Where a module is in the guest. What the guest has said is nothing but names and numbers by now.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    name: String,
    text: u64,
    sections: Vec<(String, u64)>,
}

impl Place {
    fn parse(said: &Value) -> Option<Place> {
        let number = |value: &Value| u64::from_str_radix(value.as_str()?.strip_prefix("0x")?, 16).ok();
        let name = |value: &Value| value.as_str().filter(|name| is_word(name)).map(str::to_string);
        let sections = said["sections"].as_array().into_iter().flatten();
        Some(Place {
            name: name(&said["name"])?,
            text: number(&said["text"])?,
            sections: sections.filter_map(|it| Some((name(&it["name"])?, number(&it["address"])?))).collect(),
        })
    }

    /// What makes gdb know it.
    fn command(&self, file: &Path) -> String {
        let sections: String =
            self.sections.iter().map(|(name, address)| format!(" -s {name} {address:#x}")).collect();
        format!("add-symbol-file {} {:#x}{sections}", quoted(file), self.text)
    }
}

/// A module's name, or a section's (which begins with a dot).
fn is_word(text: &str) -> bool {
    is_name(text.strip_prefix('.').unwrap_or(text)) && !text.starts_with('-')
}

/// What gdb is told of modules, in a folder that goes with this.
#[derive(Debug)]
pub struct ModuleSymbols {
    folder: TempDir,
    /// How many modules have a file.
    pub found: usize,
    /// Those that have none.
    pub missing: Vec<String>,
    /// Bytes that may still be unpacked.
    room: u64,
}

impl ModuleSymbols {
    /// Of a guest whose kernel has modules; `None` where it has none, or does not say. It ends early, with those that it
    /// has by then, where this process is to end.
    ///
    /// # Errors
    /// What the file system says of the folder.
    pub fn of_guest(
        guest: &str,
        release: Option<&str>,
        vmlinux: &Path,
        is_to_end: &dyn Fn() -> bool,
    ) -> io::Result<Option<ModuleSymbols>> {
        let line = MonitorLine { line: "symbols".into(), json: true };
        let Ok(Response::Answer(Answer { text, why, .. })) = ask(guest, &Request::Monitor(line)) else {
            return Ok(None);
        };
        if !why.is_empty() {
            log::info!("the kernel's modules: {why}");
        }
        let places = places(&text);
        if places.is_empty() {
            return Ok(None);
        }
        ModuleSymbols::make(&places, &sources(release, vmlinux), is_to_end).map(Some)
    }

    fn make(
        places: &[Place],
        sources: &[Modules],
        is_to_end: &dyn Fn() -> bool,
    ) -> io::Result<ModuleSymbols> {
        let folder = tempfile::Builder::new()
            .prefix("vmm-modules-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir()?;
        let mut symbols = ModuleSymbols { folder, found: 0, missing: Vec::new(), room: MOST_BYTES };
        let mut commands = Vec::new();
        for place in places.iter().take_while(|_| !is_to_end()) {
            match symbols.file(&place.name, sources) {
                Some(file) => commands.push(place.command(&file)),
                None => symbols.missing.push(place.name.clone()),
            }
        }
        symbols.found = commands.len();
        fs::write(symbols.script(), script(&commands))?;
        Ok(symbols)
    }

    /// What gdb is to read once it is connected.
    pub fn script(&self) -> PathBuf {
        self.folder.path().join("modules.gdb")
    }

    /// A file that gdb can read. One that is damaged is none, and one whose path would end a line of gdb's.
    fn file(&mut self, name: &str, sources: &[Modules]) -> Option<PathBuf> {
        sources.iter().find_map(|modules| {
            let file = modules.file(name)?;
            let is_line = file.to_str().is_some_and(|path| path.bytes().all(|byte| byte >= b' '));
            if !is_line || !file.metadata().is_ok_and(|it| it.is_file() && is_trusted(&it)) {
                return None;
            }
            let is_plain = file.extension().is_some_and(|it| it == "ko" || it == "debug");
            if is_plain {
                return Some(file.to_path_buf());
            }
            let unpacked = self.folder.path().join(format!("{name}.ko"));
            let bytes = modules.unpacked(name)?.ok()?;
            self.room = self.room.checked_sub(bytes.len() as u64)?;
            fs::write(&unpacked, bytes).ok()?;
            Some(unpacked)
        })
    }
}

fn places(text: &str) -> Vec<Place> {
    let said: Value = serde_json::from_str(text).unwrap_or_default();
    let mut names = HashSet::new();
    let all = said["modules"].as_array().into_iter().flatten().filter_map(Place::parse);
    all.filter(|place| names.insert(place.name.clone())).take(MOST_MODULES).collect()
}

/// Where files of modules are, the surest first: a tree that has been built, what a distribution has of symbols, and what
/// is installed, which may have functions alone.
fn sources(release: Option<&str>, vmlinux: &Path) -> Vec<Modules> {
    // A folder that is not there, or cannot be read, has none.
    let tree = vmlinux.parent().map(|tree| if tree.as_os_str().is_empty() { Path::new(".") } else { tree });
    let tree = tree.filter(|tree| is_private(tree)).and_then(|tree| Modules::of_tree(tree).ok());
    let release = release.filter(|release| is_name(release));
    let installed = release.into_iter().flat_map(|release| {
        let of = |folder: &str| Path::new(folder).join(release);
        [Modules::of_symbols(&of("/usr/lib/debug/lib/modules")), Modules::below(&of("/lib/modules"))]
    });
    tree.into_iter().chain(installed.filter_map(Result::ok)).collect()
}

/// Commands for gdb, of whose answers nothing is shown but what went wrong: they have a line for each section. A command
/// is a line.
fn script(commands: &[String]) -> String {
    let mut script = String::from(
        "python\ndef vmm_module(command):\n    try:\n        gdb.execute(command, to_string=True)\n    \
         except gdb.error as error:\n        print(\"vmm: %s\" % error)\n",
    );
    script += &format!("print(\"vmm: reading the symbols of {} modules\")\n", commands.len());
    for command in commands {
        // A string of JSON is one of Python's.
        script += &format!("vmm_module({})\n", Value::from(command.as_str()));
    }
    script + "end\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = r#"{"modules":[
        {"name":"virtio_net","file":"/x","text":"0xffffffffc0100040","sections":[
            {"name":".data","address":"0xffffffffc0110000"},{"name":"; shell","address":"0x1"},{"name":"-x","address":"0x1"}]},
        {"name":"../../etc/x","text":"0x1000","sections":[]},
        {"name":"none_here","text":"0x2000"},
        {"name":"bad","text":"12"},{"name":"none_here","text":"0x3000"}],"remarks":[]}"#;

    #[test]
    fn names_and_numbers_of_a_guest_and_nothing_else() {
        let places = places(SAID);
        assert_eq!(places.iter().map(|it| &it.name[..]).collect::<Vec<_>>(), ["virtio_net", "none_here"]);
        assert_eq!(
            places[0].command(Path::new("/a b/x.ko")),
            r#"add-symbol-file "/a b/x.ko" 0xffffffffc0100040 -s .data 0xffffffffc0110000"#
        );
        assert!(super::places("no json").is_empty() && super::places(r#"{"modules":5}"#).is_empty());
    }

    #[test]
    fn files_are_found_and_unpacked_and_go_with_the_debugger() {
        let tree = tempfile::tempdir().unwrap();
        let packed = |bytes: &[u8]| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            std::io::Write::write_all(&mut encoder, bytes).unwrap();
            encoder.finish().unwrap()
        };
        fs::write(tree.path().join("virtio-net.ko.gz"), packed(b"a module")).unwrap();
        fs::write(tree.path().join("other.ko.debug"), b"symbols").unwrap();
        let odd = tree.path().join("a\nshell x\n");
        fs::create_dir(&odd).unwrap();
        fs::write(odd.join("none_here.ko"), b"").unwrap();
        let sources = [Modules::of_symbols(tree.path()).unwrap(), Modules::below(tree.path()).unwrap()];
        let mut places = places(SAID);
        places.push(Place { name: "other".into(), text: 0x3000, sections: Vec::new() });
        let symbols = ModuleSymbols::make(&places, &sources, &|| false).unwrap();
        assert_eq!((symbols.found, &symbols.missing[..]), (2, &["none_here".to_string()][..]));
        let (script, folder) =
            (fs::read_to_string(symbols.script()).unwrap(), symbols.folder.path().to_owned());
        assert_eq!(fs::read(folder.join("virtio_net.ko")).unwrap(), b"a module");
        assert_eq!(folder.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        let line = format!(
            "vmm_module(\"add-symbol-file \\\"{}/virtio_net.ko\\\" 0xffffffffc0100040 -s .data",
            folder.display()
        );
        assert!(script.contains(&line) && script.contains("other.ko.debug"), "{script}");
        drop(symbols);
        assert!(!folder.exists());
        assert_eq!(ModuleSymbols::make(&places, &sources, &|| true).unwrap().found, 0);
    }

    /// Whoever debugs a file in a folder of everybody's gets no modules that others have put there.
    #[test]
    fn a_tree_is_its_users() {
        let tree = tempfile::tempdir().unwrap();
        fs::write(tree.path().join("modules.order"), "drivers/x.o\n").unwrap();
        let vmlinux = tree.path().join("vmlinux");
        let found = || -> Vec<PathBuf> {
            sources(None, &vmlinux).iter().filter_map(|it| it.file("x").map(Path::to_path_buf)).collect()
        };
        assert_eq!(found(), [tree.path().join("drivers/x.ko")]);
        fs::set_permissions(tree.path(), Permissions::from_mode(0o1777)).unwrap();
        assert_eq!(found(), Vec::<PathBuf>::new());
    }
}
