//! The text of a whole authorized_keys file, and what it grants.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;
use std::time::SystemTime;

use russh::keys::ssh_key::public::KeyData;

use crate::id::AgentId;
use crate::ssh::authorized_keys::certificate::Certificate;
use crate::ssh::authorized_keys::key_rules;
use crate::ssh::authorized_keys::line::{self, Line, LineFault};
use crate::ssh::authorized_keys::options::Options;
use crate::ssh::authorizer::{Claim, Credential, Denied, Grant};
use crate::ssh::key::PublicKey;
use crate::time::unix_seconds;

/// The longest line, in bytes: an RSA key of 16,384 bits takes 2,800.
pub(super) const MAX_LINE: usize = 64 * 1024;

/// How many problems of one file are kept; a file that is none would have one per line.
pub(super) const MAX_PROBLEMS: usize = 100;

/// What a file grants.
#[derive(Debug, Default)]
pub(super) struct KeyFile {
    lines: HashMap<KeyData, Vec<Entry>>,
    /// Line number and fault, in the order of the file, at most [`MAX_PROBLEMS`].
    pub(super) problems: Vec<(usize, LineFault)>,
}

#[derive(Debug)]
struct Entry {
    line: usize,
    terms: Result<Terms, LineFault>,
}

/// The terms of a line that is in force.
#[derive(Debug)]
struct Terms {
    options: Options,
    /// The ids that a plain key may be, and the ids that a CA is trusted for; `None` is every id, for a CA only.
    ids: Option<Vec<AgentId>>,
}

impl KeyFile {
    /// Reads a file. With an owner, it is the file of that agent, and a key in it may be that agent; without, every
    /// line must name the ids it grants. Faulty lines become problems and the others stay in force.
    pub(super) fn parse(text: &[u8], owner: Option<&AgentId>) -> Self {
        let mut file = Self::default();
        for (number, text) in lines(text) {
            match text.and_then(|text| line::parse(&text)) {
                Ok(None) => {}
                Ok(Some(Line { key, options })) => {
                    let terms = options.map_err(LineFault::Options).and_then(|options| Terms::new(options, owner));
                    if let Err(fault) = &terms {
                        file.report(number, fault.clone());
                    }
                    file.lines.entry(key).or_default().push(Entry { line: number, terms });
                }
                Err(fault) => file.report(number, fault),
            }
        }
        file
    }

    /// Reads a list of CAs, one public key per line: each is trusted as by a `cert-authority` line without options.
    /// A line that is not understood spoils the list.
    pub(super) fn parse_authorities(text: &[u8]) -> Result<Self, (usize, LineFault)> {
        let mut file = Self::default();
        for (number, text) in lines(text) {
            let key = text.and_then(|text| line::parse_bare(&text)).map_err(|fault| (number, fault))?;
            let Some(key) = key else { continue };
            key_rules::check(&key).map_err(|fault| (number, LineFault::Key(fault)))?;
            let options = Options { authority: true, ..Options::default() };
            file.lines.entry(key).or_default().push(Entry { line: number, terms: Terms::new(options, None) });
        }
        Ok(file)
    }

    /// How many different keys it names.
    pub(super) fn len(&self) -> usize {
        self.lines.len()
    }

    /// Decides a claim; `path` is for messages.
    pub(super) fn decide(&self, claim: &Claim, now: SystemTime, path: &Path) -> Result<Grant, Denied> {
        match &claim.credential {
            Credential::Key(key) => self.decide_key(key, claim, now, path),
            Credential::Certificate(certificate) => self.decide_certificate(certificate, claim, now, path),
            Credential::Metadata(_) => Err(Denied::NoKey { agent_id: claim.agent_id.clone() }),
        }
    }

    fn decide_key(&self, key: &PublicKey, claim: &Claim, now: SystemTime, path: &Path) -> Result<Grant, Denied> {
        let fingerprint = key.fingerprint();
        let mut verdict = Verdict::new(claim, fingerprint.clone());
        for Entry { line, terms } in self.lines.get(key.key_data()).into_iter().flatten() {
            match terms {
                // A CA's key signs certificates; it is nobody's own key.
                Ok(terms) if terms.options.authority => {}
                Ok(terms) => verdict.consider(terms, &at(path, *line), now),
                Err(fault) => verdict.refuse_line(fault, path, *line),
            }
        }
        verdict.reach(|| Denied::UnknownKey { fingerprint })
    }

