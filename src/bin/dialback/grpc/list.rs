//! `dialback list`: services, or the methods of one.

use super::args::ListArgs;
use super::fleet::{self, Failed};
use super::schema::{Schema, Symbol, Unknown, perhaps};
use super::session::{Session, in_time, or_interrupted, schema_of_files};
use super::{output, target};
use crate::failure::Failure;

/// Runs `dialback list`.
pub(crate) async fn list(args: ListArgs) -> Result<(), Failure> {
    let (target, service) =
        target::sort(args.first.clone(), args.second.clone(), &args.server, args.schema.has_files())?;
    let target = target.filter(|_| args.schema.reflection());
    let Some(target) = target else {
        return show(&mut schema_of_files(&args.schema)?, service.as_deref()).await;
    };
    let session = or_interrupted(Session::open(target, &args.metadata, &args.server)).await?;
    let work = async |session: &Session| {
        let mut schema = session.schema(&args.schema)?;
        let shown = in_time(session.deadline, show(&mut schema, service.as_deref())).await;
        if let Err(failure) = &shown {
            fleet::tell(session, args.metadata.agent.as_deref(), Failed::Schema(failure)).await;
        }
        shown
    };
    session.during(work).await
}

async fn show(schema: &mut Schema, service: Option<&str>) -> Result<(), Failure> {
    let mut text = String::new();
    match service {
        None => {
            let names = schema.services().await;
            for name in names.map_err(|why| Failure::new(format!("the services cannot be listed: {why}")))? {
                text += &format!("{name}\n");
            }
            if text.is_empty() {
                text += "(No services)\n";
            }
        }
        Some(name) => {
            let found = match schema.find(name).await {
                Ok(Symbol::Service(service)) => service,
                Ok(_) => return Err(Failure::new(format!("{name} is no service: see `dialback describe`"))),
                Err(Unknown::NotFound) => {
                    let like = perhaps(&schema.nearest(name).await);
                    return Err(Failure::new(format!("there is no service {name}{like}")));
                }
                Err(why) => return Err(Failure::new(format!("the methods of {name} cannot be listed: {why}"))),
            };
            let mut methods: Vec<_> = found.methods().map(|method| method.full_name().to_owned()).collect();
            methods.sort();
            for method in methods {
                text += &format!("{method}\n");
            }
            if text.is_empty() {
                text += "(No methods)\n";
            }
        }
    }
    output::show(output::on_stdout(&text)).await.map(|_| ())
}
