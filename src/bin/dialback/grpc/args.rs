//! The arguments of the four commands.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::format::Format;

/// What `--max-msg-sz` is if it is not given, or 0; in bytes, and as grpcurl has it.
const MAX_MESSAGE: usize = 4 << 20;

/// The same for `--connect-timeout`, in seconds.
const CONNECT_TIMEOUT: &str = "10";

/// Examples, and what every command here has in common.
macro_rules! notes {
    ($examples:literal) => {
        concat!(
            "Examples:\n",
            $examples,
            "
ADDRESS is HOST:PORT, a URL (http:// is without TLS) or unix:PATH. It may be left out where
--gateway or DIALBACK_GATEWAY says it, and for `list` and `describe` where files say the schema.
Flags may be written with one dash, as grpcurl has them: -plaintext, -max-time 3.

Environment:
  DIALBACK_TOKEN  sent to a hub's gateway as `authorization: Bearer TOKEN` (with --gateway or --agent)

Exit codes:
  0 done, 1 it did not work, 64 wrong arguments, 130 Ctrl-C,
  64 + N the call ended with the gRPC code N"
        )
    };
}

/// Arguments of `call`.
#[derive(Debug, Args)]
#[command(
    args_override_self = true,
    override_usage = "dialback call [OPTIONS] [ADDRESS] METHOD",
    after_help = notes!(
        "  dialback call -plaintext -d '{\"name\": \"ann\"}' localhost:50051 greeter.v1.Greeter/SayHello
  dialback call --agent laptop-1 --gateway http://hub:8080 -f hello.yaml greeter.v1.Greeter/SayHello
  dialback call -plaintext -d @ localhost:50051 chat.v1.Chat/Talk
  dialback call -plaintext --sample --format yaml localhost:50051 greeter.v1.Greeter/SayHello
"
    )
)]
pub(crate) struct CallArgs {
    /// Where the server is
    #[arg(value_name = "ADDRESS")]
    pub(super) first: Option<String>,
    /// What to call: package.Service/Method or package.Service.Method
    #[arg(value_name = "METHOD")]
    pub(super) second: Option<String>,

    /// Request data; `@` reads stdin, and sends each message as it comes
    #[arg(short, long = "data", value_name = "DATA", allow_hyphen_values = true, help_heading = "Request")]
    pub(super) data: Option<String>,
    /// A file with the request; its extension says its format: .json .ndjson .yaml .xml .textproto .bin
    #[arg(short, long, value_name = "FILE", conflicts_with = "data", help_heading = "Request")]
    pub(super) file: Option<PathBuf>,
    /// Sets a field: user.name=ann, tags=x (appends), labels[key]=value. May be given several times
    #[arg(long, value_name = "FIELD=VALUE", help_heading = "Request")]
    pub(super) set: Vec<String>,
    /// Prints a sample of the request, and calls nothing
    #[arg(long, alias = "msg-template", help_heading = "Request")]
    pub(super) sample: bool,
    /// Format of request and response
    #[arg(long, value_enum, default_value_t = Format::Json, help_heading = "Request")]
    pub(super) format: Format,
    /// Format of the request, if it is another
    #[arg(long, value_enum, value_name = "FORMAT", hide_possible_values = true, help_heading = "Request")]
    pub(super) request_format: Option<Format>,
    /// Passes over fields of JSON or YAML that the schema does not have
    #[arg(long, help_heading = "Request")]
    pub(super) allow_unknown_fields: bool,

    /// Prints fields that have their default value, too
    #[arg(long, help_heading = "Output")]
    pub(super) emit_defaults: bool,
    /// Prints a status that is not OK in the format of --format
    #[arg(long, help_heading = "Output")]
    pub(super) format_error: bool,
    /// Tells on stderr of the method, the metadata and the counts; twice, of sizes and times
    #[arg(short, long, action = clap::ArgAction::Count, help_heading = "Output")]
    pub(super) verbose: u8,
    /// Longest response message, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = MAX_MESSAGE, value_parser = size, help_heading = "Output")]
    pub(super) max_msg_sz: usize,

    #[command(flatten)]
    pub(super) schema: SchemaArgs,
    #[command(flatten)]
    pub(super) metadata: MetadataArgs,
    #[command(flatten)]
    pub(super) server: ServerArgs,
}

