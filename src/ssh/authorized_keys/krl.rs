//! Binary lists of what is revoked, as `ssh-keygen -k` writes them: the format is that of OpenSSH's PROTOCOL.krl, the
//! meaning that of sshd.

mod reader;
mod sets;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::HashMap;

use russh::keys::ssh_encoding::base64::{Base64Unpadded, Encoding};
use russh::keys::ssh_key::public::KeyData;
use russh::keys::ssh_key::{self, Algorithm, HashAlg};
use sha1::{Digest, Sha1};

use crate::ssh::authorized_keys::certificate::Certificate;
use crate::ssh::authorized_keys::krl::reader::Reader;
use crate::ssh::authorized_keys::krl::sets::{Serials, Strings};
use crate::ssh::authorizer::{Brief, Revocation};
use crate::ssh::key::name_inside;

/// How every such file starts.
pub(super) const MAGIC: &[u8] = b"SSHKRL\n\0";

/// The only version of the format there is.
const FORMAT: u32 = 1;

/// What a section lists.
mod section {
    pub(super) const CERTIFICATES: u8 = 1;
    pub(super) const KEYS: u8 = 2;
    pub(super) const SHA1: u8 = 3;
    pub(super) const SIGNATURE: u8 = 4;
    pub(super) const SHA256: u8 = 5;
    pub(super) const EXTENSION: u8 = 255;
}

/// How a section of certificates names some.
mod certificates {
    pub(super) const SERIAL_LIST: u8 = 0x20;
    pub(super) const SERIAL_RANGE: u8 = 0x21;
    pub(super) const SERIAL_BITMAP: u8 = 0x22;
    pub(super) const KEY_ID: u8 = 0x23;
    pub(super) const EXTENSION: u8 = 0x39;
}

/// What a list revokes. It takes a few times the memory of its file at most, whatever is in it.
#[derive(Debug, Default)]
pub(super) struct Krl {
    /// Keys in their binary form.
    keys: Strings,
    /// Hashes of such keys, sorted.
    sha1: Vec<[u8; 20]>,
    sha256: Vec<[u8; 32]>,
    /// Certificates, whoever signed them.
    of_any: Certificates,
    /// Certificates by the key that signed them, in its binary form.
    of_authority: HashMap<Vec<u8>, Certificates>,
}

/// Which certificates of one authority are revoked.
#[derive(Debug, Default)]
struct Certificates {
    serials: Serials,
    key_ids: Strings,
}

/// Something that is not understood, so that nobody knows what it should revoke.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KrlFault {
    /// Where in the file, in bytes from its start.
    pub(super) at: usize,
    pub(super) what: What,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum What {
    #[error("it is cut short")]
    Cut,
    #[error("it is of version {0} of the format, not {FORMAT}")]
    Version(u32),
    #[error("it has flags, and none is known")]
    Flags,
    #[error("a section of type {0} is not known")]
    Section(u8),
    #[error("a section of certificates of type {0} is not known")]
    CertificateSection(u8),
    #[error("more follows than belongs there")]
    Excess,
    /// Who may write the file is trusted already; and OpenSSH made no signed ones, and reads none since 9.4.
    #[error("it is signed, which is not supported: give the list without signatures")]
    Signed,
    #[error("the critical extension `{}` is not known", Brief(.0))]
    Extension(String),
    #[error("this is not a public key")]
    NotAKey,
    #[error("a hash has the wrong length")]
    HashLength,
    #[error("these are no serial numbers: they start from 1 and end at 2^64 - 1")]
    Serials,
}

impl Krl {
    /// Reads a whole file. What does not count is passed over: the header's version, date and comment, reserved fields
    /// and extensions that are not critical.
    pub(super) fn parse(file: &[u8]) -> Result<Self, KrlFault> {
        let mut rest = Reader::new(file);
        header(&mut rest)?;
        let mut krl = Self::default();
        while !rest.is_empty() {
            let unknown = rest.clone();
            let kind = rest.byte()?;
            let mut body = rest.string()?;
            match kind {
                section::CERTIFICATES => krl.certificates(&mut body)?,
                section::KEYS => {
                    while let Some(key) = body.next_string()? {
                        krl.keys.insert(&binary_form(&key)?);
                    }
                }
                section::SHA1 => {
                    while let Some(hash) = body.next_string()? {
                        krl.sha1.push(hash.array(What::HashLength)?);
                    }
                }
                section::SHA256 => {
                    while let Some(hash) = body.next_string()? {
                        krl.sha256.push(hash.array(What::HashLength)?);
                    }
                }
                section::EXTENSION => extension(&mut body)?,
                section::SIGNATURE => return Err(unknown.fault(What::Signed)),
                other => return Err(unknown.fault(What::Section(other))),
            }
            body.end()?;
        }
        krl.sort();
        Ok(krl)
    }

