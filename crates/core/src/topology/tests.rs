//! Fabrics and loads against brute force: all shortest paths, every content by itself.

use std::collections::{BTreeSet, HashMap};

use proptest::prelude::*;

use super::*;
use crate::page::PAGE_SIZE;
use crate::placement::{DeliveryTree, HolderGroup, HolderGroups, TargetId, TargetSet};

const PAGE: u64 = PAGE_SIZE as u64;
const GBIT: u64 = 1_000_000_000;

fn spec(cost: u64) -> LinkSpec {
    LinkSpec { bits_per_s: 10 * GBIT, cost }
}

/// `h0` on the first switch, `h1` on the second, and so on round.
fn hosts_round(switches: usize, count: usize) -> Vec<Vec<String>> {
    let mut hosts = vec![Vec::new(); switches];
    (0..count).for_each(|host| hosts[host % switches].push(format!("h{host}")));
    hosts
}

fn leaves(leaves: usize, spines: usize, hosts: usize) -> Topology {
    let hosts = hosts_round(leaves, hosts);
    leaf_spine(&LeafSpine { leaves, spines, hosts, link: spec(1), uplink: spec(3) }).unwrap()
}

fn pods(k: usize, hosts: usize) -> Topology {
    let hosts = hosts_round(k * k / 2, hosts);
    fat_tree(&FatTree { k, hosts, link: spec(1), uplink: spec(2), core: spec(5) }).unwrap()
}

fn cube(n: usize, k: usize, hosts: usize, costs: &[u64]) -> Topology {
    let hosts = (0..hosts).map(|host| format!("h{host}")).collect();
    bcube(&BCube { n, k, hosts, links: costs.iter().map(|cost| spec(*cost)).collect() }).unwrap()
}

/// Routes from `h0` to `h1`, `h2` and so on.
fn routes(topology: &Topology, targets: usize) -> Routes<'_> {
    let host = |at: usize| topology.host(&format!("h{at}")).unwrap();
    topology.routes(host(0), &(1..=targets).map(host).collect::<Vec<_>>()).unwrap()
}

fn set(targets: &[u8]) -> TargetSet {
    targets.iter().copied().map(TargetId).collect()
}

fn price(topology: &Topology, tree: &[LinkId]) -> (u64, usize) {
    (tree.iter().map(|id| topology.links()[id.link as usize].cost).sum(), tree.len())
}

/// A fabric with at least nine hosts `h0`….
fn any_fabric() -> impl Strategy<Value = Topology> {
    prop_oneof![
        (1usize..5, 1usize..4).prop_map(|(count, spines)| leaves(count, spines, 9)),
        Just(4usize).prop_map(|k| pods(k, 9)),
        Just(6usize).prop_map(|k| pods(k, 9)),
        (3usize..5, prop::collection::vec(1u64..4, 2)).prop_map(|(n, costs)| cube(n, 1, 9, &costs)),
        prop::collection::vec(1u64..4, 3).prop_map(|costs| cube(2, 3, 9, &[&costs[..], &[1]].concat())),
        any_graph(),
    ]
}

/// Nine hosts on a ring of switches with chords, some with two links.
fn any_graph() -> impl Strategy<Value = Topology> {
    let chords = prop::collection::vec((0usize..6, 0usize..6, 0u64..4), 0..6);
    (chords, prop::collection::vec((0usize..6, 0usize..6), 9), any::<bool>()).prop_map(
        |(chords, homes, relay)| {
            let mut builder = TopologyBuilder::new();
            let switches: Vec<_> = (0..6).map(|at| builder.switch(&format!("s{at}")).unwrap()).collect();
            let (access, trunk) = (builder.tier("access").unwrap(), builder.tier("trunk").unwrap());
            let ring = (0..6).map(|at| (at, (at + 1) % 6, 1));
            for (one, other, cost) in ring.chain(chords).filter(|(one, other, _)| one != other) {
                let ends = [switches[one], switches[other]];
                builder.link(Link { ends, tier: trunk, cost, bits_per_s: GBIT }).unwrap();
            }
            for (at, (first, second)) in homes.into_iter().enumerate() {
                let host = builder.host(&format!("h{at}")).unwrap();
                for home in BTreeSet::from([first, second]) {
                    let ends = [switches[home], host];
                    builder.link(Link { ends, tier: access, cost: 1, bits_per_s: GBIT }).unwrap();
                }
            }
            builder.finish(relay)
        },
    )
}

