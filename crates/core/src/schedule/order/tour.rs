//! A round trip as an array that is improved move by move, and can go back.

/// Nodes in the order of a closed round trip.
///
/// Whatever is done to it is a row of reversals, and those are noted, so that a change for the worse can be undone.
pub(super) struct Tour {
    nodes: Vec<u32>,
    place: Vec<u32>,
    done: Vec<(u32, u32)>,
}

impl Tour {
    /// `nodes` holds every number below its length once.
    pub(super) fn new(nodes: Vec<u32>) -> Self {
        let mut place = vec![0; nodes.len()];
        for (at, node) in nodes.iter().enumerate() {
            place[*node as usize] = at as u32;
        }
        Tour { nodes, place, done: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn nodes(&self) -> &[u32] {
        &self.nodes
    }

    pub(super) fn at(&self, place: usize) -> u32 {
        self.nodes[place]
    }

    pub(super) fn next(&self, node: u32) -> u32 {
        let place = self.place[node as usize] as usize + 1;
        self.nodes[if place == self.nodes.len() { 0 } else { place }]
    }

    pub(super) fn previous(&self, node: u32) -> u32 {
        let place = self.place[node as usize] as usize;
        self.nodes[if place == 0 { self.nodes.len() - 1 } else { place - 1 }]
    }

    /// Reverses the way from node `first` on to node `last`.
    pub(super) fn reverse(&mut self, first: u32, last: u32) {
        let (first, last) = (self.place[first as usize], self.place[last as usize]);
        let count = self.nodes.len() as u32;
        let inside = (last + count - first) % count + 1;
        // To reverse all the rest gives the same round trip.
        let (from, to) = if 2 * inside <= count {
            (first, last)
        } else {
            ((last + 1) % count, (first + count - 1) % count)
        };
        self.reverse_places(from, to);
        self.done.push((from, to));
    }

    /// Takes out the neighbours `a`, `b` and the neighbours `c`, `d`, which stand in the same direction, and makes
    /// neighbours of `a`, `c` and of `b`, `d`.
    pub(super) fn exchange(&mut self, a: u32, b: u32, c: u32, d: u32) {
        if self.next(a) == b { self.reverse(b, c) } else { self.reverse(a, d) }
    }

    /// Moves the way from node `first` on to node `last` between `c` and `d`, which follows `c`: `first` next to `c`, or
    /// `last` if it is `flipped`.
    pub(super) fn move_segment(&mut self, first: u32, last: u32, c: u32, d: u32, flipped: bool) {
        let (before, after) = (self.previous(first), self.next(last));
        self.exchange(before, first, c, d);
        self.exchange(before, c, after, last);
        if !flipped {
            self.exchange(c, last, first, d);
        }
    }

    fn reverse_places(&mut self, mut from: u32, mut to: u32) {
        let count = self.nodes.len() as u32;
        let inside = (to + count - from) % count + 1;
        for _ in 0..inside / 2 {
            let (a, b) = (self.nodes[from as usize], self.nodes[to as usize]);
            (self.nodes[from as usize], self.nodes[to as usize]) = (b, a);
            (self.place[a as usize], self.place[b as usize]) = (to, from);
            from = if from + 1 == count { 0 } else { from + 1 };
            to = if to == 0 { count - 1 } else { to - 1 };
        }
    }

    /// What has been done up to now stays.
    pub(super) fn keep(&mut self) {
        self.done.clear();
    }

    /// Goes back to what was kept last.
    pub(super) fn undo(&mut self) {
        while let Some((from, to)) = self.done.pop() {
            self.reverse_places(from, to);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From node 0 on, in the direction in which the smaller neighbour comes first.
    fn canonical(mut nodes: Vec<u32>) -> Vec<u32> {
        let at = nodes.iter().position(|node| *node == 0).unwrap();
        nodes.rotate_left(at);
        if nodes.last() < nodes.get(1) {
            nodes[1..].reverse();
        }
        nodes
    }

    fn assert_is(tour: &Tour, nodes: &[u32]) {
        assert_eq!(canonical(tour.nodes().to_vec()), canonical(nodes.to_vec()));
        for node in 0..tour.len() as u32 {
            assert_eq!(tour.previous(tour.next(node)), node);
        }
    }

    #[test]
    fn reversals_are_undone() {
        let start = vec![3, 1, 4, 0, 5, 2];
        let mut tour = Tour::new(start.clone());
        tour.reverse(4, 5);
        assert_is(&tour, &[3, 1, 5, 0, 4, 2]);
        // Over the array's end.
        tour.reverse(4, 3);
        assert_is(&tour, &[5, 0, 3, 2, 4, 1]);
        tour.undo();
        assert_eq!(tour.nodes(), start);
    }

    #[test]
    fn segments_move_anywhere_either_way_round() {
        let start: Vec<u32> = (0..7).collect();
        for direction in [1, 6] {
            // Turned round, 2 comes before 1.
            let turned: Vec<u32> = start.iter().map(|node| node * direction % 7).collect();
            let mut tour = Tour::new(turned.clone());
            let [first, last] = [turned[1], turned[2]];
            for between in 3..7 {
                let (c, d) = (turned[between], turned[(between + 1) % 7]);
                for flipped in [false, true] {
                    let mut expected: Vec<u32> =
                        turned.iter().copied().filter(|node| ![first, last].contains(node)).collect();
                    let at = expected.iter().position(|node| *node == c).unwrap() + 1;
                    let moved = if flipped { [last, first] } else { [first, last] };
                    expected.splice(at..at, moved);
                    tour.move_segment(first, last, c, d, flipped);
                    assert_is(&tour, &expected);
                    tour.undo();
                    assert_eq!(tour.nodes(), turned);
                }
            }
        }
    }
}
