//! A set's contents, cut into frames.

use std::ops::Range;

use super::target_of;
use crate::index::Contents;
use crate::limits::{CONTENT_ADDRS_MAX, FRAME_ADDRS_MAX, FRAME_PAGES_MAX};
use crate::page::PageAddr;
use crate::placement::{Placement, TargetSet};

/// What goes into one frame: at most [`FRAME_PAGES_MAX`] contents and [`FRAME_ADDRS_MAX`] addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FramePlan {
    /// To whom.
    pub set: TargetSet,
    /// The contents, in the order in which they are read.
    pub parts: Vec<FramePart>,
}

/// A content and those of its addresses that one frame names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FramePart {
    /// The content's number.
    pub content: u32,
    /// Which of its addresses, at most [`CONTENT_ADDRS_MAX`]; the others are in other frames. Those of VMs
    /// that have no target are among them, see [`FramePart::addresses`].
    pub addrs: Range<u32>,
}

impl FramePart {
    /// The addresses that the frame names: those of VMs that go somewhere.
    pub fn addresses<'a>(
        &self,
        contents: &'a Contents,
        placement: &'a Placement,
    ) -> impl Iterator<Item = PageAddr> + use<'a> {
        let content = contents.get(self.content);
        let part = content.narrowed(self.addrs.start as usize..self.addrs.end as usize);
        part.addrs().filter(|addr| target_of(*addr, placement).is_some())
    }
}

/// Cuts frames, one at a time, from [`SetPlan::frames`](super::SetPlan::frames).
pub struct Frames<'a> {
    set: TargetSet,
    left: &'a [u32],
    /// Addresses of the first content in `left` that are in frames already.
    split_at: u32,
    contents: &'a Contents,
}

impl<'a> Frames<'a> {
    pub(super) fn new(set: TargetSet, ids: &'a [u32], contents: &'a Contents) -> Self {
        Frames { set, left: ids, split_at: 0, contents }
    }
}

impl Iterator for Frames<'_> {
    type Item = FramePlan;

    fn next(&mut self) -> Option<FramePlan> {
        let mut parts = Vec::with_capacity(self.left.len().min(FRAME_PAGES_MAX));
        let mut room = FRAME_ADDRS_MAX;
        while let Some((content, rest)) = self.left.split_first().filter(|_| parts.len() < FRAME_PAGES_MAX) {
            let end = self.contents.get(*content).len() as u32;
            let left = (end - self.split_at) as usize;
            let count = left.min(CONTENT_ADDRS_MAX);
            // A content that is cut costs its page once more, so it is cut no oftener than CONTENT_ADDRS_MAX
            // demands.
            if count > room {
                break;
            }
            room -= count;
            let addrs = self.split_at..self.split_at + count as u32;
            parts.push(FramePart { content: *content, addrs });
            if count < left {
                // The rest of its addresses must stand in other frames.
                self.split_at += count as u32;
                break;
            }
            (self.left, self.split_at) = (rest, 0);
        }
        (!parts.is_empty()).then_some(FramePlan { set: self.set, parts })
    }
}
