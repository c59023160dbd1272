//! `print`: what is in a Linux kernel's memory, by the types that it has in memory itself.
//!
//! What is asked for is written as in C: symbols and numbers, `*`, `&`, `.`, `->`, `[N]`, and `(struct T *)` in front of
//! where something is; a symbol without a type of its own stands for its address there. Of what every processor has one of,
//! `per_cpu(SYMBOL, N)` is processor N's. `list(HEAD, struct T, MEMBER)` is what is linked to a `struct list_head` by a
//! member, and a member of that is one of each.
//!
//! Symbols and types are the kernel's, and what the kernel has not those of its modules. Of several types of one name it is
//! that of the module that something is a part of; where that does not tell, it is said how each is written.

mod evaluate;
mod expression;

use super::kernel::of_kernel;
use super::names::is_per_cpu;
use super::operator::Operator;
use crate::cancel::Cancel;
use crate::linux::reader::Reader;
use crate::linux::typed::{Bounds, Data};
use crate::linux::{Symbols, Types};
use crate::reply::{Arguments, Command, Json, Refusal, Reply, Value, hex, json};
use crate::symbols::MOST_FOUND;
use crate::view::module_names::ModuleNames;
use crate::view::module_types::ModuleTypes;
use evaluate::{Failure, InModule, Kernel, Loaded};
use expression::Parser;
use std::fmt;
use std::sync::Arc;

/// `print`.
pub const PRINT: Command = Command::new(
    "print",
    "EXPRESSION",
    "data of the kernel's by its own types: print *(struct task_struct *)init_task, print per_cpu(runqueues, 0).nr_running",
);

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Printed {
    /// Each thing: several of a list.
    pub things: Vec<Thing>,
    /// What of a list could not be had, a line each.
    pub remarks: Vec<String>,
}

/// One thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thing {
    /// Its type's name.
    pub type_name: String,
    /// Where it is, if it is in memory.
    pub address: Option<u64>,
    /// What it is.
    pub data: Data,
}

impl fmt::Display for Printed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Thing { type_name, address, data } in &self.things {
            write!(f, "({type_name}) ")?;
            if let Some(address) = address {
                write!(f, "{address:#x}: ")?;
            }
            writeln!(f, "{data}")?;
        }
        self.remarks.iter().try_for_each(|remark| writeln!(f, "{remark}"))
    }
}

fn as_json(data: &Data) -> Json {
    match data {
        Data::Number { value, is_signed: true } => json!(value.cast_signed()),
        Data::Number { value, .. } => json!(value),
        Data::Truth(is_true) => json!(is_true),
        Data::Address(at, None) => json!(hex(*at)),
        Data::Address(at, Some(symbol)) => json!({ "address": hex(*at), "symbol": symbol }),
        Data::Text { text, is_cut: false } => json!(text),
        Data::Text { text, is_cut: true } => json!({ "text": text, "more": true }),
        Data::Named(value, name) => json!({ "value": value.cast_signed(), "name": name }),
        Data::Members(members) => {
            let mut object = serde_json::Map::new();
            for (name, value) in members {
                match (name.is_empty(), as_json(value)) {
                    // Members of one without a name are the outer one's.
                    (true, Json::Object(inner)) => object.extend(inner),
                    (true, _) => {}
                    (false, value) => drop(object.insert(name.clone(), value)),
                }
            }
            Json::Object(object)
        }
        Data::Elements(elements, more) => {
            let elements = elements.iter().map(as_json).collect::<Vec<_>>();
            if *more == 0 { json!(elements) } else { json!({ "elements": elements, "more": more }) }
        }
        Data::NotThere(_) | Data::Unknown | Data::TooMuch => Json::Null,
    }
}

impl Value for Printed {
    fn json(&self) -> Json {
        let thing = |it: &Thing| json!({ "type": it.type_name, "address": it.address.map(hex), "value": as_json(&it.data) });
        json!({ "things": self.things.iter().map(thing).collect::<Vec<_>>(), "remarks": self.remarks })
    }

    fn shortfall(&self) -> Option<String> {
        let missing = self.things.iter().find_map(|thing| match thing.data {
            Data::NotThere(at) => Some(format!("the kernel's memory cannot be read at {at:#x}")),
            _ => None,
        });
        missing.or_else(|| (!self.remarks.is_empty()).then(|| self.remarks.join("; ")))
    }
}

/// A kernel's modules: what they have is read as it is asked for.
struct Modules<'a> {
    names: ModuleNames<'a>,
    types: ModuleTypes<'a>,
    own: &'a Symbols,
    cancel: &'a Cancel,
}

impl Loaded for Modules<'_> {
    fn names(&self) -> Vec<String> {
        self.names.all().iter().map(|module| module.name.clone()).collect()
    }

    fn named(&self, name: &str) -> Vec<InModule> {
        let mut found = Vec::new();
        self.names.named(name, |module, _, symbol| {
            let index = self.names.all().iter().position(|it| it.address == module.address);
            if let Some(module) = index.filter(|_| found.len() < MOST_FOUND) {
                let is_per_cpu = is_per_cpu(self.own, symbol.address);
                found.push(InModule { module, address: symbol.address, is_per_cpu });
            }
        });
        found
    }

    fn holding(&self, address: u64) -> Option<usize> {
        self.names.all().iter().position(|module| module.holds(address))
    }

    fn types(&self, module: usize) -> Result<Option<Arc<Types>>, String> {
        self.names.all().get(module).map_or(Ok(None), |module| self.types.of(module))
    }

    fn symbol(&self, address: u64) -> Option<String> {
        self.names.at(address, |module, _, symbol| {
            let behind = match address.wrapping_sub(symbol.address) {
                0 => String::new(),
                behind => format!("+{behind:#x}"),
            };
            format!("{}{behind} [{}]", symbol.name, module.name)
        })
    }

    fn remarks(&self) -> Vec<String> {
        self.names.shortfall()
    }

    fn goes_on(&self) -> bool {
        self.cancel.check().is_ok()
    }
}

pub(super) fn run(operator: &mut dyn Operator, arguments: &Arguments<'_>) -> Result<Reply, Refusal> {
    let text = arguments.words().join(" ");
    if text.is_empty() {
        return Err(Refusal::Usage("write what is to be printed: *(struct task_struct *)init_task".into()));
    }
    let expression = Parser::whole(&text).map_err(Refusal::Usage)?;
    let view = operator.view();
    let printed = of_kernel(&view, |info| {
        let (symbols, types) = (view.kernel_symbols(info)?, view.kernel_types(info)?);
        // Of what one vCPU does not see, as one in user space with tables of its own, another may see all.
        let landmark = symbols.address("init_task");
        let modules = Modules {
            names: ModuleNames::new(view, info, &types),
            types: ModuleTypes::new(view, info, Arc::clone(&types)),
            own: &symbols,
            cancel: view.cancel,
        };
        let print = |landmark: Option<u64>| {
            view.by_kernel(info, |read| {
                let reader = Reader::new(read);
                landmark.map_or(Ok(0), |at| reader.address(at)).map_err(|error| error.to_string())?;
                Kernel::new(&types, &symbols, &modules, &reader)
                    .print(&expression, Bounds::USUAL)
                    .map_or_else(Failure::settled, |printed| Ok(Ok(printed)))
            })
        };
        print(landmark).or_else(|why| if landmark.is_some() { print(None) } else { Err(why) })?
    })?;
    Ok(Box::new(printed))
}

#[cfg(test)]
mod tests;
