use std::path::Path;
use std::process::{Command, Stdio};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::ssh::authorized_keys::revoked::RevokedKeys;
use crate::ssh::authorized_keys::testing::{certificate, key};
use crate::ssh::authorizer::Credential;
use crate::ssh::key::PublicKey;
use crate::ssh::key::testing::{missing, run};

impl Krl {
    /// About how many bytes it keeps.
    fn memory(&self) -> usize {
        let authority = |(blob, revoked): (&Vec<u8>, &Certificates)| {
            blob.capacity() + revoked.memory() + size_of::<(Vec<u8>, Certificates)>()
        };
        let hashes = self.sha1.capacity() * 20 + self.sha256.capacity() * 32;
        self.keys.memory() + hashes + self.of_any.memory() + self.of_authority.iter().map(authority).sum::<usize>()
    }
}

impl Certificates {
    fn memory(&self) -> usize {
        self.serials.memory() + self.key_ids.memory()
    }
}

fn string(content: &[u8]) -> Vec<u8> {
    [&u32::try_from(content.len()).expect("short").to_be_bytes(), content].concat()
}

fn section(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    [&[kind], &*string(&parts.concat())].concat()
}

fn header_with(format: u32, flags: u64) -> Vec<u8> {
    let numbers = [7_u64.to_be_bytes(), 1_600_000_000_u64.to_be_bytes(), flags.to_be_bytes()].concat();
    [MAGIC, &format.to_be_bytes(), &numbers, &string(b"reserved"), &string(b"a comment")].concat()
}

fn file(sections: &[Vec<u8>]) -> Vec<u8> {
    [header_with(1, 0), sections.concat()].concat()
}

fn numbers(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_be_bytes()).collect()
}

/// A section of certificates of one authority; none is every authority.
fn of(authority: Option<&KeyData>, lists: &[Vec<u8>]) -> Vec<u8> {
    let authority = string(&authority.map(encode).unwrap_or_default());
    section(1, &[&authority, &string(b""), &lists.concat()])
}

/// A list with everything in it that there is.
fn everything() -> Vec<u8> {
    let (ca, stolen) = (key(), key());
    let note = [&*string(b"note@example.com"), &[0], &*string(b"anything")].concat();
    file(&[
        section(255, &[&note]),
        of(
            Some(&ca.data()),
            &[
                section(0x20, &[&numbers(&[5, 9, 7])]),
                section(0x21, &[&numbers(&[100, 200])]),
                section(0x22, &[&numbers(&[1_000]), &string(&[0, 0x81, 0x01])]),
                section(0x23, &[&string(b"an id"), &string(b"")]),
                section(0x39, &[&note]),
            ],
        ),
        of(None, &[section(0x23, &[&string(b"of all")])]),
        section(2, &[&string(&encode(&stolen.data())), &string(&string(b"a-type-of-tomorrow"))]),
        section(3, &[&string(&[1; 20])]),
        section(5, &[&string(&[2; 32]), &string(&[1; 32])]),
    ])
}

fn parse(file: &[u8]) -> Krl {
    Krl::parse(file).expect("a list")
}

fn fault(file: &[u8]) -> KrlFault {
    Krl::parse(file).expect_err("not understood")
}

/// Where the first section starts.
fn start() -> usize {
    header_with(1, 0).len()
}

