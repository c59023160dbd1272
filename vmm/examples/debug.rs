use debug::context::{Mode, Point};
use debug::symbols::Symbols;
use std::time::Duration;
use vmm::boot::kernel::EMBEDDED;
use vmm::machine::{Config, Guest};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let limit = Duration::from_secs(10);
    let symbols = Symbols::new(EMBEDDED.to_vec())?.moved(0);
    let [count, counts] = ["count", "COUNTS"].map(|name| symbols.find(name));
    let machine = Guest::new(&Config::default(), Box::new(std::io::stdout()))?;
    let mut guest = machine.debug()?; // held in front of its first instruction
    guest.add(Point::execute(count?[0].address))?;
    let all = guest.root();
    let stop = guest.go_until(all, Mode::Run, limit)?;
    let stop = guest.go_until(stop.context, Mode::StepOut, limit)?;
    println!("It has counted to {}.", guest.read_u64(stop.context, counts?[0].address)?);
    drop(guest); // nothing is left in it, and it runs on
    println!("{}", machine.wait(limit).ok_or("it runs still")?);
    Ok(())
}
