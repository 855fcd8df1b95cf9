//! The guest file: how a guest is started, so that a target's agent can start its incoming twin.
//!
//! ```toml
//! name = "web1"
//! uuid = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"     # optional; checked against QEMU's
//! qmp = "{run_dir}/{name}.qmp"                      # QMP socket of the guest at the source
//! command = [
//!   "/usr/bin/qemu-system-x86_64", "-m", "512", "-qmp", "unix:{run_dir}/{name}.qmp,server=on,wait=off",
//!   "-drive", "file={disks}/web1.qcow2,if=virtio",
//! ]
//! ```
//!
//! `{run_dir}`, `{name}` and the keys of the agent's `[values]` are replaced on each host by that host's values;
//! `{{` and `}}` stand for braces. A guest file decides which files and devices QEMU opens at the target, so who may
//! send one is who has a certificate of the CA; which program runs is the target's own choice (`[qemu] programs`).

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use vmscatter_core::wire::control::Uuid;

use super::input::{BadInput, is_guest_name, one_line};

/// A guest file may have this many bytes.
pub const GUEST_FILE_BYTES_MAX: u64 = 256 * 1024;
/// Arguments of a command, the program included.
pub const COMMAND_ARGS_MAX: usize = 4_096;
/// One argument, expanded: Linux's MAX_ARG_STRLEN less its terminator (`execve(2)`).
pub const ARG_BYTES_MAX: usize = 128 * 1024 - 1;

/// Options that the agent itself gives to an incoming QEMU, or that would keep it from knowing what it starts.
const REFUSED: &[(&str, &str)] = &[
    ("incoming", "the agent gives it to the incoming twin"),
    ("S", "the agent gives it to the incoming twin"),
    ("daemonize", "the agent watches the process that it starts"),
    ("loadvm", "a twin takes its state from the stream"),
    ("preconfig", "a twin must be ready for its stream"),
    ("readconfig", "it would hide options"),
];

/// What placeholders are replaced with on one host, and what that host may start.
#[derive(Clone, Debug, Default)]
pub struct Values {
    /// `{run_dir}`.
    pub run_dir: PathBuf,
    /// The keys of `[values]`.
    pub values: BTreeMap<String, String>,
    /// Programs that may be started.
    pub programs: Vec<PathBuf>,
}

/// A guest file whose form has been checked; what depends on a host comes with [`GuestFile::expand`].
#[derive(Clone, Debug)]
pub struct GuestFile {
    /// The guest's name.
    pub name: String,
    /// Its UUID, if the file says one.
    pub uuid: Option<Uuid>,
    origin: String,
    qmp: Template,
    command: Vec<Template>,
}

/// A guest file with one host's values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpandedGuest {
    /// The guest's name.
    pub name: String,
    /// Its UUID, if the file says one.
    pub uuid: Option<Uuid>,
    /// The QMP socket.
    pub qmp: PathBuf,
    /// The program; absolute, and in the host's list.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGuest {
    name: String,
    uuid: Option<String>,
    qmp: String,
    command: Vec<String>,
}

impl GuestFile {
    /// Reads the file at `path`, and gives its text back for the request that goes to the agent.
    ///
    /// # Errors
    /// One line that names the file and the key.
    pub fn load(path: &Path) -> Result<(GuestFile, String), BadInput> {
        let text = super::config::read_bounded(path, GUEST_FILE_BYTES_MAX)?;
        Ok((GuestFile::parse(&text, &path.display().to_string())?, text))
    }