#[test]
fn entries_revoke_what_they_name_and_say_so() {
    let (agent, ca, other_ca) = (key(), key(), key());
    let signed = |by, serial, id: &str| {
        certificate(&agent, by, |builder| {
            builder.serial(serial).expect("set").key_id(id).expect("set");
        })
    };
    let ca_print = ca.public.fingerprint();
    let serial =
        |serial, authority: Option<&str>| Some(Revocation::Serial { serial, authority: authority.map(str::to_owned) });
    let key_id = |id: &str, authority: Option<&str>| {
        Some(Revocation::KeyId { key_id: id.into(), authority: authority.map(str::to_owned) })
    };

    let list = parse(&file(&[
        of(
            Some(&ca.data()),
            &[
                section(0x20, &[&numbers(&[5, u64::MAX])]),
                section(0x21, &[&numbers(&[10, 20])]),
                section(0x22, &[&numbers(&[30]), &string(&[0b101])]),
                section(0x23, &[&string(b"lost")]),
            ],
        ),
        // More about the same authority, in another section.
        of(Some(&ca.data()), &[section(0x20, &[&numbers(&[6])])]),
        of(None, &[section(0x20, &[&numbers(&[77])]), section(0x23, &[&string(b"evil")])]),
    ]));
    for (number, id, by_ca, by_other) in [
        (5, "x", serial(5, Some(&ca_print)), None),
        (6, "x", serial(6, Some(&ca_print)), None),
        (7, "x", None, None),
        (9, "x", None, None),
        (10, "x", serial(10, Some(&ca_print)), None),
        (20, "x", serial(20, Some(&ca_print)), None),
        (21, "x", None, None),
        (30, "x", serial(30, Some(&ca_print)), None),
        (31, "x", None, None),
        (32, "x", serial(32, Some(&ca_print)), None),
        (u64::MAX, "x", serial(u64::MAX, Some(&ca_print)), None),
        (77, "x", serial(77, None), serial(77, None)),
        (0, "lost", key_id("lost", Some(&ca_print)), None),
        (0, "lost ", None, None),
        (0, "evil", key_id("evil", None), key_id("evil", None)),
        (0, "", None, None),
    ] {
        assert_eq!(list.certificate(&signed(&ca, number, id)), by_ca, "serial {number}, `{id}`");
        assert_eq!(list.certificate(&signed(&other_ca, number, id)), by_other, "serial {number}, `{id}`, another CA");
    }
    assert_eq!(list.key(&agent.data()), None);
    assert_eq!(list.key(&ca.data()), None);
}

#[test]
fn keys_are_found_by_themselves_and_by_both_hashes() {
    let (whole, by_sha1, by_sha256, free) = (key(), key(), key(), key());
    let sha1 = Sha1::digest(encode(&by_sha1.data()));
    let sha256 = by_sha256.data().fingerprint(HashAlg::Sha256).sha256().expect("as asked");
    let list = parse(&file(&[
        section(2, &[&string(&encode(&whole.data()))]),
        section(3, &[&string(&[0xff; 20]), &string(&sha1)]),
        section(5, &[&string(&[0xff; 32]), &string(&sha256)]),
    ]));
    let print = |key: &crate::ssh::authorized_keys::testing::Key| key.public.fingerprint();
    assert_eq!(list.key(&whole.data()), Some(Revocation::Key { fingerprint: print(&whole) }));
    assert_eq!(list.key(&by_sha256.data()), Some(Revocation::Fingerprint { fingerprint: print(&by_sha256) }));
    let found = list.key(&by_sha1.data()).expect("revoked").to_string();
    assert!(found.starts_with("the fingerprint SHA1:"), "{found}");
    assert_eq!(list.key(&free.data()), None);
}

#[test]
fn what_is_not_understood_spoils_the_list() {
    let (agent, ca) = (key(), key());
    let blob = encode(&agent.data());
    let signed = certificate(&agent, &ca, |_| {}).0.to_bytes().expect("bytes");
    let critical = [&*string(b"x@example.com"), &[1], &*string(b"")].concat();
    let padded = [&blob[..], &[0]].concat();
    let start = start();
    for (what, sections, at, expected) in [
        ("another section", vec![section(6, &[])], start, What::Section(6)),
        ("a signature", vec![section(4, &[&blob]), string(b"signed")], start, What::Signed),
        ("a critical extension", vec![section(255, &[&critical])], start + 5, What::Extension("x@example.com".into())),
        (
            "the same of certificates",
            vec![of(None, &[section(0x39, &[&critical])])],
            start + 18,
            What::Extension("x@example.com".into()),
        ),
        (
            "certificates by something else",
            vec![of(None, &[section(0x24, &[])])],
            start + 13,
            What::CertificateSection(0x24),
        ),
        ("a certificate for a key", vec![section(2, &[&string(&signed)])], start + 9, What::NotAKey),
        ("half a key", vec![section(2, &[&string(&blob[..40])])], start + 9, What::NotAKey),
        ("more than a key", vec![section(2, &[&string(&padded)])], start + 9, What::NotAKey),
        ("no key", vec![section(2, &[&string(b"")])], start + 9, What::NotAKey),
        ("half an authority", vec![section(1, &[&string(&blob[..40]), &string(b"")])], start + 9, What::NotAKey),
        ("a short hash", vec![section(3, &[&string(&[1; 19])])], start + 9, What::HashLength),
        ("a SHA-1 for a SHA-256", vec![section(5, &[&string(&[1; 20])])], start + 9, What::HashLength),
        ("serial 0", vec![of(None, &[section(0x20, &[&numbers(&[1, 0])])])], start + 26, What::Serials),
        ("a range backwards", vec![of(None, &[section(0x21, &[&numbers(&[2, 1])])])], start + 18, What::Serials),
        ("two ranges", vec![of(None, &[section(0x21, &[&numbers(&[1, 2, 3, 4])])])], start + 34, What::Excess),
        ("half a serial", vec![of(None, &[section(0x20, &[&[1; 9]])])], start + 26, What::Cut),
        (
            "a bit too far",
            vec![of(None, &[section(0x22, &[&numbers(&[u64::MAX]), &string(&[2])])])],
            start + 18,
            What::Serials,
        ),
        (
            "an extension with more",
            vec![section(255, &[&string(b"x"), &[0], &string(b""), b"y"])],
            start + 15,
            What::Excess,
        ),
        ("rubbish at the end", vec![vec![2, 0]], start + 1, What::Cut),
        ("a length beyond the end", vec![vec![2, 0xff, 0xff, 0xff, 0xff, 0]], start + 5, What::Cut),
    ] {
        assert_eq!(fault(&file(&sections)), KrlFault { at, what: expected }, "{what}");
        // However good the rest is.
        let good = section(2, &[&string(&blob)]);
        assert!(Krl::parse(&file(&[vec![good.clone()], sections.clone()].concat())).is_err(), "{what}");
        if what != "rubbish at the end" {
            assert!(Krl::parse(&file(&[sections, vec![good]].concat())).is_err(), "{what}");
        }
    }
    assert_eq!(fault(&header_with(2, 0)), KrlFault { at: 8, what: What::Version(2) });
    assert_eq!(fault(&header_with(1, 1)), KrlFault { at: 28, what: What::Flags });
}

