//! What is fuzzed: every decoder of bytes from outside, as functions that must return whatever
//! they are given. `make fuzz` has libFuzzer look for inputs; the unit tests go through
//! mutations of a few good ones.

mod call_frames;
mod disks;
mod dumps;
mod frames;
mod images;
mod kernels;
mod linux;
mod old_kernels;
mod requests;
mod shares;
mod simulated;
mod symbols;
mod virtio;
mod vsock;

use dumps::{cores, kdumps, packed, whole};

use arch::aarch64::syndrome::DebugException;
use arch::address::PhysRange;
use arch::hypercall::Abi;
use arch::register::{RegisterFile, row};
use arch::{GuestPhys, GuestVirt, Isa, aarch64, x86};
use debug::breakpoint::{Breakpoint, Kind};
use debug::disassemble::{LONGEST_INSTRUCTION, OperatingMode, disassemble};
use debug::engine::{Cpu, Engine, Stepped};
use debug::expression::{Environment, Expression};
use debug::fake::{self, Ram, Scripted, ScriptedStep, Still};
use debug::gdb::client::{converse, misbehave};
use debug::gdb::packet::{Framer, LONGEST, frame, unescape};
use debug::gdb::session::Session;
use debug::linux::VmCoreInfo;
use debug::linux::described::{self, Anchor, Scope};
use debug::linux::log::Wanted;
use debug::machine::{Action, Machine, Memory, Order};
use debug::memory::Translation;
use debug::range;
use debug::trap::Trap;
use devices::hypercall::trace::{Filter, Style, Tracer};
use devices::hypercall::xen::{Delivery, Platform, Xen};
use devices::hypercall::{Caller, Hypercalls, RawCall};
use std::io;
use std::sync::Arc;

/// Something that is fuzzed.
#[derive(Clone, Copy)]
pub struct Fuzzed {
    /// Its name, for `make fuzz TARGET=`.
    pub name: &'static str,
    /// The function.
    pub run: fn(&[u8]),
    /// Inputs to begin with.
    pub seeds: &'static [&'static [u8]],
}

