//! Private keys of daemons: from files, encrypted or not, with certificates.

use std::path::{Path, PathBuf};

use dialback::{KeyError, PrivateKey};

use crate::failure::Failure;
use crate::file;
use crate::tokens::is_of_systemd;

/// Where a passphrase is, if keys are encrypted: never on the command line, which everybody can read.
pub(crate) struct Passphrase<'a> {
    pub(crate) file: Option<&'a Path>,
    pub(crate) variable: &'static str,
    /// The flag of `file`.
    pub(crate) flag: &'static str,
}

impl Passphrase<'_> {
    fn read(&self) -> Result<Option<String>, Failure> {
        let Some(path) = self.file else { return Ok(std::env::var(self.variable).ok()) };
        let text = file::read_text(path, file::SECRET)?;
        Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned()))
    }

    /// Reads keys. `make` is how to make one that is missing.
    ///
    /// # Errors
    /// When one cannot be used.
    pub(crate) fn open(&self, paths: &[PathBuf], make: &str) -> Result<Vec<PrivateKey>, Failure> {
        paths.iter().map(|path| self.open_one(path, make)).collect()
    }

    fn open_one(&self, path: &Path, make: &str) -> Result<PrivateKey, Failure> {
        // systemd keeps the others out, by an access list that looks like a group that may read (systemd.exec(5)).
        if is_of_systemd(path)
            && let Ok(text) = file::read_text(path, file::SECRET)
            && let Ok(key) = PrivateKey::from_openssh(&text)
        {
            return Ok(key);
        }
        let mut failed = None;
        let opened = PrivateKey::from_file_with_passphrase(path, |_| {
            self.read().unwrap_or_else(|error| {
                failed = Some(error);
                None
            })
        });
        match (opened, failed) {
            (_, Some(error)) => Err(error),
            (Ok(key), None) => Ok(key),
            (Err(KeyError::Unreadable { source, .. }), None) if source.kind() == std::io::ErrorKind::NotFound => {
                Err(Failure::new(format!("there is no key {}: make one with `{make}`", path.display())))
            }
            (Err(KeyError::Encrypted { .. }), None) => Err(Failure::new(format!(
                "{} is encrypted: name a file with its passphrase by --{}, or set {}",
                path.display(),
                self.flag,
                self.variable
            ))),
            (Err(error), None) => Err(Failure::because("the key cannot be used", &error)),
        }
    }
}

/// Gives each certificate to the key that it is for.
///
/// # Errors
/// When one is for none of them, or cannot be read.
pub(crate) fn certify(mut keys: Vec<PrivateKey>, certificates: &[PathBuf]) -> Result<Vec<PrivateKey>, Failure> {
    for path in certificates {
        let mut why = None;
        let mut given = false;
        for key in &mut keys {
            match key.clone().with_certificate_file(path) {
                Ok(certified) => {
                    *key = certified;
                    given = true;
                    break;
                }
                Err(error) => why = Some(error),
            }
        }
        match why.filter(|_| !given) {
            None if given => {}
            None => return Err(Failure::usage(format!("the certificate {} is for no key: name one", path.display()))),
            Some(error) => return Err(Failure::because("the certificate cannot be used", &error)),
        }
    }
    Ok(keys)
}
