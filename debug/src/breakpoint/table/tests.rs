use super::*;
use crate::arming::Want;
use crate::breakpoint::{NOT_MAPPED, NOT_RAM, planted_instruction};
use crate::fake::Ram;

fn software(address: u64, place: Place) -> Breakpoint {
    Breakpoint::new(Kind::Software, GuestVirt(address), 1, place)
}

fn bytes(ram: &Ram, at: u64) -> [u8; 4] {
    let mut bytes = [0; 4];
    assert_eq!(ram.read(GuestPhys(at), &mut bytes), 4);
    bytes
}

const TEXT: [u8; 4] = [0x11, 0x22, 0x33, 0x44];

fn ram() -> Ram {
    let ram = Ram::new(0x1_0000);
    ram.write(GuestPhys(0x1000), &TEXT);
    ram
}

#[test]
fn planting_and_removing_leaves_no_trace_on_either_architecture() {
    for isa in Isa::ALL {
        let (ram, mut table) = (ram(), Table::new(isa));
        table.insert(&ram, software(0xff00, Place::Planted(GuestPhys(0x1000)))).unwrap();
        let instruction = planted_instruction(isa);
        assert_eq!(&bytes(&ram, 0x1000)[..instruction.len()], instruction);
        assert!(table.is_planted(&ram, GuestPhys(0x1000)));
        let mut seen = bytes(&ram, 0x1000);
        table.unmask(GuestPhys(0x1000), &mut seen);
        assert_eq!(seen, TEXT);
        assert!(table.remove(&ram, Kind::Software, GuestVirt(0xff00), 4));
        assert_eq!(bytes(&ram, 0x1000), TEXT);
        assert!(!table.remove(&ram, Kind::Software, GuestVirt(0xff00), 4));
    }
}

#[test]
fn two_names_of_one_place_share_one_instruction() {
    let (ram, mut table) = (ram(), Table::new(Isa::X86_64));
    for name in [0xff00, 0xee00] {
        table.insert(&ram, software(name, Place::Planted(GuestPhys(0x1000)))).unwrap();
    }
    assert_eq!(table.planted_at(GuestPhys(0x1000)), [Id(0), Id(1)]);
    table.remove(&ram, Kind::Software, GuestVirt(0xff00), 1);
    assert_eq!(bytes(&ram, 0x1000)[0], 0xcc);
    table.remove(&ram, Kind::Software, GuestVirt(0xee00), 1);
    assert_eq!(bytes(&ram, 0x1000), TEXT);
    // Two that are the same.
    let first = table.insert(&ram, software(1, Place::Planted(GuestPhys(0x1000)))).unwrap();
    let second = table.insert(&ram, software(1, Place::Planted(GuestPhys(0x1000)))).unwrap();
    assert!(table.take_out(&ram, first) && !table.take_out(&ram, first));
    assert_eq!((bytes(&ram, 0x1000)[0], table.planted_at(GuestPhys(0x1000))), (0xcc, vec![second]));
    assert!(table.take_out(&ram, second));
    assert_eq!(bytes(&ram, 0x1000), TEXT);
}

#[test]
fn two_that_want_the_same_register_share_it() {
    let (ram, mut table) = (ram(), Table::new(Isa::X86_64));
    let hardware = || Breakpoint { kind: Kind::Hardware, ..software(5, Place::Register) };
    let first = table.insert(&ram, hardware()).unwrap();
    let second = table.insert(&ram, hardware()).unwrap();
    table.insert(&ram, Breakpoint { kind: Kind::Hardware, ..software(6, Place::Off) }).unwrap();
    assert_eq!(table.wants(), [(first, Want::Execute(5))]);
    assert_eq!(table.wanting(Want::Execute(5)), [first, second]);
    assert!(table.take_out(&ram, first));
    assert_eq!(table.wants(), [(second, Want::Execute(5))]);
}