impl std::fmt::Debug for Fuzzed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// All of them.
pub const FUZZED: &[Fuzzed] = &[
    Fuzzed {
        name: "packets",
        run: packets,
        seeds: &[
            b"?\ng\nm0,100\nx0,100\nM10,2:abcd\nX10,2:ab\np0\nP0=0000000000000000\nHg1\nT1",
            b"qSupported:multiprocess+\nQStartNoAckMode\nqXfer:features:read:target.xml:0,1000\nqfThreadInfo\nqC",
            b"Z0,100,1;X3,220027;cmds:0,X3,220027\nz0,100,1\nZ2,8,4\nvCont?\nvCont;s:p1.1\nvCont;r0,10:1;c",
            b"qRcmd,68656c70\nqRcmd,7472616e736c6174652030\nqRcmd,6d6170\nqRcmd,646d657367\nqRcmd,72656773",
            b"qSearch:memory:0;1000;ab\nqCRC:0,1000\nqXfer:threads:read::0,fff\nqMemoryRegionInfo:0\nqOffsets\nD;1\nk",
        ],
    },
    Fuzzed {
        name: "orders",
        run: simulated::orders,
        seeds: &[
            b"\x00\x00\x04\x04\x08\x04\x03\x04\x06\x0e\x07\x02\x04\x0a\x04\x19\x05",
            b"\x01\x08\x04\x09\x04\x13\x06\x06\x0e\x07\x02\x0a\x05\x05\x03\x03\x11\x05",
        ],
    },
    Fuzzed {
        name: "simulated",
        run: simulated::packets,
        seeds: &[
            b"\x00?\nqSupported:multiprocess+\nZ0,1003,1\nvCont;c\ng\nvCont;s:p1.1\nz0,1003,1\nvCont;c\nD;1",
            b"\x01?\nHg1\nZ1,1004,4\nZ2,4000,8\nvCont;c\nm1000,10\nvCont;s:p1.2\nvCont;r1000,1010:p1.1\nD;1",
        ],
    },
    Fuzzed {
        name: "virtio",
        run: virtio::virtio,
        seeds: &[
            // The entropy device, by the book: features, a queue at 0x1000, 0x2000 and 0x3000, a buffer, its bell.
            b"\x12\x14\x00\x01\x00\x00\x00\x12\x14\x00\x03\x00\x00\x00\x22\x08\x00\x01\x00\x00\x00\x22\x0c\x00\x01\x00\x00\x00\
              \x12\x14\x00\x0b\x00\x00\x00\x22\x20\x00\x00\x10\x00\x00\x22\x28\x00\x00\x20\x00\x00\x22\x30\x00\x00\x30\x00\x00\
              \x12\x1c\x00\x01\x00\x00\x00\x02\x14\x00\x0f\x00\x00\x00\x07\x00\x10\x00\x80\x00\x00\x07\x08\x10\x10\x00\x00\x00\
              \x07\x0c\x10\x02\x00\x00\x00\x07\x02\x20\x01\x00\x00\x00\x12\x00\x30\x00\x00\x00\x00\x0d\x00\x00\x00\x00\x00\x00",
            b"\x40\x10\x00\xff\xff\xff\xff\x41\x10\x00\x00\x00\x00\x00\x42\x14\x00\x01\x00\x00\x00\x0d\x00\x00\x00\x00\x00\x00",
        ],
    },
    Fuzzed {
        name: "requests",
        run: requests::requests,
        seeds: &[
            br#"{"info":{}}
{"stop":{}}
{"monitor":{"line":"ps","json":true}}
{"gdb":{"address":":1","lost":"hold"}}
{"attach":{"watch":true}}"#,
            br#"{"info":{"version":1,"pid":1,"vcpus":2,"memory":4096,"state":"held","seconds":9,"serves_gdb":true,"is_debugged":false,"release":"6.12"}}
{"event":{"milliseconds":1500,"event":"stopped","by":"debugger","reason":"watchpoint","detail":"write 0x10","vcpu":1}}
{"event":{"milliseconds":2000,"event":"ended","code":3,"text":"it is over"}}
{"answer":{"text":"a\n","why":"","code":0}}"#,
        ],
    },
    Fuzzed { name: "stream", run: stream, seeds: &[b"+$g#67-\x03$m0,4#fd$#00", b"$vCont;s:p1.1#f2$D;1#b0"] },
    Fuzzed {
        name: "clients",
        run: clients,
        seeds: &[
            b"\x00m0,ffff\n\x01--\n\x02m0,ffff\n\x04qC\n\x06g\n\x00QStartNoAckMode\n\x00m0,fff\n\x01-",
            b"\x08qSearch:memory:0;10000;abc\n\x01\x03\n\x00vCont;c\n\x01\x03+-\n\x03g\n\x00D;1",
            b"\x01+\n\x04qSupported:multiprocess+\n\x00Z0,100,1;X3,220027\n\x01-\n\x00vCont;s:p1.1\n\x06s",
        ],
    },
    Fuzzed {
        name: "bytecode",
        run: bytecode,
        seeds: &[
            b"\x26\x00\x00\x25\x00\x00\x00\x00\x00\x00\x00\x01\x13\x27",
            b"\x22\x01\x22\x02\x02\x28\x21\x00\x00\x27",
            b"\x34\x01\x00\x04%d\n\x00\x27",
        ],
    },
    Fuzzed {
        name: "instructions",
        run: instructions,
        seeds: &[b"\x83\xc0\x01\xeb\xfb\x0f\x1f\x44\x00\x00\xe8\x00\x00\x00\x00\xc3", b"\x00\x04\x00\x91\xff\xff\xff\x17"],
    },
    Fuzzed {
        name: "engine",
        run: engine,
        seeds: &[
            b"\x00\x10\x00\x00\x00\x00\x00\x00\x01\x02\x03\x04\x05\x06\x07\x08\x00\x01\x02\x03",
            b"\x01\x10\x00\x00\x00\x00\x00\x00\xcc\x90\x0f\xa2\x40\xe0\x3b\xd5\x0f\x1f\x2f\x3f\x4f\x5f",
        ],
    },
    Fuzzed { name: "tables", run: tables, seeds: &[b"\x07\x10\x00\x00\x00\x00\x00\x00\x03\x20\x00\x00\x00\x00\x00\x00"] },
    Fuzzed {
        name: "images",
        run: images::images,
        seeds: &[
            b"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x3e\x00\x01\x00\x00\x00",
            b"MZ\x00\x00zimg",
            b"\x02\xb0\xad\x1b\x00\x00\x01\x00",
            b"\xd6\x50\x52\xe8\x00\x00\x00\x00\x18\x00\x00\x00\x12\xaf\xad\x17\x00\x00\x00\x00\x08\x00\x00\x00",
        ],
    },
    Fuzzed {
        name: "kernels",
        run: kernels::kernels,
        seeds: &[
            b"\x00",
            b"\x01\x18\x00\x00\x00\x20\x00\x00\x00\x10\x00",
            b"\x02\x60\x00\x00\x00\x10\x00\x00\x00\x00\x00",
            b"\x03\x36\x02\x03\x00\x00\x08\x00\x00\x00\x00",
            b"\x04\x10\x00\x00\x00\x10\x00\x00\x00\x00\x00",
            b"\x05\x78\x00\x00\x00\x10\x40\x00\x00\x00\x00",
        ],
    },
    Fuzzed {
        name: "hypercalls",
        run: hypercalls,
        seeds: &[
            b"\x00\x20\x06\x00\x01\x00\x00\x00\xf0\x7f\x00\x00",
            b"\x01\x0d\x00\x01\x02\x00\x00\x00\x11\x00\x00\x00\x00\x00\x00\x00",
            b"\x02\x24\x00\x01\x00\x00\x00\x00\x05\x00\x00\x00\x17\x00\x00\x00",
        ],
    },
    Fuzzed {
        name: "cores",
        run: cores,
        seeds: &[
            b"\x00\x40\x00\x01\x00\x00\x00\x07\x00\x00\x00",
            b"\x01\x78\x00\xff\xff\xff\xff\xff\xff\xff\xff\xc0\x00\x00\x00\x00\x00\x00\x00\x00\x00",
            b"\x02\x00\x01\x10\x00\x00\x00\x00\x00\x00\x00",
            b"\x00\x7fELF",
        ],
    },
    Fuzzed {
        name: "packed",
        run: packed,
        seeds: &[
            b"\x00\x10\x00\x16\x00\xff\xff\xff\xff\xff\xff",
            b"\x01\x28\x00\x00\x00\x00\x00\x00\x00\x00\x00",
            b"\x02\x60\x00\x00\x00\x00\x00\x00\x00\x00\x00",
            b"\x03\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00",
        ],
    },
    Fuzzed {
        name: "kdumps",
        run: kdumps,
        seeds: &[
            b"\x00\x00\x40\x01\x00\x00\x00\x00\x00\x00\x00",
            b"\x01\x08\x40\x40\x00\x00\x00\x02\x00\x00\x00",
            b"\x03\x0c\x40\x04\x00\x00\x00\x00\x00\x00\x00\x60\x10\xff\xff\xff\xff\x00\x00\x00\x00",
        ],
    },
    Fuzzed {
        name: "whole",
        run: whole,
        seeds: &[
            b"\x00\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\x4b\x4c\x4a\x06\x00\xc2\x41\x24\x35\x03\x00\x00\x00",
            b"\x01\x28\xb5\x2f\xfd\x20\x03\x19\x00\x00\x61\x62\x63",
            b"\x01\x57\x2a\x4d\x18\x02\x00\x00\x00\x01\x02\x28\xb5\x2f\xfd\x20\x03\x19\x00\x00\x61\x62\x63",
        ],
    },
    Fuzzed {
        name: "disks",
        run: disks::images,
        seeds: &[
            b"\x00",
            b"\x02\x08\x06\x81",
            b"\x01\x0e\x08\x22\x17\x00\x0a",
            b"\x04\x10\x08\x40",
            b"\x08\x60",
        ],
    },
    Fuzzed {
        name: "vsock",
        run: vsock::vsock,
        seeds: &[
            b"\x06\x01\x02\x01\x00\xf0\x00\x0a\x01\x02\x05\x00\xf0\x00data\x06\x01\x02\x06\x00\xf0\x07\x06\x01\x02\x04\x03\x00\x00",
            b"\x0fCONNECT 2\nbehind\x06\x02\x00\x02\x00\xf0\x00\x08\x02\x00\x05\x00\xf0\x00ab\x06\x02\x00\x03\x00\x00\x00",
        ],
    },
    Fuzzed {
        name: "disk_requests",
        run: disks::requests,
        seeds: &[
            b"\x04\x00\x10\x00\x00\x00\x00\x00\x00\x10\x00\x00\x00\x01\x00\x01\x00\x10\x10\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x03\x00\x02\x00\x00\x13\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00\x00",
            b"\x00\x00\x10\x00\x00\x00\x00\x00\x00\x10\x00\x00\x00\x01\x00\x01\x00\x10\x10\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x01\x00\x02\x00\x00\x13\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00\x00",
            b"\x02\x00\x10\x00\x00\x00\x00\x00\x00\x10\x00\x00\x00\x01\x00\x01\x00\x10\x10\x00\x00\x00\x00\x00\x00\x10\x00\x00\x00\x01\x00\x02\x00\x00\x13\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x0d\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x08\x00\x00\x00\x01\x00\x00\x00",
        ],
    },
    Fuzzed {
        name: "frames",
        run: frames::frames,
        seeds: &[
            // A connection from its beginning to its end, by the guest.
            b"\x12\x14\x0f\xa0\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x50\x02\xff\xff\x00\x00\x00\x00\x12\x14\x0f\xa0\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x50\x10\xff\xff\x00\x00\x00\x00\x22\x19\x0f\xa0\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x50\x18\xff\xff\x00\x00\x00\x00\x68\x65\x6c\x6c\x6f\x47\x06\x61\x6e\x73\x77\x65\x72\x22\x14\x0f\xa0\x00\x00\x00\x00\x00\x07\x00\x00\x00\x00\x50\x10\xff\xff\x00\x00\x00\x00\x22\x14\x0f\xa0\x00\x00\x00\x00\x00\x07\x00\x00\x00\x00\x50\x11\xff\xff\x00\x00\x00\x00\x4f\x00\x22\x14\x0f\xa0\x00\x00\x00\x00\x00\x08\x00\x00\x00\x00\x50\x10\xff\xff\x00\x00\x00\x00",
            // Pieces out of order, a window that closes, an end from outside, and a connection that is broken off.
            b"\x12\x14\x0f\xa0\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x50\x02\xff\xff\x00\x00\x00\x00\x12\x14\x0f\xa0\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x50\x10\xff\xff\x00\x00\x00\x00\x22\x19\x0f\xa0\x00\x00\x00\x00\x00\x08\x00\x00\x00\x00\x50\x18\xff\xff\x00\x00\x00\x00\x61\x67\x61\x69\x6e\x22\x1a\x0f\xa0\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x50\x18\xff\xff\x00\x00\x00\x00\x68\x65\x6c\x6c\x6f\x20\x47\x28\x78\x78\x78\x78\x78\x78\x78\x78\x78\x78\x78\x78\x78\x78\x78\x78\x78\x78\x78\x78\x78\x78\x78\x78\x78\x78\x78\x78\x78\x78\x78\x78\x78\x78\x78\x78\x78\x78\x78\x78\x12\x14\x0f\xa1\x00\x00\xff\xff\xff\xfe\x00\x00\x00\x00\x50\x02\xff\xff\x00\x00\x00\x00\x12\x14\x0f\xa1\x00\x00\xff\xff\xff\xff\x00\x00\x00\x00\x50\x10\xff\xff\x00\x00\x00\x00\x22\x14\x0f\xa0\x00\x00\x00\x00\x00\x0d\x00\x00\x00\x00\x50\x10\x00\x00\x00\x00\x00\x00\x4f\x03\x62\x79\x65\x32\x14\x0f\xa0\x00\x00\x00\x00\x00\x0d\x00\x00\x00\x00\x50\x11\xff\xff\x00\x00\x00\x00\x22\x14\x0f\xa1\x00\x00\xff\xff\xff\xff\x00\x00\x00\x00\x50\x14\xff\xff\x00\x00\x00\x00",
            // Who has an address, an echo, an address for the guest, and half a packet.
            b"\x11\x1c\x00\x01\x08\x00\x06\x04\x00\x01\x02\x00\x00\x00\x00\x01\x0a\x00\x02\x0f\x00\x00\x00\x00\x00\x00\x0a\x00\x02\x02\x16\x08\x08\x00\xf7\xff\x00\x00\x00\x00\x1d\xf7\x00\x44\x00\x43\x00\xf8\x00\x00\x01\x01\x06\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x63\x82\x53\x63\x35\x01\x01\x10\x04\x45\x00\x00\x14",
        ],
    },
    Fuzzed {
        name: "shares",
        run: shares::shares,
        seeds: &[
            b"\x00\x01\x01\x02f\x00#\x01\x12\x02\x00\x00\x00\xa4\x81\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00a\x00\x10\x03,\x01\x00\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00abcd\x0f\x03(\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00d\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x0a\x01\x02a\x00\x03\x03\x10\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x12\x03\x18\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x03\x08\x01\x00\x00\x00\x00\x00\x00\x00",
            b"\x00\x01\x01\x02d\x00\x01\x02\x02u\x00\x05\x03\x00-\x01\x14\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00f\x00g\x00\x01\x02\x02g\x00\x04\x04X)\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x09\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\x8f\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x0d\x01\x0a\x04\x00\x00\x00\x00\x00\x00\x00h\x00\x09\x02\x0a\xff\x01\x00\x00\x00\x00\x00\x00e\x00",
            b"\x01\x1b\x01\x08\x00\x00\x00\x00\x00\x00\x00\x00,\x01(\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x10\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x1c\x01(\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x10\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x1d\x01\x18\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x16\x02\x0fd\x00\x00\x00\x00\x00\x00\x00user.a\x00\x11\x01\x00\x0e\x02\x08\x02\x80\x00\x00\x00\x00\x00\x00",
        ],
    },
    Fuzzed {
        name: "described",
        run: kernels,
        seeds: &[
            b"\x00SYMBOL(prb)=ffffffff81000010\n\x00\x00\x00\x00\x00\x00\x00\x00",
            b"\x01SYMBOL(_stext)=ffff800080000000\n\x08\x00\x00\x00\x00\x00\x00\x00",
        ],
    },
    Fuzzed {
        name: "symbols",
        run: symbols::symbols,
        seeds: &[
            b"\x00\x40\x00\x01\x00\x00\x00\x07\x00\x00\x00",
            b"\x01\x80\x00\xff\xff\xff\xff\xff\xff\xff\xff",
            b"\x02\x00\x01\x10\x00\x00\x00\x00\x00\x00\x00",
            b"\x03\x28\x00\x00\x10\x00\x00\x00\x00\x00\x00",
            b"\xff\x7fELF\x02\x01\x01\x00",
            b"\x04\x40\x00\x01\x00\x00\x00\x07\x00\x00\x00",
        ],
    },
    Fuzzed {
        name: "linux",
        run: linux::linux,
        seeds: &[
            b"\x00",
            b"\x00\x18\x00\x00\x00\x00\x00\x00\x80\xff\xff\x08\x11\x00\x00\x00\x00\x00\x80\xff\xff",
            b"\x00\x08\x80\x40\x01\x00\x00\x00\x80\xff\xff\x02\x50\x05\x02\x08\x00\x00\x00\x05\x03",
            b"\x80",
            b"\x01\x60\x00\xff\x00\x00\x00\x00\x00\x00\x00\x00\x60\x04\x00\x00\x00\x01\x00\x00\x00",
            // What is counted of memory, and the log: its newest record, and one's number, length and level.
            b"\x00\x08\xd0\xff\xff\xff\xff\xff\xff\xff\xff\x10\xd0\x00\xd2\x00\x00\x00\x00\x00\x00",
            b"\x00\x18\xe0\x0a\x00\x00\x00\x00\x00\x00\x00\x20\xe3\xff\xff\xff\xff\xff\xff\xff\xff",
            b"\x80\x10\xe3\xff\xff\x01\xe0\x00\x00\x00\x00\x18\xe1\x04\x00\x00\x00\x00\x00\x00\x40",
        ],
    },
    Fuzzed {
        name: "module_types",
        run: call_frames::module_types,
        seeds: &[
            b"",
            b"\x18\x00\x01\x00\x00\x04\x08\x00\x00\x00\x00\x00",
            b"\x30\x00\x01\x00\x00\x00\x00\x00\x00\x00\x44\x00\x07\x00\x00\x00\x05\x00\x00\x04",
        ],
    },
    Fuzzed {
        name: "call_frames",
        run: call_frames::call_frames,
        seeds: &[
            b"\x07\x01\x04\xf8\x00\x00\x00\x00\x1f\x00\x03\x1e\x00\x00\x00\x00\x07\x02\x04\xf8\x04\xf0\x00\x00\x06\x02\x04\x08\x04\x00\x00\x00\x1d\x02\x04\x08\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x07\x00\x04\x00\x00\x00\x00\x00\x1f\x00\x04\x00\x04\x08\x00\x00\x10\x00\x00\x00\x00\x80\xff\xff\x08\x00\x00\x00\x00\x80\xff\xff\x18\x00\x00\x00\x00\x80\xff\xff\x20\x00\x00\x00\x00\x80\xff\xff\x28\x00\x00\x00\x00\x80\xff\xff",
        ],
    },
    Fuzzed {
        name: "old_kernels",
        run: old_kernels::old_kernels,
        // The table's number of symbols, a marker, a token and the index; the log's first record and what leads to it.
        seeds: &[
            b"\x00",
            b"\x01",
            b"\x00\x68\x19\x00\x02\x00\x00\x00\x00\x00\x00",
            b"\x01\x08\x03\x00\x00\x00\x00\x00\x00\x00\x60\x18\x01\x00\x00\x01\x00\x00\x00\x00\x00",
        ],
    },
    Fuzzed {
        name: "vmcoreinfo",
        run: vmcoreinfo,
        seeds: &[b"OSRELEASE=6\nPAGESIZE=4096\nSYMBOL(prb)=10\nOFFSET(printk_ringbuffer.desc_ring)=0\n"],
    },
];