#[test]
fn a_list_that_is_cut_within_a_section_is_refused() {
    let whole = everything();
    parse(&whole);
    let (mut at, mut ends) = (start(), vec![]);
    while at < whole.len() {
        ends.push(at);
        let length = whole[at + 1..at + 5].try_into().expect("four bytes");
        at += 5 + u32::from_be_bytes(length) as usize;
    }
    for cut in 0..whole.len() {
        assert_eq!(Krl::parse(&whole[..cut]).is_ok(), ends.contains(&cut), "{cut} of {} bytes", whole.len());
    }
}

#[test]
fn messages_escape_the_file() {
    let critical = [&*string(b"x\x1b[31m\n"), &[1], &*string(b"")].concat();
    let text = fault(&file(&[section(255, &[&critical])])).what.to_string();
    assert!(text.contains("critical extension") && !text.contains(['\x1b', '\n']), "{text:?}");
}

#[test]
fn a_certificate_in_certificates_does_not_exhaust_the_stack() {
    let name = string(b"ssh-ed25519-cert-v01@openssh.com");
    let nested =
        (0..10_000).fold(
            vec![],
            |inner: Vec<u8>, _| if inner.len() > 1 << 20 { inner } else { [&*name, &*string(&inner)].concat() },
        );
    assert_eq!(fault(&file(&[section(2, &[&string(&nested)])])).what, What::NotAKey);
    assert_eq!(fault(&file(&[of(None, &[]), section(1, &[&string(&nested), &string(b"")])])).what, What::NotAKey);
}

/// A bit of a bitmap costs a bit, a string what it is long, and many sections of one authority no more than one.
#[test]
fn no_list_takes_many_times_its_size() {
    let ca = key().data();
    let full = [0x7f].into_iter().chain([0xff; 100_000]).collect::<Vec<_>>();
    let ids: Vec<u8> = (0_u32..50_000).flat_map(|n| string(&n.to_be_bytes()[1..])).collect();
    for sections in [
        vec![of(Some(&ca), &[section(0x22, &[&numbers(&[1]), &string(&full)])])],
        vec![of(Some(&ca), &[section(0x23, &[&ids])])],
        vec![of(Some(&ca), &[section(0x23, &[&[0; 100_000]])])],
        vec![of(Some(&ca), &[section(0x20, &[&numbers(&(1..50_000).map(|n| n * 2).collect::<Vec<_>>())])])],
        vec![of(Some(&ca), &[]); 5_000],
        vec![of(None, &[section(0x22, &[&numbers(&[1]), &string(&[1])])]); 10_000],
        (0_u8..=255).map(|n| of(Some(&ed25519(n)), &[section(0x20, &[&numbers(&[1])])])).collect(),
        vec![section(2, &[&string(&string(b"x"))]); 10_000],
    ] {
        let file = file(&sections);
        let memory = parse(&file).memory();
        assert!(memory <= 5 * file.len(), "{memory} bytes of {}", file.len());
    }
}

