//! Files with holes, through a pipe: their size, then each piece that holds something with its place.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// Bytes that are carried at a time, of which those that are all zeros are left out.
const PIECE: usize = 64 << 10;
/// The place behind the last piece.
const END: u64 = u64::MAX;

/// Sends a file.
///
/// # Errors
/// What the system says.
pub fn send(path: &Path, to: &mut impl Write) -> io::Result<()> {
    let mut file = File::open(path)?;
    to.write_all(&file.metadata()?.len().to_le_bytes())?;
    let mut buffer = vec![0; PIECE];
    let mut at = 0u64;
    loop {
        let mut count = 0;
        while count < PIECE {
            match file.read(&mut buffer[count..])? {
                0 => break,
                more => count += more,
            }
        }
        if count == 0 {
            break;
        }
        if buffer[..count].iter().any(|byte| *byte != 0) {
            to.write_all(&at.to_le_bytes())?;
            to.write_all(&(count as u64).to_le_bytes())?;
            to.write_all(&buffer[..count])?;
        }
        at += count as u64;
    }
    to.write_all(&END.to_le_bytes())?;
    to.flush()
}

/// Receives one, into a new file.
///
/// # Errors
/// What the system says; also when the stream ends too early.
pub fn receive(from: &mut impl Read, path: &Path) -> io::Result<()> {
    let mut word = || -> io::Result<u64> {
        let mut bytes = [0; 8];
        from.read_exact(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    };
    let size = word()?;
    let mut file = File::create(path)?;
    file.set_len(size)?;
    loop {
        let mut bytes = [0; 8];
        from.read_exact(&mut bytes)?;
        let at = u64::from_le_bytes(bytes);
        if at == END {
            return Ok(());
        }
        from.read_exact(&mut bytes)?;
        let count = u64::from_le_bytes(bytes);
        file.seek(SeekFrom::Start(at))?;
        if io::copy(&mut from.take(count), &mut file)? < count {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}
