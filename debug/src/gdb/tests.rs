//! The server as a client sees it: every packet of the manual's list, and clients that answer wrongly.

use super::client::{Client, Ready, converse, misbehave};
use super::endpoint::{Peer, Stream};
use super::memory_stream::MemoryStream;
use super::packet::{Framer, INTERRUPT, Item, LONGEST, frame, from_hex};
use super::session::{Process, Session};
use crate::engine::Engine;
use crate::fake::Still;
use crate::machine::Machine;
use arch::Isa;
use std::sync::Arc;

fn session(isa: Isa) -> Session<Still> {
    let machine = Still::new(isa, 3, 1 << 16).unwrap();
    let engine = Engine::new(isa, machine.abilities().clone(), 3);
    Session::new(machine, Arc::new(engine))
}

/// The packets of an answer that are not console output.
fn replies(answer: &[u8]) -> Vec<String> {
    let mut replies = packets(answer);
    replies.retain(|reply| !reply.starts_with('O') || reply == "OK");
    replies
}

/// With what is printed on the debugger's console.
pub(super) fn packets(answer: &[u8]) -> Vec<String> {
    let mut packets = Vec::new();
    Framer::default().feed(answer, |item| {
        if let Item::Packet(data) = item {
            packets.push(String::from_utf8_lossy(&data).into_owned());
        }
    });
    packets
}

/// What a packet is answered with, and whether the connection is still there behind it.
fn ask(isa: Isa, packet: &str) -> (String, bool) {
    let mut session = session(isa);
    let input = [frame(packet.as_bytes()), frame(b"qC")].concat();
    let mut replies = replies(&converse(&mut session, &input).unwrap());
    let is_there = replies.last().is_some_and(|last| last.starts_with("QC"));
    if is_there {
        replies.pop();
    }
    (replies.first().cloned().unwrap_or_default(), is_there)
}

