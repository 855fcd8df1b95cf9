//! Sealing of pieces: AES-256-GCM under a key per target set, a packet number that is used once, and a replay
//! window at the receiver.
//!
//! The source is the only sender under a set's key. So that its threads need no common counter, each path counts
//! for itself: the 12 bytes of the nonce are two zero bytes, the *channel* (which path) and the packet number, both
//! big-endian. One [`SealKey`] may exist per key and channel, ever; a data connection that is made anew goes on with
//! the old one.
//!
//! A key proves that the sender is a member of the set or the source, not which of them it is; that a member can't
//! pass a forged page off as the source's follows from the digest that is checked before commit.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use super::window::NumberWindow;

/// Bytes of a set's key.
pub const KEY_BYTES: usize = 32;
/// Bytes that sealing adds behind the payload.
pub const TAG_BYTES: usize = 16;
/// Packets that one [`SealKey`] seals before the set needs a new key (that is, a new set number); far below the
/// 2^32 for which GCM is specified.
pub const SEAL_PACKETS_MAX: u64 = 1 << 28;
/// Bytes that one [`SealKey`] seals: 2^36 AES blocks leave a distinguisher odds of 2^-57.
pub const SEAL_BYTES_MAX: u64 = 1 << 40;
/// How far behind the newest packet number of a channel another may arrive.
pub const REPLAY_WINDOW_PACKETS: u64 = 8_192;

/// Which path a packet number belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Channel(pub u16);

impl Channel {
    /// Datagrams to the set's multicast group.
    pub const MULTICAST: Channel = Channel(0);
    /// Probes of reachability to the set's group, so that they leave no holes in the numbers of [`Channel::MULTICAST`].
    pub const PROBE: Channel = Channel(u16::MAX);
    /// What members pass on to each other over TCP.
    pub const RELAY: Channel = Channel(u16::MAX - 1);

    /// The data connection to one target.
    pub fn unicast(target: u16) -> Channel {
        debug_assert!((target as usize) < crate::limits::SESSION_TARGETS_MAX);
        Channel(target + 1)
    }
}

/// Why something could not be sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The key has sealed [`SEAL_PACKETS_MAX`] packets or [`SEAL_BYTES_MAX`] bytes.
    #[error("the set's key is used up")]
    KeyUsedUp,
}

/// Why something could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The number was seen before or lies behind the window.
    #[error("packet number seen before, or too old")]
    Replayed,
    /// The tag does not fit: forged, damaged, or of another key or channel.
    #[error("authentication failed")]
    Forged,
}

fn aead_key(key: &[u8; KEY_BYTES]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("the key has AES-256-GCM's length"))
}

fn nonce(channel: Channel, number: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[2..4].copy_from_slice(&channel.0.to_be_bytes());
    bytes[4..].copy_from_slice(&number.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// The sender's side of one channel of a set's key.
pub struct SealKey {
    key: LessSafeKey,
    channel: Channel,
    next: u64,
    bytes: u64,
}

impl SealKey {
    /// The sealing end of `channel` under `key`.
    ///
    /// At most one may ever exist per key and channel, since two would use the same nonces.
    pub fn new(key: &[u8; KEY_BYTES], channel: Channel) -> Self {
        SealKey { key: aead_key(key), channel, next: 0, bytes: 0 }
    }

    /// The channel whose numbers this key counts.
    pub fn channel(&self) -> Channel {
        self.channel
    }

    /// The number that the next packet will have.
    pub fn next_number(&self) -> u64 {
        self.next
    }

    /// Whether it has sealed `bytes` bytes, or half of the packets that it may: time for a new one.
    pub fn is_worn(&self, bytes: u64) -> bool {
        self.bytes >= bytes || self.next >= SEAL_PACKETS_MAX / 2
    }

    /// Encrypts `payload` in place with `header` authenticated beside it; returns the tag.
    ///
    /// The header must carry [`SealKey::next_number`], which is used up also if the caller drops the packet.
    ///
    /// # Errors
    /// [`SealError::KeyUsedUp`]; nothing has been encrypted then.
    pub fn seal(&mut self, header: &[u8], payload: &mut [u8]) -> Result<[u8; TAG_BYTES], SealError> {
        let bytes = self.bytes.saturating_add(payload.len() as u64);
        if self.next >= SEAL_PACKETS_MAX || bytes > SEAL_BYTES_MAX {
            return Err(SealError::KeyUsedUp);
        }
        let nonce = nonce(self.channel, self.next);
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce, Aad::from(header), payload)
            .expect("a piece is far shorter than what GCM takes");
        self.next += 1;
        self.bytes = bytes;
        let mut out = [0; TAG_BYTES];
        out.copy_from_slice(tag.as_ref());
        Ok(out)
    }
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealKey").field("channel", &self.channel).field("next", &self.next).finish()
    }
}

