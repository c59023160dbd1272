//! Mutations of good inputs.

use super::*;
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Xorshift: the same inputs in each run, so that a failure comes again.
struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % below.max(1) as u64).unwrap_or(0)
    }
}

fn mutate(random: &mut Random, data: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..=random.next(4) {
        let at = random.next(data.len() + 1);
        match random.next(6) {
            0 if at < data.len() => data[at] ^= 1 << random.next(8),
            1 if at < data.len() => data[at] = u8::try_from(random.next(256)).unwrap_or(0),
            2 => data.insert(at, b",;:#$}*\n0fX\xff"[random.next(12)]),
            3 => drop(data.drain(at..(at + random.next(8)).min(data.len()))),
            4 => data.extend(&other[random.next(other.len())..]),
            _ => data.truncate(at.max(1)),
        }
    }
    data.truncate(8192);
}

/// The first of two with one name would be run for both.
#[test]
fn each_target_has_a_name_of_its_own() {
    for (index, fuzzed) in FUZZED.iter().enumerate() {
        assert!(FUZZED[..index].iter().all(|other| other.name != fuzzed.name), "{}", fuzzed.name);
    }
}

#[test]
fn mutations_of_good_inputs() {
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(fuzzed) = FUZZED.get(next.fetch_add(1, Ordering::Relaxed)) {
            run_mutations(fuzzed);
        }
    };
    let workers = std::thread::available_parallelism().map_or(1, NonZero::get);
    std::thread::scope(|scope| (0..workers).for_each(|_| drop(scope.spawn(work))));
}

fn run_mutations(fuzzed: &Fuzzed) {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let rounds = match fuzzed.name {
        "packets" | "stream" | "clients" | "linux" | "disks" => 500,
        "orders" | "simulated" | "whole" | "old_kernels" => 100,
        "packed" | "kernels" | "described" => 50,
        "cores" | "kdumps" | "symbols" => 150,
        _ => 3000,
    };
    for seed in fuzzed.seeds {
        (fuzzed.run)(seed);
        let mut data = seed.to_vec();
        for round in 0..rounds {
            if round % 50 == 0 {
                data = seed.to_vec();
            }
            let other = fuzzed.seeds[random.next(fuzzed.seeds.len())];
            mutate(&mut random, &mut data, other);
            (fuzzed.run)(&data);
        }
    }
}

#[test]
fn a_conversation_is_a_conversation() {
    let mut session = session(Isa::X86_64).unwrap();
    let input: Vec<u8> =
        [&b"?"[..], b"p10", b"vCont;s:p1.1", b"m0,4"].iter().flat_map(|data| frame(data)).collect();
    let answer = String::from_utf8_lossy(&converse(&mut session, &input).unwrap()).into_owned();
    let region = [frame(b"qMemoryRegionInfo:10"), frame(b"qMemoryRegionInfo:ffffffffffffffff")].concat();
    let regions = String::from_utf8_lossy(&converse(&mut session, &region).unwrap()).into_owned();
    assert!(regions.contains("start:0;size:10000;permissions:rwx;"), "{regions}");
    assert!(regions.contains("start:10000;size:fffffffffffeffff;#"), "{regions}");
    for part in ["T05thread:01;", "$0000000000000000#", "T05thread:01;10:", "$00000000#"] {
        assert!(answer.contains(part), "{part}: {answer}");
    }
}
