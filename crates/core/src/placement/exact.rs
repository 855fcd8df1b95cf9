//! The placement of least cost by dynamic programming over sets of VMs.
//!
//! With D(S) the distinct contents of the VMs S, what a link costs behind which exactly S stand is its own cost times D(S),
//! plus the least over all ways to split S among what lies behind it: links and targets there are merged one by one,
//! each merge a min-plus convolution over subsets. A target takes a set at no cost or, against a constraint, not at all.
//! Equal subtrees are merged with the set of the lowest VM first, so that a split counts once, not once per order.

use std::collections::HashMap;

use super::delivery::Links;
use super::model::{COST_MAX, Model, Rules};

/// Beyond it a table of all sets would be too large.
const VMS_MAX: usize = 18;
/// All tables together.
const TABLES_BYTES_MAX: usize = 256 << 20;
/// A set that can't be placed.
const NEVER: u64 = u64::MAX;
/// What a used target costs where few are wanted: more than all links, and 18 of them still fit.
const TARGET_COST: u64 = COST_MAX as u64;
/// Steps between two questions whether to stop.
const STOP_STEPS: u64 = 1 << 20;

const _: () = assert!((VMS_MAX as u128 + 1) * COST_MAX < u64::MAX as u128);

/// Why there is no answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ExactError {
    /// There is no placement.
    Infeasible,
    /// It would take more than the steps that were allowed, or too much memory.
    TooLarge,
    /// The caller said so.
    Stopped,
}

/// Each VM's target in a placement of least cost; of fewest targets before, if that is wanted.
pub(super) fn solve(
    model: &Model,
    steps_max: u64,
    stop: &mut dyn FnMut() -> bool,
) -> Result<Vec<u8>, ExactError> {
    if model.rules.vms() > VMS_MAX {
        return Err(ExactError::TooLarge);
    }
    let target_cost = if model.problem.few_targets { TARGET_COST } else { 0 };
    let distinct = distinct(model);
    Tables::new(&model.rules, &model.links, distinct, target_cost, steps_max, stop).solve()
}

/// Whether there is a placement at all.
pub(super) fn is_feasible(rules: &Rules, steps_max: u64) -> Result<bool, ExactError> {
    if rules.vms() > VMS_MAX {
        return Err(ExactError::TooLarge);
    }
    let links = Links { paths: vec![Vec::new(); rules.targets()], ..Links::default() };
    let distinct = vec![0; 1 << rules.vms()];
    match Tables::new(rules, &links, distinct, 0, steps_max, &mut || false).solve() {
        Ok(_) => Ok(true),
        Err(ExactError::Infeasible) => Ok(false),
        Err(error) => Err(error),
    }
}

/// For each set of VMs the distinct contents that they hold.
fn distinct(model: &Model) -> Vec<u64> {
    let (vms, groups) = (model.rules.vms(), model.problem.groups);
    // First, what exactly these VMs hold; then, what these or fewer hold.
    let mut within = vec![0u64; 1 << vms];
    for (vm, contents) in groups.alone.iter().enumerate() {
        within[1 << vm] += contents;
    }
    for group in &groups.shared {
        within[group.vms.iter().fold(0, |set, vm| set | 1 << vm)] += group.contents;
    }
    for vm in 0..vms {
        for set in (0..within.len()).filter(|set| set >> vm & 1 == 1) {
            within[set] += within[set ^ 1 << vm];
        }
    }
    let all = within.len() - 1;
    (0..within.len()).map(|set| within[all] - within[all ^ set]).collect()
}

/// The tables of all subtrees that differ.
struct Tables<'a> {
    rules: &'a Rules,
    links: &'a Links,
    distinct: Vec<u64>,
    target_cost: u64,
    steps_left: u64,
    /// Steps since `stop` was asked.
    unasked: u64,
    stop: &'a mut dyn FnMut() -> bool,
    /// For each set of VMs the least cost, or [`NEVER`].
    tables: Vec<Vec<u64>>,
    classes: Vec<Class>,
    by_key: HashMap<Key, usize>,
}

/// What makes two subtrees equal.
#[derive(PartialEq, Eq, Hash)]
enum Key {
    /// A target: a bit for each set of VMs, whether it may take it.
    Target(Vec<u64>),
    /// A link: its cost, and the classes of what lies behind it, ascending.
    Link(u64, Vec<usize>),
}

/// Equal subtrees.
struct Class {
    /// With the cost of the link that leads to them.
    table: usize,
    behind: Behind,
}

/// What lies behind a link: none for a target.
#[derive(Default)]
struct Behind {
    /// By class, ascending.
    parts: Vec<Part>,
    /// All parts together.
    table: usize,
}

/// All equal children of a subtree.
struct Part {
    /// The table of the parts before, if there are any.
    before: Option<usize>,
    /// The tables of one of them, of two, and so on, until one more gains nothing.
    copies: Vec<usize>,
    /// How many there are.
    children: usize,
}

/// A subtree as it stands.
struct Node {
    class: usize,
    /// By class, ascending.
    children: Vec<Node>,
    target: Option<u8>,
}

