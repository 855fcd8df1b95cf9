//! Files: the journal, guest files, fingerprints.

use std::collections::BTreeMap;

use vmscatter::agent::guest_file::{GuestFile, Values};
use vmscatter_core::index::Fingerprints;
use vmscatter_core::index::fingerprint::thin_together;
use vmscatter_core::journal::{Record, file};
use vmscatter_core::placement::SavedSharing;

use crate::input::Input;

/// What a journal says is said again by the file that compaction writes. The first byte says whether the rest is a file, or
/// records in postcard's encoding that are put into one.
pub fn journal(data: &[u8]) {
    let mut input = Input(data);
    let file = match input.byte() & 1 {
        0 => input.0.to_vec(),
        _ => journal_of_records(&mut input),
    };
    let Ok(replay) = file::replay(&file) else { return };
    assert!(replay.end as usize <= file.len());
    assert_eq!(replay.torn.is_some(), (replay.end as usize) < file.len());
    let again = file::replay(&file::image(&replay.book, replay.generation)).expect("it was written");
    assert!(again.torn.is_none() && again.book.vms().eq(replay.book.vms()));
    // What is good of a file is a good file.
    let good = file::replay(&file[..replay.end as usize]).expect("its beginning is good");
    assert!(good.torn.is_none() && good.book.vms().eq(replay.book.vms()));
}

fn journal_of_records(input: &mut Input<'_>) -> Vec<u8> {
    let mut file = file::header(&[1; 16], 7).to_vec();
    while !input.is_empty() {
        let len = usize::from(input.short());
        let Ok(record) = postcard::from_bytes::<Record>(input.take(len)) else { continue };
        let synced = file.len() as u64;
        file::encode(&record, 7, synced, &mut file);
    }
    let cut = usize::from(input.byte());
    file.truncate(file.len() - cut.min(file.len()));
    file
}

/// A guest file is refused in one line, or names a program that this host may start.
pub fn guest_file(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let values = Values {
        run_dir: "/run/guests".into(),
        values: BTreeMap::from([("images".to_owned(), "/srv/{name}".to_owned())]),
        programs: vec!["/usr/bin/qemu-system-x86_64".into()],
    };
    let expanded = GuestFile::parse(text, "vm.toml").and_then(|file| file.expand(&values));
    match expanded {
        Ok(guest) => {
            assert!(values.programs.contains(&guest.program) && guest.qmp.is_absolute());
            assert!(guest.args.iter().all(|arg| !arg.contains('\0')));
        }
        Err(error) => assert_eq!(error.to_string().lines().count(), 1, "{error}"),
    }
}

/// Fingerprints that are read can be written, read again, thinned and compared.
pub fn fingerprints(data: &[u8]) {
    let Ok(fingerprints) = Fingerprints::decode(data) else { return };
    let bytes = fingerprints.encode().expect("it was decoded");
    assert_eq!(bytes, data, "there is one way to write them");
    let mut hosts = [fingerprints];
    thin_together(&mut hosts, 10);
    let _ = SavedSharing::of(&hosts);
}
