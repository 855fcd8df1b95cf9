//! The work on a host that takes guests in.
//!
//! ```text
//! control connection ─┐
//! UDP threads ────────┼─► session thread (actor: core's TargetSession) ─► VM writers ─► incoming QEMUs
//! data connection ────┘                  ▲                                                  │
//!                                        └──────────────── return paths ────────────────────┘
//! ```
//!
//! - [`data`]: hands data connections to their sessions
//! - `actor`: the thread that feeds and drains the state machine
//! - `examined`: what this host says of itself to `doctor`; `hops`: connections to other targets
//! - `incoming`: starts incoming QEMUs, lets them run, ends them
//! - `pipe`: the two threads of each VM's migration socket

mod actor;
pub mod data;
pub(crate) mod examined;
mod hops;
pub(crate) mod incoming;
mod pipe;

use std::sync::Arc;
use std::time::Duration;

use vmscatter_core::page::{DigestKey, MacKey};
use vmscatter_core::session::SessionKeys;
use vmscatter_core::wire::control::Message;

use crate::agent::AgentContext;
use crate::agent::control::{ControlConnection, PeerError};
use actor::{Actor, Event, Session};

/// A source says how the session is set up within this time of connecting.
const OPEN_DEADLINE: Duration = Duration::from_secs(30);
/// Messages of the source that wait for the session thread; beyond that its connection is not read.
const MESSAGES_MAX: usize = 2;

/// Serves a source's session until its connection ends and every VM that came here has found its end.
pub async fn serve(ctx: Arc<AgentContext>, connection: ControlConnection) {
    let ControlConnection { sender, mut receiver, peer } = connection;
    let first = tokio::time::timeout(OPEN_DEADLINE, receiver.recv()).await;
    if let Ok(Ok(Some(Message::Close))) = first {
        return tracing::debug!(source = peer.name, "only asked what this host can take");
    }
    if let Ok(Ok(Some(Message::Inquire { vm, word }))) = first {
        return crate::recovery::exchange::serve(ctx, peer, sender, receiver, (vm, word)).await;
    }
    if let Ok(Ok(Some(Message::Examine { group, key }))) = first {
        return examined::answer(&ctx, &peer, &sender, group, key).await;
    }
    let Ok(Ok(Some(Message::Open { mac_key, digest_key, target, own_set, contact }))) = first else {
        tracing::warn!(source = peer.name, "the session was not opened");
        return;
    };
    let session = Session {
        keys: SessionKeys { mac: MacKey::new(&mac_key), digest: DigestKey::new(&digest_key) },
        target,
        own_set,
        contact,
        peer: peer.clone(),
        control: sender,
    };
    let (actor, events) = Actor::new(ctx.clone(), session, tokio::runtime::Handle::current());
    let thread = tokio::task::spawn_blocking(move || actor.run());
    let forward = async {
        let sink = |next| {
            let event = match next {
                Ok((message, place)) => Event::Control(message, place),
                Err(None) => Event::ControlLost("the source closed the connection".to_owned()),
                Err(Some(error)) => Event::ControlLost(PeerError::to_string(&error)),
            };
            events.send(event).is_ok()
        };
        receiver.forward(MESSAGES_MAX, sink).await;
        std::future::pending::<()>().await
    };
    tokio::select! {
        () = forward => {}
        ended = thread => {
            if let Err(error) = ended {
                tracing::error!(source = peer.name, "session thread broke: {error}");
            }
        }
    }
}
