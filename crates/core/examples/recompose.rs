//! Filter from a QEMU migration stream on stdin to one that means the same on stdout: every page record is taken
//! apart and written anew. `scripts/record-streams check` puts it between two QEMUs.

use std::io::{Read, Write, stdin, stdout};

use vmscatter_core::qemu_stream::{Composer, Event, Parser};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (mut parser, mut composer) = (Parser::new(), Composer::new());
    let (mut buffer, mut out) = (vec![0; 64 * 1024], Vec::new());
    loop {
        let read = stdin().read(&mut buffer)?;
        if read == 0 {
            return Ok(parser.finish()?);
        }
        let mut input = &buffer[..read];
        while let Some(event) = parser.next_event(&mut input)? {
            match event {
                Event::Raw(bytes) => composer.raw(&mut out, bytes),
                Event::RamStart { section_id, blocks } => composer.ram_start(section_id, blocks.to_vec())?,
                Event::Page { block, page, data } => composer.page(&mut out, block, page, data)?,
                Event::Zero { block, page } => composer.zero(&mut out, block, page)?,
                Event::PartEnd | Event::MultifdFlush => {}
                Event::RamEnd => composer.ram_end(&mut out)?,
            }
        }
        stdout().write_all(&out)?;
        stdout().flush()?;
        out.clear();
    }
}
