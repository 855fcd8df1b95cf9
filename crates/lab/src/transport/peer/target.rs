//! A receiver: joins, puts frames together, compares them, acknowledges.

use std::io::{BufReader, Read};
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use crossbeam_channel::{bounded, unbounded};
use vmscatter::agent::host::Interface;
use vmscatter::net::data::read_pieces;
use vmscatter::net::udp::GroupReceivers;
use vmscatter_core::time::Time;
use vmscatter_core::transport::{Receiver, ReceiverConfig};
use vmscatter_core::wire::control::Message;
use vmscatter_core::wire::seal::{Channel, OpenKey};

use super::{Bodies, SET, TargetResult, Task, control, cpu_seconds, own_set};

/// As in the product's session thread.
const BATCHES_MAX: usize = 32;
const IDLE: Duration = Duration::from_millis(50);

pub(super) fn run(task: &Task, number: u16) -> Result<TargetResult> {
    let own = task.targets[usize::from(number)];
    let control = TcpListener::bind((own, control::CONTROL_PORT))?;
    let data = TcpListener::bind((own, control::DATA_PORT))?;
    let (to_batches, batches) = bounded(BATCHES_MAX);
    let (to_messages, messages) = unbounded();
    let mut groups = GroupReceivers::new();
    let interface = Interface::with_address(own.into())?;
    let source = Some(task.source.into());
    groups.join(task.group, source, &interface, &to_batches).context("joining")?;
    println!("ready");

    let (mut control_out, from) = control.accept()?;
    control_out.set_nodelay(true)?;
    let mut control_in = BufReader::new(control_out.try_clone()?);
    std::thread::spawn(move || {
        while let Ok(Some(message)) = control::receive(&mut control_in) {
            if to_messages.send(message).is_err() {
                return;
            }
        }
    });
    let (mut socket, _) = data.accept()?;
    let mut prefix = [0; 4];
    socket.read_exact(&mut prefix)?;
    let mut hello = vec![0; u32::from_be_bytes(prefix) as usize];
    socket.read_exact(&mut hello)?;

    let start = Instant::now();
    let now = || Time(start.elapsed().as_micros() as u64);
    let config = ReceiverConfig { session: task.session, target: number, ..Default::default() };
    let mut receiver = Receiver::new(config, Time::ZERO);
    let channels = [Channel::MULTICAST, Channel::PROBE, Channel::unicast(number)];
    for set in [SET, own_set(number)] {
        receiver.add_set(set, OpenKey::new(&task.key(set), &channels));
    }
    anyhow::ensure!(receiver.is_hello(&mut hello, own_set(number)), "a false hello from {}", addr(from));
    std::thread::spawn(move || read_pieces(socket, &to_batches));

    let (bodies, mut result) = (Bodies::new(task), TargetResult::default());
    let cpu = cpu_seconds()?;
    loop {
        let idle = receiver.poll_timeout().map_or(IDLE, |at| at.since(now()).min(IDLE));
        crossbeam_channel::select! {
            recv(messages) -> message => match message {
                Ok(Message::Sent(spans)) => receiver.on_sent(now(), &spans),
                Ok(Message::Leave { .. }) => groups.leave(task.group, source, &interface)?,
                Ok(_) => {}
                // The source has heard all it needs.
                Err(_) => break,
            },
            recv(batches) -> batch => if let Ok(mut batch) = batch {
                let now = now();
                for piece in batch.pieces_mut() {
                    receiver.on_piece(now, piece);
                }
            },
            default(idle) => {}
        }
        while let Some((frame, _, body)) = receiver.poll_frame() {
            if body == bodies.body(frame % task.frames()) {
                result.good_bytes += body.len() as u64;
            } else {
                result.wrong_frames += 1;
            }
            receiver.written(frame);
        }
        while let Some((set, _)) = receiver.poll_probe() {
            let _ = control::send(&mut control_out, Message::Heard { set });
        }
        if receiver.is_link_due(now())
            && let Some(bytes) = interface.received_bytes()
        {
            let counters = receiver.count_link(now(), bytes);
            let _ = control::send(&mut control_out, Message::LinkCounters(counters));
        }
        if let Some(report) = receiver.poll_report(now())
            && control::send(&mut control_out, Message::Report(report)).is_err()
        {
            break;
        }
    }
    let counters = receiver.counters();
    result.cpu_seconds = cpu_seconds()? - cpu;
    result.opened = counters.opened;
    result.duplicate = counters.duplicate;
    result.replayed = counters.replayed;
    result.dropped = counters.malformed
        + counters.unknown_session
        + counters.unknown_set
        + counters.forged
        + counters.replayed
        + counters.inconsistent
        + counters.over_limit;
    result.kernel_drops = groups.kernel_drops();
    Ok(result)
}

fn addr(from: SocketAddr) -> String {
    from.ip().to_string()
}
