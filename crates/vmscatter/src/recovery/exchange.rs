//! What the two sides say to each other about a guest: an inquiry that tells, an answer that tells.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use vmscatter_core::journal::{Step, VmKey, VmRecord};
use vmscatter_core::session::recovery::{
    Heard, Note, SourceWord, TargetWord, Word, source_word, target_word,
};
use vmscatter_core::wire::control::{Message, Resources, Uuid};

use super::{conclude, source, target};
use crate::agent::AgentContext;
use crate::agent::control::{ControlConnection, ControlReceiver, ControlSender, PeerInfo, hello};
use crate::agent::guest_file::format_uuid;
use crate::agent::input::one_line;

/// An answer comes within this time; the other side may have a guest to resume first.
const ANSWER_DEADLINE: Duration = Duration::from_secs(20);
/// The other side acts within this time, or says that it is at work.
const ACT_DEADLINE: Duration = Duration::from_secs(15);
/// A peer that has nothing more to ask hangs up within this time.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// Talks to the other side about one guest; connects when there is something to say.
pub(super) struct Conversation {
    key: VmKey,
    peer: vmscatter_core::journal::Peer,
    connection: Option<ControlConnection>,
    /// Why the other side can't be reached: it is not tried twice in one go.
    failure: Option<String>,
}

impl Conversation {
    pub(super) fn with(record: &VmRecord) -> Conversation {
        Conversation { key: record.key, peer: record.facts.peer.clone(), connection: None, failure: None }
    }

    /// Says where this side stands, and hears where the other does.
    pub(super) async fn ask(&mut self, ctx: &AgentContext, word: Word) -> Heard<Word> {
        if self.failure.is_some() {
            return Heard::Unreachable;
        }
        match self.try_ask(ctx, word).await {
            Ok(word) => Heard::Word(word),
            Err(text) => {
                tracing::debug!(peer = self.peer.name, "recovery: {text}");
                (self.connection, self.failure) = (None, Some(one_line(&text)));
                Heard::Unreachable
            }
        }
    }

    async fn try_ask(&mut self, ctx: &AgentContext, word: Word) -> Result<Word, String> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => {
                let ours = hello(&ctx.config.name, Resources::default());
                let (addr, name) = (self.peer.addr, &self.peer.name);
                let connect = ControlConnection::connect(addr, name, &ctx.tls, ours, self.key.session);
                none.insert(connect.await.map_err(|e| e.to_string())?)
            }
        };
        let inquiry = Message::Inquire { vm: self.key.vm, word };
        connection.sender.send(inquiry).await.map_err(|e| e.to_string())?;
        match timeout(ANSWER_DEADLINE, connection.receiver.recv()).await {
            Ok(Ok(Some(Message::Answer { vm, word }))) if vm == self.key.vm => Ok(word),
            Ok(Ok(_)) => Err(format!("{} does not answer what it was asked", self.peer.name)),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("{}: no answer within {} s", self.peer.name, ANSWER_DEADLINE.as_secs())),
        }
    }

    /// A note, with what is known of the other side.
    pub(super) fn explain(&self, note: Note) -> String {
        match &self.failure {
            Some(failure) => format!("{note} ({failure})"),
            None => note.to_string(),
        }
    }
}

/// Answers a peer that asks about guests of one session, until it hangs up.
pub async fn serve(
    ctx: Arc<AgentContext>,
    peer: PeerInfo,
    sender: ControlSender,
    mut receiver: ControlReceiver,
    first: (Uuid, Word),
) {
    let mut inquiry = Some(first);
    while let Some((vm, word)) = inquiry.take() {
        let word = answer(&ctx, &peer, VmKey { session: peer.session, vm }, word).await;
        if sender.send(Message::Answer { vm, word }).await.is_err() {
            return;
        }
        if let Ok(Ok(Some(Message::Inquire { vm, word }))) = timeout(IDLE_MAX, receiver.recv()).await {
            inquiry = Some((vm, word));
        }
    }
}

/// Draws this side's conclusions from what the other says, and says where this side stands then.
async fn answer(ctx: &Arc<AgentContext>, peer: &PeerInfo, key: VmKey, said: Word) -> Word {
    let we_are_source = matches!(said, Word::Target(_));
    let nothing = match we_are_source {
        true => Word::Source(SourceWord::Unknown { journal: ctx.journal.id() }),
        false => Word::Target(TargetWord::Unknown),
    };
    let busy = match we_are_source {
        true => Word::Source(SourceWord::Busy),
        false => Word::Target(TargetWord::Busy),
    };
    let Some(record) = ctx.journal.get(&key) else { return nothing };
    if !record.facts.peer.name.eq_ignore_ascii_case(&peer.name) || is_source(&record) != we_are_source {
        tracing::warn!(peer = peer.name, vm = format_uuid(&key.vm), "asks about a guest that is not its own");
        return nothing;
    }
    if ctx.recovery.is_live(&key) {
        return busy;
    }
    let mut done = Vec::new();
    match timeout(ACT_DEADLINE, conclude(ctx, key, Heard::Word(said), false, &mut done)).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => {
            tracing::warn!(guest = record.facts.name, peer = peer.name, "recovery: {error}");
        }
        // What was begun is found again by its step.
        Err(_) => return busy,
    }
    let Some(record) = ctx.journal.get(&key) else { return nothing };
    match record.step {
        _ if ctx.recovery.is_live(&key) => busy,
        Step::Source(step) => Word::Source(source_word(step, source::look(&record).await.qemu)),
        Step::Target(step) => Word::Target(target_word(step, target::look(&record).await.qemu)),
    }
}

fn is_source(record: &VmRecord) -> bool {
    matches!(record.step, Step::Source(_))
}
