//! `lsmod`: the modules of a Linux kernel in the guest, by what the kernel has in its own memory.

use super::kernel::of_kernel;
use super::operator::Operator;
use crate::linux::module::{Module, ModuleState, Modules};
use crate::reply::{Arguments, Command, Json, Refusal, Reply, Value, hex, json};
use std::fmt;

/// `lsmod`.
pub const LSMOD: Command = Command::new(
    "lsmod",
    "",
    "the kernel's modules: size, how often each is used, where its code is, who uses it",
);

/// Modules, as they are told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded(pub Modules);

fn state(module: &Module) -> &'static str {
    module.state.map_or("in no state of the kernel's", ModuleState::word)
}

impl fmt::Display for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<24} {:>10} {:>5} {:<18} USED BY", "MODULE", "SIZE", "USED", "CODE")?;
        for module in &self.0.all {
            let Module { name, size, text, references, users, .. } = module;
            let used = references.map_or_else(|| "-".into(), |count| count.to_string());
            write!(f, "{name:<24} {size:>10} {used:>5} {text:#018x} {}", users.join(","))?;
            match module.state {
                Some(ModuleState::Live) => writeln!(f)?,
                _ => writeln!(f, " ({})", state(module))?,
            }
        }
        Ok(())
    }
}

impl Value for Loaded {
    fn json(&self) -> Json {
        let module = |module: &Module| {
            json!({
                "name": module.name, "size": module.size, "used": module.references, "code": hex(module.text),
                "users": module.users, "state": module.state.map(ModuleState::word), "module": hex(module.address),
            })
        };
        json!({ "modules": self.0.all.iter().map(module).collect::<Vec<_>>(), "remarks": self.0.remarks })
    }

    fn shortfall(&self) -> Option<String> {
        (!self.0.remarks.is_empty()).then(|| self.0.remarks.join("; "))
    }
}

pub(super) fn run(operator: &mut dyn Operator, arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
    arguments.none()?;
    let view = operator.view();
    let modules = of_kernel(&view, |info| view.kernel_modules(info))?;
    Ok(Box::new(Loaded(modules)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_in_words_and_as_json() {
        let virtio = Module {
            address: 0xffff_ffff_c012_0000,
            name: "virtio_net".into(),
            state: Some(ModuleState::Live),
            text: 0xffff_ffff_c010_0000,
            text_size: 0x3000,
            init: (0, 0),
            memory: Vec::new(),
            orc: None,
            size: 86016,
            references: Some(2),
            users: ["first", "second"].map(String::from).to_vec(),
        };
        let (references, users) = (None, Vec::new());
        let odd = Module { name: "odd".into(), state: None, references, users, ..virtio.clone() };
        let coming = Module { name: "new".into(), state: Some(ModuleState::Coming), ..odd.clone() };
        let remarks = vec!["a module is left out".to_string()];
        let loaded = Loaded(Modules { all: vec![virtio, odd, coming], remarks });
        let expected = "MODULE                         SIZE  USED CODE               USED BY\n\
                        virtio_net                    86016     2 0xffffffffc0100000 first,second\n\
                        odd                           86016     - 0xffffffffc0100000  (in no state of the kernel's)\n\
                        new                           86016     - 0xffffffffc0100000  (coming)\n";
        assert_eq!(loaded.to_string(), expected);
        assert_eq!(loaded.shortfall().as_deref(), Some("a module is left out"));
        assert_eq!(Loaded::default().shortfall(), None);
        let json = loaded.json();
        assert_eq!(json["modules"][0]["users"][1], "second");
        assert_eq!((&json["modules"][1]["used"], &json["modules"][1]["state"]), (&Json::Null, &Json::Null));
        assert_eq!(json["modules"][2]["state"], "coming");
    }
}