    /// Checks the form of a guest file; `origin` is what errors call it.
    ///
    /// # Errors
    /// One line that names the origin and the key.
    pub fn parse(text: &str, origin: &str) -> Result<GuestFile, BadInput> {
        let bad = |detail: String| BadInput::new(origin, detail);
        if text.len() as u64 > GUEST_FILE_BYTES_MAX {
            return Err(bad(format!("longer than {GUEST_FILE_BYTES_MAX} bytes")));
        }
        let raw: RawGuest = toml::from_str(text).map_err(|e| BadInput::toml(origin, text, &e))?;
        if !is_guest_name(&raw.name) {
            return Err(bad(format!(
                "name: '{}' is not made of 1 to 64 letters, digits, '.', '_' and '-'",
                one_line(&raw.name)
            )));
        }
        let uuid = raw.uuid.map(|text| {
            parse_uuid(&text).ok_or_else(|| bad(format!("uuid: '{}' is no UUID", one_line(&text))))
        });
        let qmp = Template::parse(&raw.qmp).map_err(|e| bad(format!("qmp: {e}")))?;
        if raw.command.is_empty() || raw.command.len() > COMMAND_ARGS_MAX {
            return Err(bad(format!("command: must have 1 to {COMMAND_ARGS_MAX} entries")));
        }
        let mut command = Vec::with_capacity(raw.command.len());
        for (index, arg) in raw.command.iter().enumerate() {
            let template = Template::parse(arg).map_err(|e| bad(format!("command[{index}]: {e}")))?;
            check_arg(index, arg).map_err(|e| bad(format!("command[{index}]: {e}")))?;
            command.push(template);
        }
        Ok(GuestFile { name: raw.name, uuid: uuid.transpose()?, origin: origin.to_owned(), qmp, command })
    }

    /// What errors call the file.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The QMP socket with a host's values; all that a source needs.
    ///
    /// # Errors
    /// One line: an unknown placeholder, or no absolute path.
    pub fn expand_qmp(&self, values: &Values) -> Result<PathBuf, BadInput> {
        let qmp = PathBuf::from(self.fill(&self.qmp, "qmp", values)?);
        if !qmp.is_absolute() {
            return Err(self.bad(format!("qmp: '{}' is not an absolute path", qmp.display())));
        }
        if qmp.as_os_str().len() > super::config::SOCKET_PATH_BYTES_MAX {
            return Err(self.bad(format!("qmp: '{}' is too long for a socket", qmp.display())));
        }
        Ok(qmp)
    }

    /// The guest with a host's values, ready to be started there.
    ///
    /// # Errors
    /// One line: an unknown placeholder, or a program that the host may not start.
    pub fn expand(&self, values: &Values) -> Result<ExpandedGuest, BadInput> {
        let qmp = self.expand_qmp(values)?;
        let mut command = Vec::with_capacity(self.command.len());
        for (index, template) in self.command.iter().enumerate() {
            let arg = self.fill(template, &format!("command[{index}]"), values)?;
            // Once more: a value may have turned an argument into an option.
            check_arg(index, &arg).map_err(|e| self.bad(format!("command[{index}]: {e}")))?;
            command.push(arg);
        }
        let program = PathBuf::from(command.remove(0));
        check_program(&program, &values.programs).map_err(|e| self.bad(format!("command[0]: {e}")))?;
        Ok(ExpandedGuest { name: self.name.clone(), uuid: self.uuid, qmp, program, args: command })
    }

    fn fill(&self, template: &Template, key: &str, values: &Values) -> Result<String, BadInput> {
        let filled = template.fill(&self.name, values).map_err(|e| self.bad(format!("{key}: {e}")))?;
        if filled.len() > ARG_BYTES_MAX {
            return Err(self.bad(format!("{key}: longer than {ARG_BYTES_MAX} bytes")));
        }
        Ok(filled)
    }

    fn bad(&self, detail: String) -> BadInput {
        BadInput::new(&self.origin, detail)
    }
}

/// Whether `key` may stand in `[values]`.
///
/// # Errors
/// What is wrong with it, in a few words.
pub fn check_value_key(key: &str) -> Result<(), String> {
    if matches!(key, "run_dir" | "name") {
        return Err(format!("'{key}' is set by the agent"));
    }
    if !is_placeholder(key) {
        return Err(format!("'{}' is not made of letters, digits and '_'", one_line(key)));
    }
    Ok(())
}

