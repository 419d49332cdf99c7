//! Who may call what through the gateway: the text of a policy in, decisions out.

mod error;
mod pattern;
mod table;

use std::borrow::Borrow;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use subtle::{ConditionallySelectable, ConstantTimeEq};
use toml::de::DeTable;

use self::error::{Fault, Parsed};
use self::pattern::{Glob, Methods, fold, is_certificate_name};
use self::table::{AGENTS, ALLOW, CALLER, CALLERS, CERTIFICATE, LABELS, METHODS, NAME, TOKEN, Table, string};

pub use self::error::PolicyError;

/// Who may call what through the gateway.
///
/// It is written in TOML. Whatever it does not allow is denied, so an empty text denies every call.
///
/// ```toml
/// [[caller]]
/// name = "billing"                       # 1 to 64 of a-z, A-Z, 0-9, `.`, `_`, `-`
/// token-sha256 = ["<64 hex digits>"]     # of the bearer token; several while tokens are being changed
/// certificate = ["billing.example.com"]  # DNS names and URIs of the client's certificate
///
/// [[allow]]
/// callers = ["billing"]                  # `*` is every caller above
/// agents = ["laptop-*"]                  # agent ids; `*` stands for any run of characters
/// labels = { site = "berlin-*" }         # the agent must have each label, with such a value
/// methods = ["/fluentd.v1.Fluentd/*", "/pkg.Svc/Method"]   # `*` is every method
/// ```
///
/// A caller needs a token, a certificate or both, and may use either. One `[[allow]]` that fits in every line is
/// enough; `agents` or `labels` may be left out, but not both. Certificate names are whole names, and `*` does not
/// stand for anything in them.
///
/// Tokens are only known by a plain hash, which hides them as long as nobody can guess them: make them of 128 random
/// bits or more.
pub struct Policy {
    callers: HashSet<CallerName>,
    tokens: Vec<([u8; 32], CallerName)>,
    /// By name, folded.
    certificates: HashMap<String, CallerName>,
    rules: Vec<Rule>,
}

/// The name that a [`Policy`] gives a caller. Only a policy makes one, for a caller that authenticated; cloning is
/// cheap.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallerName(Arc<str>);

impl Policy {
    /// Reads a policy.
    ///
    /// # Errors
    /// When anything in it is wrong or means nothing: a policy that is in force in part may allow or deny something else
    /// than its author meant.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        Self::read(text).map_err(|(offset, fault)| {
            // What is missing at the end is reported behind the last line feed, where an editor may show no line.
            let before = text.trim_end_matches(['\r', '\n']).bytes().take(offset);
            PolicyError { line: before.filter(|&byte| byte == b'\n').count() + 1, fault }
        })
    }

    /// The caller with this bearer token.
    ///
    /// Takes the same time whichever hash the token comes close to, and looks at every hash of the policy.
    pub fn by_token(&self, token: &[u8]) -> Option<&CallerName> {
        let digest = Sha256::digest(token);
        let mut found = u64::MAX;
        for (index, (hash, _)) in (0..).zip(&self.tokens) {
            found.conditional_assign(&index, hash.as_slice().ct_eq(digest.as_slice()));
        }
        let (_, caller) = self.tokens.get(usize::try_from(found).ok()?)?;
        Some(caller)
    }

    /// The caller whose certificate has one of these names: the DNS names and URIs among the subject alternative names
    /// of a certificate that was verified. DNS names are the same in any case, URIs are not.
    ///
    /// None if they belong to several callers: which one it is would depend on the order of the names.
    pub fn by_certificate<'n>(&self, names: impl IntoIterator<Item = &'n str>) -> Option<&CallerName> {
        let mut found = None;
        for caller in names.into_iter().filter_map(|name| self.certificates.get(&*fold(name))) {
            if found.is_some_and(|found| found != caller) {
                return None;
            }
            found = Some(caller);
        }
        found
    }

    /// Whether this caller may call this method, given as the path of the HTTP request, of the agent with this id and
    /// these labels.
    ///
    /// A caller that another policy named is allowed nothing, unless this one has a caller of that name.
    pub fn allows(&self, caller: &CallerName, agent_id: &str, labels: &BTreeMap<String, String>, method: &str) -> bool {
        self.callers.contains(caller) && self.rules.iter().any(|rule| rule.allows(caller, agent_id, labels, method))
    }

    fn read(text: &str) -> Parsed<Self> {
        let (root, errors) = DeTable::parse_recoverable(text);
        // They do not come in the order of the text, and a later one may only follow from an earlier one.
        let offset = |error: &toml::de::Error| error.span().map_or(text.len(), |span| span.start);
        if let Some(error) = errors.iter().min_by_key(|error| offset(error)) {
            return Err((offset(error), Fault::NotToml(error.message().into())));
        }
        let root = Table::new(root.get_ref(), 0, &[CALLER, ALLOW])?;
        let mut policy =
            Self { callers: HashSet::new(), tokens: Vec::new(), certificates: HashMap::new(), rules: Vec::new() };
        for table in root.tables(CALLER, &[NAME, TOKEN, CERTIFICATE])? {
            policy.add_caller(&table)?;
        }
        for table in root.tables(ALLOW, &[CALLERS, AGENTS, LABELS, METHODS])? {
            policy.rules.push(Rule::read(&table, &policy.callers)?);
        }
        Ok(policy)
    }

    fn add_caller(&mut self, table: &Table<'_>) -> Parsed<()> {
        let name = table.get(NAME).ok_or((table.start, Fault::field(NAME, "is missing")))?;
        let (start, name) = string(NAME, name)?;
        let caller = CallerName::parse(name).ok_or_else(|| (start, Fault::BadName(name.into())))?;
        if !self.callers.insert(caller.clone()) {
            return Err((start, Fault::NameTaken(caller)));
        }
        let (tokens, certificates) = (table.strings(TOKEN)?, table.strings(CERTIFICATE)?);
        if tokens.is_empty() && certificates.is_empty() {
            return Err((table.start, Fault::NoCredentials(caller)));
        }
        for (start, hash) in tokens {
            let hash = parse_hash(hash).map_err(|fault| (start, fault))?;
            if let Some((_, other)) = self.tokens.iter().find(|(known, _)| *known == hash) {
                return Err((start, Fault::TokenTaken(other.clone())));
            }
            self.tokens.push((hash, caller.clone()));
        }
        for (start, name) in certificates {
            if !is_certificate_name(name) {
                return Err((start, Fault::BadCertificateName(name.into())));
            }
            match self.certificates.entry(fold(name).into_owned()) {
                Entry::Occupied(other) => {
                    return Err((start, Fault::CertificateTaken(name.into(), other.get().clone())));
                }
                Entry::Vacant(free) => free.insert(caller.clone()),
            };
        }
        Ok(())
    }
}