/// Changes a file, which has more than eight bytes: places of two bytes, and eight bytes for each.
fn change(file: &mut [u8], changes: &[u8]) {
    for change in changes.chunks_exact(10) {
        let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % (file.len() - 8);
        file[at..at + 8].copy_from_slice(&change[2..]);
    }
}

/// Memory with a kernel in it and a page that begins like its description: the lines and the words of the
/// image are what is given. The first byte's lowest bit chooses the architecture.
pub fn kernels(data: &[u8]) {
    let (choice, data) = data.split_first().unwrap_or((&0, &[]));
    let (isa, image) = match choice & 1 {
        0 => (Isa::X86_64, 0xffff_ffff_8100_0000u64),
        _ => (Isa::Aarch64, 0xffff_8000_8000_0000),
    };
    let ram = Ram::new(1 << 22);
    let word = |at: u64, value: u64| ram.write(GuestPhys(at), &value.to_le_bytes());
    let flags = if isa == Isa::X86_64 { [3, 0x83] } else { [3, 0x701] };
    word(0x1000 + (image >> 39 & 511) * 8, 0x2000 | flags[0]);
    word(0x2000 + (image >> 30 & 511) * 8, 0x3000 | flags[0]);
    word(0x3000 + (image >> 21 & 511) * 8, 0x20_0000 | flags[1]);
    ram.write(GuestPhys(0x20_0000 + 4 + 130), b"6.1\0");
    let text = [
        format!(
            "OSRELEASE=6.1\nPAGESIZE=4096\nSYMBOL(init_uts_ns)={image:x}\nSYMBOL(_stext)={image:x}\n\
             SYMBOL(swapper_pg_dir)={:x}\nNUMBER(phys_base)=-14680064\nNUMBER(kimage_voffset)={:#x}\n\
             NUMBER(TCR_EL1_T1SZ)=0x10\n",
            image.wrapping_sub(0x20_0000 - 0x1000),
            image - 0x20_0000,
        )
        .as_bytes(),
        data,
    ]
    .concat();
    ram.write(GuestPhys(0x4000), &text[..text.len().min(4096)]);
    ram.write(GuestPhys(0x20_1000), data);
    let mut registers = RegisterFile::new(isa);
    for (name, value) in [
        ("cr0", 0x8000_0011),
        ("cr3", 0x1000),
        ("cr4", 0x20),
        ("efer", 0xd00),
        ("SCTLR_EL1", 1),
        ("TCR_EL1", 2 << 30 | 16 << 16 | 16),
        ("TTBR0_EL1", 0),
        ("TTBR1_EL1", 0x1000),
        ("VBAR_EL1", image + 0x800),
    ] {
        if row(isa, name).is_some() {
            registers.set(name, value);
        }
    }
    let anchors: Vec<Anchor> = Anchor::new(&registers).into_iter().collect();
    for anchors in [&anchors[..], &[]] {
        let Ok(found) = described::find(isa, &ram, anchors, Scope::Everything, &mut || Ok::<(), ()>(()))
        else {
            return;
        };
        assert!(found.remarks.iter().all(|line| !line.contains(['\n', '\x1b'])), "{found:?}");
    }
}