/// All shortest paths between two nodes, by depth-first search; `relay` as the topology's.
fn shortest_paths(topology: &Topology, from: NodeId, to: NodeId, relay: bool) -> Vec<Vec<LinkId>> {
    let mut directed: HashMap<NodeId, Vec<(NodeId, LinkId)>> = HashMap::new();
    for link in 0..topology.links().len() as u32 {
        for id in [LinkId { link, backward: false }, LinkId { link, backward: true }] {
            let (start, end) = topology.ends(id);
            directed.entry(start).or_default().push((end, id));
        }
    }
    let is_host: HashMap<NodeId, bool> = topology.nodes().map(|(id, node)| (id, node.is_host)).collect();
    let mut paths = vec![(from, Vec::new())];
    loop {
        let done: Vec<Vec<LinkId>> =
            paths.iter().filter(|(end, _)| *end == to).map(|(_, path)| path.clone()).collect();
        if !done.is_empty() {
            return done;
        }
        let go_on = |(end, path): (NodeId, Vec<LinkId>)| {
            let stops = end != from && is_host[&end] && !relay;
            let next = if stops { &[][..] } else { &directed[&end][..] };
            next.iter().map(move |(next, id)| (*next, [&path[..], &[*id]].concat())).collect::<Vec<_>>()
        };
        paths = paths.into_iter().flat_map(go_on).collect();
        assert!(!paths.is_empty() && paths[0].1.len() < 12, "there is a short path");
        // Walks that come back to a node are no shortest paths.
        paths.retain(|(end, path)| *end != from && path.iter().all(|id| topology.ends(*id).0 != *end));
    }
}

/// The least price of any union of one shortest path a target.
fn cheapest_union(
    topology: &Topology,
    choices: &[Vec<Vec<LinkId>>],
    chosen: &BTreeSet<LinkId>,
) -> (u64, usize) {
    let Some((first, rest)) = choices.split_first() else {
        return price(topology, &chosen.iter().copied().collect::<Vec<_>>());
    };
    let with = |path: &Vec<LinkId>| chosen.iter().chain(path).copied().collect();
    first.iter().map(|path| cheapest_union(topology, rest, &with(path))).min().unwrap()
}

/// Groups of up to six VMs, pages and targets below `targets` for each.
fn any_fleet(targets: u8) -> impl Strategy<Value = (HolderGroups, Vec<u64>, Vec<TargetId>)> {
    let shared = prop::collection::btree_map(1u8..64, 1u64..5, 0..12);
    let vms = prop::collection::vec((0u64..9, 0u64..5, 0..targets), 6);
    (shared, vms).prop_map(|(shared, vms)| {
        let holders = |mask: u8| (0..6).filter(|vm| mask >> vm & 1 == 1).collect::<Vec<u16>>();
        let groups = shared.into_iter().map(|(mask, contents)| HolderGroup { vms: holders(mask), contents });
        let groups = HolderGroups {
            alone: vms.iter().map(|(alone, _, _)| *alone).collect(),
            shared: groups.filter(|group| group.vms.len() > 1).collect(),
        };
        // At least each content once, and some repeats.
        let held = |vm: u16| groups.shared.iter().filter(move |group| group.vms.contains(&vm));
        let held = |vm: u16| held(vm).map(|group| group.contents).sum::<u64>();
        let pages = vms.iter().zip(0..).map(|((alone, more, _), vm)| alone + more + held(vm)).collect();
        (groups, pages, vms.iter().map(|(_, _, target)| TargetId(*target)).collect())
    })
}

/// The targets of every single content.
fn contents(groups: &HolderGroups, placement: &[TargetId]) -> Vec<TargetSet> {
    let alone = groups.alone.iter().zip(placement);
    let alone = alone.flat_map(|(count, target)| vec![TargetSet::single(*target); *count as usize]);
    let shared = groups.shared.iter().flat_map(|group| {
        let set = group.vms.iter().map(|vm| placement[usize::from(*vm)]).collect();
        vec![set; group.contents as usize]
    });
    alone.chain(shared).collect()
}

