//! For tests that stop the world at a named step of a guest: the agent waits there until it is let go, or killed.
//!
//! `[test] holds = DIR` in the configuration. Where `DIR/GUEST.SIDE-MOMENT-STEP.hold` is, with steps as the journal names them
//! (`vm1.source-before-committed.hold`), the agent makes the same with `.held`, and goes on once the first file is gone.
//! Other guests are not held.

use std::path::PathBuf;
use std::time::Duration;

use vmscatter_core::journal::Step;

/// How often it is looked whether a guest may go on.
const LOOK: Duration = Duration::from_millis(5);

/// On which side of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// It is due, and not in the journal.
    Before,
    /// It is in the journal, and nothing has followed from it.
    After,
}

/// Where guests are held; nowhere without a directory.
#[derive(Clone, Debug, Default)]
pub struct Holds {
    dir: Option<PathBuf>,
}

/// A place at which a guest is held.
#[derive(Debug)]
pub struct Hold {
    path: PathBuf,
}

impl Holds {
    /// Looks in `dir`.
    pub fn new(dir: Option<PathBuf>) -> Holds {
        if let Some(dir) = &dir {
            tracing::warn!(dir = %dir.display(), "guests can be held up from there: [test] holds is set");
        }
        Holds { dir }
    }

    /// The hold that is asked for at this place, if one is.
    pub fn find(&self, guest: &str, moment: Moment, step: Step) -> Option<Hold> {
        let dir = self.dir.as_ref()?;
        let side = match step {
            Step::Source(_) => "source",
            Step::Target(_) => "target",
        };
        let moment = match moment {
            Moment::Before => "before",
            Moment::After => "after",
        };
        let path = dir.join(format!("{guest}.{side}-{moment}-{}.hold", step.name()));
        path.exists().then_some(Hold { path })
    }
}

impl Hold {
    /// Says that the guest is held, and returns once it may go on.
    pub async fn wait(self) {
        if let Err(error) = tokio::fs::write(self.path.with_extension("held"), "").await {
            return tracing::warn!("{}: {error}", self.path.display());
        }
        while tokio::fs::try_exists(&self.path).await.unwrap_or(false) {
            tokio::time::sleep(LOOK).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use vmscatter_core::journal::{SourceStep, TargetStep};

    use super::*;

    #[tokio::test]
    async fn a_guest_is_held_at_its_place_until_the_file_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let holds = Holds::new(Some(dir.path().to_owned()));
        let committed = Step::Source(SourceStep::Committed);
        assert!(holds.find("vm1", Moment::Before, committed).is_none());
        let file = dir.path().join("vm1.source-before-committed.hold");
        std::fs::write(&file, "").unwrap();
        assert!(holds.find("vm2", Moment::Before, committed).is_none());
        assert!(holds.find("vm1", Moment::After, committed).is_none());
        assert!(holds.find("vm1", Moment::Before, Step::Target(TargetStep::Committed)).is_none());
        assert!(Holds::default().find("vm1", Moment::Before, committed).is_none());
        let waiting = tokio::spawn(holds.find("vm1", Moment::Before, committed).unwrap().wait());
        while !file.with_extension("held").exists() {
            tokio::time::sleep(LOOK).await;
        }
        assert!(!waiting.is_finished());
        std::fs::remove_file(&file).unwrap();
        waiting.await.unwrap();
    }
}
