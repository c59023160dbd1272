//! Kicks: a vCPU thread comes out of `KVM_RUN` every time it is asked to.

use crate::context::{Check, Context, check};
use std::sync::mpsc::channel;
use std::time::Duration;
use vmm::machine::{Config, Guest};

const ROUNDS: u32 = 2000;

/// Thousands of rounds of pause and resume, with the guest spinning and with it halted, on
/// several vCPUs. A lost kick is a pause that never comes back.
pub fn under_load(c: &mut Context) -> Check {
    for name in ["spin", "halt"] {
        let path = c.guest(name, false)?;
        let config = Config { kernel: Some(path), cpus: 3, ..Config::default() };
        let guest = Guest::new(&config, Box::new(std::io::sink())).map_err(|error| error.to_string())?;
        let (done, rounds) = channel();
        let thread = std::thread::spawn(move || {
            let mut pcs = Vec::new();
            for round in 0..ROUNDS {
                guest.resume();
                // Sometimes at once, sometimes when the guest has run a little.
                if round % 7 == 0 {
                    std::thread::yield_now();
                }
                guest.pause();
                if round % 500 == 0 {
                    pcs = guest.vcpus().for_each(|vcpu| vcpu.pc_and_flags().ok().map(|(pc, _)| pc));
                }
                if done.send(round).is_err() {
                    return pcs;
                }
            }
            pcs
        });
        // KICK_AGAIN would hide a lost kick; a round that needed it took 20 ms.
        let mut slow = 0;
        let limit = c.limit(20);
        for round in 0..ROUNDS {
            let start = std::time::Instant::now();
            rounds.recv_timeout(limit).map_err(|_| format!("{name}: round {round} is stuck"))?;
            slow += u32::from(start.elapsed() >= Duration::from_millis(19));
        }
        let pcs = thread.join().map_err(|_| "the pausing thread panicked".to_string())?;
        check(pcs.len() == 3 && pcs[0].is_some(), || format!("{name}: registers are {pcs:x?}"))?;
        c.kept.push((
            format!("{name}.txt"),
            format!("{ROUNDS} rounds, {slow} of 19 ms or more\n").into_bytes(),
        ));
    }
    Ok(())
}