fn session(isa: Isa) -> Option<Session<Still>> {
    let machine = Still::new(isa, 2, 1 << 16).ok()?;
    let engine = Arc::new(Engine::new(isa, machine.abilities().clone(), 2));
    Some(Session::new(machine, engine))
}

/// Packets, a line each, with right frames; the first byte chooses the architecture.
pub fn packets(data: &[u8]) {
    let isa = if data.first().is_some_and(|byte| byte & 1 != 0) { Isa::X86_64 } else { Isa::Aarch64 };
    let framed: Vec<u8> = data.split(|byte| *byte == b'\n').flat_map(frame).collect();
    if let Some(mut session) = session(isa) {
        // Without sockets there is nothing to fuzz.
        converse(&mut session, &framed).ok();
    }
}

/// A client that answers wrongly, a line for each piece that it sends. The first byte's bits choose how:
/// as it is, cut in two, with a wrong checksum, without reading what it was sent.
pub fn clients(data: &[u8]) {
    /// What may wait to be sent: what nothing is read beyond, and two of the longest answers.
    const MOST: usize = (512 << 10) + 4 * LONGEST;
    let mut pieces: Vec<(Vec<u8>, bool)> = Vec::new();
    for line in data.split(|byte| *byte == b'\n') {
        let Some((how, data)) = line.split_first() else { continue };
        let mut piece = if how & 1 == 0 { frame(data) } else { data.to_vec() };
        if how & 4 != 0
            && let Some(last) = piece.last_mut()
        {
            *last ^= 1;
        }
        let reads = how & 8 == 0;
        if how & 2 != 0 {
            let rest = piece.split_off(piece.len() / 2);
            pieces.push((piece, reads));
            piece = rest;
        }
        pieces.push((piece, reads));
    }
    let isa = if data.len().is_multiple_of(2) { Isa::X86_64 } else { Isa::Aarch64 };
    let steps: Vec<(&[u8], bool)> = pieces.iter().map(|(piece, reads)| (piece.as_slice(), *reads)).collect();
    if let Some(mut session) = session(isa)
        && let Ok((_, most)) = misbehave(&mut session, &steps)
    {
        assert!(most <= MOST, "{most} bytes wait to be sent");
    }
}

