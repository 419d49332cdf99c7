//! `dialback completions` and `dialback man`: what belongs to a shell and to a manual.

use std::fs;
use std::path::PathBuf;

use clap::{Args, Command};
use clap_complete::Shell;

use crate::failure::Failure;
use crate::grpc::print;

/// Arguments of `completions`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dialback completions bash > /usr/share/bash-completion/completions/dialback
  dialback completions zsh > ~/.zfunc/_dialback
  dialback completions fish > ~/.config/fish/completions/dialback.fish")]
pub(crate) struct CompletionsArgs {
    shell: Shell,
}

/// Arguments of `man`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dialback man | man -l -
  dialback man --to /usr/local/share/man/man1")]
pub(crate) struct ManArgs {
    /// The directory to write the pages to, dialback.1 and one for each command
    #[arg(long, value_name = "DIRECTORY")]
    to: Option<PathBuf>,
}

pub(crate) fn completions(args: CompletionsArgs, mut command: Command) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut command, "dialback", &mut text);
    print(&text)
}

pub(crate) fn man(args: ManArgs, command: Command) -> Result<(), Failure> {
    match args.to {
        None => {
            let mut page = Vec::new();
            let rendered = clap_mangen::Man::new(command).render(&mut page);
            rendered.map_err(|error| Failure::because("cannot write the page", &error))?;
            print(&page)
        }
        Some(directory) => {
            let written = fs::create_dir_all(&directory).and_then(|()| clap_mangen::generate_to(command, &directory));
            written.map_err(|error| Failure::because(format_args!("cannot write to {}", directory.display()), &error))
        }
    }
}
