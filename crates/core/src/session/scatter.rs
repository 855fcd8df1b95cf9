//! Makes frames of shared contents: each is read again, and only what still has its identity is sent.

use std::ops::Range;

use crate::index::Contents;
use crate::limits::CONTENT_READS_MAX;
use crate::page::{Mac, MacKey, PAGE_SIZE, PageAddr};
use crate::placement::{Placement, TargetSet};
use crate::schedule::FramePlan;

/// A frame whose contents have been read, ready to be encoded.
#[derive(Debug)]
pub struct ScatterFrame {
    /// Its number in the session; numbers ascend in the order of reading (rule 3).
    pub number: u64,
    /// To whom.
    pub set: TargetSet,
    addrs: Vec<PageAddr>,
    contents: Vec<(Mac, Range<usize>)>,
    pages: Vec<u8>,
}

impl ScatterFrame {
    /// The contents: identity of the bytes that are sent, addresses, bytes.
    pub fn contents(&self) -> impl Iterator<Item = (Mac, &[PageAddr], &[u8])> {
        let pages = self.pages.chunks_exact(PAGE_SIZE);
        self.contents.iter().zip(pages).map(|((mac, addrs), page)| (*mac, &self.addrs[addrs.clone()], page))
    }

    /// How many contents.
    pub fn len(&self) -> usize {
        self.contents.len()
    }

    /// Whether nothing was left to send.
    pub fn is_empty(&self) -> bool {
        self.contents.is_empty()
    }
}

/// Numbers frames and fills them.
#[derive(Debug)]
pub struct Scatterer {
    mac_key: MacKey,
    next_number: u64,
    /// Contents that were left out because every member that was looked at had changed.
    changed: u64,
}

impl Scatterer {
    /// With the session's key.
    pub fn new(mac_key: MacKey) -> Self {
        Scatterer { mac_key, next_number: 0, changed: 0 }
    }

    /// Contents left out so far since every member that was looked at had changed: they come by the streams.
    pub fn changed(&self) -> u64 {
        self.changed
    }

    /// Reads the contents of a frame once more, each from its first member that still holds it, of at most
    /// [`CONTENT_READS_MAX`] looked at. `live` says whether a VM is still moved; `read` copies a page out of live memory,
    /// or says that it can't. `None` where nothing is left to send.
    ///
    /// Rule 2: identity and payload come from the one copy. Members that have changed meanwhile get the old content for
    /// a moment, and the right one from their own stream.
    pub fn read_frame(
        &mut self,
        plan: &FramePlan,
        contents: &Contents,
        placement: &Placement,
        live: impl Fn(u16) -> bool,
        mut read: impl FnMut(PageAddr, &mut [u8]) -> bool,
    ) -> Option<ScatterFrame> {
        let mut frame = ScatterFrame {
            number: self.next_number,
            set: plan.set,
            addrs: Vec::new(),
            contents: Vec::with_capacity(plan.parts.len()),
            pages: Vec::with_capacity(plan.parts.len() * PAGE_SIZE),
        };
        for part in &plan.parts {
            let start = frame.addrs.len();
            frame.addrs.extend(part.addresses(contents, placement).filter(|addr| live(addr.vm)));
            if frame.addrs.len() == start {
                continue;
            }
            let mac = contents.get(part.content).mac;
            let page_start = frame.pages.len();
            frame.pages.resize(page_start + PAGE_SIZE, 0);
            let page = &mut frame.pages[page_start..];
            let mut members = frame.addrs[start..].iter().take(CONTENT_READS_MAX);
            if members.any(|addr| read(*addr, page) && self.mac_key.mac(page) == mac) {
                frame.contents.push((mac, start..frame.addrs.len()));
            } else {
                self.changed += 1;
                frame.pages.truncate(page_start);
                frame.addrs.truncate(start);
            }
        }
        (!frame.is_empty()).then(|| {
            self.next_number += 1;
            frame
        })
    }
}