#[test]
fn a_guest_that_patched_its_text_wins() {
    let (ram, mut table) = (ram(), Table::new(Isa::X86_64));
    table.insert(&ram, software(1, Place::Planted(GuestPhys(0x1000)))).unwrap();
    ram.write(GuestPhys(0x1000), &[0x90]);
    assert!(!table.is_planted(&ram, GuestPhys(0x1000)));
    let mut seen = bytes(&ram, 0x1000);
    table.unmask(GuestPhys(0x1000), &mut seen);
    assert_eq!(seen[0], 0x90);
    let (mut other, patched) = (Table::new(Isa::X86_64), bytes(&ram, 0x1000));
    std::mem::swap(&mut other, &mut table);
    other.remove(&ram, Kind::Software, GuestVirt(1), 1);
    assert_eq!(bytes(&ram, 0x1000), patched);
}

#[test]
fn a_breakpoint_survives_the_guest_that_patches_under_it() {
    let (ram, mut table) = (ram(), Table::new(Isa::X86_64));
    table.insert(&ram, software(1, Place::Planted(GuestPhys(0x1000)))).unwrap();
    assert!(table.overwritten(&ram).is_empty());
    ram.write(GuestPhys(0x1000), &[0x90]);
    assert_eq!(table.overwritten(&ram), [(GuestPhys(0x1000), GuestVirt(1))]);
    table.replant(&ram, GuestPhys(0x1000));
    assert_eq!(bytes(&ram, 0x1000)[0], 0xcc);
    table.clear(&ram);
    assert_eq!(bytes(&ram, 0x1000)[0], 0x90);
}

#[test]
fn writes_over_a_planted_instruction_change_the_original() {
    for isa in Isa::ALL {
        let (ram, mut table) = (ram(), Table::new(isa));
        table.insert(&ram, software(1, Place::Planted(GuestPhys(0x1000)))).unwrap();
        // A write that starts before the place and ends in it.
        let mut written = [0xa0, 0xa1, 0xa2];
        table.write_over(GuestPhys(0xffe), &mut written);
        ram.write(GuestPhys(0xffe), &written);
        assert!(table.is_planted(&ram, GuestPhys(0x1000)), "{isa}");
        table.clear(&ram);
        assert_eq!(bytes(&ram, 0x1000), [0xa2, 0x22, 0x33, 0x44], "{isa}");
        assert_eq!(bytes(&ram, 0xffe)[..2], [0xa0, 0xa1]);
    }
}

#[test]
fn lifted_for_a_step_and_put_back() {
    let (ram, mut table) = (ram(), Table::new(Isa::Aarch64));
    table.insert(&ram, software(1, Place::Planted(GuestPhys(0x1000)))).unwrap();
    assert!(table.lift(&ram, GuestPhys(0x1000)));
    assert_eq!(bytes(&ram, 0x1000), TEXT);
    assert!(!table.lift(&ram, GuestPhys(0x2000)));
    table.replant(&ram, GuestPhys(0x1000));
    assert!(table.is_planted(&ram, GuestPhys(0x1000)));
    table.clear(&ram);
    assert_eq!(bytes(&ram, 0x1000), TEXT);
}

#[test]
fn what_does_not_translate_waits_and_settles() {
    for reason in [NOT_MAPPED, NOT_RAM] {
        let (ram, mut table) = (ram(), Table::new(Isa::X86_64));
        table.insert(&ram, software(0xffff_1000, Place::Fallback(reason))).unwrap();
        let id = Id(0);
        assert_eq!(table.wants(), [(id, Want::Execute(0xffff_1000))]);
        assert_eq!(table.waiting(), [(id, GuestVirt(0xffff_1000))]);
        assert!(!table.settle(&ram, id, GuestPhys(0xffff_1000)));
        assert_eq!(table.waiting().len(), 1);
        assert!(table.settle(&ram, id, GuestPhys(0x1000)));
        assert!(table.waiting().is_empty() && table.is_planted(&ram, GuestPhys(0x1000)));
        assert_eq!(table.wants(), []);
    }
}