/// The receiver's side of a set's key: opens what the listed channels carry, each number once.
pub struct OpenKey {
    key: LessSafeKey,
    windows: Vec<(Channel, NumberWindow)>,
}

impl OpenKey {
    /// The opening end of `key` for packets of `channels` (a few); those of others count as forged.
    pub fn new(key: &[u8; KEY_BYTES], channels: &[Channel]) -> Self {
        let windows =
            channels.iter().map(|channel| (*channel, NumberWindow::new(REPLAY_WINDOW_PACKETS))).collect();
        OpenKey { key: aead_key(key), windows }
    }

    /// Decrypts `sealed` (payload and tag) in place; returns the payload.
    ///
    /// # Errors
    /// [`OpenError::Replayed`], found without touching `sealed`, or [`OpenError::Forged`], after which `sealed` holds
    /// nothing of use. Only a packet that is genuine moves the window.
    pub fn open<'a>(
        &mut self,
        channel: Channel,
        number: u64,
        header: &[u8],
        sealed: &'a mut [u8],
    ) -> Result<&'a mut [u8], OpenError> {
        let (_, window) = self.windows.iter_mut().find(|(of, _)| *of == channel).ok_or(OpenError::Forged)?;
        if window.is_seen(number) {
            return Err(OpenError::Replayed);
        }
        let nonce = nonce(channel, number);
        let payload =
            self.key.open_in_place(nonce, Aad::from(header), sealed).map_err(|_| OpenError::Forged)?;
        window.mark(number);
        Ok(payload)
    }

    /// One more than the highest number that was opened on `channel`; zero before the first.
    pub fn seen_below(&self, channel: Channel) -> u64 {
        self.windows.iter().find(|(of, _)| *of == channel).map_or(0, |(_, window)| window.below())
    }
}

impl fmt::Debug for OpenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenKey").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (SealKey, OpenKey) {
        let key = [5; KEY_BYTES];
        (
            SealKey::new(&key, Channel::MULTICAST),
            OpenKey::new(&key, &[Channel::MULTICAST, Channel::unicast(2)]),
        )
    }

    fn seal(key: &mut SealKey, header: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut out = payload.to_vec();
        let tag = key.seal(header, &mut out).unwrap();
        out.extend_from_slice(&tag);
        out
    }

    #[test]
    fn opens_once_and_only_unchanged() {
        let (mut source, mut target) = pair();
        let sealed = seal(&mut source, b"header", b"payload");
        let mut copy = sealed.clone();
        assert_eq!(target.open(Channel::MULTICAST, 0, b"heeder", &mut copy), Err(OpenError::Forged));
        assert_eq!(
            target.open(Channel::MULTICAST, 1, b"header", &mut sealed.clone()),
            Err(OpenError::Forged)
        );
        assert_eq!(
            target.open(Channel::unicast(2), 0, b"header", &mut sealed.clone()),
            Err(OpenError::Forged)
        );
        assert_eq!(
            target.open(Channel::unicast(3), 0, b"header", &mut sealed.clone()),
            Err(OpenError::Forged)
        );
        for at in 0..sealed.len() {
            let mut copy = sealed.clone();
            copy[at] ^= 1;
            assert_eq!(target.open(Channel::MULTICAST, 0, b"header", &mut copy), Err(OpenError::Forged));
        }
        assert_eq!(target.seen_below(Channel::MULTICAST), 0, "a forgery moves nothing");
        assert_eq!(target.open(Channel::MULTICAST, 0, b"header", &mut sealed.clone()).unwrap(), b"payload");
        assert_eq!(
            target.open(Channel::MULTICAST, 0, b"header", &mut sealed.clone()),
            Err(OpenError::Replayed)
        );
        assert_eq!(target.seen_below(Channel::MULTICAST), 1);
    }

    #[test]
    fn stops_before_the_key_is_worn_out() {
        let (mut source, _) = pair();
        source.next = SEAL_PACKETS_MAX - 1;
        source.seal(b"", &mut [0]).unwrap();
        assert_eq!(source.seal(b"", &mut [0]), Err(SealError::KeyUsedUp));
        let (mut source, _) = pair();
        source.bytes = SEAL_BYTES_MAX;
        assert_eq!(source.seal(b"", &mut [0]), Err(SealError::KeyUsedUp));
    }
}
