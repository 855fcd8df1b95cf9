use std::collections::BTreeMap;

use aws_lc_rs::digest::{SHA256, digest};
use proptest::prelude::*;

use super::*;
use crate::index::{PageSpace, Records, RunBuilder};
use crate::page::{PAGE_SIZE, PageAddr};

fn key() -> FleetKey {
    FleetKey::new(&[7; 32])
}

/// A content and its holders, none twice.
type Noted = Vec<(u32, BTreeMap<u16, u32>)>;

fn mac(content: u32) -> Mac {
    let mut mac = [0; 16];
    mac[12..].copy_from_slice(&content.to_be_bytes());
    Mac(mac)
}

fn noted() -> impl Strategy<Value = Noted> {
    let holders = proptest::collection::btree_map(0u16..4, 1u32..1_000, 1..4);
    let contents = proptest::collection::btree_map(any::<u32>(), holders, 0..60);
    contents.prop_map(|contents| contents.into_iter().collect::<Noted>()).prop_shuffle()
}

fn sample(contents: &[(u32, BTreeMap<u16, u32>)], limit: usize) -> Sampler {
    let mut sampler = Sampler::with_limit(key(), limit);
    for (content, holders) in contents {
        sampler.note(mac(*content), holders.iter().map(|(vm, copies)| (*vm, *copies)));
    }
    sampler
}

fn vms() -> Vec<VmFingerprints> {
    let pages = VmPages { pages: 100_000, zero: 1 };
    (0..4).map(|vm| VmFingerprints::new(&format!("vm{vm}"), 1 << 32, pages, true)).collect()
}

fn finish(sampler: Sampler) -> Fingerprints {
    sampler.finish("host1", 1_790_000_000, vms())
}

proptest! {
    #[test]
    fn a_sample_is_bounded_and_depends_on_the_contents_alone(
        contents in noted(), limit in 4usize..80, cuts in proptest::collection::vec(0usize..61, 0..4),
    ) {
        let mut sorted = contents.clone();
        sorted.sort();
        let once = finish(sample(&sorted, limit));
        prop_assert!(once.len() <= limit);
        // Spread over several samplers, as threads have them.
        let mut sum = Sampler::with_limit(key(), limit);
        let mut rest = &contents[..];
        for cut in cuts {
            let (part, left) = rest.split_at(cut.min(rest.len()));
            let mut branch = sum.branch();
            for (content, holders) in part {
                branch.note(mac(*content), holders.iter().map(|(vm, copies)| (*vm, *copies)));
            }
            sum.absorb(branch);
            rest = left;
        }
        sum.absorb(sample(rest, limit));
        prop_assert_eq!(finish(sum), once);
    }

    #[test]
    fn a_sample_is_a_thinned_whole(contents in noted(), limit in 4usize..80) {
        let (mut whole, sampled) = (finish(sample(&contents, usize::MAX)), finish(sample(&contents, limit)));
        let copies: u64 = contents.iter().flat_map(|(_, holders)| holders.values()).map(|c| u64::from(*c)).sum();
        prop_assert_eq!(whole.vms().iter().map(VmFingerprints::sampled_pages).sum::<u64>(), copies);
        prop_assert_eq!(whole.rate_log2(), 0);
        if sampled.rate_log2() > 0 {
            // One step less would have been too many.
            let mut before = whole.clone();
            before.thin(sampled.rate_log2() - 1);
            prop_assert!(before.len() > limit);
        }
        whole.thin(sampled.rate_log2());
        prop_assert_eq!(whole, sampled);
    }

    #[test]
    fn files_come_back(contents in noted(), limit in 4usize..80) {
        let saved = finish(sample(&contents, limit));
        let file = saved.encode().unwrap();
        prop_assert!(file.len() <= FILE_BYTES_MAX);
        prop_assert_eq!(Fingerprints::decode(&file), Ok(saved));
    }

    #[test]
    fn damage_is_found(contents in noted(), at in any::<prop::sample::Index>(), flip in 1u8.., cut in any::<prop::sample::Index>()) {
        let file = finish(sample(&contents, 80)).encode().unwrap();
        let mut damaged = file.clone();
        damaged[at.index(file.len())] ^= flip;
        prop_assert!(Fingerprints::decode(&damaged).is_err());
        prop_assert!(Fingerprints::decode(&file[..cut.index(file.len())]).is_err());
    }

    #[test]
    fn nothing_that_has_a_checksum_breaks_the_decoder(
        contents in noted(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let mut file = finish(sample(&contents, 80)).encode().unwrap();
        file.truncate(file.len() - 32);
        for (at, byte) in changes {
            let at = 9 + at.index(file.len() - 9);
            file[at] = byte;
        }
        if let Some(cut) = cut {
            file.truncate(9 + cut.index(file.len() - 9));
        }
        file.extend_from_slice(digest(&SHA256, &file).as_ref());
        if let Ok(saved) = Fingerprints::decode(&file) {
            let again = saved.encode().unwrap();
            prop_assert_eq!(Fingerprints::decode(&again), Ok(saved));
        }
    }

    #[test]
    fn noise_is_no_file(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(Fingerprints::decode(&bytes).is_err());
    }
}

#[test]
fn the_key_decides() {
    let (page, other_key) = ([3; PAGE_SIZE], FleetKey::new(&[8; 32]));
    let fingerprint = |key: &FleetKey| key.fingerprint(key.mac_key().mac(&page));
    assert_eq!(fingerprint(&key()), fingerprint(&FleetKey::new(&[7; 32])));
    assert_ne!(fingerprint(&key()), fingerprint(&other_key));
    assert_ne!(key().check(), other_key.check());
    // Neither is the other's, nor the MAC itself.
    let mac = key().mac_key().mac(&page);
    assert_ne!(key().fingerprint(mac).to_be_bytes(), mac.0[..8]);
    assert!(finish(sample(&[], 1)).has_key(&key()) && !finish(sample(&[], 1)).has_key(&other_key));
}

/// Files that hosts have saved must stay readable, and equal contents must keep their fingerprints: from this page of this
/// key to the bytes of the file.
#[test]
fn the_format_stays() {
    let mut sampler = Sampler::new(key());
    sampler.note(key().mac_key().mac(&[3; PAGE_SIZE]), [(0, 1), (1, 300)].into_iter());
    sampler.note(key().mac_key().mac(&[4; PAGE_SIZE]), [(1, 2)].into_iter());
    let pages = VmPages { pages: 65_536, zero: 65_000 };
    let vms = vec![
        VmFingerprints::new("web-1", 256 << 20, VmPages { pages: 65_536, zero: 9 }, true),
        VmFingerprints::new("web-2", 256 << 20, pages, true),
        VmFingerprints::new("gone", 1 << 20, VmPages { pages: 256, zero: 0 }, false),
    ];
    let saved = sampler.finish("node1", 1_790_000_000, vms);
    let file = saved.encode().unwrap();
    let hex: String = file.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, GOLDEN);
    assert_eq!(Fingerprints::decode(&file), Ok(saved));
}

