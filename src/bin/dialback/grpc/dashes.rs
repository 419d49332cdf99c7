//! Long flags with one dash, as grpcurl and other Go programs have them, rewritten to what clap reads.

use std::ffi::{OsStr, OsString};

use clap::{Arg, Command};

use super::args::{is_false, is_true};

/// The commands whose flags may have one dash.
const COMMANDS: [&str; 5] = ["agents", "call", "list", "describe", "health"];

/// Rewrites the arguments of a gRPC client's command, and leaves all others as they are: a flag with one dash gets two, a
/// value that follows its flag is joined to it whatever it begins with, and a switch may be given a value (`-v=false`).
pub(crate) fn double_dashes(cli: &Command, arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments = arguments.into_iter();
    let mut done: Vec<OsString> = arguments.by_ref().take(2).collect();
    let name = done.get(1).and_then(|name| name.to_str()).unwrap_or_default();
    let Some(command) = cli.find_subcommand(name).filter(|_| COMMANDS.contains(&name)) else {
        if let Some(first) = done.get_mut(1).filter(|first| is_misspelt(first)) {
            *first = joined("-", first);
        }
        done.extend(arguments);
        return done;
    };
    while let Some(argument) = arguments.next() {
        if argument == "--" {
            done.push(argument);
            break;
        }
        let Some((flag, given)) = flag_of(command, &argument) else {
            done.push(if is_misspelt(&argument) { joined("-", &argument) } else { argument });
            continue;
        };
        let name = spelling(flag);
        match given {
            Some(value) if !flag.get_action().takes_values() => match value.to_str() {
                Some(value) if is_true(value) => done.push(name.into()),
                Some(value) if is_false(value) => {}
                // Which clap refuses.
                _ => done.push(joined(&format!("{name}="), &value)),
            },
            Some(value) => done.push(joined(&format!("{name}="), &value)),
            None if !flag.get_action().takes_values() || flag.is_require_equals_set() => done.push(name.into()),
            None => match arguments.next() {
                Some(value) => done.push(joined(&format!("{name}="), &value)),
                None => done.push(name.into()),
            },
        }
    }
    done.extend(arguments);
    done
}

/// The flag that an argument is, and the value after its `=`. None for what is no flag or none of a form that is rewritten.
fn flag_of<'a>(command: &'a Command, argument: &OsStr) -> Option<(&'a Arg, Option<OsString>)> {
    let text = argument.to_str()?;
    let bare = text.strip_prefix("--").or_else(|| text.strip_prefix('-'))?;
    let (name, value) = match bare.split_once('=') {
        Some((name, value)) => (name, Some(OsString::from(value))),
        None => (bare, None),
    };
    let flag = command.get_arguments().find(|flag| {
        let aliases = flag.get_all_aliases().unwrap_or_default();
        let short = flag.get_short().is_some_and(|short| name.chars().eq([short]));
        short || flag.get_long() == Some(name) || aliases.contains(&name)
    })?;
    Some((flag, value))
}

fn spelling(flag: &Arg) -> String {
    match (flag.get_long(), flag.get_short()) {
        (Some(long), _) => format!("--{long}"),
        (None, Some(short)) => format!("-{short}"),
        (None, None) => String::new(),
    }
}

/// Whether an argument with one dash is a word, which is no flag: with two, clap says which one is like it. Otherwise it
/// would see a flag of one letter and its value.
fn is_misspelt(argument: &OsStr) -> bool {
    let word = argument.to_str().and_then(|text| text.strip_prefix('-')).unwrap_or_default();
    let word = word.split_once('=').map_or(word, |(word, _)| word);
    word.len() > 2
        && word.bytes().take(2).all(|byte| byte.is_ascii_alphabetic())
        && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        && word.bytes().any(|byte| byte != b'v')
}

fn joined(before: &str, value: &OsStr) -> OsString {
    let mut joined = OsString::from(before);
    joined.push(value);
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    fn rewrite(line: &[&str]) -> Vec<String> {
        let arguments = ["dialback"].iter().chain(line).map(OsString::from);
        let done = double_dashes(&crate::Cli::command(), arguments);
        done.into_iter().skip(1).map(|argument| argument.into_string().unwrap()).collect()
    }

    #[test]
    fn flags_with_one_dash_get_two() {
        let cases: [(&[&str], &[&str]); 11] = [
            (&["call", "-plaintext", "h:1", "a.B/C"], &["call", "--plaintext", "h:1", "a.B/C"]),
            (&["call", "-max-time", "3", "h:1"], &["call", "--max-time=3", "h:1"]),
            (&["call", "-max-time=3", "--proto", "x"], &["call", "--max-time=3", "--proto=x"]),
            (&["call", "-d", "-plaintext"], &["call", "--data=-plaintext"]),
            (&["call", "-d", "@"], &["call", "--data=@"]),
            (&["call", "-H", "a: -b", "-vv"], &["call", "--header=a: -b", "-vv"]),
            (&["call", "-plaintext=false", "-v=true"], &["call", "--verbose"]),
            (&["call", "-use-reflection", "x"], &["call", "--use-reflection", "x"]),
            (&["call", "-use-reflection=false"], &["call", "--use-reflection=false"]),
            (&["call", "-msg-template", "--", "-d"], &["call", "--sample", "--", "-d"]),
            (&["completions", "-plaintext"], &["completions", "-plaintext"]),
        ];
        for (line, expected) in cases {
            assert_eq!(rewrite(line), expected, "{line:?}");
        }
    }

    #[test]
    fn what_is_no_flag_stays() {
        assert_eq!(rewrite(&["call", "-frmat", "json", "-vvv"]), ["call", "--frmat", "json", "-vvv"]);
        assert_eq!(rewrite(&["call", "-maxtime=3", "-d@"]), ["call", "--maxtime=3", "-d@"]);
        assert_eq!(
            rewrite(&["call", "-max_time", "-Plaintext", "-http2"])[1..],
            ["--max_time", "--Plaintext", "--http2"]
        );
        assert_eq!(rewrite(&["call", "-insecure=no"]), ["call", "--insecure=no"]);
        assert_eq!(rewrite(&["-version"]), ["--version"]);
        for line in [&["list", "-"][..], &["list", "--unknown"], &["call"], &[], &["list", "-d"]] {
            assert_eq!(rewrite(line), line);
        }
    }
}