/// Contents times the costs of the delivery tree's links behind which they are needed.
fn delivery_cost(tree: &DeliveryTree, contents: &[TargetSet]) -> u64 {
    let cost = |set: &TargetSet| {
        let links: BTreeSet<usize> = set.members().flat_map(|to| tree.path(usize::from(to.0))).collect();
        links.into_iter().map(|link| tree.links()[link].cost).sum::<u64>()
    };
    contents.iter().map(cost).sum()
}

/// Bytes that come into a node less those that leave it.
fn stays(topology: &Topology, loads: &Loads, node: NodeId) -> i64 {
    let signed = |(id, bytes): (LinkId, u64)| match topology.ends(id) {
        (from, _) if from == node => -(bytes as i64),
        (_, to) if to == node => bytes as i64,
        _ => 0,
    };
    loads.iter().map(signed).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_tree_is_made_of_shortest_paths(topology in any_fabric(), mask in 1u128..256, flow: u64) {
        let (routes, set) = (routes(&topology, 8), TargetSet(mask));
        let tree = routes.tree(set, flow);
        let source = topology.host("h0").unwrap();
        let mut hops = HashMap::from([(source, 0)]);
        for id in &tree {
            let (from, to) = topology.ends(*id);
            let next = hops.get(&from).expect("what leads to a link comes before it") + 1;
            prop_assert!(hops.insert(to, next).is_none(), "entered once");
        }
        let leaves_of_tree: BTreeSet<NodeId> = tree.iter().map(|id| topology.ends(*id).1)
            .filter(|node| tree.iter().all(|id| topology.ends(*id).0 != *node)).collect();
        let members: BTreeSet<NodeId> =
            set.members().map(|target| routes.targets()[usize::from(target.0)]).collect();
        prop_assert!(leaves_of_tree.is_subset(&members), "nothing beyond the targets");
        for member in members {
            let paths = shortest_paths(&topology, source, member, topology.hosts_relay);
            prop_assert_eq!(hops[&member], paths[0].len());
        }
    }

    #[test]
    fn symmetrical_fabrics_get_the_cheapest_tree(
        three_tiers: bool, count in 2usize..5, mask in 1u128..128, flow: u64,
    ) {
        let topology = if three_tiers { pods(4, 9) } else { leaves(count, 3, 9) };
        let (routes, set) = (routes(&topology, 8), TargetSet(mask));
        let paths: Vec<_> = set.members().take(5).map(|target| {
            let target = routes.targets()[usize::from(target.0)];
            shortest_paths(&topology, topology.host("h0").unwrap(), target, false)
        }).collect();
        let set = set.members().take(5).collect();
        let cheapest = cheapest_union(&topology, &paths, &BTreeSet::new());
        prop_assert_eq!(price(&topology, &routes.tree(set, flow)), cheapest);
    }

    #[test]
    fn loads_are_those_of_every_content_by_itself(topology in any_fabric(), fleet in any_fleet(8)) {
        let (routes, (groups, pages, placement)) = (routes(&topology, 8), fleet);
        let evaluation = routes.evaluate(&groups, &pages, &placement);
        let contents = contents(&groups, &placement);
        let tree_links = |set: &TargetSet| -> usize {
            let flow = super::routes::mix(set.0 as u64, 0);
            routes.tree(*set, flow).len()
        };
        prop_assert_eq!(evaluation.multicast.byte_hops() / PAGE, contents.iter().map(tree_links).sum::<usize>() as u64);
        let path_links = |target: TargetId| routes.tree(TargetSet::single(target), 0).len() as u64;
        let unicast: u64 = contents.iter().flat_map(|set| set.members()).map(path_links).sum();
        prop_assert_eq!(evaluation.unicast.byte_hops() / PAGE, unicast);
        let all: u64 = pages.iter().zip(&placement).map(|(pages, target)| pages * path_links(*target)).sum();
        prop_assert_eq!(evaluation.off_the_shelf.byte_hops() / PAGE, all);

        // What a target keeps. Under multicast it may pass on what it keeps as well.
        for (target, node) in (0..).map(TargetId).zip(routes.targets()) {
            let distinct = contents.iter().filter(|set| set.contains(target)).count() as u64 * PAGE;
            prop_assert_eq!(stays(&topology, &evaluation.unicast, *node), distinct as i64);
            let all: u64 = pages.iter().zip(&placement).filter(|(_, to)| **to == target).map(|(pages, _)| pages).sum();
            prop_assert_eq!(stays(&topology, &evaluation.off_the_shelf, *node), (all * PAGE) as i64);
            let entering = evaluation.multicast.iter().filter(|(id, _)| topology.ends(*id).1 == *node);
            let entering: u64 = entering.map(|(_, bytes)| bytes).sum();
            prop_assert!(entering >= distinct && (topology.hosts_relay || entering == distinct));
        }
        prop_assert!(evaluation.multicast.byte_hops() <= evaluation.unicast.byte_hops());
        prop_assert!(evaluation.unicast.byte_hops() <= evaluation.off_the_shelf.byte_hops());
        let tiers = evaluation.multicast.by_tier(&topology);
        prop_assert_eq!(tiers.iter().map(|tier| tier.bytes).sum::<u64>(), evaluation.multicast.byte_hops());
    }

    #[test]
    fn placement_and_evaluation_count_the_same_cost(topology in any_fabric(), fleet in any_fleet(8)) {
        let (routes, (groups, pages, placement)) = (routes(&topology, 8), fleet);
        let loads = routes.evaluate(&groups, &pages, &placement).multicast;
        let predicted = delivery_cost(&routes.delivery_tree(), &contents(&groups, &placement)) * PAGE;
        let symmetrical = topology.tiers()[0].name == "access" && topology.tiers().last().unwrap().name != "trunk";
        if symmetrical {
            prop_assert_eq!(loads.cost_bytes(&topology), predicted);
        } else if topology.routes_by_tier {
            prop_assert!(loads.cost_bytes(&topology) <= predicted);
        }
    }

    #[test]
    fn a_leafs_uplinks_carry_each_content_once(count in 2usize..5, spines in 1usize..4, fleet in any_fleet(8)) {
        let (topology, (groups, pages, placement)) = (leaves(count, spines, 9), fleet);
        let loads = routes(&topology, 8).evaluate(&groups, &pages, &placement).multicast;
        let contents = contents(&groups, &placement);
        // Host i is on leaf i mod count, target t is host t + 1, the source is host 0.
        let on_leaf = |set: &TargetSet, leaf: usize| set.members().any(|to| (usize::from(to.0) + 1) % count == leaf);
        let named = |at: NodeId| topology.nodes().find(|(id, _)| *id == at).unwrap().1.name.clone();
        for leaf in 0..count {
            let name = format!("leaf {}", leaf + 1);
            let carried = |down: bool| -> u64 {
                let of_leaf = |id: LinkId| {
                    let (from, to) = topology.ends(id);
                    let (leaf, spine) = if down { (to, from) } else { (from, to) };
                    named(leaf) == name && named(spine).starts_with("spine")
                };
                loads.iter().filter(|(id, _)| of_leaf(*id)).map(|(_, bytes)| bytes / PAGE).sum()
            };
            let needed = contents.iter().filter(|set| leaf != 0 && on_leaf(set, leaf)).count();
            prop_assert_eq!(carried(true), needed as u64);
            let leaving = |set: &&TargetSet| leaf == 0 && (1..count).any(|other| on_leaf(set, other));
            prop_assert_eq!(carried(false), contents.iter().filter(leaving).count() as u64);
        }
    }

    #[test]
    fn a_star_is_the_flat_tree(fleet in any_fleet(8)) {
        let (topology, (groups, pages, placement)) = (leaves(1, 1, 9), fleet);
        let routes = routes(&topology, 8);
        let contents = contents(&groups, &placement);
        let traffic = delivery_cost(&DeliveryTree::flat(8), &contents);
        let evaluation = routes.evaluate(&groups, &pages, &placement);
        // The source's own link comes on top: once each content, or once each copy.
        prop_assert_eq!(evaluation.multicast.byte_hops(), (traffic + groups.contents()) * PAGE);
        prop_assert_eq!(evaluation.unicast.byte_hops(), 2 * traffic * PAGE);
        prop_assert_eq!(evaluation.off_the_shelf.byte_hops(), 2 * pages.iter().sum::<u64>() * PAGE);
    }
}

