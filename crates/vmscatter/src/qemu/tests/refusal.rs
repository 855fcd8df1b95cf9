//! What keeps a guest from being moved: against real QEMUs where the device can be had, else against a script.

use serde_json::{Value, json};
use tokio::net::UnixListener;

use super::client::{Monitor, connected};
use super::real::Guest;
use crate::qemu::monitor::Features;
use crate::qemu::refusal::{Refusal, refusals};

const FEATURES: Features = Features {
    return_path: true,
    events: true,
    switchover_ack: false,
    late_block_activate: true,
    pause_before_switchover: true,
    avail_switchover_bandwidth: false,
    zero_page_detection: false,
    query_ramblock: true,
};

/// What a QEMU with nothing special answers.
fn plain(command: &str, arguments: &Value) -> Option<Value> {
    Some(match (command, arguments["path"].as_str(), arguments["property"].as_str()) {
        ("query-migrate", ..) => json!({}),
        ("query-migrate-capabilities", ..) => json!([{ "capability": "events", "state": true }]),
        ("query-migrate-parameters", ..) => json!({ "tls-creds": "", "mode": "normal" }),
        ("query-status", ..) => json!({ "status": "running", "running": true }),
        ("query-jobs", ..) => json!([{ "id": "old", "type": "backup", "status": "concluded" }]),
        ("qom-list", ..) => json!([{ "name": "type", "type": "string" }]),
        ("qom-get", Some("/machine"), Some("confidential-guest-support")) => json!(""),
        ("query-sev", ..) => json!({ "enabled": false }),
        _ => return None,
    })
}

async fn serve(monitor: &mut Monitor, special: impl Fn(&str, &Value) -> Option<Value>) -> ! {
    loop {
        let line = monitor.hear().await;
        let command = line["execute"].as_str().unwrap_or_default();
        let answer = special(command, &line["arguments"]).or_else(|| plain(command, &line["arguments"]));
        let reply = match answer {
            Some(answer) => json!({ "return": answer, "id": line["id"] }),
            None => json!({ "error": { "class": "GenericError", "desc": "no" }, "id": line["id"] }),
        };
        monitor.say(&reply.to_string()).await;
    }
}

/// What is refused of a QEMU whose answers to some commands are special.
async fn scripted(features: Features, special: impl Fn(&str, &Value) -> Option<Value>) -> Vec<Refusal> {
    let (qmp, _events, mut monitor) = connected().await;
    tokio::select! {
        found = refusals(&qmp, &features) => found.expect("answers"),
        never = serve(&mut monitor, special) => never,
    }
}

fn on(command: &'static str, answer: Value) -> impl Fn(&str, &Value) -> Option<Value> {
    move |asked, _| (asked == command).then(|| answer.clone())
}

#[tokio::test]
async fn nothing_special_is_not_refused() {
    assert_eq!(scripted(FEATURES, |_, _| None).await, []);
    // QEMU before 7.0, or of another processor, has no query-sev.
    let without = |command: &str, arguments: &Value| match command {
        "qom-get" | "query-sev" => None,
        _ => plain(command, arguments),
    };
    assert_eq!(scripted(FEATURES, without).await, []);
}

#[tokio::test]
async fn capabilities_and_parameters_are_refused_by_name() {
    for name in ["x-ignore-shared", "multifd", "postcopy-ram", "mapped-ram", "block"] {
        let states =
            json!([{ "capability": name, "state": true }, { "capability": "xbzrle", "state": false }]);
        let found = scripted(FEATURES, on("query-migrate-capabilities", states)).await;
        assert_eq!(found, [Refusal::Capability(name.into())]);
    }
    let found = scripted(Features { return_path: false, ..FEATURES }, |_, _| None).await;
    assert_eq!(found, [Refusal::NoCapability("return-path")]);
    let parameters = json!({ "tls-creds": "tls0", "mode": "cpr-reboot" });
    let found = scripted(FEATURES, on("query-migrate-parameters", parameters)).await;
    assert_eq!(found, [Refusal::Tls, Refusal::Mode("cpr-reboot".into())]);
}

#[tokio::test]
async fn states_and_blockers_are_refused() {
    for status in ["setup", "active", "cancelling", "postcopy-paused", "wait-unplug", "device"] {
        let found = scripted(FEATURES, on("query-migrate", json!({ "status": status }))).await;
        assert_eq!(found, [Refusal::Migrating], "{status}");
    }
    for status in ["completed", "failed", "cancelled", "none"] {
        assert_eq!(scripted(FEATURES, on("query-migrate", json!({ "status": status }))).await, []);
    }
    let reasons =
        json!({ "blocked-reasons": ["VFIO device doesn't\nsupport migration", "x".repeat(10_000)] });
    let found = scripted(FEATURES, on("query-migrate", reasons)).await;
    assert_eq!(found.len(), 2);
    assert_eq!(found[0], Refusal::Blocked("VFIO device doesn't support migration".into()));
    assert!(found.iter().all(|refusal| refusal.to_string().len() < 500));
    for status in ["inmigrate", "shutdown", "postmigrate", "guest-panicked", "io-error", "colo"] {
        let state = json!({ "status": status, "running": false });
        assert_eq!(scripted(FEATURES, on("query-status", state)).await, [Refusal::State(status.into())]);
    }
}

