//! Plain bytes of a scatter frame.
//!
//! ```text
//! plain    = content count │ per content: address count, addresses │ pages of 4096 bytes, in the same order
//! address  = even: page, relative to a reference address in the same VM and block │ odd (1): vm, block, page
//! ```
//!
//! The addresses of one content are in order. The reference of its first is the first of the content before it
//! (and the difference may be negative: zigzag), that of each further one is its predecessor (difference less one).

use super::{FrameError, Reader, put_varint};
use crate::limits::{CONTENT_ADDRS_MAX, FRAME_ADDRS_MAX, FRAME_BODY_BYTES_MAX, FRAME_PAGES_MAX};
use crate::page::{PAGE_SIZE, PageAddr};

const REFERENCE: PageAddr = PageAddr { vm: 0, block: 0, page: 0 };

/// The checked contents of a scatter frame.
#[derive(Clone, Copy, Debug)]
pub struct ScatterBody<'a> {
    addrs: &'a [PageAddr],
    ends: &'a [u32],
    pages: &'a [u8],
}

impl<'a> ScatterBody<'a> {
    /// Contents in the frame's order: the addresses, in order and none twice, and the page's 4096 bytes.
    pub fn contents(&self) -> impl Iterator<Item = (&'a [PageAddr], &'a [u8; PAGE_SIZE])> + use<'a> {
        let (addrs, ends) = (self.addrs, self.ends);
        let pages = self.pages.chunks_exact(PAGE_SIZE).map(|page| page.try_into().expect("a page's length"));
        let start = move |content: usize| if content == 0 { 0 } else { ends[content - 1] as usize };
        pages.enumerate().map(move |(at, page)| (&addrs[start(at)..ends[at] as usize], page))
    }

    /// How many contents there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none; a frame that was decoded has at least one.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }
}

pub(super) fn write_plain<'a>(
    contents: impl Iterator<Item = (&'a [PageAddr], &'a [u8])>,
    plain: &mut Vec<u8>,
) -> Result<(), FrameError> {
    let mut pages: Vec<&[u8]> = Vec::with_capacity(FRAME_PAGES_MAX);
    let (mut before, mut total) = (REFERENCE, 0);
    for (addrs, page) in contents {
        if pages.len() == FRAME_PAGES_MAX {
            return Err(FrameError::Limit("FRAME_PAGES_MAX"));
        }
        total += addrs.len();
        check_counts(addrs.len(), total)?;
        if page.len() != PAGE_SIZE {
            return Err(FrameError::Refused("a page has 4096 bytes"));
        }
        if !addrs.is_sorted_by(|a, b| a < b) {
            return Err(FrameError::Refused("addresses out of order"));
        }
        pages.push(page);
        put_varint(plain, addrs.len() as u64);
        put_first(plain, before, addrs[0]);
        for pair in addrs.windows(2) {
            put_next(plain, pair[0], pair[1]);
        }
        before = addrs[0];
    }
    if pages.is_empty() {
        return Err(FrameError::Refused("no contents"));
    }
    // The count is known only now; it is one byte, since FRAME_PAGES_MAX is below 128.
    const { assert!(FRAME_PAGES_MAX < 0x80) };
    plain.insert(0, pages.len() as u8);
    if plain.len() + pages.len() * PAGE_SIZE > FRAME_BODY_BYTES_MAX {
        return Err(FrameError::Limit("FRAME_BODY_BYTES_MAX"));
    }
    pages.iter().for_each(|page| plain.extend_from_slice(page));
    Ok(())
}

