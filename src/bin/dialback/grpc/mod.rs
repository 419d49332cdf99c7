//! A gRPC client for any server, with grpcurl's contract: `call`, `list`, `describe` and `health`.
//!
//! Schema comes from the server's reflection, from `.proto` files or from descriptor sets; messages are dynamic.

mod agents;
mod args;
mod call;
mod codec;
mod dashes;
mod describe;
mod dial;
mod fleet;
mod health;
mod input;
mod list;
mod literal;
mod metadata;
mod output;
mod print;
mod progress;
mod schema;
mod session;
mod sniff;
mod status;
mod target;
mod tls;

pub(crate) use self::agents::{AgentsArgs, agents};
pub(crate) use self::args::{CallArgs, DescribeArgs, HealthArgs, ListArgs};
pub(crate) use self::call::call;
pub(crate) use self::dashes::double_dashes;
pub(crate) use self::describe::describe;
pub(crate) use self::dial::connect_to_one;
pub(crate) use self::health::health;
pub(crate) use self::list::list;
pub(crate) use self::output::{print, printable};
pub(crate) use self::tls::{certificates, check_pair, hub as hub_tls};