/// Shows no hashes: that of a weak token gives it away.
impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy").field("callers", &self.callers).field("rules", &self.rules).finish_non_exhaustive()
    }
}

impl CallerName {
    /// The name as text: up to 64 characters that are safe to print.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn parse(text: &str) -> Option<Self> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        ((1..=64).contains(&text.len()) && text.bytes().all(allowed)).then(|| Self(text.into()))
    }
}

impl fmt::Display for CallerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for CallerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CallerName({})", self.0)
    }
}

impl Borrow<str> for CallerName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// One `[[allow]]`.
#[derive(Debug, Default)]
struct Rule {
    /// Whether `*` is among the callers.
    everyone: bool,
    callers: Vec<CallerName>,
    /// Never empty, so that a rule without patterns is one that fits no agent.
    agents: Vec<Glob>,
    labels: Vec<(String, Glob)>,
    methods: Vec<Methods>,
}

impl Rule {
    fn read(table: &Table<'_>, defined: &HashSet<CallerName>) -> Parsed<Self> {
        let mut rule = Self::default();
        for (start, name) in table.required(CALLERS)? {
            match defined.get(name) {
                Some(caller) => rule.callers.push(caller.clone()),
                None if name == "*" => rule.everyone = true,
                None => return Err((start, Fault::UnknownCaller(name.into()))),
            }
        }
        for (start, pattern) in table.strings(AGENTS)? {
            rule.agents.push(Glob::agent(pattern).ok_or_else(|| (start, Fault::BadAgent(pattern.into())))?);
        }
        rule.labels = table.labels()?;
        if rule.agents.is_empty() {
            if rule.labels.is_empty() {
                return Err((table.start, Fault::NoAgents));
            }
            rule.agents.push(Glob::new("*"));
        }
        for (start, method) in table.required(METHODS)? {
            rule.methods.push(Methods::parse(method).ok_or_else(|| (start, Fault::BadMethod(method.into())))?);
        }
        Ok(rule)
    }

    fn allows(&self, caller: &CallerName, id: &str, labels: &BTreeMap<String, String>, method: &str) -> bool {
        let labelled = |(name, glob): &(String, Glob)| labels.get(name).is_some_and(|value| glob.matches(value));
        (self.everyone || self.callers.contains(caller))
            && self.methods.iter().any(|methods| methods.contain(method))
            && self.agents.iter().any(|glob| glob.matches(id))
            && self.labels.iter().all(labelled)
    }
}

/// Reads what `sha256sum` prints.
fn parse_hash(text: &str) -> Result<[u8; 32], Fault> {
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return Err(Fault::BadHash) };
    let digit = |digit: u8| char::from(digit).to_digit(16);
    let byte = |&[high, low]: &[u8; 2]| u8::try_from(digit(high)? << 4 | digit(low)?).ok();
    let bytes: Option<Vec<u8>> = pairs.iter().map(byte).collect();
    let hash = bytes.and_then(|bytes| bytes.try_into().ok()).ok_or(Fault::BadHash)?;
    if hash == <[u8; 32]>::from(Sha256::digest(b"")) { Err(Fault::HashOfNothing) } else { Ok(hash) }
}

#[cfg(test)]
mod tests;