/// A machine whose memory is what is given.
#[derive(Clone, Debug)]
struct Given(Arc<Ram>);

impl Caller for Given {
    fn vcpu(&self) -> u32 {
        0
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> usize {
        self.0.read(GuestPhys(address), bytes)
    }

    fn write(&self, address: u64, bytes: &[u8]) -> usize {
        self.0.write(GuestPhys(address), bytes)
    }
}

impl devices::ram::Ram for Given {
    fn ranges(&self) -> Vec<PhysRange> {
        self.0.ranges()
    }

    fn read(&self, address: GuestPhys, bytes: &mut [u8]) -> usize {
        self.0.read(address, bytes)
    }

    fn write(&self, address: GuestPhys, bytes: &[u8]) -> usize {
        self.0.write(address, bytes)
    }

    fn update(&self, address: GuestPhys, size: usize, set: u64, clear: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        (self.0.read(address, &mut bytes[..size]) == size).then_some(())?;
        let old = u64::from_le_bytes(bytes);
        self.0.write(address, &(old & !clear | set).to_le_bytes()[..size]);
        Some(old)
    }

    fn shared(&self, _: GuestPhys, _: usize) -> Option<devices::ram::VolatileSlice<'_>> {
        None
    }

    fn forget_mapping(&self, _: GuestPhys) {}
}

