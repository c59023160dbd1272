//! What a guest asks for is bounded, whatever it sends.

use super::*;
use crate::hypercall::call::Call;
use crate::hypercall::decode::Decoded;

/// What a call keeps and prints does not grow with what a guest asks for.
#[test]
fn a_multicall_is_bounded_in_memory_and_output() {
    const LONGEST: u64 = 64 << 10;
    for abi in Abi::ALL {
        let guest = Guest::new(abi);
        let word = abi.word();
        // 1024 entries that each print 64 KiB.
        let entry: Vec<u8> = [18, 0, 0, LONGEST, 0x100, 0, 0, 0]
            .iter()
            .flat_map(|value: &u64| value.to_le_bytes()[..word].to_vec())
            .collect();
        let list = SIZE - 1024 * entry.len();
        guest.bench.put(list as u64, &entry.repeat(1024));
        let raw = guest.raw(13, &[list as u64, 1024]);
        let mut call = Call::new(table(), raw, &guest.bench).unwrap();
        // As for a trace.
        let _shown = Decoded::of(&mut call);
        let answer = guest.calls.family().answer(&mut call);
        assert_eq!(answer.result, 0);
        assert!(call.kept() < 64 << 10, "{abi:?}: {} bytes", call.kept());
        assert_eq!(guest.bench.console.lock().unwrap().len() as u64, LONGEST);
        let result = |index: usize| {
            let bytes = guest.bench.get(list + index * entry.len() + word, 4);
            i64::from(i32::from_le_bytes(bytes.try_into().unwrap()))
        };
        assert_eq!((result(0), result(1), result(1023)), (0, errno::E2BIG, errno::E2BIG));
        // The next exit prints again; what is too long for one is not said to be printed.
        assert_eq!(guest.call(18, &[0, 5, 0x100]), 0);
        assert_eq!(guest.call(18, &[0, LONGEST + 1, 0x100]), errno::E2BIG);
    }
}

#[test]
fn nothing_that_a_guest_sends_is_too_much() {
    for abi in Abi::ALL {
        let guest = Guest::new(abi);
        let seen = guest.takes_anything();
        // The console's 64 KiB in pieces of 256 bytes, and a multicall's 1024 entries, are the most.
        assert!(seen.values().all(|reads| *reads < 3000), "{seen:?}");
        assert!(guest.line().len() < 20_000);
    }
}
