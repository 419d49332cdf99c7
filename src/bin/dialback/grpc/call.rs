//! `dialback call`: one call, of any kind.

use std::cell::Cell;
use std::io::IsTerminal as _;
use std::pin::pin;
use std::time::Instant;

use bytes::Bytes;
use prost::Message as _;
use prost_reflect::MethodDescriptor;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::codec::CompressionEncoding;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Status};

use super::args::CallArgs;
use super::codec::Encoded;
use super::fleet::{self, Failed};
use super::input::{self, Requests, Source};
use super::metadata::lines;
use super::output::{self, Output, encoder, printable, say};
use super::progress::Progress;
use super::schema::{Schema, Symbol, Unknown, may_hold_any, nearest, perhaps};
use super::session::{Deadline, Session, in_time, no_server, or_interrupted, schema_of_files};
use super::{print as proto, status, target};
use crate::failure::Failure;
use crate::format::Format;

/// Runs `dialback call`.
pub(crate) async fn call(args: CallArgs) -> Result<(), Failure> {
    let (target, name) = target::sort(args.first.clone(), args.second.clone(), &args.server, true)?;
    let name = name.ok_or_else(|| Failure::usage("say what to call: package.Service/Method"))?;
    let (service, method) = split(&name)?;
    output::check(args.format)?;
    if args.sample && args.schema.has_files() && !args.schema.reflection() {
        let mut schema = schema_of_files(&args.schema)?;
        return output::sample(&find(&mut schema, service, method).await?.input(), args.format).await;
    }
    let target = target.ok_or_else(no_server)?;
    // What can be wrong without a server is found before there is one.
    let format = input::format(&args)?;
    let source = Source::of(&args)?;
    let session = or_interrupted(Session::open(target, &args.metadata, &args.server)).await?;
    let work = async |session: &Session| {
        let call = Call { args: &args, session };
        call.run(service, method, source, format).await
    };
    session.during(work).await
}

/// `service/method` or `service.method`.
fn split(name: &str) -> Result<(&str, &str), Failure> {
    let parts = name.rsplit_once('/').or_else(|| name.rsplit_once('.'));
    let parts = parts.map(|(service, method)| (service.trim_start_matches(['.', '/']), method));
    parts.filter(|(service, method)| !service.is_empty() && !method.is_empty()).ok_or_else(|| {
        Failure::usage(format!("{name} is no method: write package.Service/Method or package.Service.Method"))
    })
}

async fn find(schema: &mut Schema, service: &str, method: &str) -> Result<MethodDescriptor, Failure> {
    let found = match schema.find(service).await {
        Ok(Symbol::Service(service)) => service,
        Ok(_) => return Err(Failure::new(format!("{service} is no service"))),
        Err(Unknown::NotFound) => {
            let like = perhaps(&schema.nearest(service).await);
            return Err(Failure::new(format!("there is no service {service}{like}")));
        }
        Err(why) => return Err(Failure::new(format!("no schema of {service}: {why}"))),
    };
    let method = found.methods().find(|candidate| candidate.name() == method).ok_or_else(|| {
        let methods = found.methods().map(|method| method.name().to_owned()).collect::<Vec<_>>();
        let like = nearest(method, methods.clone());
        let like = if like.is_empty() { format!("; it has {}", methods.join(", ")) } else { perhaps(&like) };
        Failure::new(format!("{service} has no method {method}{like}"))
    })?;
    // What extends its messages can be in another file.
    schema.learn_extensions([&method.input(), &method.output()]).await;
    match schema.find(method.full_name()).await {
        Ok(Symbol::Method(method)) => Ok(method),
        _ => Ok(method),
    }
}

struct Call<'a> {
    args: &'a CallArgs,
    session: &'a Session,
}