impl Platform for Given {
    fn console_write(&self, _: &[u8]) {}

    fn console_read(&self, bytes: &mut [u8]) -> usize {
        bytes.len()
    }

    fn ram(&self) -> &dyn devices::ram::Ram {
        self
    }

    fn vcpus(&self) -> u32 {
        2
    }

    fn interrupt(&self, _: u32, _: u32, _: u64) {}

    fn now(&self) -> u64 {
        1
    }

    fn wall(&self) -> u64 {
        1
    }

    fn set_timer(&self, _: u32, _: Option<u64>) {}

    fn wait(&self, _: Option<u64>, is_over: &dyn Fn() -> bool) {
        is_over();
    }

    fn delivery(&self) -> Option<&dyn Delivery> {
        None
    }
}

/// A call: its caller, number, operation and pointers by the first bytes; memory, from 256 on, by the
/// rest. Twice, so that the second meets what the first has left.
pub fn hypercalls(data: &[u8]) {
    let (head, memory) = data.split_at(data.len().min(8));
    let byte = |index: usize| head.get(index).copied().map_or(0, u64::from);
    let given = Given(Arc::new(Ram::new(1 << 16)));
    given.0.write(GuestPhys(0x100), memory);
    let tracer = |style| Tracer::new(Some(Box::new(io::sink())), style, Filter::default());
    let abi = Abi::ALL[usize::from(head.first().copied().unwrap_or(0)) % Abi::ALL.len()];
    for style in [Style::Lines, Style::Json] {
        let calls = Hypercalls::new(Arc::new(Xen::new(Box::new(given.clone()))), tracer(style), true);
        let pointer = byte(3) << 8;
        for arguments in [
            [byte(2), pointer, byte(4), pointer | byte(5), byte(6), byte(7)],
            [pointer, byte(4), byte(2), pointer, u64::MAX, byte(7)],
            [byte(2), u64::MAX - byte(4), u64::MAX, pointer, byte(6), byte(7)],
        ] {
            let raw = RawCall { abi, number: byte(1), arguments };
            calls.look(raw, &given);
            calls.serve(raw, &given);
        }
    }
}

