use debug::context::{Mode, Point};
use std::time::Duration;
use vmm::machine::{Config, Guest};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let limit = Duration::from_secs(10);
    let running = Guest::new(&Config::default(), Box::new(std::io::stdout()))?;
    // It stands still in front of its first instruction.
    let mut guest = running.debug()?;
    let vcpu = guest.vcpu(0).ok_or("no vCPU")?;
    let first = guest.pc(vcpu)?;
    let stop = guest.go_until(vcpu, Mode::StepInto, limit)?;
    let second = guest.pc(stop.context)?;
    println!("from {first:#x} to {second:#x}, where {:#x} is", guest.read_u64(vcpu, second)?);

    // Back, and there again by a breakpoint.
    let pc = if guest.isa() == arch::Isa::X86_64 { "rip" } else { "pc" };
    guest.set_register(vcpu, pc, first)?;
    guest.add(Point::execute(second).when(move |hit| hit.register(pc) == Some(second)))?;
    let all = guest.root();
    let stop = guest.go_until(all, Mode::Run, limit)?;
    assert_eq!(guest.pc(stop.context)?, second);
    // Whoever leaves takes his breakpoints along, and the guest runs to its end.
    drop(guest);
    println!("{}", running.wait(limit).ok_or("it runs still")?);
    Ok(())
}
