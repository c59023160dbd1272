//! Parts of a table, made for tests.

/// What each token stands for: each character for itself, and two longer ones.
fn all_tokens() -> Vec<String> {
    let plain = |byte: u8| if byte.is_ascii_graphic() { char::from(byte).to_string() } else { "?".into() };
    let mut tokens: Vec<String> = (0..=255u8).map(plain).collect();
    tokens[0] = "sys_".into();
    tokens[200] = "_lock".into();
    tokens
}

/// Tokens, one behind the other, and where each begins.
pub(super) fn tokens() -> (Vec<u8>, Vec<u8>) {
    let (mut table, mut index) = (Vec::new(), Vec::new());
    for token in all_tokens() {
        index.extend(u16::try_from(table.len()).unwrap().to_le_bytes());
        table.extend(token.as_bytes());
        table.push(0);
    }
    (table, index)
}

/// The names of symbols, one behind the other, and where every 256th of them begins.
pub(super) fn names(symbols: &[(&str, u64)]) -> (Vec<u8>, Vec<u32>) {
    let (tokens, mut names, mut markers) = (all_tokens(), Vec::new(), Vec::new());
    for (number, (name, _)) in symbols.iter().enumerate() {
        if number % 256 == 0 {
            markers.push(u32::try_from(names.len()).unwrap());
        }
        let mut packed = Vec::new();
        let mut rest = *name;
        while !rest.is_empty() {
            let long = [0, 200].into_iter().find(|at: &usize| rest.starts_with(&tokens[*at]));
            let token = long.unwrap_or(usize::from(rest.as_bytes()[0]));
            packed.push(u8::try_from(token).unwrap());
            rest = &rest[tokens[token].len()..];
        }
        match u8::try_from(packed.len()).ok().filter(|length| *length < 0x80) {
            Some(length) => names.push(length),
            None => {
                let length = u16::try_from(packed.len()).unwrap();
                names.push(u8::try_from(length & 0x7f).unwrap() | 0x80);
                names.push(u8::try_from(length >> 7).unwrap());
            }
        }
        names.extend(packed);
    }
    (names, markers)
}