impl Call<'_> {
    async fn run(self, service: &str, method: &str, source: Source, format: Format) -> Result<(), Failure> {
        let began = Instant::now();
        let args = self.args;
        let mut schema = self.session.schema(&args.schema)?;
        let method = match in_time(self.session.deadline, find(&mut schema, service, method)).await {
            Ok(method) => method,
            Err(failure) => {
                // Whoever is not there cannot be asked for a schema, either.
                fleet::tell(self.session, args.metadata.agent.as_deref(), Failed::Schema(&failure)).await;
                return Err(failure);
            }
        };
        if args.sample {
            return output::sample(&method.input(), args.format).await;
        }
        let mut input = method.input();
        if may_hold_any(&input) && !matches!(source, Source::Nothing) {
            schema.learn_for_any(source.head()).await;
            input = schema.message(input.full_name()).unwrap_or(input);
        }
        let typing = matches!(source, Source::Stdin) && std::io::stdin().is_terminal();
        let mut requests = Requests::new(args, source, format, input)?;
        let known = began.elapsed();

        let is_stream = method.is_server_streaming() || method.is_client_streaming();
        let progress = if is_stream { Progress::of_stream(typing) } else { Progress::none() };
        let output = Output::new(progress)?;
        let received = Cell::new(0);
        self.verbose(1, || format!("\nResolved method descriptor:\n{}", proto::method(&method))).await;
        let result = self.exchange(&method, &mut requests, &mut schema, &output, &received).await;
        output.end().await?;
        let ended = result?;

        let (sent, received) = (requests.count(), received.get());
        self.verbose(1, || {
            let plural = |count: u64| if count == 1 { "" } else { "s" };
            format!("Sent {sent} request{} and received {received} response{}", plural(sent), plural(received))
        })
        .await;
        self.verbose(2, || format!("Times: schema {known:.1?}, all {:.1?}", began.elapsed())).await;
        match ended {
            Some(status) if status.code() != Code::Ok => self.failed(&status, &mut schema).await,
            _ => Ok(()),
        }
    }

    /// Sends and receives until the call has ended, and gives its status; None if nobody reads the output any more.
    async fn exchange(
        &self,
        method: &MethodDescriptor,
        requests: &mut Requests,
        schema: &mut Schema,
        output: &Output,
        received: &Cell<u64>,
    ) -> Result<Option<Status>, Failure> {
        // One message ahead of the connection, so that what stdin gives goes out as it comes.
        let (send, sending) = mpsc::channel(1);
        if !method.is_client_streaming() {
            let only = requests.next().await?;
            if only.is_some() && requests.next().await?.is_some() {
                let kind = if method.is_server_streaming() { "server-streaming" } else { "unary" };
                return Err(Failure::new(format!(
                    "{} is {kind}, and the request has more than 1 message",
                    method.full_name()
                )));
            }
            let bytes = only.map(|message| message.encode_to_vec()).unwrap_or_default();
            let _ = send.try_send(Bytes::from(bytes)); // there is room for one
        }
        let mut feed = pin!(async move {
            while method.is_client_streaming() {
                let Some(message) = requests.next().await? else { break };
                let bytes = message.encode_to_vec();
                let size = bytes.len();
                if send.send(Bytes::from(bytes)).await.is_err() {
                    break; // the call is over
                }
                // Of a stream both ways the answers are counted.
                if !method.is_server_streaming() {
                    output.sent(size).await;
                }
            }
            drop(send);
            Ok::<_, Failure>(())
        });
        let mut receive = pin!(self.receive(method, sending, schema, output, received));
        let mut fed = false;
        loop {
            tokio::select! {
                biased;
                ended = &mut receive => return ended,
                result = &mut feed, if !fed => {
                    // A request that cannot be used gives the call up.
                    result?;
                    fed = true;
                }
            }
        }
    }

    async fn receive(
        &self,
        method: &MethodDescriptor,
        sending: mpsc::Receiver<Bytes>,
        schema: &mut Schema,
        output: &Output,
        received: &Cell<u64>,
    ) -> Result<Option<Status>, Failure> {
        let mut request = Request::new(ReceiverStream::new(sending));
        *request.metadata_mut() = self.session.metadata.call.clone();
        self.verbose(1, || format!("\nRequest metadata to send:\n{}", self.session.metadata.lines(request.metadata())))
            .await;
        let work = self.converse(method, request, schema, output, received);
        Deadline::or_status(self.session.deadline, work).await.unwrap_or_else(|status| Ok(Some(status)))
    }

    async fn converse(
        &self,
        method: &MethodDescriptor,
        mut request: Request<ReceiverStream<Bytes>>,
        schema: &mut Schema,
        output: &Output,
        received: &Cell<u64>,
    ) -> Result<Option<Status>, Failure> {
        let server = self.session.target.text.as_str();
        let mut grpc = Grpc::new(self.session.connection.channel())
            .accept_compressed(CompressionEncoding::Gzip)
            .max_decoding_message_size(self.args.max_msg_sz);
        if let Err(error) = grpc.ready().await {
            return Ok(Some(Status::unavailable(format!("the connection to {server} is lost: {error}"))));
        }
        if let Some(deadline) = self.session.deadline {
            request.set_timeout(deadline.told());
        }
        let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
        let path = path.parse().map_err(|_| Failure::new(format!("{path} cannot be a method's name")))?;
        let response = match grpc.streaming(request, path, Encoded).await {
            Ok(response) => response,
            Err(status) => {
                let status = status::corrected_with_flag(status, server);
                self.verbose(1, || format!("\nResponse trailers received:\n{}", lines(status.metadata()))).await;
                return Ok(Some(status));
            }
        };
        self.verbose(1, || format!("\nResponse headers received:\n{}", lines(response.metadata()))).await;

        let type_name = method.output().full_name().to_owned();
        let mut encoder = encoder(self.args.format, self.args.emit_defaults);
        let mut stream = response.into_inner();
        let mut only: Option<Vec<u8>> = None;
        let end = loop {
            let bytes = match stream.message().await {
                Ok(Some(bytes)) => bytes,
                Ok(None) => break Status::new(Code::Ok, ""),
                Err(status) => break status::corrected_with_flag(status, server),
            };
            let size = bytes.len();
            let message = match schema.decode(&type_name, bytes).await {
                Ok(message) => message,
                Err(Unknown::Failed(status)) => break status,
                Err(why) => return Err(Failure::new(format!("a response cannot be read: {why}"))),
            };
            let text = encoder.encode(&message);
            let text = text.map_err(|error| Failure::because("a response cannot be written", &error))?;
            self.verbose(2, || format!("\nEstimated response size: {size} bytes")).await;
            if method.is_server_streaming() {
                received.set(received.get() + 1);
                if !output.write(text).await {
                    return Ok(None);
                }
            } else if only.replace(text).is_some() {
                break Status::internal("the server has answered a single call with more than one message");
            }
        };
        // The answer to a single call is one only if its status is OK.
        let end = match (method.is_server_streaming(), end.code(), only) {
            (false, Code::Ok, None) => Status::internal("the server has answered OK without a message"),
            (false, Code::Ok, Some(text)) => {
                received.set(1);
                if !output.write(text).await {
                    return Ok(None);
                }
                end
            }
            _ => end,
        };
        let trailers = match end.code() {
            Code::Ok => stream.trailers().await.ok().flatten().unwrap_or_else(MetadataMap::new),
            _ => end.metadata().clone(),
        };
        self.verbose(1, || format!("\nResponse trailers received:\n{}", lines(&trailers))).await;
        Ok(Some(end))
    }

    async fn failed(&self, status: &Status, schema: &mut Schema) -> Result<(), Failure> {
        let encoded =
            if self.args.format_error { status::encoded(status, schema, self.args.format).await } else { None };
        match encoded {
            Some(bytes) => say(bytes).await,
            None => say(status::text(status, schema, self.args.format).await).await,
        }
        fleet::tell(self.session, self.args.metadata.agent.as_deref(), Failed::Call(status)).await;
        Err(Failure::call(status.code()))
    }

    async fn verbose(&self, level: u8, text: impl FnOnce() -> String) {
        if self.args.verbose >= level {
            say(printable(&text()) + "\n").await;
        }
    }
}