    fn certificates(&mut self, body: &mut Reader<'_>) -> Result<(), KrlFault> {
        let authority = body.string()?;
        let revoked = match authority.is_empty() {
            true => &mut self.of_any,
            false => self.of_authority.entry(binary_form(&authority)?.into_owned()).or_default(),
        };
        body.string()?; // reserved
        while !body.is_empty() {
            let unknown = body.clone();
            let kind = body.byte()?;
            let mut list = body.string()?;
            match kind {
                certificates::SERIAL_LIST => {
                    while !list.is_empty() {
                        let at = list.clone();
                        let serial = list.u64()?;
                        revoked.serials.insert(serial, serial).ok_or_else(|| at.fault(What::Serials))?;
                    }
                }
                certificates::SERIAL_RANGE => {
                    let at = list.clone();
                    let (first, last) = (list.u64()?, list.u64()?);
                    revoked.serials.insert(first, last).ok_or_else(|| at.fault(What::Serials))?;
                }
                certificates::SERIAL_BITMAP => {
                    let at = list.clone();
                    let (first, bits) = (list.u64()?, list.string()?);
                    revoked.serials.insert_bitmap(first, bits.rest()).ok_or_else(|| at.fault(What::Serials))?;
                }
                certificates::KEY_ID => {
                    while let Some(id) = list.next_string()? {
                        revoked.key_ids.insert(id.rest());
                    }
                }
                certificates::EXTENSION => extension(&mut list)?,
                other => return Err(unknown.fault(What::CertificateSection(other))),
            }
            list.end()?;
        }
        Ok(())
    }

    fn sort(&mut self) {
        self.keys.sort();
        self.sha1.sort_unstable();
        self.sha256.sort_unstable();
        for revoked in self.of_authority.values_mut().chain([&mut self.of_any]) {
            revoked.serials.sort();
            revoked.key_ids.sort();
        }
    }

    /// What revokes a key.
    pub(super) fn key(&self, key: &KeyData) -> Option<Revocation> {
        let blob = encode(key);
        let sha256 = key.fingerprint(HashAlg::Sha256);
        if self.keys.contains(&blob) {
            return Some(Revocation::Key { fingerprint: sha256.to_string() });
        }
        if sha256.sha256().is_some_and(|hash| self.sha256.binary_search(&hash).is_ok()) {
            return Some(Revocation::Fingerprint { fingerprint: sha256.to_string() });
        }
        let sha1: [u8; 20] = Sha1::digest(&blob).into();
        let listed = self.sha1.binary_search(&sha1).is_ok();
        listed
            .then(|| Revocation::Fingerprint { fingerprint: format!("SHA1:{}", Base64Unpadded::encode_string(&sha1)) })
    }

    /// What revokes a certificate, apart from its own key and that of its authority.
    pub(super) fn certificate(&self, certificate: &Certificate) -> Option<Revocation> {
        let authority = encode(certificate.0.signature_key());
        let of_its_own = self.of_authority.get(&authority);
        of_its_own
            .and_then(|revoked| revoked.find(certificate, Some(certificate.authority_fingerprint())))
            .or_else(|| self.of_any.find(certificate, None))
    }
}

impl Certificates {
    fn find(&self, certificate: &Certificate, authority: Option<String>) -> Option<Revocation> {
        let (serial, key_id) = (certificate.serial(), certificate.key_id());
        if self.serials.contains(serial) {
            return Some(Revocation::Serial { serial, authority });
        }
        let listed = self.key_ids.contains(key_id.as_bytes());
        listed.then(|| Revocation::KeyId { key_id: key_id.to_owned(), authority })
    }
}

fn header(rest: &mut Reader<'_>) -> Result<(), KrlFault> {
    rest.take(MAGIC.len())?;
    let at = rest.clone();
    match rest.u32()? {
        FORMAT => {}
        other => return Err(at.fault(What::Version(other))),
    }
    rest.u64()?; // which version of the list this is
    rest.u64()?; // when it was made
    let at = rest.clone();
    if rest.u64()? != 0 {
        return Err(at.fault(What::Flags));
    }
    rest.string()?; // reserved
    rest.string()?; // comment
    Ok(())
}

/// An extension, of which none is known: one that is critical may change what the rest means.
fn extension(body: &mut Reader<'_>) -> Result<(), KrlFault> {
    let at = body.clone();
    let (name, critical) = (body.string()?, body.byte()? != 0);
    body.string()?;
    match critical {
        true => Err(at.fault(What::Extension(String::from_utf8_lossy(name.rest()).into_owned()))),
        false => Ok(()),
    }
}

/// The binary form of a listed key, as it is written for every key. One of a type that is not known is taken as it
/// stands, for lists are shared with sshd: nobody can log in here with such a key, nor with a certificate signed by it.
fn binary_form<'a>(key: &Reader<'a>) -> Result<Cow<'a, [u8]>, KrlFault> {
    let blob = key.rest();
    let fault = || key.fault(What::NotAKey);
    let name = name_inside(blob).ok_or_else(fault)?;
    // A certificate would match nobody's key, and the decoder follows certificates inside certificates.
    if name.contains("-cert-v") {
        return Err(fault());
    }
    match Algorithm::new(name) {
        Err(_) | Ok(Algorithm::Other(_)) => Ok(Cow::Borrowed(blob)),
        Ok(_) => {
            let key = ssh_key::PublicKey::from_bytes(blob).map_err(|_| fault())?;
            Ok(Cow::Owned(encode(key.key_data())))
        }
    }
}

fn encode(key: &KeyData) -> Vec<u8> {
    use russh::keys::ssh_encoding::Encode;
    key.encode_vec().expect("a key that was decoded is no longer than a buffer may be")
}
