//! Decompresses LZO1X, which makedumpfile's `-l` writes.
//!
//! It is our own because the crates for it that are not C panic on damaged input, which here is any
//! input. Source: Linux, `Documentation/staging/lzo.rst`.

/// The bytes in front of an instruction.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<usize> {
        self.take(1).map(|byte| usize::from(byte[0]))
    }

    fn half(&mut self) -> Option<usize> {
        self.take(2).map(|half| usize::from(u16::from_le_bytes([half[0], half[1]])))
    }

    /// A length: what the instruction has, or, if that is 0, `base` and more bytes.
    fn length(&mut self, given: usize, base: usize) -> Option<usize> {
        if given != 0 {
            return Some(given);
        }
        let mut length = base;
        loop {
            match self.byte()? {
                0 => length = length.checked_add(255)?,
                last => return length.checked_add(last),
            }
        }
    }
}

/// What is copied last decides what the lowest instructions mean.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    NoLiterals,
    FewLiterals,
    Literals,
}

/// Decompresses `compressed` into no more than `limit` bytes; `None` if it is damaged or makes more.
pub fn decompress(compressed: &[u8], limit: usize) -> Option<Vec<u8>> {
    let mut input = Input(compressed);
    let mut output = Vec::with_capacity(limit);
    let mut last = Last::NoLiterals;
    let literals = |input: &mut Input<'_>, output: &mut Vec<u8>, count: usize| {
        let bytes = input.take(count)?;
        (bytes.len() <= limit - output.len()).then(|| output.extend(bytes))
    };
    if let Some(first @ 18..) = input.0.first().copied() {
        input.byte()?;
        let count = usize::from(first) - 17;
        literals(&mut input, &mut output, count)?;
        last = if count < 4 { Last::FewLiterals } else { Last::Literals };
    }
    loop {
        let instruction = input.byte()?;
        // Length of a match, its distance, and literals behind it.
        let (length, distance, after) = match instruction {
            64.. => {
                let high = input.byte()? << 3;
                ((instruction >> 5) + 1, high + (instruction >> 2 & 7) + 1, instruction & 3)
            }
            32.. => {
                let length = input.length(instruction & 31, 31)?.checked_add(2)?;
                let half = input.half()?;
                (length, (half >> 2) + 1, half & 3)
            }
            16.. => {
                let length = input.length(instruction & 7, 7)?.checked_add(2)?;
                let half = input.half()?;
                let distance = ((instruction & 8) << 11) + (half >> 2);
                if distance == 0 {
                    return Some(output);
                }
                (length, distance + 0x4000, half & 3)
            }
            _ => match last {
                Last::NoLiterals => {
                    let count = input.length(instruction, 15)?.checked_add(3)?;
                    literals(&mut input, &mut output, count)?;
                    last = Last::Literals;
                    continue;
                }
                Last::FewLiterals => (2, (input.byte()? << 2) + (instruction >> 2) + 1, instruction & 3),
                Last::Literals => (3, (input.byte()? << 2) + (instruction >> 2) + 2049, instruction & 3),
            },
        };
        if length > limit - output.len() {
            return None;
        }
        let start = output.len().checked_sub(distance)?;
        // It may reach into what it makes.
        for index in 0..length {
            output.push(output[start + index]);
        }
        literals(&mut input, &mut output, after)?;
        last = if after == 0 { Last::NoLiterals } else { Last::FewLiterals };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_compresses_is_decompressed() {
        let mut random = 1u32;
        for (size, span) in [(1, 1), (4096, 1), (4096, 3), (4096, 40), (4096, 256), (65536, 7), (65536, 200)]
        {
            let plain: Vec<u8> = (0..size)
                .map(|index: u32| {
                    random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    // Runs, repetitions from far and near, and noise.
                    let byte = if index % 300 < 200 { index / 50 % span } else { (random >> 24) % span };
                    u8::try_from(byte).unwrap()
                })
                .collect();
            let compressed = lzokay_native::compress(&plain).unwrap();
            assert_eq!(decompress(&compressed, plain.len()).as_ref(), Some(&plain), "{size} {span}");
            assert_eq!(decompress(&compressed, plain.len() - 1), None);
            for end in 0..compressed.len().min(500) {
                assert_eq!(decompress(&compressed[..end], plain.len()), None);
            }
        }
    }

    #[test]
    fn noise_does_no_harm() {
        let mut random = 7u32;
        for _ in 0..20_000 {
            let mut next = || {
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                random >> 24
            };
            let size = next() % 64;
            let bytes: Vec<u8> = (0..size).map(|_| u8::try_from(next()).unwrap()).collect();
            if let Some(output) = decompress(&bytes, 4096) {
                assert!(output.len() <= 4096);
            }
        }
    }
}
