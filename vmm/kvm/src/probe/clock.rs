//! Whether this host can hold a guest's counter: some take it and do nothing.

use super::{PATIENCE, attempt, bare, in_words, is_over};
use crate::clock::Stood;
use crate::exit::VcpuExit;
use crate::{KvmError, Vcpu};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

/// For how long the guest is held.
const HOLD: Duration = Duration::from_millis(2);
/// A host that is busy just when the guest says something looks as if it did, or did not: so many times of twice as
/// many less one decide.
const MAJORITY: usize = 3;

/// Holds the time of a guest that says what its counter is. Tried once.
///
/// # Errors
/// What was seen instead, in words.
pub fn holds_counter() -> Result<(), String> {
    static FOUND: OnceLock<Result<(), String>> = OnceLock::new();
    FOUND.get_or_init(|| attempt(PATIENCE, try_it)).clone()
}

fn try_it() -> Result<(), String> {
    let (vm, mut vcpu, _) = bare("clock")?;
    let _kicks = vcpu.accept_kicks().map_err(|error| error.to_string())?;
    let clock = vm.clock();
    let hold = |vcpu: &mut Vcpu| -> Result<(), String> {
        let error = |error: KvmError| error.to_string();
        let stood = Stood { since: Instant::now(), owed: Duration::ZERO };
        let frozen = (vcpu.freeze_time(true).map_err(error)?, clock.freeze().map_err(error)?);
        thread::sleep(HOLD);
        let back = vcpu.cycles_since(&frozen.0, &stood).map_err(error)?;
        let (back, restart) = back.map_or((None, None), |(cycles, at)| (Some(cycles), Some(at)));
        clock.thaw(&frozen.1, &stood, restart, true).map_err(error)?;
        vcpu.thaw_time(&frozen.0, back, &stood, clock.lines()).map_err(error)
    };
    let (mut ran, mut passed) = (0, Duration::ZERO);
    let (mut held, mut not) = (0, 0);
    let mut least = f64::INFINITY;
    loop {
        let first = sample(&mut vcpu)?;
        thread::sleep(HOLD);
        let second = sample(&mut vcpu)?;
        hold(&mut vcpu)?;
        let third = sample(&mut vcpu)?;
        ran += second.0.wrapping_sub(first.0);
        passed += second.1 - first.1;
        let rate = ran as f64 / passed.as_secs_f64();
        let seen = third.0.wrapping_sub(second.0) as f64 / rate;
        // What the guest saw beside the hold, it would have seen in any case.
        let seen = seen - ((third.1 - second.1).as_secs_f64() - HOLD.as_secs_f64());
        least = least.min(seen);
        match seen < HOLD.as_secs_f64() / 2.0 {
            true => held += 1,
            false => not += 1,
        }
        if held == MAJORITY {
            return Ok(());
        }
        if not == MAJORITY {
            return Err(format!("of {} ms held, the guest saw {:.1}", HOLD.as_millis(), least * 1e3));
        }
    }
}

/// What the guest's counter says, and when.
fn sample(vcpu: &mut Vcpu) -> Result<(u64, Instant), String> {
    Ok((counter(vcpu)?, Instant::now()))
}

/// What the guest says next.
fn counter(vcpu: &mut Vcpu) -> Result<u64, String> {
    let mut halves = [0u32; 2];
    for half in &mut halves {
        *half = loop {
            match vcpu.run().map_err(|error| error.to_string())? {
                VcpuExit::PortWrite { data, .. } | VcpuExit::MmioWrite { data, .. } => {
                    break arch::bytes::u32_at(data, 0).ok_or("the guest said less than it should")?;
                }
                VcpuExit::Interrupted if is_over() => return Err("the guest says nothing".into()),
                VcpuExit::Interrupted => {}
                other => return Err(in_words(&other)),
            }
        };
    }
    Ok(u64::from(halves[1]) << 32 | u64::from(halves[0]))
}