/// Bytes as they are.
pub fn stream(data: &[u8]) {
    let mut items = 0;
    Framer::default().feed(data, |_| items += 1);
    assert!(items <= data.len());
    unescape(data);
    if let Some(mut session) = session(Isa::X86_64) {
        converse(&mut session, data).ok();
    }
}

struct Nothing;

impl Environment for Nothing {
    fn register(&mut self, number: u16) -> Option<u64> {
        (number < 32).then_some(u64::from(number))
    }

    fn memory(&mut self, address: u64, bytes: &mut [u8]) -> bool {
        bytes.fill(7);
        address < 0x1000
    }

    fn print(&mut self, _: &str) {}
}

/// Bytecode of conditions.
pub fn bytecode(data: &[u8]) {
    if let Ok(expression) = Expression::new(data.to_vec()) {
        // Whatever it comes to.
        expression.evaluate(&mut Nothing).ok();
    }
}

/// Code of a guest: disassembled, simulated, searched for exits.
pub fn instructions(data: &[u8]) {
    for (isa, mode) in [
        (Isa::X86_64, OperatingMode::Bits64),
        (Isa::X86_64, OperatingMode::Protected32),
        (Isa::X86_64, OperatingMode::Real16),
        (Isa::Aarch64, OperatingMode::Bits64),
    ] {
        disassemble(isa, mode, &data[..data.len().min(LONGEST_INSTRUCTION)]);
        for start in [0, 0x1000, u64::MAX - 8] {
            if let Some(end) = start.checked_add(data.len() as u64) {
                range::exits(isa, mode, &(start..end), data, 4);
            }
        }
    }
    let read = |row: usize| Some(row as u64);
    for bits in [x86::simulate::Bits::Code32, x86::simulate::Bits::Code64] {
        x86::simulate::simulate(data, bits, read);
    }
    steps(data);
    if let Some(word) = arch::bytes::u32_at(data, 0) {
        aarch64::simulate::simulate(word, read);
        aarch64::step::exclusive_sequence(data, u64::MAX - 7);
    }
    if let Some(syndrome) = arch::bytes::u64_at(data, 0) {
        aarch64::syndrome::decode(syndrome);
        x86::debug_registers::slots(syndrome, [u64::MAX; 4]);
    }
}

/// Plans of steps: the instruction, the processor's mode, its tables and what lies in them are all `data`.
fn steps(data: &[u8]) {
    use x86::step::opcode::Bits;
    use x86::step::{DescriptorTable, Look, Processor};

    /// Memory that is the input again and again, with holes.
    struct Everywhere<'a>(&'a [u8]);

    impl Look for Everywhere<'_> {
        fn memory(&self, linear: u64, bytes: &mut [u8]) -> bool {
            let Some(length) = std::num::NonZeroU64::new(self.0.len() as u64) else { return false };
            for (at, byte) in (0..).zip(&mut *bytes) {
                let place = usize::try_from(linear.wrapping_add(at) % length).unwrap_or(0);
                *byte = self.0[place];
            }
            linear & 0x8000 == 0
        }

        fn register(&self, name: &'static str) -> Option<u64> {
            arch::bytes::u64_at(self.0, name.len()).filter(|value| value & 1 == 0)
        }
    }

    let word = |at: usize| arch::bytes::u64_at(data, at).unwrap_or(at as u64);
    let table = |at| DescriptorTable { base: word(at), limit: word(at + 3) & 0xffff };
    for bits in [Bits::Code16, Bits::Code32, Bits::Code64] {
        let processor = Processor::new(bits, [word(0), word(4), word(8), word(12)], table(16), table(20));
        let plan = x86::step::plan(data, word(2), &processor, &Everywhere(data));
        if let x86::step::Plan::RunTo { targets, faults, .. } = plan {
            assert!(targets.len() + faults.len() <= 8);
        }
        x86::step::loads_flags(data, bits);
    }
    let requests = |at| aarch64::step::After {
        pc: word(at),
        pstate: word(at + 1),
        vbar: word(at + 2),
        spsr: word(at + 3),
    };
    let before = aarch64::step::Before {
        instruction: arch::bytes::u32_at(data, 5).unwrap_or(5),
        pc: word(6),
        pstate: word(7),
    };
    aarch64::step::after(&before, &[word(8), word(9)], &requests(10));
    aarch64::step::has_faulted(before.instruction, before.pc, &requests(11));
}

