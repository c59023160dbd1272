//! Decodes a call by its table: what a trace and a debugger show.
//!
//! What is read of the guest's memory is bounded, whatever its counts say.

use super::call::Call;
use super::caller::Caller;
use super::family::Family;
use super::frame::{Fault, Frame};
use super::table::{ControlOp, Field, Kind, Show, Table};
use arch::hypercall::Abi;
use arch::plain::plain_lines;
use serde_json::{Map, Value as Json, json};
use std::fmt::Write;

/// Elements of a list that are read.
const MOST_ELEMENTS: u64 = 16;
/// Characters of a text that are read.
const MOST_TEXT: u64 = 256;

/// A decoded value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A number, and how it is shown.
    Number(u64, String),
    /// Characters, and how many there are that were not read.
    Text(Vec<u8>, u64),
    /// A structure.
    Struct(Vec<(&'static str, Value)>),
    /// A list, and how many elements there are that were not read.
    List(Vec<Value>, u64),
    /// A pointer that cannot be followed.
    Unreadable(u64),
    /// What the call has written.
    Written(Box<Value>),
    /// What the call has read and written.
    Changed(Box<Value>, Box<Value>),
    /// What the call may write, by frame, offset and kind.
    Awaited(&'static str, usize, usize, Kind),
    /// Characters that the call may write.
    AwaitedText(&'static str),
    /// A call within a call, and what it has resulted in.
    Call(Box<Decoded>, Option<(i64, String)>),
    /// An operation of an interface version that is not known; how many bytes of it there are is not
    /// known either.
    Unknown,
}

/// A decoded call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// The call's name.
    pub name: &'static str,
    /// Its sub-operation, and that with its table's name.
    pub op: Option<(&'static str, &'static str)>,
    /// Its number.
    pub number: u64,
    /// Its arguments.
    pub arguments: Vec<(&'static str, Value)>,
}

/// A structure with an interface version, taken apart.
#[derive(Clone, Copy, Debug)]
struct Controlled {
    /// What the caller states.
    command: u64,
    /// The same.
    version: u64,
    /// The operation of that version, if it is known.
    op: Option<&'static ControlOp>,
}

/// What decoding needs to know.
struct Reader<'a> {
    table: &'static Table,
    abi: Abi,
    caller: &'a dyn Caller,
    /// A call within a call is not looked into further.
    is_nested: bool,
}

impl Decoded {
    /// Decodes a call, reading what is to be shown.
    pub fn of(call: &mut Call<'_>) -> Decoded {
        Decoded::nested(call, false)
    }

    fn nested(call: &mut Call<'_>, is_nested: bool) -> Decoded {
        let reader = Reader { table: call.table, abi: call.raw.abi, caller: call.caller, is_nested };
        let mut arguments = Vec::new();
        for (field, value) in call.arguments().collect::<Vec<_>>() {
            arguments.push((field.name, reader.argument(call, field, value)));
        }
        let op = call.op_names();
        Decoded { name: call.row.name, op, number: call.raw.number, arguments }
    }

    /// A call that is in no table.
    pub fn unknown(number: u64) -> Decoded {
        let arguments = vec![("number", plain(number))];
        Decoded { name: "hypercall", op: None, number, arguments }
    }

    /// Takes in what the answer has written.
    pub fn complete(&mut self, call: &Call<'_>, family: &dyn Family, is_success: bool) {
        for (_, value) in &mut self.arguments {
            value.complete(call, family, is_success);
        }
        self.arguments.retain(|(_, value)| !value.is_awaited());
    }

    /// As one line: `name(arguments)`.
    pub fn text(&self) -> String {
        let mut text = format!("{}(", self.name);
        push_all(&mut text, self.arguments.iter().map(|(_, value)| (None, value)));
        text.push(')');
        text
    }

    /// As JSON.
    pub fn json(&self) -> Json {
        let arguments: Map<String, Json> =
            self.arguments.iter().map(|(name, value)| ((*name).to_string(), value.json())).collect();
        json!({ "call": self.name, "number": self.number, "operation": self.op.map(|(label, _)| label), "arguments": arguments })
    }
}

fn plain(value: u64) -> Value {
    Value::Number(value, shown(value, Show::Decimal, 8))
}

fn shown(value: u64, show: Show, size: usize) -> String {
    let signed = || {
        let unused = 64 - 8 * u32::try_from(size.clamp(1, 8)).unwrap_or(8);
        (value << unused).cast_signed() >> unused
    };
    match show {
        Show::Decimal => value.to_string(),
        Show::Signed => signed().to_string(),
        Show::Hex if value < 10 => value.to_string(),
        Show::Hex => format!("{value:#x}"),
    }
}

impl Reader<'_> {
    fn argument(&self, call: &mut Call<'_>, field: &'static Field, value: u64) -> Value {
        match &field.kind {
            Kind::Ops(name) => self.number(value, Show::Decimal, 4, Some(name)),
            Kind::Text(count) => {
                let count = call.argument(count);
                if !field.is_input {
                    return Value::AwaitedText(field.name);
                }
                let wanted = count.min(MOST_TEXT);
                let text = call.text(field.name, usize::try_from(wanted).unwrap_or(0));
                if text.is_empty() && wanted > 0 {
                    return Value::Unreadable(value);
                }
                Value::Text(text.to_vec(), count - text.len() as u64)
            }
            Kind::Calls(count) => {
                let count = call.argument(count);
                self.calls(call, value, count)
            }
            Kind::Control(name) => self.control(name, value),
            Kind::Pointer { to: Some(to), count, .. } if matches!(**to, Kind::Struct(_)) => {
                let count = count.map(|count| call.argument(count));
                let many = count.unwrap_or(1).min(MOST_ELEMENTS);
                let elements: Vec<Value> = (0..usize::try_from(many).unwrap_or(0))
                    .map(|index| match call.element(field.name, index) {
                        Ok(frame) => self.structure(frame, field.name, index),
                        Err(Fault) => Value::Unreadable(value),
                    })
                    .collect();
                match (count, elements.into_iter()) {
                    (None, mut elements) => elements.next().unwrap_or(Value::Unreadable(value)),
                    (Some(count), elements) => Value::List(elements.collect(), count - many),
                }
            }
            kind => self.scalar(kind, value),
        }
    }

    fn number(&self, value: u64, show: Show, size: usize, names: Option<&str>) -> Value {
        let Some((name, names)) = names.and_then(|name| Some((name, self.table.names(name)?))) else {
            return Value::Number(value, shown(value, show, size));
        };
        if !names.are_bits {
            let label = names.values.iter().find(|(named, _)| *named == value);
            let text = label.map_or_else(|| shown(value, show, size), |(_, label)| format!("{name}_{label}"));
            return Value::Number(value, text);
        }
        let mut rest = value;
        let mut parts = Vec::new();
        for (bit, label) in names.values.iter().filter(|(bit, _)| value >> bit & 1 != 0) {
            rest &= !(1 << bit);
            parts.push(format!("{name}_{label}"));
        }
        if rest != 0 || parts.is_empty() {
            parts.push(shown(rest, show, size));
        }
        Value::Number(value, parts.join("|"))
    }

    fn scalar(&self, kind: &Kind, value: u64) -> Value {
        match kind {
            Kind::Integer { show, names, .. } => {
                let (size, _) = self.table.layout(kind, self.abi);
                self.number(value, *show, size, *names)
            }
            Kind::Pointer { .. } if value == 0 => Value::Number(0, "NULL".into()),
            _ => Value::Number(value, format!("{value:#x}")),
        }
    }

    fn structure(&self, frame: &Frame, argument: &'static str, index: usize) -> Value {
        self.fields(frame, frame.name, 0, argument, index)
    }

    fn fields(&self, frame: &Frame, name: &str, start: usize, argument: &'static str, index: usize) -> Value {
        let places = self.table.places(name, self.abi);
        let selector = |wanted: &str| {
            let (_, at, size, _) = places.iter().find(|(field, ..)| field.name == wanted)?;
            Some(frame.number(start + at, *size))
        };
        let mut values = Vec::new();
        for (field, at, ..) in &places {
            let at = start + at;
            match &field.kind {
                _ if field.name == "_" => {}
                Kind::Union { selector: by, cases } => {
                    let value = selector(by);
                    let case = cases.iter().find(|(case, _)| Some(*case) == value);
                    if let Some((_, name)) = case
                        && let Value::Struct(inner) = self.fields(frame, name, at, argument, index)
                    {
                        values.extend(inner);
                    }
                }
                kind if field.is_output && !field.is_input => {
                    values.push((field.name, Value::Awaited(argument, index, at, kind.clone())));
                }
                Kind::Pointer { to: Some(to), count, .. } => {
                    let count = count.map_or(Some(1), &selector).unwrap_or(0);
                    let address = frame.number(at, self.abi.word());
                    values.push((field.name, self.list(frame, to, address, count)));
                }
                kind => {
                    let value = self.value(frame, kind, at, argument, index);
                    values.push((
                        field.name,
                        match field.is_output {
                            true => {
                                let after = Value::Awaited(argument, index, at, kind.clone());
                                Value::Changed(Box::new(value), Box::new(after))
                            }
                            false => value,
                        },
                    ));
                }
            }
        }
        Value::Struct(values)
    }

    fn value(&self, frame: &Frame, kind: &Kind, at: usize, argument: &'static str, index: usize) -> Value {
        let (size, _) = self.table.layout(kind, self.abi);
        match kind {
            Kind::Struct(name) => self.fields(frame, name, at, argument, index),
            Kind::Chars(count) => text(frame.bytes.get(at..at + count).unwrap_or(&[])),
            Kind::Array(kind, count) => {
                let (size, _) = self.table.layout(kind, self.abi);
                let elements = (0..*count).map(|n| self.value(frame, kind, at + n * size, argument, index));
                Value::List(elements.collect(), 0)
            }
            kind => self.scalar(kind, frame.number(at, size)),
        }
    }

    /// What a structure's pointer leads to: one if it is a structure by itself.
    fn list(&self, frame: &Frame, kind: &Kind, address: u64, count: u64) -> Value {
        let many = count.min(MOST_ELEMENTS);
        let (size, _) = self.table.layout(kind, self.abi);
        let mut elements = Vec::new();
        for index in 0..many {
            let address = self.abi.cut(address.wrapping_add(index * size as u64));
            let element = match kind {
                Kind::Struct(name) => Frame::read(self.table, self.abi, self.caller, name, address)
                    .map(|frame| self.structure(&frame, "", 0)),
                kind => frame.number_at(self.caller, address, size).map(|value| self.scalar(kind, value)),
            };
            match element {
                Ok(element) => elements.push(element),
                Err(Fault) => return Value::Unreadable(address),
            }
        }
        Value::List(elements, count - many)
    }

    fn calls(&self, call: &mut Call<'_>, address: u64, count: u64) -> Value {
        if self.is_nested {
            return Value::Number(address, format!("{address:#x}"));
        }
        let many = count.min(MOST_ELEMENTS);
        let mut calls = Vec::new();
        for index in 0..usize::try_from(many).unwrap_or(0) {
            let Ok(entry) = call.shown_entry(index) else {
                calls.push(Value::Unreadable(address));
                break;
            };
            let decoded = match &mut entry.call {
                Some(inner) => Decoded::nested(inner, true),
                None => Decoded::unknown(entry.raw.number),
            };
            calls.push(Value::Call(Box::new(decoded), None));
        }
        Value::List(calls, count - many)
    }

    fn control(&self, name: &'static str, address: u64) -> Value {
        let Ok((head, controlled)) = control(self.table, self.abi, self.caller, name, address) else {
            return Value::Unreadable(address);
        };
        let mut values = vec![];
        let label = controlled.op.map(|op| op.label);
        let known = label.map_or_else(
            || self.number(controlled.command, Show::Decimal, 4, None),
            |label| Value::Number(controlled.command, format!("{name}_{label}")),
        );
        values.push(("cmd", known));
        let version = controlled.version;
        values.push(("interface_version", Value::Number(version, shown(version, Show::Hex, 4))));
        let Some((control, op)) = self.table.control(name).zip(controlled.op) else {
            values.push(("", Value::Unknown));
            return Value::Struct(values);
        };
        let mut at: usize = 8;
        for field in &control.header {
            let (size, alignment) = self.table.layout(&field.kind, self.abi);
            at = at.next_multiple_of(alignment);
            let bytes = head.get(at..at + size).unwrap_or(&[]);
            let value = bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
            values.push((field.name, self.scalar(&field.kind, value)));
            at += size;
        }
        if let Some(body) = op.body {
            let address = address.wrapping_add(control.body_at as u64);
            match Frame::read(self.table, self.abi, self.caller, body, address) {
                Ok(frame) => values.push((op.label, self.structure(&frame, "", 0))),
                Err(Fault) => values.push((op.label, Value::Unreadable(address))),
            }
        }
        Value::Struct(values)
    }
}

/// The start of a structure with an interface version, and what it states.
///
/// # Errors
/// [`Fault`].
fn control(
    table: &'static Table,
    abi: Abi,
    caller: &dyn Caller,
    name: &str,
    address: u64,
) -> Result<(Vec<u8>, Controlled), Fault> {
    let control = table.control(name).ok_or(Fault)?;
    let header: usize = control.header.iter().map(|field| table.layout(&field.kind, abi).0).sum();
    let mut head = vec![0; 8 + header];
    if caller.read(address, &mut head) < head.len() {
        return Err(Fault);
    }
    let word = |at: usize| u64::from(arch::bytes::u32_at(&head, at).unwrap_or(0));
    let (command, version) = (word(0), word(4));
    let op = control.ops.iter().find(|op| op.number == command && op.versions.contains(&version));
    Ok((head, Controlled { command, version, op }))
}

fn text(bytes: &[u8]) -> Value {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    Value::Text(bytes[..end].to_vec(), 0)
}

impl Value {
    fn is_awaited(&self) -> bool {
        matches!(self, Value::Awaited(..) | Value::AwaitedText(_))
    }

    fn complete(&mut self, call: &Call<'_>, family: &dyn Family, is_success: bool) {
        match self {
            Value::Struct(values) => {
                values.iter_mut().for_each(|(_, value)| value.complete(call, family, is_success));
                values.retain(|(_, value)| !value.is_awaited());
            }
            Value::List(values, _) => {
                for (index, value) in values.iter_mut().enumerate() {
                    match (value, call.entries.get(index)) {
                        (Value::Call(decoded, result), Some(Ok(entry))) => {
                            *result = entry
                                .result
                                .map(|result| (result, shown_result(result, family.error(result))));
                            if let Some(inner) = &entry.call {
                                decoded.complete(inner, family, is_success);
                            }
                        }
                        (value, _) => value.complete(call, family, is_success),
                    }
                }
            }
            Value::Awaited(argument, index, at, kind) => {
                let frames = call.frames.iter();
                let mut frames = frames.filter(|frame| frame.0 == *argument && frame.1 == *index);
                if let Some((_, _, Ok(frame))) = frames.next()
                    && frame.is_written(*at)
                {
                    let reader =
                        Reader { table: call.table, abi: call.raw.abi, caller: call.caller, is_nested: true };
                    *self = Value::Written(Box::new(reader.value(frame, kind, *at, "", 0)));
                }
            }
            Value::Changed(before, after) => {
                after.complete(call, family, is_success);
                if after.is_awaited() {
                    *self = before.as_ref().clone();
                }
            }
            Value::AwaitedText(argument) => {
                let text = call.texts.iter().find(|(name, _)| name == argument);
                if let Some((_, text)) = text
                    && is_success
                {
                    *self = Value::Written(Box::new(Value::Text(text.clone(), 0)));
                }
            }
            _ => {}
        }
    }

    fn push(&self, text: &mut String) {
        // Writing to a String cannot fail.
        match self {
            Value::Number(_, shown) => text.push_str(shown),
            Value::Text(bytes, rest) => {
                text.push('"');
                text.extend(bytes.iter().flat_map(|byte| std::ascii::escape_default(*byte)).map(char::from));
                text.push('"');
                if *rest > 0 {
                    write!(text, "...({rest} more)").ok();
                }
            }
            Value::Struct(values) => {
                text.push('{');
                push_all(text, values.iter().map(|(name, value)| (Some(*name), value)));
                text.push('}');
            }
            Value::List(values, rest) => {
                text.push('[');
                push_all(text, values.iter().map(|value| (None, value)));
                if *rest > 0 {
                    write!(text, "{}...{rest} more", if values.is_empty() { "" } else { ", " }).ok();
                }
                text.push(']');
            }
            Value::Unreadable(address) => {
                write!(text, "{address:#x}(unreadable)").ok();
            }
            Value::Written(value) => {
                text.push('→');
                value.push(text);
            }
            Value::Changed(before, after) => {
                before.push(text);
                if !after.is_awaited() {
                    after.push(text);
                }
            }
            Value::Awaited(..) | Value::AwaitedText(_) => text.push('?'),
            Value::Call(call, result) => {
                text.push_str(&call.text());
                if let Some((_, shown)) = result {
                    write!(text, " = {shown}").ok();
                }
            }
            Value::Unknown => text.push_str("..."),
        }
    }

    fn json(&self) -> Json {
        match self {
            Value::Number(value, shown) if shown.starts_with(|c: char| c.is_ascii_digit() || c == '-') => {
                json!(value)
            }
            Value::Number(value, shown) => json!({ "value": value, "name": shown }),
            Value::Text(bytes, rest) => {
                json!({ "text": plain_lines(&String::from_utf8_lossy(bytes)), "more": rest })
            }
            Value::Struct(values) => {
                let named = values.iter().filter(|(name, _)| !name.is_empty());
                Json::Object(named.map(|(name, value)| ((*name).to_string(), value.json())).collect())
            }
            Value::List(values, rest) => {
                json!({ "elements": values.iter().map(Value::json).collect::<Vec<_>>(), "more": rest })
            }
            Value::Unreadable(address) => json!({ "unreadable": address }),
            Value::Written(value) => json!({ "written": value.json() }),
            Value::Changed(before, after) => json!({ "read": before.json(), "written": after.json() }),
            Value::Awaited(..) | Value::AwaitedText(_) | Value::Unknown => Json::Null,
            Value::Call(call, result) => {
                let mut object = call.json();
                object["result"] = json!(result.as_ref().map(|(result, _)| result));
                object
            }
        }
    }
}

fn push_all<'a>(text: &mut String, values: impl Iterator<Item = (Option<&'a str>, &'a Value)>) {
    for (index, (name, value)) in values.enumerate() {
        if index > 0 {
            text.push_str(", ");
        }
        if let Some(name) = name.filter(|name| !name.is_empty()) {
            text.push_str(name);
            text.push('=');
        }
        value.push(text);
    }
}

/// A result as strace shows it.
pub fn shown_result(result: i64, error: Option<&str>) -> String {
    match error {
        Some(error) => format!("-{error}"),
        None if (-4095..4096).contains(&result) => result.to_string(),
        None => format!("{result:#x}"),
    }
}