fn ed25519(n: u8) -> KeyData {
    KeyData::Ed25519(russh::keys::ssh_key::public::Ed25519PublicKey([n; 32]))
}

/// Parses, asks for everything, and looks at what it takes.
fn digest(file: &[u8]) -> Result<(), TestCaseError> {
    match Krl::parse(file) {
        Ok(list) => {
            prop_assert!(list.memory() <= 5 * file.len() + 1_000, "{} bytes of {}", list.memory(), file.len());
            let signed = certificate(&key(), &key(), |_| {});
            list.key(signed.0.public_key());
            list.certificate(&signed);
        }
        Err(fault) => {
            prop_assert!(fault.at <= file.len());
            let text = fault.what.to_string();
            prop_assert!(!text.chars().any(char::is_control), "{:?}", text);
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn random_sections_do_not_panic(rest in vec(any::<u8>(), 0..200)) {
        digest(&rest)?;
        digest(&[header_with(1, 0), rest.clone()].concat())?;
        digest(&file(&[section(1, &[&string(b""), &string(b""), &rest])]))?;
        for kind in [1, 2, 3, 5, 255] {
            digest(&file(&[section(kind, &[&rest])]))?;
        }
        for kind in [0x20, 0x21, 0x22, 0x23, 0x39] {
            digest(&file(&[of(None, &[section(kind, &[&rest])])]))?;
        }
    }

    #[test]
    fn damaged_lists_do_not_panic(
        changes in vec((any::<prop::sample::Index>(), any::<u8>(), 0..4), 1..8),
    ) {
        let mut file = everything();
        for (at, byte, how) in changes {
            let at = at.index(file.len());
            match how {
                0 => file[at] = byte,
                1 => file.insert(at, byte),
                2 => drop(file.drain(at..(at + usize::from(byte)).min(file.len() - 1))),
                // Lengths are what matters most.
                _ => file[at] ^= 1 << (byte % 8),
            }
        }
        digest(&file)?;
    }
}

/// Lists of stock ssh-keygen, and its own word on each key and certificate (`-Q`).
#[test]
fn lists_of_stock_ssh_keygen_mean_what_it_says_they_mean() {
    if missing("ssh-keygen") {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let dir = directory.path();
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).expect(name);
    for (name, kind) in [
        ("ca", "ed25519"),
        ("other-ca", "ecdsa"),
        ("laptop", "ed25519"),
        ("a", "ed25519"),
        ("b", "ecdsa"),
        ("c", "rsa"),
    ] {
        run("ssh-keygen", &["-q", "-t", kind, "-N", "", "-C", name, "-f", name], dir);
    }
    let mut subjects: Vec<String> = ["laptop", "a", "b", "c"].map(|name| format!("{name}.pub")).into();
    for (name, ca, id, serial) in [
        ("five", "ca", "id five", "5"),
        ("fifteen", "ca", "id", "15"),
        ("dense", "ca", "id", "130"),
        ("zero", "ca", "id zero", "0"),
        ("huge", "ca", "id", "18446744073709551615"),
        ("others-five", "other-ca", "id", "5"),
        ("others-id", "other-ca", "id five", "50"),
        ("others-zero", "other-ca", "id", "0"),
    ] {
        std::fs::copy(dir.join("laptop.pub"), dir.join(format!("{name}.pub"))).expect("copied");
        run("ssh-keygen", &["-q", "-s", ca, "-I", id, "-n", "laptop-1", "-z", serial, &format!("{name}.pub")], dir);
        subjects.push(format!("{name}-cert.pub"));
    }
    let fingerprint = run("ssh-keygen", &["-l", "-f", "c.pub"], dir);
    let fingerprint = fingerprint.split(' ').nth(1).expect("a fingerprint");
    let odd: String = (1..=99).map(|n| format!("serial: {}\n", 2 * n)).collect();

    let mut verdicts = 0;
    let ca = &["-s", "ca.pub"][..];
    for (what, options, spec, arguments) in [
        ("nothing", &[][..], String::new(), &[][..]),
        ("a serial", ca, "serial: 5\n".into(), &[]),
        ("the other's serial", &["-s", "other-ca.pub"], "serial: 5\n".into(), &[]),
        ("anybody's serial", &["-s", "none"], "serial: 5\n".into(), &[]),
        ("a range", ca, "serial: 10-20\n".into(), &[]),
        ("the last serials", ca, "serial: 18446744073709551000-18446744073709551615\n".into(), &[]),
        ("a bitmap", ca, odd, &[]),
        ("some of all", ca, "serial: 1-9\nserial: 0x81\nserial: 0x82\nid: id zero\n".into(), &[]),
        ("an id", ca, "id: id five\n".into(), &[]),
        ("anybody's id", &["-s", "none"], "id: id five\n".into(), &[]),
        ("a key", &[], format!("key: {}", read("a.pub")), &[]),
        ("the key of certificates", &[], format!("key: {}", read("laptop.pub")), &[]),
        ("the key in a certificate", &[], format!("key: {}", read("five-cert.pub")), &[]),
        ("an authority", &[], format!("key: {}", read("ca.pub")), &[]),
        ("a key by SHA-1", &[], format!("sha1: {}", read("b.pub")), &[]),
        ("an authority by SHA-1", &[], format!("sha1: {}", read("other-ca.pub")), &[]),
        ("a key by SHA-256", &[], format!("sha256: {}", read("b.pub")), &[]),
        ("an authority by SHA-256", &[], format!("sha256: {}", read("ca.pub")), &[]),
        ("a fingerprint", &[], format!("hash: {fingerprint}\n"), &[]),
        ("keys and certificates", &[], String::new(), &["a.pub", "c.pub", "five-cert.pub", "others-zero-cert.pub"]),
        ("all at once", ca, format!("serial: 5\nid: id\nsha1: {}", read("a.pub")), &["b.pub", "others-id-cert.pub"]),
    ] {
        std::fs::write(dir.join("spec"), spec).expect("written");
        let arguments = [&["-q", "-k", "-z", "3", "-f", "krl"], options, &["spec"], arguments].concat();
        run("ssh-keygen", &arguments, dir);
        let list = std::fs::read(dir.join("krl")).expect("a list");
        assert!(list.starts_with(MAGIC), "{what}");
        let list = RevokedKeys::parse(&list).unwrap_or_else(|fault| panic!("{what}: {fault:?}"));
        for subject in &subjects {
            let ours = list.check(&credential(&read(subject)), Path::new("krl"));
            assert_eq!(ours.is_err(), is_revoked(dir, subject), "{what}: {subject}: {ours:?}");
            verdicts += usize::from(ours.is_err());
        }
    }
    assert!(verdicts > 40, "{verdicts} were revoked");

    // A second run with -u adds to what is there.
    std::fs::write(dir.join("spec"), "serial: 5\n").expect("written");
    run("ssh-keygen", &["-q", "-k", "-f", "krl", "-s", "ca.pub", "spec"], dir);
    run("ssh-keygen", &["-q", "-k", "-u", "-f", "krl", "a.pub"], dir);
    let list = RevokedKeys::parse(&std::fs::read(dir.join("krl")).expect("a list")).expect("a list");
    let revoked = |name| list.check(&credential(&read(name)), Path::new("krl")).map_err(|denied| denied.to_string());
    let ca = read("ca.pub").parse::<PublicKey>().expect("a key").fingerprint();
    let a = read("a.pub").parse::<PublicKey>().expect("a key").fingerprint();
    let serial = format!("certificate `id five` (serial 5) is revoked: krl lists serial 5 of the CA {ca}");
    assert_eq!(revoked("five-cert.pub"), Err(serial));
    assert_eq!(revoked("a.pub"), Err(format!("the key is revoked: krl lists the key {a}")));
    assert_eq!(revoked("b.pub"), Ok(()));
}

/// What a peer would offer: the key or certificate of a .pub file.
fn credential(line: &str) -> Credential {
    match line.contains("-cert-v01@") {
        true => Credential::Certificate(line.parse().expect("a certificate")),
        false => Credential::Key(line.parse().expect("a key")),
    }
}

fn is_revoked(dir: &Path, subject: &str) -> bool {
    let mut query = Command::new("ssh-keygen");
    query.args(["-Q", "-f", "krl", subject]).current_dir(dir).stdin(Stdio::null());
    let output = query.output().expect("ssh-keygen runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("REVOKED") != said.contains(": ok"), "{subject}: {said:?} {output:?}");
    said.contains("REVOKED")
}
