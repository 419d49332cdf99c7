//! A laptop behind NAT, for real: three network namespaces on one machine. It needs root, `ip` and `nft`.
//!
//! ```text
//!   laptop  10.77.1.2 ── 10.77.1.1  router  203.0.113.1 ── 203.0.113.2  cloud
//!                           masquerades; forwards from outside only what was asked for from inside
//! ```
//! The cloud has a route to the laptop's network, so that it is the router which stops a dial, not a missing route.

use std::{
    io::Write,
    path::PathBuf,
    process::{Command, Stdio, id},
    sync::atomic::{AtomicU32, Ordering},
};

use super::{peers::find_program, proxy::Way};

/// The laptop's address, which is private.
pub const LAPTOP: &str = "10.77.1.2";
/// The router's addresses, inside and outside.
pub const ROUTER: [&str; 2] = ["10.77.1.1", "203.0.113.1"];
/// The cloud's address.
pub const CLOUD: &str = "203.0.113.2";

const RULES: &str = r#"
table ip nat {
    chain postrouting { type nat hook postrouting priority 100; oifname "wan" masquerade; }
}
table ip filter {
    chain forward {
        type filter hook forward priority 0; policy drop;
        iifname "lan" accept
        ct state established,related accept
    }
}
"#;

/// Whether all this works here, and if not, why.
pub fn probe() -> Result<(), String> {
    for program in ["ip", "nft"] {
        find_program(program).ok_or_else(|| format!("the program {program} is missing"))?;
    }
    let namespace = Namespace::new("probe")?;
    run(namespace.command("nft").args(["list", "ruleset"]), "")
}

/// One network namespace. Dropping it kills what runs inside and deletes it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    fn new(role: &str) -> Result<Self, String> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("dialback-{}-{}-{role}", id(), COUNT.fetch_add(1, Ordering::Relaxed));
        ip(&["netns", "add", &name])?;
        let namespace = Self { name };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// A command that will run inside. The process it starts is the program itself, so that it can be killed.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(ip_program());
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Whether something listens at this address, as seen from inside. A dial that nobody answers fails after 2 s.
    pub fn can_dial(&self, host: &str, port: u16) -> bool {
        let dial = format!("exec 3<>/dev/tcp/{host}/{port}");
        run(self.command("timeout").args(["2", "bash", "-c", &dial]), "").is_ok()
    }

    fn ip(&self, arguments: &str) -> Result<(), String> {
        let all: Vec<&str> = ["-n", &self.name].into_iter().chain(arguments.split_whitespace()).collect();
        ip(&all)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Also while a test panics: nothing here may panic, and there is nobody to tell.
        let kill = "kill -9 $(\"$0\" netns pids \"$1\") 2>/dev/null";
        let _ = Command::new("sh").args(["-c", kill]).arg(ip_program()).arg(&self.name).status();
        let _ = ip(&["netns", "del", &self.name]);
    }
}

/// The three namespaces, connected. Dropping it takes all down.
#[derive(Debug)]
pub struct Nat {
    /// The machine behind the router.
    pub laptop: Namespace,
    /// Between them.
    pub router: Namespace,
    /// The machine anyone can dial.
    pub cloud: Namespace,
}

impl Nat {
    /// Builds them; see [`super::peers::require_root_netns`]. Panics when a step fails.
    pub fn new() -> Self {
        Self::build().unwrap_or_else(|why| panic!("cannot build the network: {why}"))
    }

    fn build() -> Result<Self, String> {
        let nat = Self {
            laptop: Namespace::new("laptop")?,
            router: Namespace::new("router")?,
            cloud: Namespace::new("cloud")?,
        };
        let [inside, outside] = ROUTER;
        let (laptop, router, cloud) = (&nat.laptop, &nat.router, &nat.cloud);
        for (host, port, own, theirs) in [(laptop, "lan", LAPTOP, inside), (cloud, "wan", CLOUD, outside)] {
            host.ip(&format!("link add eth0 type veth peer name {port} netns {}", router.name))?;
            for (namespace, link, address) in [(host, "eth0", own), (router, port, theirs)] {
                namespace.ip(&format!("address add {address}/24 dev {link}"))?;
                namespace.ip(&format!("link set {link} up"))?;
            }
            host.ip(&format!("route add default via {theirs}"))?;
        }
        run(router.command("sh").args(["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]), "")?;
        nat.nft(RULES)?;
        Ok(nat)
    }

    /// From now on the router drops what goes this way, and tells nobody.
    pub fn black_hole(&self, way: Way) {
        let from = match way {
            Way::Up => "iifname \"lan\"",
            Way::Down => "iifname \"wan\"",
            Way::Both => "",
        };
        let rules = format!(
            "table ip hole {{
                chain forward {{
                    type filter hook forward priority -10;
                    {from} drop
                }}
            }}"
        );
        self.nft(&rules).expect("the rules are right");
    }

    /// What black holes there are pass again.
    pub fn heal(&self) {
        // Created first, so that there is one to delete.
        self.nft("table ip hole {}\ndelete table ip hole").expect("the rules are right");
    }

    fn nft(&self, rules: &str) -> Result<(), String> {
        run(self.router.command("nft").args(["-f", "-"]), rules)
    }
}

fn ip_program() -> PathBuf {
    find_program("ip").unwrap_or_else(|| "ip".into())
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    run(Command::new(ip_program()).args(arguments), "")
}

/// Runs a short command to its end.
fn run(command: &mut Command, input: &str) -> Result<(), String> {
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| format!("{command:?}: {e}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends without reading says why by its status.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(|e| format!("{command:?}: {e}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}
