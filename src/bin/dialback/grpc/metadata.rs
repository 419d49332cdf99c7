//! Metadata from arguments, files and the environment.

use std::collections::BTreeMap;
use std::env;
use std::fmt;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use dialback::AgentId;
use dialback::gateway::AGENT_METADATA;
use tonic::metadata::{Ascii, Binary, KeyAndValueRef, MetadataKey, MetadataMap, MetadataValue};

use super::args::MetadataArgs;
use crate::failure::Failure;
use crate::file;

/// A token, by name of the variable that has it.
const TOKEN: &str = "DIALBACK_TOKEN";

/// What is sent along.
#[derive(Debug, Clone, Default)]
pub(super) struct Metadata {
    /// With the call.
    pub(super) call: MetadataMap,
    /// With questions to reflection, and to a gateway.
    pub(super) questions: MetadataMap,
    /// Where the values are from that are not shown, by name.
    secret: BTreeMap<String, String>,
}

impl Metadata {
    pub(super) fn read(args: &MetadataArgs, is_hub: bool) -> Result<Self, Failure> {
        let mut metadata = Self::default();
        let Self { call, questions, secret } = &mut metadata;
        for header in args.header.iter().filter(|header| !header.is_empty()) {
            let (header, from) = expanded(header, args)?;
            put(call, &header, from.as_deref(), secret)?;
            put(questions, &header, from.as_deref(), secret)?;
        }
        for (headers, map) in [(&args.rpc_header, call), (&args.reflect_header, questions)] {
            for header in headers.iter().filter(|header| !header.is_empty()) {
                let (header, from) = expanded(header, args)?;
                put(map, &header, from.as_deref(), secret)?;
            }
        }
        let token = token(args, is_hub)?;
        for map in [&mut metadata.call, &mut metadata.questions] {
            if let Some(agent) = &args.agent {
                let usage = |error: &dyn fmt::Display| Failure::usage(format!("--agent {agent}: {error}"));
                agent.parse::<AgentId>().map_err(|error| usage(&error))?;
                map.insert(AGENT_METADATA, agent.parse().map_err(|error| usage(&error))?);
            }
            if let (Some((token, from)), false) = (&token, map.contains_key("authorization")) {
                let value: Result<MetadataValue<Ascii>, _> = format!("Bearer {token}").parse();
                let mut value =
                    value.map_err(|_| Failure::usage("the token has characters that no header can have"))?;
                value.set_sensitive(true);
                map.insert("authorization", value);
                metadata.secret.insert("authorization".into(), from.clone());
            }
        }
        Ok(metadata)
    }

    /// What is sent with the call, as [`lines`] has it. Values that did not come from the arguments are not shown, only where
    /// they are from.
    pub(super) fn lines(&self, map: &MetadataMap) -> String {
        all_lines(map, &self.secret)
    }

    /// For the gateway itself, not for the agent that the call names.
    pub(super) fn for_gateway(&self) -> MetadataMap {
        let mut map = self.questions.clone();
        map.remove(AGENT_METADATA);
        map
    }
}

/// The token of a file, or for a hub that of the environment, and where it is from. What the arguments name counts before what is there anyway.
fn token(args: &MetadataArgs, is_hub: bool) -> Result<Option<(String, String)>, Failure> {
    let (token, from) = match &args.token_file {
        Some(path) => (file::read_text(path, file::SECRET)?, path.display().to_string()),
        None if !is_hub => return Ok(None),
        None => match env::var(TOKEN) {
            Ok(token) => (token, format!("${TOKEN}")),
            Err(env::VarError::NotPresent) => return Ok(None),
            Err(error) => return Err(Failure::because(format!("{TOKEN} cannot be read"), &error)),
        },
    };
    let token = token.trim().to_owned();
    if token.is_empty() && args.token_file.is_some() {
        return Err(Failure::new("the file with the token is empty"));
    }
    Ok(Some((token, from)).filter(|(token, _)| !token.is_empty()))
}

/// Adds `name: value`. Values of names that end in `-bin` are read as base64, or taken as they are if they are none. `from` says
/// where the value is from if it is a secret.
fn put(
    map: &mut MetadataMap,
    header: &str,
    from: Option<&str>,
    secret: &mut BTreeMap<String, String>,
) -> Result<(), Failure> {
    let (name, value) = header.split_once(':').unwrap_or((header, ""));
    let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
    let bad = |what| Failure::usage(format!("-H {name}: its {what} has characters that metadata cannot have"));
    if let Some(from) = from {
        secret.insert(name.clone(), from.to_owned());
    }
    if name.ends_with("-bin") {
        let key = MetadataKey::<Binary>::from_bytes(name.as_bytes()).map_err(|_| bad("name"))?;
        let decoded = decode(value).unwrap_or_else(|| value.as_bytes().to_vec());
        let mut value = MetadataValue::from_bytes(&decoded);
        value.set_sensitive(from.is_some());
        map.append_bin(key, value);
    } else {
        let key = MetadataKey::<Ascii>::from_bytes(name.as_bytes()).map_err(|_| bad("name"))?;
        let mut value: MetadataValue<Ascii> = value.parse().map_err(|_| bad("value"))?;
        value.set_sensitive(from.is_some());
        map.append(key, value);
    }
    Ok(())
}

