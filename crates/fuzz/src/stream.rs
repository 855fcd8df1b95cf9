//! QEMU's stream and its return path.

use vmscatter_core::qemu_stream::{Event, ParseError, Parser, ReturnError, ReturnMessage, ReturnParser};

use crate::input::Input;

/// An event without the parser's bytes; what is raw is told as one, however it was cut.
#[derive(Debug, PartialEq)]
enum Seen {
    Raw(Vec<u8>),
    Start(u32, usize),
    Page(u16, u32, Vec<u8>),
    Zero(u16, u32),
    PartEnd,
    Flush,
    RamEnd,
}

fn events(stream: &[u8], piece: usize) -> (Vec<Seen>, Option<ParseError>, Option<ParseError>) {
    let (mut parser, mut seen, mut blocks) = (Parser::new(), Vec::new(), 0);
    for bytes in stream.chunks(piece) {
        let fed = parser.feed(bytes, |event| -> Result<(), ParseError> {
            let event = match event {
                Event::Raw(bytes) => match seen.last_mut() {
                    Some(Seen::Raw(before)) => {
                        before.extend_from_slice(bytes);
                        return Ok(());
                    }
                    _ => Seen::Raw(bytes.to_vec()),
                },
                Event::RamStart { section_id, blocks: list } => {
                    blocks = list.len();
                    Seen::Start(section_id, list.len())
                }
                Event::Page { block, page, data } => Seen::Page(block, page, data.to_vec()),
                Event::Zero { block, page } => Seen::Zero(block, page),
                Event::PartEnd => Seen::PartEnd,
                Event::MultifdFlush => Seen::Flush,
                Event::RamEnd => Seen::RamEnd,
            };
            if let Seen::Page(block, ..) | Seen::Zero(block, _) = &event {
                assert!(usize::from(*block) < blocks, "a page of a block that there is not");
            }
            seen.push(event);
            Ok(())
        });
        if let Err(error) = fed {
            let again = parser.next_event(&mut &[0; 9][..]).err();
            assert_eq!(again.as_ref(), Some(&error), "a failed parser goes on");
            return (seen, Some(error), None);
        }
    }
    (seen, None, parser.finish().err())
}

/// How the stream is cut changes neither what it says nor where it is refused. The first byte says how it is cut.
pub fn forward(data: &[u8]) {
    let mut input = Input(data);
    let piece = usize::from(input.byte()) + 1;
    let whole = events(input.0, input.0.len().max(1));
    assert_eq!(events(input.0, piece), whole);
}

fn messages(bytes: &[u8], piece: usize) -> (Vec<(ReturnMessage, Vec<u8>)>, Option<ReturnError>) {
    let (mut parser, mut seen) = (ReturnParser::new(), Vec::new());
    for mut input in bytes.chunks(piece) {
        loop {
            match parser.next_message(&mut input) {
                Ok(Some((message, raw))) => seen.push((message, raw.to_vec())),
                Ok(None) => break,
                Err(error) => return (seen, Some(error)),
            }
        }
    }
    (seen, None)
}

/// The same of the return path; nothing follows SHUT.
pub fn back(data: &[u8]) {
    let mut input = Input(data);
    let piece = usize::from(input.byte() % 16) + 1;
    let whole = messages(input.0, input.0.len().max(1));
    assert_eq!(messages(input.0, piece), whole);
    let before = whole.0.split_last().map_or(&[][..], |(_, before)| before);
    assert!(!before.iter().any(|(message, _)| matches!(message, ReturnMessage::Shut { .. })));
}
