//! What a VM costs at least, whoever stands beside it.
//!
//! Where n of a group's other VMs stand beside it, it pays 1 / (n + 1) of the group's contents. That is convex in n, so a
//! straight line that touches it lies below it; with a line for each group, the neighbours by whom most is saved are
//! those with the highest sums of slopes. Any lines give a bound; better ones are found by moving, again and again, the
//! points where they touch towards the numbers of neighbours that the last lines gave.

use super::room::Rooms;
use crate::placement::model::Model;

/// Times that the lines are moved.
const STEPS: u32 = 6;
/// Taken off for the rounding of sums.
const ROUNDING: f64 = 1e-9;

pub(super) struct Neighbours<'a> {
    model: &'a Model<'a>,
    /// For each VM what one of its contents costs at least at its target.
    price: Vec<u64>,
    /// For each VM how many others stand beside it at most.
    others: Vec<usize>,
}

impl<'a> Neighbours<'a> {
    /// `own`: what the links cost that lead to each target alone.
    pub(super) fn new(model: &'a Model<'a>, rooms: &Rooms, own: &[u64]) -> Self {
        let rules = &model.rules;
        let allowed = |vm: usize| {
            (0..own.len())
                .filter(move |target| rules.pinned[vm].is_none_or(|pin| usize::from(pin) == *target))
        };
        let price = |vm: usize| allowed(vm).map(|target| own[target]).min().unwrap_or(0);
        let others = |vm: usize| {
            let vms = allowed(vm).map(|target| rooms.vms_at(target, rules.memory[vm].max(1))).max();
            vms.unwrap_or(0).saturating_sub(1)
        };
        let vms = 0..rules.vms();
        Neighbours { model, price: vms.clone().map(price).collect(), others: vms.map(others).collect() }
    }

    /// What all VMs pay at least for the contents of these groups.
    pub(super) fn bound(&self, counted: &dyn Fn(usize) -> bool) -> u64 {
        let mut slopes = vec![0f64; self.model.rules.vms()];
        let counted: Vec<bool> = (0..self.model.sample.groups()).map(counted).collect();
        let sum: f64 = (0..slopes.len()).map(|vm| self.of_vm(vm, &counted, &mut slopes)).sum();
        (sum * (1.0 - ROUNDING)) as u64
    }

    /// `slopes` is room for one number a VM.
    fn of_vm(&self, vm: usize, counted: &[bool], slopes: &mut [f64]) -> f64 {
        let sample = &self.model.sample;
        let groups: Vec<usize> = sample
            .groups_of(vm)
            .iter()
            .map(|group| *group as usize)
            .filter(|group| counted[*group])
            .collect();
        let others = self.others[vm];
        // Where the lines touch: at first where each group has as many neighbours as it can.
        let most = |group: &usize| (sample.members(*group).len() - 1).min(others) as f64;
        let mut touch: Vec<f64> = groups.iter().map(most).collect();
        let mut best = 0f64;
        for step in 0..STEPS {
            slopes.fill(0.0);
            let mut sum = 0.0;
            for (group, at) in groups.iter().zip(&touch) {
                let (height, slope) = line(*at);
                let contents = sample.contents[*group] as f64;
                sum += contents * height;
                sample
                    .members(*group)
                    .iter()
                    .for_each(|other| slopes[usize::from(*other)] += contents * slope);
            }
            let chosen = self.choose(vm, slopes);
            sum -= chosen.iter().map(|other| slopes[*other]).sum::<f64>();
            best = best.max(sum);
            let weight = 2.0 / f64::from(step + 2);
            slopes.fill(0.0);
            chosen.iter().for_each(|other| slopes[*other] = 1.0);
            for (group, at) in groups.iter().zip(&mut touch) {
                let there: f64 = sample.members(*group).iter().map(|other| slopes[usize::from(*other)]).sum();
                *at += weight * (there - *at);
            }
        }
        best * self.price[vm] as f64
    }

    /// The neighbours with the highest slopes.
    fn choose(&self, vm: usize, slopes: &[f64]) -> Vec<usize> {
        let rules = &self.model.rules;
        let apart =
            |other: usize| rules.apart_of[vm].iter().any(|group| rules.apart_of[other].contains(group));
        let may = |other: &usize| {
            let pins_agree = match (rules.pinned[vm], rules.pinned[*other]) {
                (Some(pin), Some(other)) => pin == other,
                _ => true,
            };
            *other != vm && slopes[*other] > 0.0 && pins_agree && !apart(*other)
        };
        let mut chosen: Vec<usize> = (0..slopes.len()).filter(may).collect();
        if chosen.len() > self.others[vm] {
            chosen.select_nth_unstable_by(self.others[vm], |a, b| slopes[*b].total_cmp(&slopes[*a]));
            chosen.truncate(self.others[vm]);
        }
        chosen
    }
}

/// The line through 1 / (n + 1) at the whole numbers next to `at`: its height at 0, and how much it falls with each n.
fn line(at: f64) -> (f64, f64) {
    let (left, share) = (at.floor(), |n: f64| 1.0 / (n + 1.0));
    let slope = share(left) - share(left + 1.0);
    (share(left) + slope * left, slope)
}