/// Packets (GDB manual, "Packets", "General Query Packets", "vCont", "Host I/O"; LLDB's extensions), and
/// how the answer begins. An empty one: the packet is not known, and the answer is empty.
const PACKETS: &[(&str, &str)] = &[
    ("?", "T05thread:01;"),
    ("A10,0,2f62696e", ""),
    ("b9600", ""),
    ("B100,S", ""),
    ("bc", ""),
    ("bs", ""),
    ("c", "T05"),
    ("c100", "T05"),
    ("C05", "T05"),
    ("C05;100", "T05"),
    ("C", "E16"),
    ("d", ""),
    ("Fff,04,C", ""),
    ("g", "00000000"),
    ("G", "E16"),
    ("G00", "E16"),
    ("G000000000000000", "E16"),
    ("G0000000000000000", "OK"),
    ("Gzzzzzzzzzzzzzzzz", "E16"),
    ("Hg0", "OK"),
    ("Hg-1", "OK"),
    ("Hgp1.1", "OK"),
    ("Hgp1.9", "E03"),
    ("Hc-1", "OK"),
    ("Hc0", "OK"),
    ("Hcp1.-1", "OK"),
    ("Hc2", "OK"),
    ("Hgzz", "E16"),
    ("H", "E16"),
    ("Hx1", "E16"),
    ("i", ""),
    ("I", ""),
    ("m0,4", "00000000"),
    ("mfffff,4", "E0e"),
    ("m0", "E16"),
    ("M0,2:abcd", "OK"),
    ("Mfffff,2:abcd", "E0e"),
    ("M0,4:zz", "E16"),
    ("M0,1:abcd", "E16"),
    ("M0,4:abcd", "E16"),
    ("M0,2:abc", "E16"),
    ("M0,2:abcd:ef", "E16"),
    ("M0,2", "E16"),
    ("M0:abcd", "E16"),
    ("M0,0:", "OK"),
    ("p0", "0"),
    ("pffff", "E16"),
    ("p", "E16"),
    ("P0=1122334455667788", "OK"),
    ("P0=11223344556677", "E16"),
    ("P0=112233445566778899", "E16"),
    ("P0=112233445566778g", "E16"),
    ("P0=1122334455667788=0", "E16"),
    ("P=1122334455667788", "E16"),
    ("P10", "E16"),
    ("Pffff=00", "E16"),
    ("Q", ""),
    ("QAllow:", ""),
    ("QCatchSyscalls:1", ""),
    ("QDisableRandomization:1", ""),
    ("QListThreadsInStopReply", ""),
    ("QNonStop:1", ""),
    ("QPassSignals:e", ""),
    ("QProgramSignals:0", ""),
    ("QSaveRegisterState", ""),
    ("QStartNoAckMode", "OK"),
    ("QTStatus", ""),
    ("QThreadEvents:1", ""),
    ("QThreadSuffixSupported", ""),
    ("qAttached", "1"),
    ("qAttached:1", "1"),
    ("qC", "QC01"),
    ("qCRC:0,10", "C"),
    ("qCRC:0,", "E16"),
    ("qGDBServerVersion", ""),
    ("qGetPid", ""),
    ("qGetTLSAddr:1,0,0", ""),
    ("qHostInfo", ""),
    ("qL1", ""),
    ("qMemoryRegionInfo:0", "start:0;size:10000;permissions:rwx;"),
    ("qMemoryRegionInfo:", "E16"),
    ("qOffsets", ""),
    ("qP", ""),
    ("qProcessInfo", ""),
    ("qRcmd,", "OK"),
    ("qRcmd,68656c70", "OK"),
    ("qRcmd,zz", "E16"),
    ("qRegisterInfo0", ""),
    ("qSearch:memory:0;100;ab", "0"),
    ("qSearch:memory:0;100", "E16"),
    ("qShlibInfoAddr", ""),
    ("qStructuredDataPlugins", ""),
    ("qSupported", "PacketSize="),
    ("qSupported:multiprocess+;swbreak+;xmlRegisters=i386", "PacketSize="),
    ("qSupported:;;=;+", "PacketSize="),
    ("qSymbol::", ""),
    ("qTStatus", ""),
    ("qThreadExtraInfo,1", "435055"),
    ("qThreadExtraInfo,9", "E03"),
    ("qThreadStopInfo1", ""),
    ("qXfer:auxv:read::0,100", ""),
    ("qXfer:exec-file:read::0,100", ""),
    ("qXfer:features:read:target.xml:0,fff", "m<?xml"),
    ("qXfer:features:read:other.xml:0,fff", "E16"),
    ("qXfer:features:read:target.xml:0", "E16"),
    ("qXfer:features:write:target.xml:0:00", ""),
    ("qXfer:libraries:read::0,100", ""),
    ("qXfer:memory-map:read::0,fff", "m<?xml"),
    ("qXfer:threads:read::0,fff", "l<?xml"),
    ("qXfer:threads:read::0", "E16"),
    ("qXfer:threads:read::ffffff,fff", "l"),
    ("qfThreadInfo", "m01,02,03"),
    ("qsThreadInfo", "l"),
    ("qqemu.PhyMemMode", "0"),
    ("Qqemu.PhyMemMode:1", "OK"),
    ("qqemu.Supported", "sstepbits;sstep;PhyMemMode"),
    ("qqemu.sstep", "0x3"),
    ("Qqemu.sstep=0x1", "OK"),
    ("Qqemu.sstep=7", "E16"),
    ("qqemu.sstepbits", "ENABLE=1,NOIRQ=2"),
    ("Qqemu.sstepbits", "ENABLE=1,NOIRQ=2"),
    ("r", ""),
    ("R00", ""),
    ("!", "OK"),
    ("s", "T05"),
    ("s100", "T05"),
    ("S05", "T05"),
    ("S05;100", "T05"),
    ("Szz", "E16"),
    ("t0:ab,ff", ""),
    ("T1", "OK"),
    ("Tp1.2", "OK"),
    ("T99", "E03"),
    ("Tzz", "E16"),
    ("vAttach;1", "T02"),
    ("vAttach;2", "E03"),
    ("vCont", "E16"),
    ("vCont?", "vCont;c;C;s;S;r;t"),
    ("vCont;c", "T05"),
    ("vCont;s", "T05"),
    ("vCont;s:0", "T05thread:01;"),
    ("vCont;s:p1.9", "E03"),
    ("vCont;s:p1.2", "T05thread:02;"),
    ("vCont;s:p1.1;c", "T05"),
    ("vCont;s:p1.1;c:p1.-1", "T05"),
    ("vCont;C05:1;c", "T05"),
    ("vCont;S05", "T05"),
    ("vCont;r0,10:p1.1;c:p1.-1", "T05"),
    ("vCont;r1:p1.1", "E16"),
    ("vCont;t", "E16"),
    ("vCont;t:1;c", "T05"),
    ("vCont;q", "E16"),
    ("vCtrlC", "OK"),
    ("vFile:setfs:0", ""),
    ("vFile:open:2f,0,0", ""),
    ("vFlashErase:0,100", ""),
    ("vFlashWrite:0:a", ""),
    ("vFlashDone", ""),
    ("vMustReplyEmpty", ""),
    ("vRun;2f", "T05"),
    ("vStdio", ""),
    ("vStopped", ""),
    ("x0,4", "b"),
    ("x0", "E16"),
    ("X0,2:ab", "OK"),
    ("X0,4:ab", "E16"),
    ("X0", "E16"),
    ("z0,100,1", "OK"),
    ("Z0,100,1", "OK"),
    ("Z1,100,1", "OK"),
    ("Z2,100,4", "OK"),
    ("Z3,100,4", "OK"),
    ("Z4,100,4", "OK"),
    ("Z0,100,1;X3,220027", "OK"),
    ("Z0,100,1;X3,220027;cmds:0,X3,220027", "OK"),
    ("Z0,100", "E16"),
    ("Z5,100,1", "E16"),
    ("Z2,100,0", "E16"),
    ("Z", "E16"),
    ("_M10,rwx", ""),
    ("jThreadsInfo", ""),
    ("jGetLoadedDynamicLibrariesInfos:{}", ""),
    ("", ""),
    ("nonsense", ""),
];