pub(super) fn read_plain<'a>(
    plain: &'a [u8],
    addrs: &'a mut Vec<PageAddr>,
    ends: &'a mut Vec<u32>,
) -> Result<ScatterBody<'a>, FrameError> {
    addrs.clear();
    ends.clear();
    let mut reader = Reader(plain);
    let contents: usize = reader.varint_as()?;
    if contents == 0 {
        return Err(FrameError::Malformed("no contents"));
    }
    if contents > FRAME_PAGES_MAX {
        return Err(FrameError::Limit("FRAME_PAGES_MAX"));
    }
    let mut before = REFERENCE;
    for _ in 0..contents {
        let count: usize = reader.varint_as()?;
        check_counts(count, addrs.len().saturating_add(count))?;
        let mut addr = get_first(&mut reader, before)?;
        before = addr;
        addrs.push(addr);
        for _ in 1..count {
            addr = get_next(&mut reader, addr)?;
            addrs.push(addr);
        }
        ends.push(addrs.len() as u32);
    }
    let pages = reader.0;
    if pages.len() != contents * PAGE_SIZE {
        return Err(FrameError::Malformed("pages and contents differ in number"));
    }
    Ok(ScatterBody { addrs, ends, pages })
}

fn check_counts(content: usize, total: usize) -> Result<(), FrameError> {
    match (content, total) {
        (0, _) => Err(FrameError::Malformed("content without address")),
        (count, _) if count > CONTENT_ADDRS_MAX => Err(FrameError::Limit("CONTENT_ADDRS_MAX")),
        (_, total) if total > FRAME_ADDRS_MAX => Err(FrameError::Limit("FRAME_ADDRS_MAX")),
        _ => Ok(()),
    }
}

fn same_block(a: PageAddr, b: PageAddr) -> bool {
    (a.vm, a.block) == (b.vm, b.block)
}

fn put_first(out: &mut Vec<u8>, before: PageAddr, addr: PageAddr) {
    if same_block(before, addr) {
        let step = i64::from(addr.page) - i64::from(before.page);
        put_varint(out, (((step << 1) ^ (step >> 63)) as u64) << 1);
    } else {
        put_whole(out, addr);
    }
}

fn put_next(out: &mut Vec<u8>, before: PageAddr, addr: PageAddr) {
    if same_block(before, addr) {
        put_varint(out, u64::from(addr.page - before.page - 1) << 1);
    } else {
        put_whole(out, addr);
    }
}

fn put_whole(out: &mut Vec<u8>, addr: PageAddr) {
    out.push(1);
    put_varint(out, addr.vm.into());
    put_varint(out, addr.block.into());
    put_varint(out, addr.page.into());
}

fn get_first(reader: &mut Reader<'_>, before: PageAddr) -> Result<PageAddr, FrameError> {
    let head = reader.varint()?;
    if head & 1 == 1 {
        let addr = get_whole(reader, head)?;
        return if same_block(before, addr) { Err(FrameError::Malformed("address")) } else { Ok(addr) };
    }
    let zigzag = head >> 1;
    let step = (zigzag >> 1) as i64 ^ -((zigzag & 1) as i64);
    let page = u32::try_from(i64::from(before.page).wrapping_add(step));
    Ok(PageAddr { page: page.map_err(|_| FrameError::Malformed("page number"))?, ..before })
}

fn get_next(reader: &mut Reader<'_>, before: PageAddr) -> Result<PageAddr, FrameError> {
    let head = reader.varint()?;
    if head & 1 == 1 {
        let addr = get_whole(reader, head)?;
        let rises = (addr.vm, addr.block) > (before.vm, before.block);
        return if rises { Ok(addr) } else { Err(FrameError::Malformed("addresses out of order")) };
    }
    let page = u64::from(before.page) + 1 + (head >> 1);
    Ok(PageAddr { page: u32::try_from(page).map_err(|_| FrameError::Malformed("page number"))?, ..before })
}

fn get_whole(reader: &mut Reader<'_>, head: u64) -> Result<PageAddr, FrameError> {
    if head != 1 {
        return Err(FrameError::Malformed("address"));
    }
    Ok(PageAddr { vm: reader.varint_as()?, block: reader.varint_as()?, page: reader.varint_as()? })
}