const GOLDEN: &str = concat!(
    "564d534650524e540180f7c4d50600a518da93b0882804d7c8bdcd9901b947056e6f64653103057765622d3180808080",
    "01808004090101e898cfd6aba4a4b36d01057765622d328080808001808004e8fb030102afc9e696aca3c2c91502b8cf",
    "e8bfff80e2e957ac0204676f6e658080408002000000ae32a996966e16bceed09f87eb4b3bc8a62f493d5dd677eb031d",
    "754a3f5dc504",
);

#[test]
fn each_fault_is_told() {
    let good = finish(sample(&[(1, [(0, 5)].into())], 10));
    let file = good.encode().unwrap();
    let decode = |file: &[u8]| Fingerprints::decode(file).unwrap_err().to_string();
    assert_eq!(decode(b"\x7fELF"), "is no file of fingerprints");
    assert_eq!(decode(b""), "is no file of fingerprints");
    let mut newer = file.clone();
    newer[8] = 9;
    assert_eq!(decode(&newer), "has format 9; this version reads format 1");
    assert_eq!(decode(&file[..20]), "is cut short or damaged (its checksum does not match)");
    assert_eq!(decode(&[&file[..], &[0]].concat()), "is cut short or damaged (its checksum does not match)");

    type Break = fn(&mut Fingerprints);
    let cases: &[(Break, &str)] = &[
        (|f| f.host.clear(), "is malformed: the host's name"),
        (|f| f.host = "a b".into(), "is malformed: the host's name"),
        (|f| f.vms[1].name = "x".repeat(65), "is malformed: a VM's name"),
        (|f| f.vms[1].name = "vm0".into(), "is malformed: two VMs of one name"),
        (|f| f.vms[0].pages.zero = 100_001, "is malformed: more zero pages than pages"),
        (|f| f.vms[0].copies[0] = 0, "is malformed: copies that the VM has no pages for"),
        (|f| f.vms[0].copies[0] = 100_000, "is malformed: copies that the VM has no pages for"),
        (|f| f.vms[0].readable = false, "is malformed: contents of a VM that could not be read"),
        (|f| f.rate_log2 = 33, "has more doublings of the rate than the limit"),
        (|f| f.vms = vec![f.vms[1].clone(); 4_097], "has more VMs than the limit"),
    ];
    for (break_it, expected) in cases {
        let mut broken = good.clone();
        break_it(&mut broken);
        assert_eq!(broken.encode().unwrap_err().to_string(), *expected);
    }
}

#[test]
fn shards_tell_a_sampler_all_contents() {
    let space = PageSpace::new(&[vec![(0, 10)], vec![(0, 10)]]).unwrap();
    let mut builder = RunBuilder::new();
    let pages = [(0, 0, 1), (0, 1, 2), (1, 0, 1), (1, 5, 1), (1, 9, 3)];
    for (vm, page, content) in pages {
        assert!(builder.push(mac(content), space.number(PageAddr { vm, block: 0, page }).unwrap()).is_none());
    }
    let mut records = Records::new(builder.finish().into_iter().collect());
    let mut sampler = Sampler::new(key());
    while let Some(shard) = records.take_shard() {
        shard.group_sampled(&space, &mut sampler);
    }
    let found = finish(sampler);
    let fingerprint = |content| key().fingerprint(mac(content));
    let expected = |mut contents: Vec<(u64, u32)>| {
        contents.sort();
        contents
    };
    assert!(found.vms[0].contents().eq(expected(vec![(fingerprint(1), 1), (fingerprint(2), 1)])));
    assert!(found.vms[1].contents().eq(expected(vec![(fingerprint(1), 2), (fingerprint(3), 1)])));
}
