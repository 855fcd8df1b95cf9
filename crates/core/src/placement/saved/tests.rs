use proptest::prelude::*;

use super::*;
use crate::index::fingerprint::thin_together;
use crate::index::{Contents, FleetKey, PageSpace, Records, RunBuilder, Sampler, VmPages};
use crate::page::{Mac, PageAddr};

/// Pages of one VM: the content of each, 0 for a zero page.
type Pages = Vec<u8>;

fn key() -> FleetKey {
    FleetKey::new(&[7; 32])
}

fn mac(content: u8) -> Mac {
    Mac([content; 16])
}

struct Scanned {
    saved: Fingerprints,
    contents: Contents,
    counted: Vec<VmPages>,
}

fn scan(host: &str, vms: &[Pages], limit: usize) -> Scanned {
    let blocks: Vec<_> = vms.iter().map(|pages| vec![(0, pages.len() as u32)]).collect();
    let space = PageSpace::new(&blocks).unwrap();
    let mut builder = RunBuilder::new();
    for (vm, pages) in (0..).zip(vms) {
        for (page, content) in (0..).zip(pages).filter(|(_, content)| **content != 0) {
            let number = space.number(PageAddr { vm, block: 0, page }).unwrap();
            assert!(builder.push(mac(*content), number).is_none());
        }
    }
    let mut records = Records::new(builder.finish().into_iter().collect());
    let mut sampler = Sampler::with_limit(key(), limit);
    let shards = std::iter::from_fn(|| records.take_shard());
    let groups = shards.map(|shard| shard.group_sampled(&space, &mut sampler)).collect();
    let zero = |pages: &Pages| pages.iter().filter(|content| **content == 0).count() as u64;
    let count = |pages: &Pages| VmPages { pages: pages.len() as u64, zero: zero(pages) };
    let counted: Vec<VmPages> = vms.iter().map(count).collect();
    let named = |(at, pages): (usize, &VmPages)| VmFingerprints::new(&format!("vm{at}"), 0, *pages, true);
    let saved = sampler.finish(host, 0, counted.iter().enumerate().map(named).collect());
    Scanned { saved, contents: Contents::from_groups(space, groups), counted }
}

fn vms() -> impl Strategy<Value = Vec<Pages>> {
    proptest::collection::vec(proptest::collection::vec(0u8..40, 1..60), 1..6)
}

proptest! {
    #[test]
    fn what_was_saved_in_full_counts_as_the_pages_do(vms in vms()) {
        let scanned = scan("a", &vms, usize::MAX);
        let sharing = Sharing::of(&scanned.contents, &scanned.counted);
        let found = SavedSharing::of(&[scanned.saved]).unwrap();
        prop_assert_eq!(&found.groups, &HolderGroups::of(&scanned.contents, &sharing));
        prop_assert_eq!(found.distinct_nonzero_bytes(), sharing.distinct_nonzero_bytes());
        prop_assert_eq!(found.sharing, sharing);
        prop_assert_eq!(found.contents_between_hosts, 0);
    }

    #[test]
    fn hosts_are_counted_for_themselves_and_what_they_share_besides(a in vms(), b in vms(), c in vms()) {
        let all = [&a, &b, &c];
        let scanned: Vec<Scanned> =
            ["a", "b", "c"].iter().zip(all).map(|(host, vms)| scan(host, vms, usize::MAX)).collect();
        let saved: Vec<Fingerprints> = scanned.iter().map(|scanned| scanned.saved.clone()).collect();
        let found = SavedSharing::of(&saved).unwrap();
        let mut first = 0;
        for (host, scanned) in (0..).zip(&scanned) {
            let alone = SavedSharing::of(std::slice::from_ref(&scanned.saved)).unwrap();
            let vms = first..first + alone.host_of.len();
            prop_assert_eq!(&found.groups.alone[vms.clone()], &alone.groups.alone);
            prop_assert_eq!(&found.sharing.vms[vms.clone()], &alone.sharing.vms);
            prop_assert!(found.host_of[vms.clone()].iter().all(|of| *of == host));
            let shifted: Vec<HolderGroup> = alone.groups.shared.into_iter().map(|group| {
                let vms = group.vms.iter().map(|vm| vm + first as u16).collect();
                HolderGroup { vms, contents: group.contents }
            }).collect();
            let here: Vec<HolderGroup> = found.groups.shared.iter()
                .filter(|group| vms.contains(&usize::from(group.vms[0]))).cloned().collect();
            prop_assert_eq!(here, shifted);
            first = vms.end;
        }
        let hosts_of = |content: u8| all.iter().filter(|vms| vms.iter().flatten().any(|c| *c == content)).count();
        let several: Vec<usize> = (1..40).map(hosts_of).filter(|hosts| *hosts > 1).collect();
        prop_assert_eq!(found.contents_between_hosts, several.len() as u64);
        prop_assert_eq!(found.pages_repeated_between_hosts, several.iter().map(|hosts| hosts as &usize - 1).sum::<usize>() as u64);
    }

    #[test]
    fn a_thinner_sample_thins_the_others(a in vms(), b in vms(), limit in 1usize..40) {
        let hosts = [scan("a", &a, limit).saved, scan("b", &b, usize::MAX).saved];
        let mut thinned = hosts.clone();
        thinned[1].thin(hosts[0].rate_log2());
        prop_assert_eq!(SavedSharing::of(&hosts).unwrap(), SavedSharing::of(&thinned).unwrap());
        let mut together = hosts.clone();
        thin_together(&mut together, limit);
        prop_assert!(together[0].len() + together[1].len() <= limit || together[0].rate_log2() == 32);
        prop_assert_eq!(together[0].rate_log2(), together[1].rate_log2());
    }
}

