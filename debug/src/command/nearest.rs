//! What somebody may have meant who has mistyped a name.

/// The name that somebody may have meant, in words; nothing where none is near.
pub(super) fn nearest(name: &str, names: impl Iterator<Item = &'static str>) -> String {
    /// Names that are less alike than this are others.
    const ALIKE: f64 = 0.75;
    let alike = names.map(|known| (strsim::jaro_winkler(name, known), known));
    match alike.max_by(|(one, _), (other, _)| one.total_cmp(other)) {
        Some((how, known)) if how >= ALIKE => format!(": do you mean '{known}'?"),
        _ => String::new(),
    }
}