/// Arguments of `list`.
#[derive(Debug, Args)]
#[command(
    args_override_self = true,
    override_usage = "dialback list [OPTIONS] [ADDRESS] [SERVICE]",
    after_help = notes!(
        "  dialback list -plaintext localhost:50051
  dialback list -plaintext localhost:50051 greeter.v1.Greeter
  dialback list -proto greeter.proto
"
    )
)]
pub(crate) struct ListArgs {
    /// Where the server is
    #[arg(value_name = "ADDRESS")]
    pub(super) first: Option<String>,
    /// Lists the methods of this service
    #[arg(value_name = "SERVICE")]
    pub(super) second: Option<String>,

    #[command(flatten)]
    pub(super) schema: SchemaArgs,
    #[command(flatten)]
    pub(super) metadata: MetadataArgs,
    #[command(flatten)]
    pub(super) server: ServerArgs,
}

/// Arguments of `describe`.
#[derive(Debug, Args)]
#[command(
    args_override_self = true,
    override_usage = "dialback describe [OPTIONS] [ADDRESS] [SYMBOL]",
    after_help = notes!(
        "  dialback describe -plaintext localhost:50051
  dialback describe -plaintext localhost:50051 greeter.v1.HelloRequest
  dialback describe -proto greeter.proto --sample --format yaml greeter.v1.HelloRequest
"
    )
)]
pub(crate) struct DescribeArgs {
    /// Where the server is
    #[arg(value_name = "ADDRESS")]
    pub(super) first: Option<String>,
    /// A service, method, message, field, enum or enum value by its full name; all services without it
    #[arg(value_name = "SYMBOL")]
    pub(super) second: Option<String>,

    /// Prints a sample of each message, too
    #[arg(long, visible_alias = "msg-template", help_heading = "Output")]
    pub(super) sample: bool,
    /// Format of the sample
    #[arg(long, value_enum, default_value_t = Format::Json, help_heading = "Output")]
    pub(super) format: Format,

    #[command(flatten)]
    pub(super) schema: SchemaArgs,
    #[command(flatten)]
    pub(super) metadata: MetadataArgs,
    #[command(flatten)]
    pub(super) server: ServerArgs,
}

/// Arguments of `health`.
#[derive(Debug, Args)]
#[command(
    args_override_self = true,
    override_usage = "dialback health [OPTIONS] [ADDRESS] [SERVICE]",
    after_help = notes!(
        "  dialback health -plaintext localhost:50051
  dialback health -plaintext --watch localhost:50051 greeter.v1.Greeter
"
    )
)]
pub(crate) struct HealthArgs {
    /// Where the server is
    #[arg(value_name = "ADDRESS")]
    pub(super) first: Option<String>,
    /// A service of it, by its full name; the server as a whole without it
    #[arg(value_name = "SERVICE")]
    pub(super) second: Option<String>,

    /// Goes on, and prints every change
    #[arg(long, help_heading = "Output")]
    pub(super) watch: bool,

    #[command(flatten)]
    pub(super) metadata: MetadataArgs,
    #[command(flatten)]
    pub(super) server: ServerArgs,
}

/// Where the schema comes from.
#[derive(Debug, Args)]
#[command(next_help_heading = "Schema")]
pub(super) struct SchemaArgs {
    /// A .proto file, in place of the server's reflection. May be given several times
    #[arg(long, value_name = "FILE", conflicts_with = "protoset")]
    pub(super) proto: Vec<PathBuf>,
    /// A directory in which imports of .proto files are looked for. May be given several times
    #[arg(long, value_name = "DIR")]
    pub(super) import_path: Vec<PathBuf>,
    /// A file with an encoded FileDescriptorSet, in place of the server's reflection. May be given several times
    #[arg(long, value_name = "FILE")]
    pub(super) protoset: Vec<PathBuf>,
    /// Whether to ask the server's reflection: by default if no files are given; with files, before them
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    pub(super) use_reflection: Option<bool>,
}

impl SchemaArgs {
    pub(super) fn has_files(&self) -> bool {
        !self.proto.is_empty() || !self.protoset.is_empty()
    }

    pub(super) fn reflection(&self) -> bool {
        self.use_reflection.unwrap_or(!self.has_files())
    }
}