fn is_placeholder(key: &str) -> bool {
    (1..=64).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn check_arg(index: usize, arg: &str) -> Result<(), String> {
    if arg.contains('\0') {
        return Err("has a NUL byte".into());
    }
    if index == 0 {
        return Ok(());
    }
    // QEMU takes `-name` and `--name` alike (lookup_opt in its softmmu/vl.c).
    let Some(option) = arg.strip_prefix('-') else { return Ok(()) };
    let option = option.strip_prefix('-').unwrap_or(option);
    match REFUSED.iter().find(|(refused, _)| *refused == option) {
        Some((_, why)) => Err(format!("{arg} must not be given: {why}")),
        None => Ok(()),
    }
}

fn check_program(program: &Path, allowed: &[PathBuf]) -> Result<(), String> {
    if !program.is_absolute() || program.components().any(|c| c == Component::ParentDir) {
        return Err(format!("program '{}' is not an absolute path without '..'", program.display()));
    }
    if !allowed.iter().any(|entry| entry == program) {
        return Err(format!("program '{}' is not in this host's [qemu] programs", program.display()));
    }
    Ok(())
}

/// Parses a UUID in its usual form, with or without hyphens.
pub fn parse_uuid(text: &str) -> Option<Uuid> {
    let grouped = text.len() == 36 && [8, 13, 18, 23].iter().all(|&at| text.as_bytes()[at] == b'-');
    let digits: Vec<u8> = text.bytes().filter(|&b| b != b'-').collect();
    if digits.len() != 32 || !(grouped || text.len() == 32) {
        return None;
    }
    let mut uuid = [0; 16];
    for (byte, pair) in uuid.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = (high * 16 + low) as u8;
    }
    Some(uuid)
}

/// A UUID in its usual form.
pub fn format_uuid(uuid: &Uuid) -> String {
    let mut text = String::with_capacity(36);
    for (index, byte) in uuid.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// Text with placeholders.
#[derive(Clone, Debug)]
struct Template(Vec<Part>);

#[derive(Clone, Debug)]
enum Part {
    Text(String),
    Placeholder(String),
}

impl Template {
    fn parse(text: &str) -> Result<Template, String> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            plain.push_str(&rest[..at]);
            let brace = &rest[at..at + 1];
            rest = &rest[at + 1..];
            if let Some(behind) = rest.strip_prefix(brace) {
                plain.push_str(brace);
                rest = behind;
            } else if brace == "}" {
                return Err("a single '}' (write '}}' for a brace)".into());
            } else {
                let end = rest.find('}').ok_or("'{' without '}' (write '{{' for a brace)")?;
                let key = &rest[..end];
                if !is_placeholder(key) {
                    return Err(format!(
                        "'{{{}}}' is no placeholder (write '{{{{' for a brace)",
                        one_line(key)
                    ));
                }
                parts.push(Part::Text(std::mem::take(&mut plain)));
                parts.push(Part::Placeholder(key.to_owned()));
                rest = &rest[end + 1..];
            }
        }
        plain.push_str(rest);
        parts.push(Part::Text(plain));
        Ok(Template(parts))
    }

    fn fill(&self, name: &str, values: &Values) -> Result<String, String> {
        let mut text = String::new();
        for part in &self.0 {
            match part {
                Part::Text(plain) => text.push_str(plain),
                Part::Placeholder(key) if key == "name" => text.push_str(name),
                Part::Placeholder(key) if key == "run_dir" => {
                    text.push_str(values.run_dir.to_str().ok_or("run_dir is not UTF-8")?);
                }
                Part::Placeholder(key) => match values.values.get(key) {
                    Some(value) => text.push_str(value),
                    None => return Err(format!("placeholder '{{{key}}}' is not in this host's [values]")),
                },
            }
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests;