    fn decide_certificate(
        &self,
        certificate: &Certificate,
        claim: &Claim,
        now: SystemTime,
        path: &Path,
    ) -> Result<Grant, Denied> {
        let mut verdict = Verdict::new(claim, certificate.authority_fingerprint());
        for Entry { line, terms } in self.lines.get(certificate.0.signature_key()).into_iter().flatten() {
            match terms {
                Ok(terms) if !terms.options.authority => {}
                Ok(terms) => verdict.consider(terms, &at(path, *line), now),
                Err(fault) => verdict.refuse_line(fault, path, *line),
            }
        }
        let grant = verdict.reach(|| Denied::WrongCa {
            what: certificate.to_string(),
            authority: certificate.authority_fingerprint(),
        })?;
        let authority = PublicKey::new(certificate.0.signature_key().clone(), "");
        certificate.check(&authority, &claim.agent_id, claim.peer, now)?;
        Ok(grant)
    }

    fn report(&mut self, line: usize, fault: LineFault) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push((line, fault));
        }
    }
}

impl Terms {
    fn new(mut options: Options, owner: Option<&AgentId>) -> Result<Self, LineFault> {
        let ids = match (options.principals.take(), owner) {
            // In an agent's own file the list cannot add an id.
            (Some(ids), Some(owner)) if ids.contains(owner) => Some(vec![owner.clone()]),
            (Some(_), Some(owner)) => return Err(LineFault::NotTheOwner(owner.clone())),
            (Some(ids), None) => Some(ids),
            (None, Some(owner)) => Some(vec![owner.clone()]),
            (None, None) if options.authority => None,
            (None, None) => return Err(LineFault::NoPrincipals),
        };
        Ok(Self { options, ids })
    }

    fn check(&self, claim: &Claim, what: &str, now: SystemTime) -> Result<(), Denied> {
        let peer = claim.peer.map(|peer| peer.ip().to_canonical());
        if let Some(at) = self.options.expires_at
            && unix_seconds(now) >= at
        {
            return Err(Denied::Expired { what: what.into(), at });
        }
        match &self.options.from {
            Some(from) if !from.allows(peer) => {
                Err(Denied::SourceNotAllowed { what: what.into(), peer, allowed: from.as_str().into() })
            }
            _ => Ok(()),
        }
    }
}

/// What the lines of one key add up to: any line that grants is enough, otherwise the nearest miss is the reason.
struct Verdict<'a> {
    claim: &'a Claim,
    fingerprint: String,
    granted: Option<Grant>,
    /// A line for this id, whose terms are not met.
    unmet: Option<Denied>,
    /// A line that is not in force.
    refused: Option<Denied>,
    /// The ids of the lines for others; `None` before there is such a line.
    others: Option<Vec<String>>,
}

impl<'a> Verdict<'a> {
    fn new(claim: &'a Claim, fingerprint: String) -> Self {
        Self { claim, fingerprint, granted: None, unmet: None, refused: None, others: None }
    }

    fn consider(&mut self, terms: &Terms, what: &str, now: SystemTime) {
        match &terms.ids {
            Some(ids) if !ids.contains(&self.claim.agent_id) => {
                self.others.get_or_insert_default().extend(ids.iter().map(ToString::to_string));
            }
            _ => match terms.check(self.claim, what, now) {
                Ok(()) => {
                    let labels = &mut self.granted.get_or_insert_default().labels;
                    for (name, value) in &terms.options.labels {
                        labels.entry(name.clone()).or_insert_with(|| value.clone());
                    }
                }
                Err(denied) => self.unmet = self.unmet.take().or(Some(denied)),
            },
        }
    }

    fn refuse_line(&mut self, fault: &LineFault, path: &Path, line: usize) {
        let (fingerprint, why) = (self.fingerprint.clone(), fault.to_string());
        self.refused.get_or_insert(Denied::LineRefused { fingerprint, file: path.into(), line, why });
    }

    fn reach(self, unknown: impl FnOnce() -> Denied) -> Result<Grant, Denied> {
        if let Some(grant) = self.granted {
            return Ok(grant);
        }
        let not_granted = self.others.map(|granted| Denied::IdNotGranted {
            agent_id: self.claim.agent_id.clone(),
            fingerprint: self.fingerprint,
            granted,
        });
        Err(self.unmet.or(self.refused).or(not_granted).unwrap_or_else(unknown))
    }
}

fn at(path: &Path, line: usize) -> String {
    format!("line {}:{line}", path.display())
}