#[tokio::test]
async fn passed_through_devices_are_refused_by_name() {
    let devices = |command: &str, arguments: &Value| {
        let children = match arguments["path"].as_str()? {
            "/machine/peripheral" => json!([{ "name": "hostdev0", "type": "child<vfio-pci>" }]),
            _ => json!([{ "name": "device[0]", "type": "child<x-vfio-user-pci>" },
                        { "name": "device[1]", "type": "child<virtio-balloon-pci>" }]),
        };
        (command == "qom-list").then_some(children)
    };
    let expected = [("hostdev0", "vfio-pci"), ("device[0]", "x-vfio-user-pci")]
        .map(|(name, kind)| Refusal::Vfio(name.into(), kind.into()));
    assert_eq!(scripted(FEATURES, devices).await, expected);
}

#[tokio::test]
async fn confidential_guests_are_refused_by_kind() {
    let tdx = |command: &str, arguments: &Value| match (command, arguments["path"].as_str()?) {
        ("qom-get", "/machine") => Some(json!("/objects/tdx0")),
        ("qom-get", "/objects/tdx0") => Some(json!("tdx-guest")),
        _ => None,
    };
    assert_eq!(scripted(FEATURES, tdx).await, [Refusal::Confidential("tdx-guest".into())]);
    let sev = on("query-sev", json!({ "enabled": true, "state": "running" }));
    assert_eq!(scripted(FEATURES, sev).await, [Refusal::Confidential("SEV".into())]);
}

async fn refused(guest: &Guest) -> Vec<Refusal> {
    let features = guest.qmp.features().await.expect("features");
    refusals(&guest.qmp, &features).await.expect("answers")
}

#[tokio::test]
async fn real_devices_are_refused_by_name() {
    let plain = Guest::start(&["-M", "pc", "-device", "virtio-balloon-pci"]).await;
    assert_eq!(refused(&plain).await, []);
    let guest = Guest::start(&[
        "-M",
        "pc",
        "-m",
        "16M,slots=2,maxmem=256M",
        "-object",
        "memory-backend-ram,id=more,size=64M",
        "-device",
        "virtio-mem-pci,id=mem0,memdev=more",
        "-object",
        "iothread,id=io",
        "-device",
        "virtio-balloon-pci,id=balloon0,free-page-hint=on,iothread=io",
        "-blockdev",
        "driver=null-co,node-name=n0",
        "-device",
        "nvme,serial=1,drive=n0",
    ])
    .await;
    let found = refused(&guest).await;
    assert!(found.contains(&Refusal::VirtioMem("mem0".into())), "{found:?}");
    assert!(found.contains(&Refusal::FreePageHint("balloon0".into())), "{found:?}");
    let nvme = |refusal: &Refusal| matches!(refusal, Refusal::Blocked(reason) if reason.contains("nvme"));
    assert!(found.iter().any(nvme), "{found:?}");
    assert_eq!(found.len(), 3);
}

#[tokio::test]
async fn a_block_job_under_way_is_refused_until_it_is_cancelled() {
    let mut guest = Guest::start(&[
        "-M",
        "pc",
        "-blockdev",
        "driver=null-co,node-name=from,size=67108864",
        "-blockdev",
        "driver=null-co,node-name=to,size=67108864",
        "-device",
        "virtio-blk-pci,drive=from",
    ])
    .await;
    let mirror = json!({ "job-id": "copy", "device": "from", "target": "to", "sync": "full", "speed": 1 });
    guest.qmp.execute("blockdev-mirror", mirror).await.expect("mirror");
    let found = refused(&guest).await;
    assert!(
        matches!(&found[..], [Refusal::BlockJob(id, kind, _)] if id == "copy" && kind == "mirror"),
        "{found:?}"
    );
    guest.qmp.execute("block-job-cancel", json!({ "device": "copy", "force": true })).await.expect("cancel");
    while guest.events.recv().await.expect("events").name != "BLOCK_JOB_CANCELLED" {}
    while !refused(&guest).await.is_empty() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_second_migration_is_refused_while_the_first_is_under_way() {
    let guest = Guest::start(&["-M", "pc"]).await;
    let path = guest.directory.path().join("target");
    let listener = UnixListener::bind(&path).expect("bind");
    let slow = json!({ "max-bandwidth": 4096 });
    guest.qmp.execute("migrate-set-parameters", slow).await.expect("parameters");
    let uri = format!("unix:{}", path.display());
    let (started, accepted) = tokio::join!(guest.qmp.migrate(&uri), listener.accept());
    started.expect("migrate");
    assert_eq!(refused(&guest).await, [Refusal::Migrating]);
    drop(accepted);
}

#[tokio::test]
async fn a_real_capability_is_refused() {
    let guest = Guest::start(&["-M", "pc"]).await;
    guest.qmp.set_capabilities(&[("multifd", true), ("x-ignore-shared", true)]).await.expect("capabilities");
    let found = refused(&guest).await;
    let expected = ["multifd", "x-ignore-shared"].map(|name| Refusal::Capability(name.into()));
    assert_eq!(found, expected);
}