#[test]
fn fabrics_have_the_published_sizes() {
    let size = |topology: &Topology| {
        let hosts = topology.nodes().filter(|(_, node)| node.is_host).count();
        (hosts, topology.nodes().count() - hosts, topology.links().len())
    };
    assert_eq!(size(&leaves(4, 2, 9)), (9, 6, 9 + 8));
    // k³/4 hosts, 5k²/4 switches, 3k³/4 links.
    assert_eq!(size(&pods(4, 16)), (16, 20, 48));
    assert_eq!(size(&pods(6, 54)), (54, 45, 162));
    // n^(k+1) servers, (k+1) n^k switches, (k+1) n^(k+1) links.
    assert_eq!(size(&cube(4, 1, 3, &[1])), (16, 8, 32));
    assert_eq!(size(&cube(3, 2, 3, &[1, 2, 3])), (27, 27, 81));
}

#[test]
fn every_switch_of_a_fat_tree_has_k_links() {
    let topology = pods(6, 54);
    for (id, node) in topology.nodes().filter(|(_, node)| !node.is_host) {
        let links = topology.links().iter().filter(|link| link.ends.contains(&id)).count();
        assert_eq!(links, 6, "{}", node.name);
    }
    let far = shortest_paths(&topology, topology.host("h0").unwrap(), topology.host("h4").unwrap(), false);
    assert_eq!((far.len(), far[0].len()), (9, 6), "one path by each core");
}