/// A vCPU with breakpoints, whose registers, memory, steps and traps are all `data`: nothing stops the engine, and
/// what it has planted and taken for itself it gives back.
pub fn engine(data: &[u8]) {
    let Some((head, rest)) = data.split_first_chunk::<8>() else { return };
    let isa = if head[0] & 1 == 0 { Isa::X86_64 } else { Isa::Aarch64 };
    let word = |at: usize| arch::bytes::u64_at(rest, at).unwrap_or(at as u64) & 0x3fff;
    let trap_of = |byte: u8, at: usize| match byte & 7 {
        0 => Trap::Int3,
        1 => Trap::Debug { dr6: word(at) },
        2 => Trap::EmulationFailure { instruction: vec![byte, 0xcc] },
        3 => Trap::Aarch64 { exception: DebugException::Brk(u16::from(byte)), far: word(at) },
        4 => Trap::Aarch64 { exception: DebugException::Breakpoint, far: word(at) },
        5 => Trap::Aarch64 {
            exception: DebugException::Watchpoint { is_write: true, is_cache_maintenance: false },
            far: word(at),
        },
        6 => Trap::Aarch64 { exception: DebugException::SoftwareStep { load_exclusive: false }, far: 0 },
        _ => Trap::Debug { dr6: 1 << 14 },
    };
    let script = rest.iter().enumerate().map(|(at, byte)| ScriptedStep {
        end: match byte >> 4 & 3 {
            0 => Stepped::Done,
            1 => Stepped::Faulted,
            2 => Stepped::Trapped(trap_of(*byte, at)),
            _ => Stepped::Other,
        },
        pc: (byte & 0x40 != 0).then(|| word(at)),
    });
    let mut cpu = Scripted::new(isa, 0x4000, script.take(64));
    cpu.memory().write(GuestPhys(0x1000), rest);
    let engine = Engine::new(isa, fake::host(), 1);
    for (at, byte) in rest.iter().take(6).enumerate() {
        let kind = [Kind::Software, Kind::Hardware, Kind::Write, Kind::Access][usize::from(byte & 3)];
        let (address, space) = (GuestVirt(0x1000 + (word(at) & !3)), Translation::Physical);
        let place = engine.place(kind, cpu.memory(), &space, address, || Some(0x3200));
        let breakpoint = Breakpoint::new(kind, address, 4, place);
        let mut requests = engine.requests();
        if let Ok(change) = requests.table.replace(cpu.memory(), breakpoint) {
            let fits = engine.make_room(&mut requests, cpu.memory(), &space);
            requests.table.settle_change(cpu.memory(), change, fits.is_err());
        }
    }
    for (at, byte) in rest.iter().take(32).enumerate() {
        let action = match byte >> 6 {
            0 => Action::Run,
            1 => Action::Step,
            2 => Action::StepRange(word(at), word(at + 1)),
            _ => Action::Stay,
        };
        engine.requests().begin(&[action]);
        let arming = engine.arming(&engine.requests(), 0);
        cpu.vcpu.set_pc(0x1000 + word(at) % 0x100);
        engine.start(&mut cpu, &Order { action, arming, steps_off: byte & 0x20 != 0 });
        engine.judge(&mut cpu, &trap_of(*byte, at));
        assert!(!cpu.exclusive.1, "others are kept out for ever");
    }
    engine.requests().table.clear(cpu.memory());
    let mut memory = vec![0; rest.len().min(0x3000)];
    cpu.memory().read(GuestPhys(0x1000), &mut memory);
    assert!(memory == rest[..memory.len()], "something is left in memory");
}

/// A guest's page tables and the registers that point to them: every register is taken from the
/// data, which is all of memory, too.
pub fn tables(data: &[u8]) {
    use arch::paging::Regime;
    use arch::register::{RegisterFile, table};
    use arch::{GuestPhys, GuestVirt};
    use debug::machine::Memory;
    let word = |index: usize| arch::bytes::u64_at(data, index * 8).unwrap_or(0);
    let ram = debug::fake::Ram::new(1 << 16);
    ram.write(GuestPhys(0), data);
    for isa in Isa::ALL {
        let mut file = RegisterFile::new(isa);
        for (row, register) in table(isa).iter().enumerate().filter(|(_, register)| register.bits <= 64) {
            file.set_bytes(row, &word(row % 32).to_le_bytes()[..register.bytes()]);
        }
        let Ok(regime) = Regime::new(&file) else { continue };
        regime.describe();
        for index in 0..16 {
            // Whatever it is mapped to.
            regime.translate(&ram, GuestVirt(word(index))).ok();
        }
        for (first, last) in regime.ranges() {
            regime.translate(&ram, first).ok();
            regime.translate(&ram, last).ok();
        }
    }
}

/// The kernel's description of itself, in a memory that has the same bytes everywhere.
pub fn vmcoreinfo(data: &[u8]) {
    let Some(info) = VmCoreInfo::parse(data) else { return };
    let last = data.last().copied().unwrap_or(0);
    let read = |at: u64, bytes: &mut [u8]| {
        bytes.fill(last);
        if at < 1 << 40 { bytes.len() } else { 0 }
    };
    // Whatever is in it.
    for since in [None, Some(0), Some(u64::from(last))] {
        info.log(read, &Wanted { since, ..Wanted::last(usize::MAX) }).ok();
    }
}

#[cfg(test)]
mod tests;
