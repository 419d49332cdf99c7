//! `dialback describe`: symbols as `.proto` source.

use super::args::DescribeArgs;
use super::fleet::{self, Failed};
use super::schema::{Schema, Symbol, Unknown, perhaps};
use super::session::{Session, in_time, or_interrupted, schema_of_files};
use super::{output, print as proto, target};
use crate::failure::Failure;
use prost_reflect::Kind;

/// Runs `dialback describe`.
pub(crate) async fn describe(args: DescribeArgs) -> Result<(), Failure> {
    if args.sample {
        output::check(args.format)?;
    }
    let (target, symbol) =
        target::sort(args.first.clone(), args.second.clone(), &args.server, args.schema.has_files())?;
    let target = target.filter(|_| args.schema.reflection());
    let Some(target) = target else {
        return show(&mut schema_of_files(&args.schema)?, symbol, &args).await;
    };
    let session = or_interrupted(Session::open(target, &args.metadata, &args.server)).await?;
    let work = async |session: &Session| {
        let mut schema = session.schema(&args.schema)?;
        let shown = in_time(session.deadline, show(&mut schema, symbol, &args)).await;
        if let Err(failure) = &shown {
            fleet::tell(session, args.metadata.agent.as_deref(), Failed::Schema(failure)).await;
        }
        shown
    };
    session.during(work).await
}

async fn show(schema: &mut Schema, symbol: Option<String>, args: &DescribeArgs) -> Result<(), Failure> {
    let symbols = match symbol {
        // A method may be written as it is called.
        Some(symbol) => vec![symbol.replace('/', ".")],
        None => {
            let all = schema.services().await;
            let all = all.map_err(|why| Failure::new(format!("the services cannot be listed: {why}")))?;
            if all.is_empty() {
                output::show("(No services)\n").await?;
            }
            all
        }
    };
    for name in symbols {
        let symbol = match schema.find(&name).await {
            Ok(symbol) => symbol,
            Err(Unknown::NotFound) => {
                schema.learn_services().await;
                let like = perhaps(&schema.nearest(&name).await);
                return Err(Failure::new(format!("there is no symbol {name}{like}")));
            }
            Err(why) => return Err(Failure::new(format!("{name} cannot be described: {why}"))),
        };
        let full_name = match &symbol {
            // Both its own and that below its enum are in use.
            Symbol::EnumValue(_) => name.trim_start_matches('.').to_owned(),
            symbol => proto::full_name(symbol),
        };
        let (symbol, kind) = named(symbol);
        let text = output::on_stdout(&format!("{full_name} is {kind}:\n{}\n", proto::source(&symbol)));
        output::show(text).await?;
        if let (true, Symbol::Message(message)) = (args.sample, &symbol) {
            output::show("\nMessage template:\n").await?;
            output::sample(message, args.format).await?;
        }
    }
    Ok(())
}

/// What a symbol is called. The message of a map or a group is shown by its field.
fn named(symbol: Symbol) -> (Symbol, &'static str) {
    let kind = match &symbol {
        Symbol::Service(_) => "a service",
        Symbol::Method(_) => "a method",
        Symbol::Field(field) if field.is_group() => "a group field",
        Symbol::Field(_) => "a field",
        Symbol::Extension(_) => "an extension",
        Symbol::Oneof(_) => "a one-of",
        Symbol::Enum(_) => "an enum",
        Symbol::EnumValue(_) => "an enum value",
        Symbol::Message(message) => {
            let parent = message.parent_message();
            let field = parent.and_then(|parent| {
                let mut fields = parent.fields();
                fields.find(|field| {
                    matches!(field.kind(), Kind::Message(kind) if kind == *message)
                        && (field.is_map() || field.is_group())
                })
            });
            match field {
                Some(field) if field.is_map() => {
                    return (Symbol::Field(field), "the entry type for a map field");
                }
                Some(field) => return (Symbol::Field(field), "the type of a group field"),
                None => "a message",
            }
        }
    };
    (symbol, kind)
}