/// The lines of a file with their numbers from 1, without `\n` or `\r\n`. Bytes that are not UTF-8 are replaced: in a
/// comment they do no harm, and anywhere else they fit nothing.
pub(super) fn lines(text: &[u8]) -> impl Iterator<Item = (usize, Result<Cow<'_, str>, LineFault>)> {
    text.split(|&byte| byte == b'\n').enumerate().map(|(index, line)| {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let fits = line.len() <= MAX_LINE;
        (index + 1, if fits { Ok(String::from_utf8_lossy(line)) } else { Err(LineFault::TooLong) })
    })
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, RngExt, SeedableRng};

    use super::*;
    use crate::ssh::authorized_keys::testing::key;

    fn problems(text: &[u8]) -> Vec<(usize, String)> {
        KeyFile::parse(text, None).problems.into_iter().map(|(line, fault)| (line, fault.to_string())).collect()
    }

    #[test]
    fn a_faulty_line_is_named_and_the_others_stay_in_force() {
        let (first, last) = (key().openssh(), key().openssh());
        let text = format!("principals=\"a\" {first}\r\ngarbage\n\n# c\n{last}\nprincipals=\"b\" {last} caf\u{e9}\n");
        let file = KeyFile::parse(text.as_bytes(), None);
        assert_eq!(file.len(), 2);
        let found: Vec<_> = file.problems.iter().map(|(line, _)| *line).collect();
        assert_eq!(found, [2, 5]);
        assert_eq!(file.problems[1].1, LineFault::NoPrincipals);
    }

    #[test]
    fn a_list_of_authorities_is_understood_completely_or_not_at_all() {
        let (one, two) = (key().openssh(), key().openssh());
        let good = format!("# the CAs\r\n\n  {one} the first\n{two}");
        let list = KeyFile::parse_authorities(good.as_bytes()).expect("a list");
        assert_eq!(list.len(), 2);
        assert_eq!(KeyFile::parse_authorities(b"").expect("an empty list").len(), 0);
        for bad in [format!("cert-authority {one}"), "ssh-ed25519 AAAA".into(), "garbage".into(), "x".repeat(70_000)] {
            let (line, _) = KeyFile::parse_authorities(format!("{good}\n{bad}\n").as_bytes()).expect_err(&bad);
            assert_eq!(line, 5, "{bad:.40}");
        }
    }

    #[test]
    fn comments_in_other_encodings_do_no_harm() {
        let mut text = format!("principals=\"a\" {} caf", key().openssh()).into_bytes();
        text.extend([0xe9, b'\n']);
        assert_eq!(problems(&text), []);
    }

    #[test]
    fn a_line_without_end_is_refused_alone() {
        let good = format!("principals=\"a\" {}", key().openssh());
        let text = format!("{}\n{good}\n", "x".repeat(MAX_LINE + 1));
        let file = KeyFile::parse(text.as_bytes(), None);
        assert_eq!(file.problems, [(1, LineFault::TooLong)]);
        assert_eq!(file.len(), 1);
        let padded = format!("{good} {}", "x".repeat(MAX_LINE - good.len() - 1));
        assert_eq!(padded.len(), MAX_LINE);
        assert_eq!(problems(padded.as_bytes()), []);
    }

    #[test]
    fn problems_are_bounded() {
        assert_eq!(problems("x\n".repeat(10_000).as_bytes()).len(), MAX_PROBLEMS);
    }

    #[test]
    fn no_input_panics() {
        let seed = 7;
        let mut rng = StdRng::seed_from_u64(seed);
        let good = format!(
            "cert-authority,principals=\"a,b\",from=\"!10.0.0.1,::/0\",expiry-time=\"20300101\" {} c",
            key().openssh()
        );
        let pieces =
            ["\"", "\\", ",", "=", " ", "\t", "\n", "\r", "\0", "!", "*", "/", "é", "ssh-", "from=\"", "principals=\""];
        for round in 0..20_000 {
            let mut bytes = if round % 2 == 0 { good.clone().into_bytes() } else { Vec::new() };
            for _ in 0..rng.random_range(1..8) {
                let at = rng.random_range(0..=bytes.len());
                match rng.random_range(0..3) {
                    0 => {
                        let mut noise = [0; 9];
                        rng.fill_bytes(&mut noise);
                        bytes.splice(at..at, noise);
                    }
                    1 => {
                        let piece = pieces[rng.random_range(0..pieces.len())];
                        bytes.splice(at..at, piece.bytes());
                    }
                    _ => bytes.truncate(at),
                }
            }
            for (_, fault) in KeyFile::parse(&bytes, None).problems {
                let text = fault.to_string();
                assert!(!text.chars().any(char::is_control), "seed {seed}, round {round}: {text:?}");
            }
        }
    }
}
