//! Tells what the lab is doing: one live line on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::state;

/// Progress on stderr.
#[derive(Debug)]
pub struct Progress {
    started: Instant,
    bar: Option<ProgressBar>,
}

impl Default for Progress {
    fn default() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} [{elapsed_precise}] {prefix} {msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { started: Instant::now(), bar }
    }
}

impl Progress {
    /// Begins a step.
    pub fn step(&self, text: &str) {
        match &self.bar {
            Some(bar) => {
                bar.set_message("");
                bar.set_prefix(text.to_owned());
            }
            None if state::is_ending() => {}
            None => eprintln!("[{:6.1} s] {text}", self.started.elapsed().as_secs_f64()),
        }
    }

    /// Says how far the step is.
    pub fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(text.to_owned()),
            None if state::is_ending() => {}
            None => eprintln!("[{:6.1} s]   {text}", self.started.elapsed().as_secs_f64()),
        }
    }

    /// Removes the live line.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
