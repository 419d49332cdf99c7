//! `dialback keygen`: a key, and the line about it that belongs on the other machine.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use dialback::{AgentId, KeyError, PrivateKey, PublicKey};

use crate::failure::Failure;
use crate::file;
use crate::grpc::print;
use crate::tokens;

/// The largest file that lines are added to, in bytes: as large as a hub's list of keys may be.
const LIST: u64 = 16 << 20;

/// Arguments of `keygen`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dialback keygen hub --address hub.example.com:2222    makes hub_key, prints a line for known_hosts
  dialback keygen agent laptop-1                        makes laptop-1, prints a line for authorized_keys
  dialback keygen agent laptop-1 --append authorized_keys
  dialback keygen token laptop-1 --append agent_tokens  makes laptop-1.token, for hubs at grpcs://

A private key or token is readable by its owner alone and never leaves its machine; a key's public half lies beside it
(.pub), and the hub's line about a token has its hash.")]
pub(crate) struct KeygenArgs {
    #[command(subcommand)]
    whose: Whose,
}

#[derive(Debug, Subcommand)]
enum Whose {
    /// A hub's host key; prints the lines by which agents know it, for their known_hosts
    Hub {
        /// What agents dial: host:port, or a URL; several give a line each
        #[arg(long, value_name = "ADDRESS", required = true)]
        address: Vec<String>,
        /// The private key's file
        #[arg(long, value_name = "FILE", default_value = "hub_key")]
        key: PathBuf,
        #[command(flatten)]
        line: LineArgs,
    },
    /// An agent's key; prints the line that lets it in, for the hub's authorized_keys
    Agent {
        /// The agent's id: a-z, 0-9, dot, underscore, hyphen
        id: AgentId,
        /// The private key's file [default: the id]
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
        #[command(flatten)]
        line: LineArgs,
    },
    /// An agent's token for a hub at grpcs://; prints the line that lets it in, for the hub's agent-tokens file
    Token {
        /// The agent's id: a-z, 0-9, dot, underscore, hyphen
        id: AgentId,
        /// The token's file [default: the id, with .token]
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        #[command(flatten)]
        line: LineArgs,
    },
}

#[derive(Debug, Args)]
struct LineArgs {
    /// Adds the lines to this file instead of printing them; those that it has already are not added again
    #[arg(long, value_name = "FILE")]
    append: Option<PathBuf>,
    /// Makes nothing: the lines are about what is there
    #[arg(long)]
    existing: bool,
}

pub(crate) fn run(args: KeygenArgs) -> Result<(), Failure> {
    match args.whose {
        Whose::Hub { address, key, line } => {
            // What is wrong with an address is said before there is a key.
            let lines_of = |key: &PublicKey| -> Result<Vec<String>, Failure> {
                let lines = address.iter().map(|hub| key.known_hosts_line(hub).map_err(Failure::usage));
                lines.collect()
            };
            lines_of(&PrivateKey::generate().public_key())?;
            let public = public_key(&key, &line)?;
            put(&lines_of(&public)?, &line, "each agent's known_hosts")
        }
        Whose::Agent { id, key, line } => {
            let key = key.unwrap_or_else(|| PathBuf::from(id.as_str()));
            let public = public_key(&key, &line)?;
            put(&[public.authorized_keys_line(&id)], &line, "the hub's authorized_keys")
        }
        Whose::Token { id, file, line } => {
            let file = file.unwrap_or_else(|| PathBuf::from(format!("{id}.token")));
            put(&[tokens::line(&id, &token(&file, &line)?)], &line, "the hub's agent-tokens file")
        }
    }
}

/// The token that is made, or that is there.
fn token(path: &Path, line: &LineArgs) -> Result<String, Failure> {
    if line.existing {
        return tokens::own(Some(path));
    }
    make_room(path, &[path])?;
    let token = tokens::generate();
    let failed = |error: std::io::Error| Failure::because(format_args!("cannot write {}", path.display()), &error);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).and_then(|mut file| writeln!(file, "{token}")).map_err(failed)?;
    say(format_args!("made {}", path.display()));
    Ok(token)
}

