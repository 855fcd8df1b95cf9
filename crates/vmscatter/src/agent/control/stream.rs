//! Messages on the wire, and the two tasks that read and write them.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, timeout, timeout_at};
use vmscatter_core::wire::control::{ControlError, Envelope, Message, Uuid};

use super::{Fault, Incoming, PING_INTERVAL, QUEUE_BYTES_MAX, SILENCE_MAX, WRITE_DEADLINE};

/// The next envelope and the length of its body; `None` at the end of the stream, between messages.
pub(super) async fn read_envelope<R: AsyncRead + Unpin>(
    stream: &mut R,
) -> Result<Option<(Envelope, usize)>, Fault> {
    let lost = |e| Fault::Lost(Arc::new(e));
    let mut prefix = [0; 4];
    if stream.read(&mut prefix[..1]).await.map_err(lost)? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut prefix[1..]).await.map_err(lost)?;
    let len = Envelope::body_len(prefix).map_err(Fault::Malformed)?;
    // Grows as bytes arrive, never by what the prefix says.
    let mut body = Vec::new();
    stream.take(len as u64).read_to_end(&mut body).await.map_err(lost)?;
    if body.len() < len {
        return Err(Fault::Malformed(ControlError::Malformed));
    }
    let envelope = Envelope::decode(&body).map_err(Fault::Malformed)?;
    Ok(Some((envelope, len)))
}

pub(super) async fn write_message<W: AsyncWrite + Unpin>(
    stream: &mut W,
    session: Uuid,
    message: Message,
) -> Result<(), Fault> {
    let bytes = Envelope { session, message }.encode().map_err(Fault::TooLong)?;
    let write = async {
        stream.write_all(&bytes).await?;
        stream.flush().await
    };
    match timeout(WRITE_DEADLINE, write).await {
        Ok(result) => result.map_err(|e| Fault::Lost(Arc::new(e))),
        Err(_) => Err(Fault::Stalled),
    }
}

/// Reads until the peer closes in order (`Ok`), or until the session has dropped its receiver (`Ok`).
pub(super) async fn read_loop<R: AsyncRead + Unpin>(
    mut stream: R,
    session: Uuid,
    queue: &mpsc::Sender<Incoming>,
    pong: watch::Sender<Option<u64>>,
) -> Result<(), Fault> {
    let room = Arc::new(Semaphore::new(QUEUE_BYTES_MAX));
    loop {
        let read = timeout(SILENCE_MAX, read_envelope(&mut stream));
        let next = tokio::select! {
            next = read => next.map_err(|_| Fault::Silent)??,
            () = queue.closed() => return Ok(()),
        };
        let Some((envelope, len)) = next else { return Ok(()) };
        if envelope.session != session {
            return Err(Fault::Session);
        }
        match envelope.message {
            Message::Hello(_) => return Err(Fault::Session),
            Message::Ping(number) => {
                pong.send_replace(Some(number));
            }
            Message::Pong(_) => {}
            message => {
                // While the session is slow nothing is read; its own deadlines decide how long that may last.
                let permits = u32::try_from(len).unwrap_or(u32::MAX);
                let Ok(room) = room.clone().acquire_many_owned(permits).await else { return Ok(()) };
                if queue.send(Incoming { message, _room: room }).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

/// Writes until the session has dropped its senders and all is written.
pub(super) async fn write_loop<W: AsyncWrite + Unpin>(
    mut stream: W,
    session: Uuid,
    queue: &mut mpsc::Receiver<Message>,
    mut pongs: watch::Receiver<Option<u64>>,
) -> Result<(), Fault> {
    let mut pings = 0;
    let mut reader_lives = true;
    loop {
        let quiet_until = Instant::now() + PING_INTERVAL;
        let message = tokio::select! {
            changed = pongs.changed(), if reader_lives => match changed {
                Ok(()) => pongs.borrow_and_update().map(Message::Pong),
                Err(_) => {
                    reader_lives = false;
                    None
                }
            },
            next = timeout_at(quiet_until, queue.recv()) => match next {
                Ok(Some(message)) => Some(message),
                Ok(None) => break,
                Err(_) => {
                    pings += 1;
                    Some(Message::Ping(pings))
                }
            },
        };
        if let Some(message) = message {
            write_message(&mut stream, session, message).await?;
        }
    }
    match timeout(WRITE_DEADLINE, stream.shutdown()).await {
        Ok(result) => result.map_err(|e| Fault::Lost(Arc::new(e))),
        Err(_) => Err(Fault::Stalled),
    }
}
