use std::time::Duration;
use vmm::machine::{Config, Guest};

fn main() -> Result<(), vmm::error::Error> {
    let guest = Guest::new(&Config::default(), Box::new(std::io::stdout()))?;
    guest.resume();
    let outcome = guest.wait(Duration::from_secs(10));
    println!("{}", outcome.map_or("It runs still.".into(), |outcome| outcome.to_string()));
    Ok(())
}
