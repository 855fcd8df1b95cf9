//! Which target sets share a multicast group address, and in which order each address serves them.
//!
//! A member of a set must have joined its address before anything is sent there, and should leave when nothing more is
//! for it. An address that serves several sets one after the other costs, from each set to the next, a join for each
//! new member and a leave for each that is not needed any more; before the first set and after the last it has no
//! members, so each list is a round trip from the empty set. VMScatter (VEE 2013) has one address, and looks for the
//! Hamiltonian path of least cost; here it is the least cost over all addresses, of which as many are used as there
//! are sets for: a set alone at its address never waits for another. (One address alone would cost the fewest joins and
//! leaves of all, since the way from set to set is never longer than that through the empty set. What more addresses
//! buy is that one goes on while another changes its members.)
//!
//! Up to [`EXACT_SETS_MAX`] sets the answer is exact, beyond it is a local search's.

mod exact;
mod search;
#[cfg(test)]
mod tests;
mod tour;

pub use exact::EXACT_SETS_MAX;

use crate::placement::TargetSet;

/// A target set and what is to be sent to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetLoad {
    /// The targets, two or more of them.
    pub set: TargetSet,
    /// What is to be sent, in bytes.
    pub bytes: u64,
}

/// For each address the sets that it serves, by their number in the list that was ordered, first to last. No address is
/// without sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressLists {
    /// One list for each address that is used.
    pub lists: Vec<Vec<usize>>,
}

impl AddressLists {
    /// Joins and leaves of members over all addresses, from no members to no members.
    ///
    /// # Panics
    /// If `sets` is shorter than the list that was ordered.
    pub fn joins_and_leaves(&self, sets: &[SetLoad]) -> u64 {
        self.lists.iter().map(|list| round_trip(list, sets)).sum()
    }

    /// The bytes that each address serves.
    ///
    /// # Panics
    /// As [`AddressLists::joins_and_leaves`].
    pub fn address_bytes<'a>(&'a self, sets: &'a [SetLoad]) -> impl Iterator<Item = u64> + 'a {
        self.lists.iter().map(|list| list.iter().map(|set| sets[*set].bytes).sum())
    }
}

/// Divides the sets over at most `addresses` addresses and orders each address's, such that joins and leaves are fewest
/// and, among orders with equally many, bytes lie evenly over the addresses. The same input gives the same lists.
///
/// # Panics
/// If there is no address for sets.
pub fn order_sets(sets: &[SetLoad], addresses: usize) -> AddressLists {
    if sets.len() <= EXACT_SETS_MAX {
        order_exactly(sets, addresses)
    } else {
        order_by_search(sets, addresses)
    }
}

/// As [`order_sets`], by dynamic programming: the best there is.
///
/// # Panics
/// If there are more than [`EXACT_SETS_MAX`] sets, more than addresses besides, or no address for sets.
pub fn order_exactly(sets: &[SetLoad], addresses: usize) -> AddressLists {
    trivial(sets, addresses).unwrap_or_else(|| exact::order(sets, addresses))
}

/// As [`order_sets`], by local search however few the sets: to be compared with [`order_exactly`].
///
/// # Panics
/// If there is no address for sets.
pub fn order_by_search(sets: &[SetLoad], addresses: usize) -> AddressLists {
    trivial(sets, addresses).unwrap_or_else(|| search::order(sets, addresses))
}

/// The sets as they come, dealt out to the addresses one after the other: what ordering is compared with.
///
/// # Panics
/// If there is no address for sets.
pub fn unsorted(sets: usize, addresses: usize) -> AddressLists {
    assert!(sets == 0 || addresses > 0, "an address for the sets");
    let used = addresses.min(sets);
    AddressLists { lists: (0..used).map(|first| (first..sets).step_by(used).collect()).collect() }
}

/// An address for each set, where there are enough.
fn trivial(sets: &[SetLoad], addresses: usize) -> Option<AddressLists> {
    (sets.len() <= addresses).then(|| unsorted(sets.len(), addresses))
}

/// What one address costs.
fn round_trip(list: &[usize], sets: &[SetLoad]) -> u64 {
    let members = list.iter().map(|set| sets[*set].set);
    let back = members.clone().chain([TargetSet::EMPTY]);
    std::iter::once(TargetSet::EMPTY).chain(members).zip(back).map(|(a, b)| u64::from(distance(a, b))).sum()
}

/// Joins and leaves from one set to the other.
fn distance(a: TargetSet, b: TargetSet) -> u32 {
    (a.0 ^ b.0).count_ones()
}

/// Sum of the squares of the addresses' bytes: the smaller, the more evenly they lie.
fn unevenness(bytes: u64) -> u128 {
    u128::from(bytes) * u128::from(bytes)
}
