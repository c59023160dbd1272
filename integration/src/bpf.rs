//! The program of the bpf recipe (`docs/recipes.md`), without libbpf: it loads a program and has the kernel run it.

use std::io;

/// What `case` is called as to be that program.
pub const NAME: &str = "bpf_test";
/// What it prints when all is well.
pub const PASSED: &str = "TAP version 13\n1..1\nok 1 - a program gives 7\n";

/// Commands of bpf(2), and a kind of program (`linux/bpf.h`).
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_TEST_RUN: libc::c_int = 10;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;

/// `mov64 r0, 7` and `exit`, eight bytes each.
static SEVEN: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 7, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];

/// As much of `union bpf_attr` as loading takes.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    code: u64,
    license: u64,
}

/// As much of it as a run takes.
#[repr(C)]
#[derive(Default)]
struct Run {
    program: u32,
    result: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

/// bpf(2), which answers with a descriptor or 0.
fn bpf<T>(command: libc::c_int, attribute: &mut T) -> io::Result<u32> {
    let (size, attribute) = (size_of::<T>(), std::ptr::from_mut(attribute));
    // SAFETY: the kernel reads and writes as many bytes as it is told, of a structure that lives through the call and
    // whose addresses lead to what does.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attribute, size) };
    u32::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn result() -> io::Result<u32> {
    let (frame, license) = ([0u8; 64], c"GPL");
    let mut load = Load {
        kind: BPF_PROG_TYPE_SCHED_CLS,
        count: 2,
        code: SEVEN.as_ptr() as u64,
        license: license.as_ptr() as u64,
    };
    // Open until this program ends.
    let program = bpf(BPF_PROG_LOAD, &mut load)?;
    let mut run = Run { program, size_in: 64, data_in: frame.as_ptr() as u64, ..Run::default() };
    bpf(BPF_PROG_TEST_RUN, &mut run)?;
    Ok(run.result)
}

/// Tests it, and prints what came of it; the exit code.
pub fn test() -> i32 {
    match result() {
        Ok(7) => {
            print!("{PASSED}");
            0
        }
        other => {
            println!("TAP version 13\n1..1\nnot ok 1 - a program gives 7\n# {other:?}");
            1
        }
    }
}
