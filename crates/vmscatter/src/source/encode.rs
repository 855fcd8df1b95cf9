//! Threads that encode frames: compression is the dearest step, and frames need no common order until they are applied.

use std::sync::Arc;

use crossbeam_channel::{Sender, bounded};
use vmscatter_core::wire::frame::{Compression, Encoder};

/// Frames that wait for a thread; beyond that whoever submits waits.
const WAITING_MAX: usize = 32;

type Work = Box<dyn FnOnce(&mut Encoder, Compression) + Send>;

/// The threads; they end when the pool is dropped.
#[derive(Debug)]
pub(super) struct EncodePool {
    queue: Sender<Work>,
}

impl EncodePool {
    /// As many threads as said.
    ///
    /// # Errors
    /// There are no threads to be had.
    pub(super) fn start(threads: usize, compression: Compression) -> std::io::Result<Arc<EncodePool>> {
        let (queue, work) = bounded::<Work>(WAITING_MAX);
        for number in 0..threads.max(1) {
            let work = work.clone();
            let body = move || {
                let mut encoder = Encoder::new();
                work.iter().for_each(|work| work(&mut encoder, compression));
            };
            std::thread::Builder::new().name(format!("encode-{number}")).spawn(body)?;
        }
        Ok(Arc::new(EncodePool { queue }))
    }

    /// Queues a frame's work.
    pub(super) fn submit(&self, work: Work) {
        // The threads live as long as the queue.
        let _ = self.queue.send(work);
    }
}