/// For which sets a merge is wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Every,
    /// The set of all VMs only.
    All,
}

impl<'a> Tables<'a> {
    fn new(
        rules: &'a Rules,
        links: &'a Links,
        distinct: Vec<u64>,
        target_cost: u64,
        steps_left: u64,
        stop: &'a mut dyn FnMut() -> bool,
    ) -> Self {
        let (tables, classes, by_key) = (Vec::new(), Vec::new(), HashMap::new());
        Tables { rules, links, distinct, target_cost, steps_left, unasked: 0, stop, tables, classes, by_key }
    }

    fn solve(mut self) -> Result<Vec<u8>, ExactError> {
        // Links that lead to all targets cost the same for all placements.
        let mut root = None;
        while let Some(only) = self.only_link_behind(root) {
            root = Some(only);
        }
        let children = self.children(root)?;
        let behind = self.merge_all(&children, Wanted::All)?;
        let all = self.distinct.len() - 1;
        if self.tables[behind.table][all] == NEVER {
            return Err(ExactError::Infeasible);
        }
        let mut placed = vec![0; self.rules.vms()];
        self.assign(&behind, &children, all, &mut placed);
        Ok(placed)
    }

    fn only_link_behind(&self, link: Option<u32>) -> Option<u32> {
        let ends_here = self.links.paths.iter().any(|path| path.last().copied() == link);
        let mut behind = self.links_behind(link);
        behind.next().filter(|_| !ends_here && behind.next().is_none())
    }