#[test]
fn where_code_is_still_to_come_a_register_is_wanted_beside() {
    for isa in Isa::ALL {
        let (ram, mut table) = (ram(), Table::new(isa));
        table.insert(&ram, software(0xff00, Place::Planted(GuestPhys(0x1000)))).unwrap();
        assert_eq!(table.guarded(), []);
        let id = table.insert(&ram, software(0xee00, Place::Planted(GuestPhys(0x3000)))).unwrap();
        assert_eq!(table.guarded(), [(id, Want::Execute(0xee00))]);
        assert_eq!(table.wants(), []);
        // It is so until it is removed: code may be copied there again.
        ram.write(GuestPhys(0x3000), &TEXT);
        table.replant(&ram, GuestPhys(0x3000));
        assert_eq!(table.guarded().len(), 1);
        assert!(table.remove(&ram, Kind::Software, GuestVirt(0xee00), 4));
        assert_eq!((table.guarded(), bytes(&ram, 0x3000)), (vec![], TEXT));
    }
}

#[test]
fn replacing_keeps_the_id_and_undoing_keeps_everything() {
    let (ram, mut table) = (ram(), Table::new(Isa::X86_64));
    let planted = Place::Planted(GuestPhys(0x1000));
    let first = table.insert(&ram, software(1, planted)).unwrap();
    let second = table.insert(&ram, software(2, Place::Register)).unwrap();
    table.count(first);
    let change = table.replace(&ram, software(1, Place::Fallback(NOT_MAPPED))).unwrap();
    assert_eq!(table.get(first).map(|it| it.place), Some(Place::Fallback(NOT_MAPPED)));
    assert!(table.is_planted(&ram, GuestPhys(0x1000)), "until it is settled");
    table.settle_change(&ram, change, true);
    assert_eq!(table.get(first).map(|it| (it.place, it.hits)), Some((planted, 1)));
    assert!(table.is_planted(&ram, GuestPhys(0x1000)));
    let change = table.replace(&ram, software(1, planted)).unwrap();
    table.settle_change(&ram, change, false);
    assert_eq!(table.get(first).map(|it| it.hits), Some(1));
    let change = table.replace(&ram, software(3, Place::Planted(GuestPhys(0x1002)))).unwrap();
    table.settle_change(&ram, change, true);
    assert_eq!(bytes(&ram, 0x1000), [0xcc, 0x22, 0x33, 0x44]);
    let places: Vec<Place> = table.iter().map(|it| it.place).collect();
    assert_eq!((places, table.get(second).is_some()), (vec![planted, Place::Register], true));
    assert!(table.remove(&ram, Kind::Software, GuestVirt(1), 1));
    assert_eq!(bytes(&ram, 0x1000), TEXT);
}

#[test]
fn thousands_in_any_order() {
    let (ram, mut table) = (ram(), Table::new(Isa::X86_64));
    for index in 0..3000u64 {
        table.insert(&ram, software(index, Place::Planted(GuestPhys(0x2000 + index * 3)))).unwrap();
    }
    for index in (0..3000u64).rev().step_by(2).chain((0..3000).step_by(2)) {
        assert!(table.remove(&ram, Kind::Software, GuestVirt(index), 1));
    }
    assert!(table.is_empty() && !table.has_planted());
    let mut rest = vec![1; 0x4000];
    ram.read(GuestPhys(0x2000), &mut rest);
    assert!(rest.iter().all(|byte| *byte == 0));
    assert_eq!(
        table.insert(&ram, software(1, Place::Planted(GuestPhys(0x10_0000)))),
        Err(InsertError::NotRam(GuestPhys(0x10_0000)))
    );
}