#[test]
fn no_packet_ends_the_connection() {
    let mut wrong = Vec::new();
    for isa in Isa::ALL {
        for (packet, begin) in PACKETS {
            let (reply, is_there) = ask(isa, packet);
            let fits = if begin.is_empty() { reply.is_empty() } else { reply.starts_with(begin) };
            if !is_there || !fits {
                wrong.push(format!(
                    "{isa}: '{packet}' is answered with '{reply}', and it goes on: {is_there}"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_ends_the_connection_says_so() {
    for (packet, reply) in [("D", "OK"), ("D;1", "OK"), ("k", ""), ("vKill;1", "OK")] {
        let (answer, is_there) = ask(Isa::X86_64, packet);
        assert_eq!((answer.as_str(), is_there), (reply, false), "{packet}");
    }
    // Bytes that are no protocol, in front of a packet and behind one.
    for input in [&b"POST / HTTP/1.1\r\n\r\n$qC#b4"[..], b"$qC#b4 HTTP/1.1\r\n"] {
        let answer = converse(&mut session(Isa::X86_64), input).unwrap();
        let text = String::from_utf8_lossy(&answer);
        // What came in front of the first wrong byte, in a piece of its own, is answered.
        assert!(!text.contains("QC") || input.starts_with(b"$"), "{text}");
    }
}

#[cfg(feature = "linux")]
#[test]
fn where_the_kernel_is_is_said_as_the_debugger_takes_it() {
    let info = "OSRELEASE=6.12\nPAGESIZE=4096\nKERNELOFFSET=1c00000\n";
    let replies_of = |packets: &[&str]| {
        let mut session = session(Isa::X86_64);
        let info = crate::linux::VmCoreInfo::parse(info.as_bytes());
        session.debuggee.machine.kernel = Some(crate::linux::Described { info, remarks: Vec::new() });
        let input: Vec<u8> = packets.iter().flat_map(|packet| frame(packet.as_bytes())).collect();
        replies(&converse(&mut session, &input).unwrap())
    };
    let lldb =
        replies_of(&["QThreadSuffixSupported", "qSupported:xmlRegisters=i386;multiprocess+", "qOffsets"]);
    assert_eq!(lldb.last().map(String::as_str), Some("Text=1c00000;Data=1c00000;Bss=1c00000"));
    // An address, of which there is none here.
    let gdb = replies_of(&["qSupported:multiprocess+;no-resumed+", "qOffsets"]);
    assert_eq!(gdb.last().map(String::as_str), Some(""));
}

#[test]
fn gdb_is_told_why_a_breakpoint_is_refused_when_it_resumes() {
    for isa in Isa::ALL {
        let said = |sent: &[&str]| {
            let input: Vec<u8> = sent.iter().flat_map(|packet| frame(packet.as_bytes())).collect();
            packets(&converse(&mut session(isa), &input).unwrap())
        };
        let words = |reply: &str| -> String {
            let bytes = from_hex(reply.strip_prefix('O').unwrap_or_default().as_bytes());
            String::from_utf8(bytes.unwrap_or_default()).unwrap()
        };
        let four = ["Z1,100,4", "Z1,200,4", "Z1,300,4", "Z1,400,4"];
        // One that reads numbers gets one.
        let other = said(&[&four[..], &["Z1,500,4"]].concat());
        assert_eq!(other.last().map(String::as_str), Some("E1c"), "{isa}");
        let gdb = ["qSupported:no-resumed+"];
        let told = said(&[&gdb[..], &four[..], &["Z1,500,4", "vCont;c", "z1,500,4", "vCont;c"]].concat());
        let [.., refused, text, stop, removed, again] = &told[..] else { panic!("{told:?}") };
        assert_eq!((refused.as_str(), removed.as_str()), ("OK", "OK"));
        let text = words(text);
        assert!(
            text.contains("no hardware breakpoint at 0x500: 4 of 4 debug registers are in use, by"),
            "{text}"
        );
        assert!(text.contains("the hardware breakpoint at 0x300"), "{text}");
        assert!(stop.starts_with("T05") && again.starts_with("T05"), "{stop} {again}");
        // A watchpoint that none could hold; aarch64 has larger ones.
        if isa == Isa::X86_64 {
            let told = said(&[&gdb[..], &["Z2,1000,1001", "vCont;c"]].concat());
            let text = words(&told[told.len() - 2]);
            assert!(text.contains("a watchpoint covers at most 32 bytes here; this is 4097"), "{text}");
        }
    }
}

#[test]
fn a_breakpoint_that_was_refused_is_there_when_others_have_made_room() {
    let before = ["qSupported:no-resumed+", "Z1,100,4", "Z1,200,4", "Z1,300,4", "Z1,400,4"];
    // gdb asks for it again; or, with 'breakpoint always-inserted on', does not.
    for again in [&["Z1,500,4"][..], &[]] {
        for isa in Isa::ALL {
            let sent = [&before[..], &["Z1,500,4", "vCont;c", "z1,100,4"], again, &["vCont;c"]].concat();
            let input: Vec<u8> = sent.iter().flat_map(|packet| frame(packet.as_bytes())).collect();
            let mut session = session(isa);
            let told = packets(&converse(&mut session, &input).unwrap());
            let words = told.iter().filter(|reply| reply.starts_with('O') && *reply != "OK").count();
            assert_eq!(words, 1, "{isa}: {told:?}");
            assert_eq!(session.debuggee.refused().count(), 0);
        }
    }
}

#[test]
fn a_guest_that_does_not_begin_again_is_what_it_was_to_its_debugger() {
    for (before, then) in
        [("D;1", Process::Detached), ("vKill;1", Process::Killed), ("qC", Process::Attached)]
    {
        let mut session = session(Isa::X86_64);
        session.debuggee.machine.cannot_restart = true;
        let input: Vec<u8> =
            ["!", before, "vRun;", "?"].iter().flat_map(|packet| frame(packet.as_bytes())).collect();
        let (ours, theirs) = MemoryStream::pair().unwrap();
        assert_eq!(theirs.write(&input).unwrap(), input.len());
        session.attach();
        let peer = Peer::Unix { user: None, process: None };
        let mut client: Client<Still> = Client::new(Stream::Memory(ours), peer, &[], Arc::new(|| false));
        client.arm(&mut session);
        client.serve(&mut session, Ready { input: true, ..Ready::default() }).unwrap();
        assert_eq!(session.process, then);
        let mut answer = [0; 4096];
        let count = theirs.read(&mut answer).unwrap();
        let replies = replies(&answer[..count]);
        assert_eq!(replies[2], "E.its kernel is gone");
        let stop = if then == Process::Attached { "T05" } else { "W00" };
        assert!(replies[3].starts_with(stop), "{replies:?}");
    }
}

#[test]
fn an_interrupt_of_a_guest_that_was_let_go_is_not_kept() {
    let mut session = session(Isa::X86_64);
    let [go, away, back] = ["vCont;c", "D;1", "vAttach;1"].map(|packet| frame(packet.as_bytes()));
    let steps: [(&[u8], bool); 6] =
        [(&frame(b"!"), true), (&go, true), (&away, true), (&[INTERRUPT], true), (&back, true), (&go, true)];
    let (answer, _) = misbehave(&mut session, &steps).unwrap();
    let replies = replies(&answer);
    assert!(replies.last().is_some_and(|last| last.starts_with("T05")), "{replies:?}");
}

#[test]
fn threads_have_their_process_when_the_debugger_wants_it() {
    let packets =
        ["qSupported:multiprocess+", "?", "qC", "qfThreadInfo", "vCont;s:p1.2", "qC", "Hgp1.3", "qC"];
    let input: Vec<u8> = packets.iter().flat_map(|packet| frame(packet.as_bytes())).collect();
    let replies = replies(&converse(&mut session(Isa::X86_64), &input).unwrap());
    let replies: Vec<&str> = replies.iter().map(String::as_str).skip(1).collect();
    let [first, current, all, stop, stopped, "OK", chosen] = replies[..] else { panic!("{replies:?}") };
    assert_eq!((first, current), ("T05thread:p01.01;", "QCp01.01"));
    assert_eq!(all, "mp01.01,p01.02,p01.03");
    assert!(stop.starts_with("T05thread:p01.02;10:"), "{stop}");
    assert_eq!((stopped, chosen), ("QCp01.02", "QCp01.03"));
}

#[test]
fn one_that_is_let_go_sees_the_end_of_its_connection() {
    let mut session = session(Isa::X86_64);
    let (ours, theirs) = MemoryStream::pair().unwrap();
    let peer = Peer::Unix { user: None, process: None };
    let client: Client<Still> = Client::new(Stream::Memory(ours), peer, &[], Arc::new(|| false));
    client.arm(&mut session);
    drop(client);
    assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
}

/// What a client that sends this without reading is sent, and how much waited for it at most.
fn unread(session: &mut Session<Still>, pieces: &[&[u8]]) -> (Vec<u8>, usize) {
    let steps: Vec<(&[u8], bool)> = pieces.iter().map(|piece| (*piece, false)).collect();
    misbehave(session, &steps).unwrap()
}

#[test]
fn a_nack_gets_the_last_answer_once_and_only_with_acknowledgements() {
    let mut session = session(Isa::X86_64);
    let ask = frame(b"qC");
    let count = |answer: &[u8]| replies(answer).iter().filter(|reply| *reply == "QC01").count();
    // It comes in one piece with the packet: of an answer that was not sent yet.
    let (answer, _) = misbehave(&mut session, &[(&[&ask[..], b"-"].concat(), true)]).unwrap();
    assert_eq!(count(&answer), 1);
    let (answer, _) = misbehave(&mut session, &[(&ask, true), (b"-", true)]).unwrap();
    assert_eq!(count(&answer), 2);
    let steps: [(&[u8], bool); 4] =
        [(&frame(b"QStartNoAckMode"), true), (&ask, true), (b"-", true), (b"---", true)];
    let (answer, _) = misbehave(&mut session, &steps).unwrap();
    assert_eq!(count(&answer), 1);
    assert_eq!(replies(&answer), ["OK", "QC01"]);
}

#[test]
fn what_waits_for_a_client_that_does_not_read_is_bounded() {
    /// What is let go over, an answer, and some.
    const BOUND: usize = (512 << 10) + 2 * LONGEST + 1024;
    let mut session = session(Isa::X86_64);
    let read = frame(b"m0,ffff");
    let nacks = vec![b'-'; 8000];
    let damaged: Vec<u8> = b"$m0,ffff#00".repeat(1000);
    for pieces in [
        vec![&read[..]; 500],
        std::iter::once(&read[..]).chain([&nacks[..]; 20]).collect(),
        vec![&damaged[..]; 100],
    ] {
        let (_, most) = unread(&mut session, &pieces);
        assert!(most < BOUND, "{most} bytes waited");
    }
}

#[test]
#[cfg_attr(miri, ignore = "Miri has no Unix sockets")]
fn a_flood_of_commands_that_take_long_does_not_keep_the_server_for_itself() {
    use std::io::Write;
    let mut session = session(Isa::X86_64);
    let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let peer = Peer::Unix { user: None, process: None };
    let mut client: Client<Still> = Client::new(Stream::Unix(ours), peer, &[], Arc::new(|| false));
    client.arm(&mut session);
    // More than is read behind each of them, until the other end has gone.
    let flood = std::thread::spawn(move || {
        let packets = frame(&b"qOffsets".repeat(1000)).repeat(64);
        while theirs.write_all(&packets).is_ok() {}
    });
    for _ in 0..3 {
        client.serve(&mut session, Ready { input: true, ..Ready::default() }).unwrap();
    }
    drop(client);
    flood.join().unwrap();
}

#[test]
fn an_interrupt_that_crosses_a_stop_is_kept_for_the_next_run() {
    let mut session = session(Isa::X86_64);
    let (go, interrupt) = (frame(b"vCont;c"), &[INTERRUPT][..]);
    // One to begin with is none of these.
    let steps: [(&[u8], bool); 5] =
        [(interrupt, true), (&go, true), (interrupt, true), (&go, true), (&go, true)];
    let (answer, _) = misbehave(&mut session, &steps).unwrap();
    let signals: Vec<String> = replies(&answer).iter().map(|reply| reply[..3].to_string()).collect();
    assert_eq!(signals, ["T05", "T02", "T05"]);
}

#[test]
fn commands_are_helped_with() {
    let run = |line: &str| crate::gdb::monitor::run(&mut session(Isa::X86_64), line);
    assert!(run("tranlsate 0").contains("do you mean 'translate'?"), "{}", run("tranlsate 0"));
    assert!(!run("xyzzy").contains("do you mean"));
    assert!(run("help translate").starts_with("monitor translate ADDRESS\n"));
    assert!(run("help breakpoint").contains("do you mean 'breakpoints'?"));
    for (address, expected) in [
        ("$rip+0x10", "0x10 is at"),
        ("rsp", "0x0 is at"),
        ("pc", "0x0 is at"),
        ("0x1000-8", "0xff8 is at"),
        ("4096", "0x1000 is at"),
    ] {
        let text = run(&format!("translate {address}"));
        assert!(text.contains(expected), "{address}: {text}");
    }
    let text = run("translate linux_banner");
    assert!(text.contains("no register") && text.contains("eval"), "{text}");
    assert!(run("translate $eflag").contains("do you mean 'eflags'?"));
}

/// A guest with a kernel at its place: code at 0xffffffff81000000 in one page of 2 MiB.
#[cfg(feature = "linux")]
fn with_kernel() -> Session<Still> {
    let mut session = Session::new(
        Still::new(Isa::X86_64, 1, 8 << 20).unwrap(),
        Arc::new(Engine::new(Isa::X86_64, crate::fake::host(), 1)),
    );
    let mut file = arch::register::RegisterFile::new(Isa::X86_64);
    for (name, value) in [("cr0", 0x8000_0001), ("cr3", 0x1000), ("cr4", 0x20), ("efer", 0x500)] {
        file.set(name, value);
    }
    session.debuggee.machine.set_registers(0, &file).unwrap();
    for (at, value) in [(0x1ff8, 0x2003u64), (0x2ff0, 0x3003), (0x3040, 0x20_0083)] {
        session.debuggee.machine.memory().write(arch::GuestPhys(at), &value.to_le_bytes());
    }
    session.attach();
    session
}

#[cfg(feature = "linux")]
#[test]
fn a_program_is_not_loaded_over_a_kernel_that_runs() {
    const CODE: u64 = 0xffff_ffff_8100_0000;
    let mut session = with_kernel();
    assert_eq!(session.view().kernel_text(), Some(CODE));
    let piece = vec![0x90; 16 << 10];
    // What a person changes is.
    for index in 0..4 {
        assert!(session.write(CODE + index * 0x4000, &piece), "{index}");
    }
    assert!(!session.write(CODE + 0x10000, &piece) && session.is_overloaded());
    assert!(session.take_words().is_some_and(|words| words.contains("monitor allow-load on")));
    crate::gdb::monitor::run(&mut session, "allow-load on");
    assert!(session.write(CODE + 0x10000, &piece));
    // At the next stop there is as much again.
    crate::gdb::monitor::run(&mut session, "allow-load off");
    session.run(&[crate::machine::Action::Step]).unwrap();
    assert!(session.write(CODE, &piece));
}

#[test]
fn an_old_gdb_is_told_of_signed_addresses() {
    let told = |features: &str, enabled: u64| {
        let mut session = session(Isa::Aarch64);
        let mut file = arch::register::RegisterFile::new(Isa::Aarch64);
        file.set("SCTLR_EL1", enabled << 31);
        session.debuggee.machine.set_registers(0, &file).unwrap();
        let input: Vec<u8> = [&format!("qSupported:no-resumed+{features}"), "vCont;s:1", "vCont;s:1"]
            .iter()
            .flat_map(|packet| frame(packet.as_bytes()))
            .collect();
        let packets = packets(&converse(&mut session, &input).unwrap());
        packets.iter().filter(|packet| packet.starts_with('O') && *packet != "OK").count()
    };
    assert_eq!((told("", 1), told("", 0), told(";error-message+", 1)), (1, 0, 0));
}
