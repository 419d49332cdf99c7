//! `dialback health`: the standard health service.

use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::args::{HealthArgs, SchemaArgs};
use super::fleet::{self, Failed};
use super::output::{printable, say, show};
use super::schema::Schema;
use super::session::{Deadline, Session, no_server, or_interrupted};
use super::{status, target};
use crate::failure::Failure;
use crate::format::Format;

/// Runs `dialback health`.
pub(crate) async fn health(args: HealthArgs) -> Result<(), Failure> {
    let (target, service) = target::sort(args.first.clone(), args.second.clone(), &args.server, false)?;
    let target = target.ok_or_else(no_server)?;
    let session = or_interrupted(Session::open(target, &args.metadata, &args.server)).await?;
    session.during(async |session| ask(session, &args, service.unwrap_or_default()).await).await
}

async fn ask(session: &Session, args: &HealthArgs, service: String) -> Result<(), Failure> {
    let work = converse(session, args.watch, service.clone());
    let ended = Deadline::or_status(session.deadline, work).await.unwrap_or_else(|status| Ok(Err(status)));
    let status = match ended? {
        Ok(ServingStatus::Serving) => return Ok(()),
        Ok(_) => return Err(Failure::told()),
        Err(status) => status::corrected(status, &session.target.text),
    };
    let nothing = SchemaArgs { proto: vec![], import_path: vec![], protoset: vec![], use_reflection: Some(false) };
    let mut schema = Schema::open(&nothing, None)?;
    say(status::text(&status, &mut schema, Format::Json).await).await;
    match status.code() {
        Code::Unimplemented => say("dialback: the server has no grpc.health.v1.Health\n").await,
        Code::NotFound if !service.is_empty() && args.metadata.agent.is_none() => {
            say(printable(&format!("dialback: the server tells nothing of {service}\n"))).await;
        }
        _ => fleet::tell(session, args.metadata.agent.as_deref(), Failed::Call(&status)).await,
    }
    Err(Failure::call(status.code()))
}

/// Prints what the server says, and gives the last of it, or the status with which the call ended.
async fn converse(session: &Session, watch: bool, service: String) -> Result<Result<ServingStatus, Status>, Failure> {
    let mut client = HealthClient::new(session.connection.channel());
    let mut request = Request::new(HealthCheckRequest { service });
    *request.metadata_mut() = session.metadata.call.clone();
    if let Some(deadline) = session.deadline {
        request.set_timeout(deadline.told());
    }
    if !watch {
        return match client.check(request).await {
            Ok(response) => {
                let status = response.get_ref().status();
                show(format!("{}\n", status.as_str_name())).await?;
                Ok(Ok(status))
            }
            Err(status) => Ok(Err(status)),
        };
    }
    let mut changes = match client.watch(request).await {
        Ok(response) => response.into_inner(),
        Err(status) => return Ok(Err(status)),
    };
    let mut last = ServingStatus::Unknown;
    loop {
        match changes.message().await {
            Ok(Some(response)) => {
                last = response.status();
                if !show(format!("{}\n", last.as_str_name())).await? {
                    return Ok(Ok(last));
                }
            }
            Ok(None) => return Ok(Ok(last)),
            Err(status) => return Ok(Err(status)),
        }
    }
}