/// What serves the guest writes over a planted instruction, or a part of it.
#[test]
fn what_is_written_for_the_guest_stays_and_so_does_the_breakpoint() {
    let (leads, misleads) = (|_: GuestVirt| Some(GuestPhys(0x1000)), |_: GuestVirt| None::<GuestPhys>);
    for isa in Isa::ALL {
        let instruction = planted_instruction(isa);
        for from in 0xffd..0x1004 {
            let data = [0xa0, 0xa1, 0xa2, 0xa3];
            let mut wanted = [0, 0, 0, 0, 0x11, 0x22, 0x33, 0x44, 0, 0, 0, 0];
            let at = usize::try_from(from - 0xffc).unwrap();
            wanted[at..at + 4].copy_from_slice(&data);
            let all = |ram: &Ram| {
                let mut bytes = [0; 12];
                assert_eq!(ram.read(GuestPhys(0xffc), &mut bytes), 12);
                bytes
            };
            // The address leads there still.
            let (ram, mut table) = (ram(), Table::new(isa));
            table.insert(&ram, software(1, Place::Planted(GuestPhys(0x1000)))).unwrap();
            assert_eq!(table.write_for_guest(&ram, GuestPhys(from), &data, &leads), 4);
            assert!(table.is_planted(&ram, GuestPhys(0x1000)) && table.overwritten(&ram).is_empty());
            let mut seen = all(&ram);
            table.unmask(GuestPhys(0xffc), &mut seen);
            assert_eq!(seen, wanted, "{isa} {from:#x}");
            table.clear(&ram);
            assert_eq!(all(&ram), wanted, "{isa} {from:#x}");

            // It does not: all of the memory is the guest's, until somebody has looked.
            let (ram, mut table) = (self::ram(), Table::new(isa));
            table.insert(&ram, software(1, Place::Planted(GuestPhys(0x1000)))).unwrap();
            assert_eq!(table.write_for_guest(&ram, GuestPhys(from), &data, &misleads), 4);
            let is_over = from + 4 > 0x1000 && from < 0x1000 + instruction.len() as u64;
            if is_over {
                assert_eq!(all(&ram), wanted, "{isa} {from:#x}");
                assert_eq!(table.overwritten(&ram), [(GuestPhys(0x1000), GuestVirt(1))]);
            }
            assert_eq!(table.is_planted(&ram, GuestPhys(0x1000)), !is_over);
            table.replant(&ram, GuestPhys(0x1000));
            assert!(table.is_planted(&ram, GuestPhys(0x1000)));
            assert!(table.remove(&ram, Kind::Software, GuestVirt(1), 1));
            assert_eq!(all(&ram), wanted, "{isa} {from:#x}");
        }
    }
}

/// Bytes of the guest's that are a breakpoint instruction by themselves are the guest's.
#[test]
fn a_breakpoint_instruction_that_is_written_for_the_guest_stays() {
    for isa in Isa::ALL {
        let instruction = planted_instruction(isa);
        for leads in [true, false] {
            let (ram, mut table) = (ram(), Table::new(isa));
            table.insert(&ram, software(1, Place::Planted(GuestPhys(0x1000)))).unwrap();
            let leads_to = |_: GuestVirt| leads.then_some(GuestPhys(0x1000));
            table.write_for_guest(&ram, GuestPhys(0x1000), instruction, &leads_to);
            assert_eq!(table.is_planted(&ram, GuestPhys(0x1000)), leads);
            let mut seen = bytes(&ram, 0x1000);
            table.unmask(GuestPhys(0x1000), &mut seen);
            assert_eq!(&seen[..instruction.len()], instruction);
            assert!(table.remove(&ram, Kind::Software, GuestVirt(1), 1));
            assert_eq!(&bytes(&ram, 0x1000)[..instruction.len()], instruction);
        }
    }
}

/// What is written while the instruction is lifted for a step is what is under it afterwards.
#[test]
fn a_write_during_a_step_is_not_lost() {
    for isa in Isa::ALL {
        let (ram, mut table) = (ram(), Table::new(isa));
        table.insert(&ram, software(1, Place::Planted(GuestPhys(0x1000)))).unwrap();
        assert!(table.lift(&ram, GuestPhys(0x1000)) && !table.lift(&ram, GuestPhys(0x1000)));
        table.write_for_guest(&ram, GuestPhys(0x1000), &[0xa0], &|_| Some(GuestPhys(0x1000)));
        assert_eq!(bytes(&ram, 0x1000)[0], 0xa0);
        table.replant(&ram, GuestPhys(0x1000));
        assert!(table.is_planted(&ram, GuestPhys(0x1000)));
        table.make_way(&ram, GuestPhys(0xffe), 8);
        assert_eq!(bytes(&ram, 0x1000), [0xa0, 0x22, 0x33, 0x44]);
        // A debugger that writes there has its way, too, and plants nothing.
        let mut written = [0xb0];
        table.write_over(GuestPhys(0x1000), &mut written);
        assert_eq!(written, [0xb0]);
        table.clear(&ram);
        assert_eq!(bytes(&ram, 0x1000), [0xa0, 0x22, 0x33, 0x44]);
    }
}
