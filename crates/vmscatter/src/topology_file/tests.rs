use vmscatter_core::topology::Loads;

use super::*;

const LEAF_SPINE: &str = r#"
kind = "leaf-spine"
leaves = 2
spines = 3
hosts = [["source", "node1"], ["node2"]]
link = "10gbit"
"#;

/// Size of each tier, with rate and cost of its first link.
fn tiers(text: &str) -> Vec<(String, usize, u64, u64)> {
    let topology = parse(text, "x.toml").unwrap();
    let of_tier = |at: usize| topology.links().iter().filter(move |link| usize::from(link.tier) == at);
    let tiers = topology.tiers().iter().enumerate();
    tiers
        .map(|(at, tier)| {
            let first = of_tier(at).next().unwrap();
            (tier.name.clone(), of_tier(at).count(), first.bits_per_s / 1_000_000_000, first.cost)
        })
        .collect()
}

fn fault(text: &str) -> String {
    parse(text, "x.toml").unwrap_err().to_string()
}

#[test]
fn leaf_spine() {
    let tier = |name: &str, links, gbit, cost| (name.to_owned(), links, gbit, cost);
    assert_eq!(tiers(LEAF_SPINE), [tier("access", 3, 10, 1), tier("uplink", 6, 10, 2)]);
    let faster = format!("{LEAF_SPINE}uplink = '40gbit'\ncosts = [3, 0]");
    assert_eq!(tiers(&faster), [tier("access", 3, 10, 3), tier("uplink", 6, 40, 0)]);
}

#[test]
fn fat_tree_and_bcube() {
    let tier = |name: &str, links, gbit, cost| (name.to_owned(), links, gbit, cost);
    let fat_tree = "kind = 'fat-tree'\nk = 4\nhosts = [['source'], [], ['node1', 'node2']]\nlink = '1gbit'\ncore = '2gbit'";
    let expected = [tier("access", 3, 1, 1), tier("uplink", 16, 1, 2), tier("core", 16, 2, 4)];
    assert_eq!(tiers(fat_tree), expected);
    let bcube = "kind = 'bcube'\nn = 4\nk = 1\nhosts = ['source', 'node1']\nlink = '1gbit'\n";
    assert_eq!(tiers(bcube), [tier("level 0", 16, 1, 1), tier("level 1", 16, 1, 1)]);
    let dearer = format!("{bcube}costs = [1, 5]");
    assert_eq!(tiers(&dearer), [tier("level 0", 16, 1, 1), tier("level 1", 16, 1, 5)]);
    let costs = fault(&format!("{bcube}costs = [1, 2, 3]"));
    assert_eq!(costs, "x.toml: costs: has 3 entries; one for each of the 2 levels, or one for all");
}

const LINKS: &str = r#"
kind = "links"
hosts = ["source", "node1"]
switches = ["tor1"]

[[links]]
ends = ["source", "tor1"]
rate = "10gbit"
tier = "access"

[[links]]
ends = ["tor1", "node1"]
rate = "1gbit"
cost = 4
"#;

#[test]
fn explicit_links() {
    let topology = parse(LINKS, "x.toml").unwrap();
    let routes = routes(&topology, "x.toml", "source", &["node1"]).unwrap();
    let mut loads = Loads::none(&topology);
    loads.add(&routes.tree([vmscatter_core::placement::TargetId(0)].into_iter().collect(), 0), 1);
    assert_eq!((loads.byte_hops(), loads.cost_bytes(&topology)), (2, 5));
    assert_eq!(
        topology.tiers().iter().map(|tier| tier.name.as_str()).collect::<Vec<_>>(),
        ["access", "link"]
    );
}

#[test]
fn hosts_that_are_missing_are_named_with_the_file() {
    let topology = parse(LINKS, "x.toml").unwrap();
    let fault =
        |source, targets: &[&str]| routes(&topology, "x.toml", source, targets).unwrap_err().to_string();
    assert_eq!(fault("source", &["node1", "node2"]), "x.toml: there is no 'node2'");
    assert_eq!(fault("tor1", &["node1"]), "x.toml: 'tor1' is a switch, not a host");
    assert_eq!(fault("node1", &["node1"]), "x.toml: 'node1' is the source and a target");
}

#[test]
fn faults_name_the_file_and_the_key() {
    let changed = |from: &str, to: &str| {
        assert!(LEAF_SPINE.contains(from));
        fault(&LEAF_SPINE.replace(from, to))
    };
    assert_eq!(
        changed("leaf-spine", "ring"),
        "x.toml: kind: 'ring' is not leaf-spine, fat-tree, bcube or links"
    );
    assert!(changed("leaves = 2", "leaves = -2").starts_with("x.toml:3: leaves: "));
    assert!(
        changed("spines", "spine").starts_with("x.toml:4: spine: unknown field"),
        "{}",
        changed("spines", "spine")
    );
    assert_eq!(changed("node2", "Node2"), "x.toml: hosts: 'Node2' is no host name (lower case, as in DNS)");
    assert_eq!(changed("node2", "source"), "x.toml: 'source' is there twice");
    assert_eq!(changed("10gbit", "10"), "x.toml: link: '10' has no unit: kbit, mbit, gbit or tbit");
    assert_eq!(changed("leaves = 2", "leaves = 0"), "x.toml: leaves is 0, not 1 to 4096");
    let costs = fault(&format!("{LEAF_SPINE}costs = [1]"));
    assert_eq!(costs, "x.toml: costs: has 1 entries, not 2, one for each tier from the hosts up");

    let changed = |from: &str, to: &str| fault(&LINKS.replace(from, to));
    let unknown = changed("\"tor1\", \"node1\"", "\"tor2\", \"node1\"");
    assert_eq!(unknown, "x.toml: links[1]: ends: 'tor2' is neither a host nor a switch");
    let rate = changed("\"1gbit\"", "\"1\"");
    assert_eq!(rate, "x.toml: links[1]: rate: '1' has no unit: kbit, mbit, gbit or tbit");
    assert_eq!(
        changed("\"access\"", "\"a b\""),
        "x.toml: links[0]: tier: 'a b' is not made of 1 to 64 letters, digits, '.', '_' and '-'"
    );
    assert_eq!(
        changed("cost = 4", "cost = 99999"),
        "x.toml: links[1]: a link of 'tor1' costs more than 65536"
    );
    assert!(fault("").starts_with("x.toml:1: "), "{}", fault(""));
}

#[test]
fn the_documentations_examples_are_read() {
    let page = include_str!("../../../../docs/topologies.md");
    let examples = page.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let with_source = |text| parse(text, "topologies.md").unwrap().host("source").is_ok();
    assert_eq!(examples.map(with_source).collect::<Vec<_>>(), [true; 4]);
}