/// What is sent along.
#[derive(Debug, Args)]
#[command(next_help_heading = "Metadata")]
pub(super) struct MetadataArgs {
    /// Metadata of every request. May be given several times
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", allow_hyphen_values = true)]
    pub(super) header: Vec<String>,
    /// Metadata of the call alone, not of questions to reflection
    #[arg(long, value_name = "NAME: VALUE")]
    pub(super) rpc_header: Vec<String>,
    /// Metadata of questions to reflection alone
    #[arg(long, value_name = "NAME: VALUE")]
    pub(super) reflect_header: Vec<String>,
    /// Puts environment variables in the place of ${NAME} in metadata
    #[arg(long)]
    pub(super) expand_headers: bool,
    /// A file with a token, which is sent as `authorization: Bearer TOKEN`
    #[arg(long, value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
    /// The agent that is called, on a hub's gateway: sent as `dialback-agent: ID`
    #[arg(long, value_name = "ID")]
    pub(super) agent: Option<String>,
}

/// Where the server is, and how it is reached.
#[derive(Debug, Args)]
#[command(next_help_heading = "Connection")]
pub(super) struct ServerArgs {
    /// A hub's gateway, in place of ADDRESS
    #[arg(long, value_name = "ADDRESS", env = "DIALBACK_GATEWAY", hide_env_values = true)]
    pub(super) gateway: Option<String>,
    /// Without TLS
    #[arg(long)]
    pub(super) plaintext: bool,
    /// Certificates of the authorities that are trusted, in PEM form, in place of the system's
    #[arg(long, value_name = "FILE", conflicts_with = "plaintext")]
    pub(super) cacert: Option<PathBuf>,
    /// A client certificate, in PEM form
    #[arg(long, value_name = "FILE", conflicts_with = "plaintext", requires = "key")]
    pub(super) cert: Option<PathBuf>,
    /// The client certificate's private key, in PEM form
    #[arg(long, value_name = "FILE", conflicts_with = "plaintext", requires = "cert")]
    pub(super) key: Option<PathBuf>,
    /// Takes any certificate. NOT SECURE: whoever is on the way can read and change everything
    #[arg(long, conflicts_with = "plaintext")]
    pub(super) insecure: bool,
    /// The server's name as it is sent; with TLS it is also what the certificate is checked for
    #[arg(long, value_name = "NAME")]
    pub(super) authority: Option<String>,
    /// The name that the certificate is checked for, as --authority
    #[arg(long, value_name = "NAME")]
    pub(super) servername: Option<String>,
    /// ADDRESS is the path of a Unix socket
    #[arg(long)]
    pub(super) unix: bool,
    /// Longest wait for the connection, in seconds
    #[arg(long, value_name = "SECONDS", value_parser = patience, default_value = CONNECT_TIMEOUT)]
    pub(super) connect_timeout: Duration,
    /// Longest time that everything may take, in seconds; the server is told
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(super) max_time: Option<Duration>,
    /// Asks a server that is silent for so long whether it lives, in seconds
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(super) keepalive_time: Option<Duration>,
    /// What `user-agent` begins with
    #[arg(long, value_name = "TEXT")]
    pub(super) user_agent: Option<String>,
    /// Not there: ALTS is for programs inside Google's cloud
    #[arg(long, hide = true)]
    pub(super) alts: bool,
}

/// 0 is as if the flag was not there.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "give a number of seconds, as 10 or 0.5".to_owned())?;
    // What is longer than a timer can be is as good as no end.
    let time = Duration::try_from_secs_f64(seconds).map(|time| time.min(Duration::from_secs(10 * 365 * 86_400)));
    time.map_err(|_| "give a number of seconds that is not negative".into())
}

/// 0 is the default.
fn patience(text: &str) -> Result<Duration, String> {
    seconds(text).and_then(|time| if time.is_zero() { seconds(CONNECT_TIMEOUT) } else { Ok(time) })
}

/// The same.
fn size(text: &str) -> Result<usize, String> {
    let size: usize = text.parse().map_err(|_| "give a number of bytes".to_owned())?;
    Ok(if size == 0 { MAX_MESSAGE } else { size })
}

/// As Go reads it.
fn boolean(text: &str) -> Result<bool, String> {
    if is_true(text) || is_false(text) { Ok(is_true(text)) } else { Err("give true or false".into()) }
}

pub(super) fn is_true(text: &str) -> bool {
    ["1", "t", "T", "true", "TRUE", "True"].contains(&text)
}

pub(super) fn is_false(text: &str) -> bool {
    ["0", "f", "F", "false", "FALSE", "False"].contains(&text)
}