/// Either alphabet, with padding or without.
fn decode(value: &str) -> Option<Vec<u8>> {
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let alphabets = [&alphabet::STANDARD, &alphabet::URL_SAFE];
    alphabets.iter().find_map(|alphabet| GeneralPurpose::new(alphabet, config).decode(value).ok())
}

/// A header, and which variables are in it if there are any.
fn expanded(header: &str, args: &MetadataArgs) -> Result<(String, Option<String>), Failure> {
    if args.expand_headers { expand(header, |name| env::var(name).ok()) } else { Ok((header.to_owned(), None)) }
}

/// Puts variables in the place of `${NAME}`, and names them.
fn expand(header: &str, variable: impl Fn(&str) -> Option<String>) -> Result<(String, Option<String>), Failure> {
    let mut done = String::new();
    let mut names: Vec<String> = Vec::new();
    let mut rest = header;
    while let Some((before, after)) = rest.split_once("${") {
        done.push_str(before);
        let name = after.split_once('}').map(|(name, _)| name);
        let is_name = |name: &&str| !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
        match name.filter(is_name) {
            Some(name) => {
                let missing = || Failure::usage(format!("-H {header}: there is no environment variable {name}"));
                done.push_str(&variable(name).ok_or_else(missing)?);
                names.push(format!("${name}"));
                rest = &after[name.len() + 1..];
            }
            None => {
                done.push_str("${");
                rest = after;
            }
        }
    }
    done.push_str(rest);
    Ok((done, Some(names.join(", ")).filter(|names| !names.is_empty())))
}

/// A line for each value that a server has sent, in the order of the names, without what belongs to gRPC itself.
pub(super) fn lines(map: &MetadataMap) -> String {
    all_lines(map, &BTreeMap::new())
}

fn all_lines(map: &MetadataMap, secret: &BTreeMap<String, String>) -> String {
    let base64 = base64::engine::general_purpose::STANDARD;
    let origin = |name: &str| secret.get(name).map_or("(not shown)".to_owned(), |from| format!("(from {from})"));
    let mut lines: Vec<(String, String)> = Vec::new();
    for entry in map.iter() {
        let (name, value) = match entry {
            KeyAndValueRef::Ascii(name, value) if value.is_sensitive() => (name.as_str(), origin(name.as_str())),
            KeyAndValueRef::Ascii(name, value) => {
                (name.as_str(), String::from_utf8_lossy(value.as_encoded_bytes()).into_owned())
            }
            KeyAndValueRef::Binary(name, value) if value.is_sensitive() => (name.as_str(), origin(name.as_str())),
            KeyAndValueRef::Binary(name, value) => {
                let bytes = value.to_bytes().unwrap_or_default();
                (name.as_str(), base64.encode(bytes))
            }
        };
        if !name.starts_with("grpc-") {
            lines.push((name.to_owned(), value));
        }
    }
    if lines.is_empty() {
        return "(empty)".into();
    }
    lines.sort_by(|a, b| a.0.cmp(&b.0));
    let lines: Vec<_> = lines.into_iter().map(|(name, value)| format!("{name}: {value}")).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(map: &mut MetadataMap, header: &str) -> Result<(), Failure> {
        put(map, header, None, &mut BTreeMap::new())
    }

    #[test]
    fn metadata_is_read_from_headers() {
        let mut map = MetadataMap::new();
        for header in ["A: b", "a:c: d", "empty", "k-bin: aGk", "l-bin: aGk=", "m-bin: !"] {
            plain(&mut map, header).unwrap();
        }
        let all: Vec<_> = map.get_all("a").iter().collect();
        assert_eq!(all, ["b", "c: d"]);
        assert_eq!(map.get("empty").unwrap(), "");
        for (name, value) in [("k-bin", "hi"), ("l-bin", "hi"), ("m-bin", "!")] {
            assert_eq!(map.get_bin(name).unwrap().to_bytes().unwrap(), value, "{name}");
        }
        assert!(
            plain(&mut map, "a b: c").is_err()
                && plain(&mut map, "a: \n").is_ok()
                && plain(&mut map, "a: b\nc").is_err()
        );
        assert_eq!(lines(&map), "a: b\na: c: d\na: \nempty: \nk-bin: aGk=\nl-bin: aGk=\nm-bin: IQ==");
        assert_eq!(lines(&MetadataMap::new()), "(empty)");
    }

    #[test]
    fn variables_take_the_place_of_their_names() {
        let variable = |name: &str| (name == "A_1").then(|| "${B}".to_owned());
        let cases =
            [("k: ${A_1}", "k: ${B}"), ("k: $A_1 ${} ${a b}${", "k: $A_1 ${} ${a b}${"), ("${A_1}${A_1}", "${B}${B}")];
        for (header, expected) in cases {
            assert_eq!(expand(header, variable).unwrap().0, expected);
        }
        assert_eq!(expand("k: ${A_1} ${A_1}", variable).unwrap().1.as_deref(), Some("$A_1, $A_1"));
        assert_eq!(expand("k: $A_1", variable).unwrap().1, None);
        assert!(expand("k: ${B}", variable).is_err());
    }
}
