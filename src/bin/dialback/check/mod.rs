//! `dialback check`: whether a configuration is good for something, step by step, and what to do if not.

mod agent;
mod hub;

use std::path::Path;

use anstream::adapter::strip_str;
use clap::{Args, Subcommand};

use crate::config::{AgentKeys, Config, ConfigArgs, HubKeys};
use crate::failure::Failure;
use crate::grpc::print;

/// Arguments of `check`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dialback check --config dialback.toml
  dialback check --hub hub.example.com:2222 --id laptop-1 --identity laptop-1 --known-hosts known_hosts
  dialback check hub --config dialback.toml

It takes the flags, variables and file of `dialback agent`, and looks at each hub on its own. For that it logs in as the
agent, and leaves at once: where this agent runs already, calls that come in that moment may have to be made again.
`dialback check hub` takes those of `dialback hub`, reads every file, and sees whether the addresses are free.

Exit codes: 0 all is well; 1 something is not; 64 the configuration is wrong.")]
pub(crate) struct CheckArgs {
    #[command(subcommand)]
    whose: Option<Whose>,
    #[command(flatten)]
    agent: ConfigArgs<AgentKeys>,
}

#[derive(Debug, Subcommand)]
enum Whose {
    /// See whether a hub would start: its files, keys, certificates, policy and addresses
    Hub(ConfigArgs<HubKeys>),
}

/// Runs `dialback check`.
pub(crate) async fn run(args: CheckArgs) -> Result<(), Failure> {
    let mut report;
    match args.whose {
        Some(Whose::Hub(hub)) => {
            if args.agent.by_flag {
                return Err(Failure::usage("the flags of a hub stand behind it: dialback check hub --config FILE"));
            }
            let config = Config::load(&hub)?;
            if hub.print {
                return print(config.print().as_bytes());
            }
            report = Report::of(hub.file());
            report.begin();
            hub::check(&config, &mut report).await;
        }
        None => {
            let config = Config::load(&args.agent)?;
            if args.agent.print {
                return print(config.print().as_bytes());
            }
            report = Report::of(args.agent.file());
            agent::check(&config, &mut report).await?;
        }
    }
    report.written?;
    match report.well {
        true => Ok(()),
        false if report.misconfigured => Err(Failure::told().of_configuration()),
        false => Err(Failure::told()),
    }
}

/// What was found so far.
struct Report {
    file: String,
    well: bool,
    /// Whether the settings are wrong, whatever else is.
    misconfigured: bool,
    /// What was in the way of telling it.
    written: Result<(), Failure>,
}

impl Report {
    fn of(file: Option<&Path>) -> Self {
        let file = file.map_or("no file, flags and environment alone".into(), |path| path.display().to_string());
        Self { file, well: true, misconfigured: false, written: Ok(()) }
    }

    /// The configuration can be looked at.
    fn begin(&mut self) {
        let file = self.file.clone();
        self.step("config", Ok(file));
    }

    fn title(&mut self, text: &str) {
        self.line(&format!("\n{text}"));
    }

    /// Writes a line, without its colours where stdout is no terminal.
    fn line(&mut self, text: &str) {
        if self.written.is_ok() {
            let choice = anstream::AutoStream::choice(&std::io::stdout());
            let text =
                if choice == anstream::ColorChoice::Never { strip_str(text).to_string() } else { text.to_owned() };
            self.written = print(format!("{text}\n").as_bytes());
        }
    }

    /// Says how a step went; `Err` has what to do.
    fn step(&mut self, what: &str, went: Result<String, String>) {
        self.well &= went.is_ok();
        let (mark, colour) = if went.is_ok() { ("✓", "\x1b[32m") } else { ("✗", "\x1b[31m") };
        let (Ok(text) | Err(text)) = went;
        self.line(format!("{colour}{mark}\x1b[0m {what:<11}  {text}").trim_end());
    }
}
