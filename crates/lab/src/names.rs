//! Names on the command line, as enumerations have them.

/// The one of this name, of `all` that there are of `what`.
///
/// # Errors
/// One line with the names that are known.
pub(crate) fn by_name<T: Copy>(
    what: &str,
    name: &str,
    all: &[T],
    name_of: fn(T) -> &'static str,
) -> Result<T, String> {
    let found = all.iter().find(|one| name_of(**one) == name).copied();
    found.ok_or_else(|| {
        let known: Vec<&str> = all.iter().map(|one| name_of(*one)).collect();
        format!("no {what} {name:?}; known: {}", known.join(", "))
    })
}