/// Makes the directory of a file that is to be made. Nothing that is there is overwritten.
fn make_room(path: &Path, files: &[&Path]) -> Result<(), Failure> {
    for file in files {
        if file.exists() {
            return Err(Failure::new(format_args!(
                "{} is there already, and nothing was changed: `--existing` prints its line",
                file.display()
            )));
        }
    }
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        fs::create_dir_all(directory)
            .map_err(|error| Failure::because(format_args!("cannot make {}", directory.display()), &error))?;
    }
    Ok(())
}

/// The public half of the key that is made, or that is there.
fn public_key(path: &Path, line: &LineArgs) -> Result<PublicKey, Failure> {
    let beside = beside(path);
    if line.existing {
        return existing(path, &beside);
    }
    make_room(path, &[path, &beside])?;
    let key = PrivateKey::load_or_generate(path).map_err(|error| Failure::because("cannot make a key", &error))?;
    let public = key.public_key();
    say(format_args!("made {} and {}, {}", path.display(), beside.display(), public.fingerprint()));
    Ok(public)
}

/// The public half of a key that is there. What lies beside the private key counts only where that is somewhere else.
fn existing(path: &Path, beside: &Path) -> Result<PublicKey, Failure> {
    let public = if beside.exists() {
        let wrong = |error| Failure::because(format_args!("{} is no public key", beside.display()), &error);
        Some(file::read_text(beside, file::SECRET)?.trim().parse::<PublicKey>().map_err(wrong)?)
    } else {
        None
    };
    match (PrivateKey::public_key_in(path), public) {
        (Ok(own), Some(public)) if own != public => Err(Failure::new(format_args!(
            "{} is not the public half of {}, which is {}: remove it, or name the key that it belongs to",
            beside.display(),
            path.display(),
            own.fingerprint()
        ))),
        (Ok(own), public) => Ok(public.unwrap_or(own)),
        (Err(KeyError::Unreadable { .. }), Some(public)) => {
            say(format_args!("{} cannot be read, so {} is taken at its word", path.display(), beside.display()));
            Ok(public)
        }
        (Err(error), _) => Err(Failure::because("no key", &error)),
    }
}

fn beside(path: &Path) -> PathBuf {
    let mut public = path.as_os_str().to_owned();
    public.push(".pub");
    public.into()
}

fn put(lines: &[String], to: &LineArgs, whose: &str) -> Result<(), Failure> {
    let Some(path) = &to.append else {
        say(format_args!("for {whose}:"));
        return print(format!("{}\n", lines.join("\n")).as_bytes());
    };
    let failed = |error: &std::io::Error| Failure::because(format_args!("cannot add to {}", path.display()), error);
    let there = if path.exists() { file::read_text(path, LIST)? } else { String::new() };
    let new: Vec<_> = lines.iter().filter(|line| !there.lines().any(|known| known == **line)).collect();
    let mut text = String::new();
    // A last line that nobody has ended would swallow the first of these.
    if !new.is_empty() && !there.is_empty() && !there.ends_with('\n') {
        text.push('\n');
    }
    for line in &new {
        text.push_str(line);
        text.push('\n');
    }
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    // Where a user's group may write what that user makes (umask 002), a hub would refuse it.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o644);
    let mut file = options.open(path).map_err(|error| failed(&error))?;
    file.write_all(text.as_bytes()).map_err(|error| failed(&error))?;
    say(format_args!("{} of {} lines added to {}, for {whose}", new.len(), lines.len(), path.display()));
    #[cfg(unix)]
    {
        let metadata = file.metadata().map_err(|error| failed(&error))?;
        let mode = std::os::unix::fs::MetadataExt::mode(&metadata) & 0o7777;
        if metadata.is_file() && mode & 0o022 != 0 {
            let path = path.display();
            say(format_args!("others may write {path} (mode {mode:04o}), and a hub refuses it so: chmod go-w {path}"));
        }
    }
    Ok(())
}

/// For people: stdout has the lines alone, so that they can be sent to a file.
fn say(what: std::fmt::Arguments<'_>) {
    let _ = writeln!(anstream::stderr(), "{what}"); // nobody is left to be told
}