#[test]
fn a_bcube_switch_joins_servers_that_differ_in_one_digit() {
    let topology = cube(3, 2, 27, &[1]);
    let address = |id: NodeId| {
        let (_, node) = topology.nodes().find(|(node, _)| *node == id).unwrap();
        let number: usize = node.name[1..].parse().unwrap();
        [number % 3, number / 3 % 3, number / 9]
    };
    for (switch, node) in topology.nodes().filter(|(_, node)| !node.is_host) {
        let level: usize = node.name["level ".len()..][..1].parse().unwrap();
        let links = topology.links().iter().filter(|link| link.ends[1] == switch);
        let servers: Vec<_> = links.map(|link| address(link.ends[0])).collect();
        assert_eq!(servers.len(), 3);
        for (one, other) in servers.iter().zip(&servers[1..]) {
            let differ: Vec<_> = (0..3).filter(|digit| one[*digit] != other[*digit]).collect();
            assert_eq!(differ, [level], "{}", node.name);
        }
    }
    assert!(cube(4, 1, 0, &[1]).host("server 13").is_ok());
}

#[test]
fn bcube_takes_the_cheaper_order_of_digits() {
    // Server 4a + b has digits a, b. From 00 to 11, 12 and 13: the high digit first, then one switch serves all.
    let (high_first, low_first) = (set(&[4, 5, 6]), set(&[4, 8, 12]));
    let topology = cube(4, 1, 16, &[1]);
    let routes = routes(&topology, 15);
    assert_eq!(price(&topology, &routes.tree(high_first, 7)), (6, 6));
    assert_eq!(price(&topology, &routes.tree(low_first, 7)), (6, 6));
    let relays = |tree: &[LinkId]| -> Vec<String> {
        let passes = |id: &NodeId| tree.iter().any(|link| topology.ends(*link).0 == *id);
        let hosts = topology.nodes().filter(|(id, node)| node.is_host && passes(id));
        hosts.map(|(_, node)| node.name.clone()).collect()
    };
    assert_eq!(relays(&routes.tree(high_first, 7)), ["h0", "h4"]);
    assert_eq!(relays(&routes.tree(low_first, 7)), ["h0", "h1"]);
}

#[test]
fn sets_spread_over_equal_paths() {
    let topology = leaves(2, 4, 9);
    let routes = routes(&topology, 8);
    let mut spines: HashMap<NodeId, usize> = HashMap::new();
    for flow in 0..400 {
        let tree = routes.tree(set(&[0]), flow);
        *spines.entry(topology.ends(tree[1]).1).or_default() += 1;
    }
    assert_eq!(spines.len(), 4);
    assert!(spines.values().all(|count| (60..140).contains(count)), "{spines:?}");
}

