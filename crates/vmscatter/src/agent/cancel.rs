//! A flag that many can wait for, from tasks and from threads.

use std::sync::Arc;

use tokio::sync::watch;

/// Tells work to stop; clones share the flag, and it is never taken back.
#[derive(Clone, Debug)]
pub struct CancelToken {
    flag: Arc<watch::Sender<bool>>,
}

impl CancelToken {
    /// A token that is not cancelled.
    pub fn new() -> CancelToken {
        CancelToken { flag: Arc::new(watch::Sender::new(false)) }
    }

    /// Cancels; a second call changes nothing.
    pub fn cancel(&self) {
        self.flag.send_replace(true);
    }

    /// Whether [`CancelToken::cancel`] was called; for threads, which look now and then.
    pub fn is_cancelled(&self) -> bool {
        *self.flag.borrow()
    }

    /// Returns once the token is cancelled, at once if it is.
    pub async fn cancelled(&self) {
        // The sender lives in self, so the wait ends only by the flag.
        let _ = self.flag.subscribe().wait_for(|cancelled| *cancelled).await;
    }
}

impl Default for CancelToken {
    fn default() -> CancelToken {
        CancelToken::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn wakes_all_clones_and_stays() {
        let token = CancelToken::new();
        assert!(!token.is_cancelled());
        let waiter = tokio::spawn({
            let token = token.clone();
            async move { token.cancelled().await }
        });
        token.cancel();
        waiter.await.unwrap();
        token.cancelled().await;
        assert!(token.is_cancelled());
    }
}
