//! Types of registers, as XML that goes in front of a feature's registers.

use arch::register::Feature;
use std::fmt::Write;

/// Appends XML.
pub(super) fn push(xml: &mut String, text: std::fmt::Arguments) {
    // Writing to a String cannot fail.
    xml.write_fmt(text).ok();
}

const EFLAGS: &[(&str, u32)] = &[
    ("CF", 0),
    ("", 1),
    ("PF", 2),
    ("AF", 4),
    ("ZF", 6),
    ("SF", 7),
    ("TF", 8),
    ("IF", 9),
    ("DF", 10),
    ("OF", 11),
    ("NT", 14),
    ("RF", 16),
    ("VM", 17),
    ("AC", 18),
    ("VIF", 19),
    ("VIP", 20),
    ("ID", 21),
];
const MXCSR: &[(&str, u32)] = &[
    ("IE", 0),
    ("DE", 1),
    ("ZE", 2),
    ("OE", 3),
    ("UE", 4),
    ("PE", 5),
    ("DAZ", 6),
    ("IM", 7),
    ("DM", 8),
    ("ZM", 9),
    ("OM", 10),
    ("UM", 11),
    ("PM", 12),
    ("FZ", 15),
];
const CPSR: &[(&str, u32)] = &[
    ("SP", 0),
    ("EL", 2),
    ("nRW", 4),
    ("F", 6),
    ("I", 7),
    ("A", 8),
    ("D", 9),
    ("BTYPE", 10),
    ("SSBS", 12),
    ("IL", 20),
    ("SS", 21),
    ("PAN", 22),
    ("UAO", 23),
    ("DIT", 24),
    ("TCO", 25),
    ("V", 28),
    ("C", 29),
    ("Z", 30),
    ("N", 31),
];

/// Types that a feature's registers use, as XML; `vector_bits` is the length of Z registers.
pub(super) fn types(feature: Feature, vector_bits: usize) -> String {
    match feature {
        Feature::X86Core => flags("i386_eflags", EFLAGS),
        Feature::X86Sse => format!(
            "{}{}",
            vector_types(&["v4f", "v2d", "v16i8", "v8i16", "v4i32", "v2i64"]),
            flags("i386_mxcsr", MXCSR)
        ),
        Feature::X86Avx512 => {
            let types = vector_types(&["v4f", "v2d", "v2i64"]);
            format!("{types}<vector id=\"v2ui128\" type=\"uint128\" count=\"2\"/>")
        }
        Feature::Aarch64Core => flags("cpsr_flags", CPSR),
        Feature::Aarch64Fpu => aarch64_vector("aarch64v", 128),
        Feature::Aarch64Sve => {
            let predicate = format!("<vector id=\"svep\" type=\"uint8\" count=\"{}\"/>", vector_bits / 64);
            aarch64_vector("svev", vector_bits) + &predicate
        }
        Feature::X86Segments
        | Feature::X86Avx
        | Feature::X86System
        | Feature::Aarch64PointerAuthentication
        | Feature::Aarch64System => String::new(),
    }
}

/// The union of what a V or Z register may hold, as in gdb's own description: doublewords,
/// words, halfwords, bytes, quadwords.
fn aarch64_vector(id: &str, bits: usize) -> String {
    let (mut xml, mut union) = (String::new(), String::new());
    for (name, float, size) in
        [("d", "ieee_double", 64), ("s", "ieee_single", 32), ("h", "", 16), ("b", "", 8), ("q", "", 128)]
    {
        let (mut fields, count) = (String::new(), bits / size);
        let (unsigned, signed) = (format!("uint{size}"), format!("int{size}"));
        for (letter, kind) in [("f", float), ("u", unsigned.as_str()), ("s", signed.as_str())] {
            if !kind.is_empty() {
                push(
                    &mut xml,
                    format_args!("<vector id=\"v{name}{letter}\" type=\"{kind}\" count=\"{count}\"/>"),
                );
                push(&mut fields, format_args!("<field name=\"{letter}\" type=\"v{name}{letter}\"/>"));
            }
        }
        push(&mut xml, format_args!("<union id=\"vn{name}\">{fields}</union>"));
        push(&mut union, format_args!("<field name=\"{name}\" type=\"vn{name}\"/>"));
    }
    format!("{xml}<union id=\"{id}\">{union}</union>")
}

/// Vector types of 16 bytes, by gdb's names, and their union `vec128`.
fn vector_types(names: &[&str]) -> String {
    let (mut vectors, mut fields) = (String::new(), String::new());
    for name in names {
        let (kind, count, field) = match *name {
            "v4f" => ("ieee_single", 4, "v4_float"),
            "v2d" => ("ieee_double", 2, "v2_double"),
            "v16i8" => ("int8", 16, "v16_int8"),
            "v8i16" => ("int16", 8, "v8_int16"),
            "v4i32" => ("int32", 4, "v4_int32"),
            _ => ("int64", 2, "v2_int64"),
        };
        push(&mut vectors, format_args!("<vector id=\"{name}\" type=\"{kind}\" count=\"{count}\"/>"));
        push(&mut fields, format_args!("<field name=\"{field}\" type=\"{name}\"/>"));
    }
    format!("{vectors}<union id=\"vec128\">{fields}<field name=\"uint128\" type=\"uint128\"/></union>")
}

/// A flags type of four bytes. `EL` and `BTYPE` have two bits, all others one.
fn flags(id: &str, fields: &[(&str, u32)]) -> String {
    let mut xml = format!("<flags id=\"{id}\" size=\"4\">");
    for (name, bit) in fields {
        let end = bit + u32::from(matches!(*name, "EL" | "BTYPE"));
        push(&mut xml, format_args!("<field name=\"{name}\" start=\"{bit}\" end=\"{end}\"/>"));
    }
    xml.push_str("</flags>");
    xml
}