#[test]
fn the_busiest_link_is_the_slowest_not_the_fullest() {
    let mut builder = TopologyBuilder::new();
    let (source, switch) = (builder.host("source").unwrap(), builder.switch("switch").unwrap());
    let tier = builder.tier("access").unwrap();
    let mut link = |ends, gbit| builder.link(Link { ends, tier, cost: 1, bits_per_s: gbit * GBIT }).unwrap();
    link([source, switch], 10);
    let target = builder.host("target").unwrap();
    builder.link(Link { ends: [switch, target], tier, cost: 1, bits_per_s: GBIT }).unwrap();
    let topology = builder.finish(false);
    let routes = topology.routes(source, &[target]).unwrap();
    let mut loads = Loads::none(&topology);
    assert_eq!(loads.busiest(&topology), None);
    let path = routes.tree(set(&[0]), 0);
    loads.add(&path, GBIT);
    loads.add(&path[..1], GBIT);
    let busiest = loads.busiest(&topology).unwrap();
    assert_eq!((topology.describe(busiest.id).as_str(), busiest.bytes), ("switch > target", GBIT));
    assert_eq!(busiest.time.as_secs_f64(), 8.0);
    let mut twice = loads.clone();
    twice.merge(&loads);
    assert_eq!(twice.byte_hops(), 2 * loads.byte_hops());
    assert_eq!(twice.by_tier(&topology)[0], TierLoad { bytes: 6 * GBIT, bytes_max: 4 * GBIT });
}

#[test]
fn faults_are_named() {
    let said = |result: Result<Topology, TopologyError>| result.unwrap_err().to_string();
    let fabric = |leaves, hosts: &[&[&str]]| {
        let hosts = hosts.iter().map(|names| names.iter().map(|name| name.to_string()).collect()).collect();
        leaf_spine(&LeafSpine { leaves, spines: 1, hosts, link: spec(1), uplink: spec(1) })
    };
    assert_eq!(said(fabric(0, &[])), "leaves is 0, not 1 to 4096");
    assert_eq!(said(fabric(1, &[&[], &[]])), "lists of hosts is 2, not 0 to 1");
    assert_eq!(said(fabric(2, &[&["a"], &["a"]])), "'a' is there twice");
    assert_eq!(said(fabric(4096, &[])), "more than 4096 hosts and switches");
    assert_eq!(said(fabric(1, &[&[""]])), "a name has 0 bytes, not 1 to 255");
    let tree = |k, hosts| fat_tree(&FatTree { k, hosts, link: spec(1), uplink: spec(1), core: spec(1) });
    assert_eq!(said(tree(3, vec![])), "k is 3; a fat tree's k is even");
    assert_eq!(said(tree(2, hosts_round(1, 2))), "an edge switch's hosts is 2, not 0 to 1");
    let cube = |n, k, links| bcube(&BCube { n, k, hosts: vec![], links: vec![spec(1); links] });
    assert_eq!(said(cube(2, 4, 1)), "k is 4, not 0 to 3");
    assert_eq!(said(cube(20, 3, 1)), "more than 4096 hosts and switches");
    assert_eq!(said(cube(2, 2, 2)), "links is 2, not 3 to 3");

    let topology = fabric(2, &[&["a"], &["b"]]).unwrap();
    let [a, b] = ["a", "b"].map(|name| topology.host(name).unwrap());
    let refused = |source, targets: &[NodeId]| topology.routes(source, targets).unwrap_err().to_string();
    assert_eq!(refused(a, &[b, a]), "'a' is the source and a target");
    assert_eq!(refused(a, &[b, b]), "'b' is there twice");
    assert_eq!(topology.host("spine 1").unwrap_err().to_string(), "'spine 1' is a switch, not a host");
    assert_eq!(topology.host("c").unwrap_err().to_string(), "there is no 'c'");
    assert_eq!(refused(a, &[b; 129]), "more than 128 targets");

    let mut builder = TopologyBuilder::new();
    let (one, two) = (builder.host("one").unwrap(), builder.host("two").unwrap());
    let tier = builder.tier("access").unwrap();
    let link = Link { ends: [one, one], tier, cost: 1, bits_per_s: 1 };
    assert_eq!(builder.link(link), Err(TopologyError::Loop("one".into())));
    let link = Link { ends: [one, two], ..link };
    assert_eq!(builder.link(Link { bits_per_s: 0, ..link }), Err(TopologyError::NoRate("one".into())));
    assert_eq!(builder.link(Link { cost: 1 << 17, ..link }), Err(TopologyError::Cost("one".into())));
    let unjoined = builder.finish(false);
    let refused = unjoined.routes(one, &[two]).unwrap_err().to_string();
    assert_eq!(refused, "no path leads from 'one' to 'two'");
}