/// 30,000 contents in four VMs, by a rule that gives each content one set of holders.
fn many(limit: usize) -> Fingerprints {
    let key = key();
    let mut sampler = Sampler::with_limit(key, limit);
    let mut counted = [0u64; 4];
    for content in 0..30_000u32 {
        let mut mac = [0; 16];
        mac[..4].copy_from_slice(&content.to_be_bytes());
        let holders: Vec<(u16, u32)> = match content % 10 {
            0..4 => vec![((content % 4) as u16, 1)],
            4..6 => vec![((content % 4) as u16, 3)],
            6..9 => vec![(0, 1), (2, 1)],
            _ => (0..4).map(|vm| (vm, 2)).collect(),
        };
        holders.iter().for_each(|(vm, copies)| counted[usize::from(*vm)] += u64::from(*copies));
        sampler.note(Mac(mac), holders.into_iter());
    }
    let vms = counted.iter().enumerate().map(|(at, pages)| {
        VmFingerprints::new(&format!("vm{at}"), 0, VmPages { pages: pages + 100, zero: 100 }, true)
    });
    sampler.finish("a", 0, vms.collect())
}

#[test]
fn a_sample_estimates_what_the_whole_is() {
    let (whole, sample) = (many(usize::MAX), many(8_000));
    assert_eq!((whole.rate_log2(), sample.rate_log2()), (0, 3));
    assert!(sample.len() > 4_000 && sample.len() <= 8_000, "{}", sample.len());
    let [whole, sample] = [whole, sample].map(|saved| SavedSharing::of(&[saved]).unwrap());
    let near = |a: u64, b: u64| assert!(a.abs_diff(b) * 10 <= a, "{a} and {b}");
    near(whole.groups.contents(), sample.groups.contents());
    assert_eq!(whole.groups.shared.len(), sample.groups.shared.len());
    for (a, b) in whole.groups.shared.iter().zip(&sample.groups.shared) {
        assert_eq!(a.vms, b.vms);
        near(a.contents, b.contents);
    }
    for (a, b) in whole.sharing.vms.iter().zip(&sample.sharing.vms) {
        assert_eq!((a.pages, a.zero), (b.pages, b.zero));
        assert_eq!(b.zero + b.unique + b.within + b.across, b.pages);
        near(a.across, b.across);
    }
}

#[test]
fn a_vm_that_could_not_be_read_counts_in_full() {
    let vms = vec![
        VmFingerprints::new("a", 0, VmPages { pages: 10, zero: 4 }, true),
        VmFingerprints::new("b", 0, VmPages { pages: 7, zero: 0 }, false),
    ];
    let found = SavedSharing::of(&[Sampler::new(key()).finish("h", 0, vms)]).unwrap();
    assert_eq!(found.groups.alone, [0, 7]);
    assert_eq!((found.sharing.vms[0].unique, found.sharing.vms[1].unique), (6, 7));
}

#[test]
fn what_does_not_go_together_is_named() {
    let of = |host: &str, key: u8| {
        let vm = VmFingerprints::new("vm", 0, VmPages::default(), true);
        Sampler::new(FleetKey::new(&[key; 32])).finish(host, 0, vec![vm])
    };
    let error = SavedSharing::of(&[of("a", 1), of("b", 1), of("c", 2)]).unwrap_err();
    assert_eq!(error, SavedSharingError::OtherKey(0, 2));
    assert_eq!(error.describe(&["x", "y", "z"]), "x and z were made with different fleet keys");
    let error = SavedSharing::of(&[of("a", 1), of("b", 1), of("b", 1)]).unwrap_err();
    assert_eq!(error.describe(&["x", "y", "z"]), "y and z are of the same host");
    let many = Sampler::new(key()).finish(
        "many",
        0,
        vec![VmFingerprints::new("vm", 0, VmPages::default(), true); usize::from(u16::MAX) + 1],
    );
    assert_eq!(SavedSharing::of(&[many]), Err(SavedSharingError::TooManyVms(65_536)));
    assert_eq!(SavedSharing::of(&[]).unwrap(), SavedSharing::default());
}