    fn links_behind(&self, link: Option<u32>) -> impl Iterator<Item = u32> + use<'a> {
        let parents = &self.links.parent;
        (0..parents.len() as u32).filter(move |child| parents[*child as usize] == link)
    }

    /// What lies behind a link, or behind the source.
    fn children(&mut self, link: Option<u32>) -> Result<Vec<Node>, ExactError> {
        let mut children = Vec::new();
        for target in (0..self.rules.targets()).filter(|at| self.links.paths[*at].last().copied() == link) {
            let class = self.target_class(target)?;
            children.push(Node { class, children: Vec::new(), target: Some(target as u8) });
        }
        for child in self.links_behind(link) {
            let behind = self.children(Some(child))?;
            let class = self.link_class(self.links.cost[child as usize], &behind)?;
            children.push(Node { class, children: behind, target: None });
        }
        children.sort_by_key(|child| child.class);
        Ok(children)
    }

    fn target_class(&mut self, target: usize) -> Result<usize, ExactError> {
        let takes = Takes::new(self.rules, target);
        let sets = 0..self.distinct.len();
        let mut bits = vec![0u64; sets.len().div_ceil(64)];
        sets.clone().filter(|set| takes.set(*set)).for_each(|set| bits[set / 64] |= 1 << (set % 64));
        if let Some(class) = self.by_key.get(&Key::Target(bits.clone())) {
            return Ok(*class);
        }
        let cost = |set: usize| match bits[set / 64] >> (set % 64) & 1 {
            0 => NEVER,
            _ if set == 0 => 0,
            _ => self.target_cost,
        };
        let table = sets.map(cost).collect();
        let table = self.keep(table)?;
        Ok(self.class(Key::Target(bits), Class { table, behind: Behind::default() }))
    }

    fn link_class(&mut self, cost: u64, children: &[Node]) -> Result<usize, ExactError> {
        let key = Key::Link(cost, children.iter().map(|child| child.class).collect());
        if let Some(class) = self.by_key.get(&key) {
            return Ok(*class);
        }
        let behind = self.merge_all(children, Wanted::Every)?;
        let with_link =
            self.tables[behind.table].iter().zip(&self.distinct).map(|(least, distinct)| match *least {
                NEVER => NEVER,
                least => least + cost * distinct,
            });
        let table = with_link.collect();
        let table = self.keep(table)?;
        Ok(self.class(key, Class { table, behind }))
    }

    fn class(&mut self, key: Key, class: Class) -> usize {
        self.classes.push(class);
        self.by_key.insert(key, self.classes.len() - 1);
        self.classes.len() - 1
    }

    fn keep(&mut self, table: Vec<u64>) -> Result<usize, ExactError> {
        if (self.tables.len() + 1) * table.len() * size_of::<u64>() > TABLES_BYTES_MAX {
            return Err(ExactError::TooLarge);
        }
        self.tables.push(table);
        Ok(self.tables.len() - 1)
    }

    fn merge_all(&mut self, children: &[Node], wanted: Wanted) -> Result<Behind, ExactError> {
        let chunks: Vec<&[Node]> = children.chunk_by(|a, b| a.class == b.class).collect();
        let (mut parts, mut merged): (Vec<Part>, Option<usize>) = (Vec::new(), None);
        for (at, chunk) in chunks.iter().enumerate() {
            let wanted = if at + 1 == chunks.len() { wanted } else { Wanted::Every };
            let one = self.classes[chunk[0].class].table;
            let (mut copies, mut last) = (vec![one], one);
            // More of them than VMs are of no use.
            let count = chunk.len().min(self.rules.vms());
            for copy in 2..=count {
                let wanted = if copy == count && at == 0 { wanted } else { Wanted::Every };
                let more = self.merge(one, last, true, wanted)?;
                if more == self.tables[last] {
                    break;
                }
                last = self.keep(more)?;
                copies.push(last);
            }
            let before = merged;
            merged = match before {
                None => Some(last),
                Some(before) => {
                    let table = self.merge(last, before, false, wanted)?;
                    Some(self.keep(table)?)
                }
            };
            parts.push(Part { before, copies, children: chunk.len() });
        }
        let table = merged.expect("each link leads to a target, and there is one");
        Ok(Behind { parts, table })
    }

    /// For each set the least cost of splitting it between two tables. Where the second is that of some subtrees equal to
    /// that of the first, the first gets the lowest VM.
    fn merge(
        &mut self,
        one: usize,
        other: usize,
        equal: bool,
        wanted: Wanted,
    ) -> Result<Vec<u64>, ExactError> {
        let (one, other) = (&self.tables[one], &self.tables[other]);
        let mut merged = vec![NEVER; one.len()];
        let all = merged.len() - 1;
        for (set, cost) in one.iter().enumerate().filter(|(_, cost)| **cost != NEVER) {
            let others = all ^ set;
            let rests = match set {
                _ if !equal => others,
                0 => 0,
                _ => others >> set.trailing_zeros() << set.trailing_zeros(),
            };
            if wanted == Wanted::All && rests != others {
                continue;
            }
            let steps = if wanted == Wanted::All { 1 } else { 1 << rests.count_ones() };
            self.steps_left = self.steps_left.checked_sub(steps).ok_or(ExactError::TooLarge)?;
            self.unasked += steps;
            if self.unasked >= STOP_STEPS {
                self.unasked = 0;
                if (self.stop)() {
                    return Err(ExactError::Stopped);
                }
            }
            let mut rest = rests;
            for _ in 0..steps {
                let least = &mut merged[set | rest];
                *least = (*least).min(other[rest].saturating_add(*cost));
                rest = rest.wrapping_sub(1) & rests;
            }
        }
        Ok(merged)
    }

    /// Finds again how `set` was split among what lies behind a link.
    fn assign(&self, behind: &Behind, children: &[Node], mut set: usize, placed: &mut [u8]) {
        let (mut table, mut end) = (behind.table, children.len());
        for part in behind.parts.iter().rev() {
            let start = end - part.children;
            let all = part.copies[part.copies.len() - 1];
            let mine = part.before.map_or(set, |before| self.split(table, all, before, set));
            self.assign_copies(part, &children[start..end], mine, placed);
            set ^= mine;
            table = part.before.unwrap_or(table);
            end = start;
        }
    }

    fn assign_copies(&self, part: &Part, children: &[Node], mut set: usize, placed: &mut [u8]) {
        for (at, child) in children.iter().enumerate().take(part.copies.len()).rev() {
            let one = part.copies[0];
            let mine = match at {
                0 => set,
                _ => self.split(part.copies[at], one, part.copies[at - 1], set),
            };
            set ^= mine;
            match child.target {
                Some(target) => {
                    (0..placed.len()).filter(|vm| mine >> vm & 1 == 1).for_each(|vm| placed[vm] = target);
                }
                None => self.assign(&self.classes[child.class].behind, &child.children, mine, placed),
            }
        }
    }

    /// The part of `set` that `one` takes where `merged` came of it and `other`.
    fn split(&self, merged: usize, one: usize, other: usize, set: usize) -> usize {
        let [merged, one, other] = [merged, one, other].map(|table| &self.tables[table]);
        let mut part = set;
        while one[part] == NEVER || other[set ^ part].saturating_add(one[part]) != merged[set] {
            assert_ne!(part, 0, "the cost came from a split");
            part = (part - 1) & set;
        }
        part
    }
}

/// Which sets of VMs a target takes.
struct Takes<'a> {
    rules: &'a Rules,
    target: usize,
    /// VMs that are not pinned elsewhere.
    allowed: usize,
    /// Anti-affinity groups, each the set of its VMs.
    apart: Vec<usize>,
}

impl<'a> Takes<'a> {
    fn new(rules: &'a Rules, target: usize) -> Self {
        let elsewhere = |vm: &usize| rules.pinned[*vm].is_some_and(|pin| usize::from(pin) != target);
        let mut apart = vec![0; rules.apart];
        for (vm, groups) in rules.apart_of.iter().enumerate() {
            groups.iter().for_each(|group| apart[*group as usize] |= 1 << vm);
        }
        let allowed = (0..rules.vms()).filter(|vm| !elsewhere(vm)).fold(0, |set, vm| set | 1 << vm);
        Takes { rules, target, allowed, apart }
    }

    fn set(&self, set: usize) -> bool {
        let members = (0..self.rules.vms()).filter(|vm| set >> vm & 1 == 1);
        set & !self.allowed == 0
            && set.count_ones() <= self.rules.vms_max[self.target]
            && self.apart.iter().all(|apart| (apart & set).count_ones() <= 1)
            && members.fold(0u64, |sum, vm| sum.saturating_add(self.rules.memory[vm]))
                <= self.rules.free[self.target]
    }
}
