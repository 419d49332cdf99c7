//! Questions to a server's reflection service, of either version.

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ExtensionRequest, ServerReflectionRequest, ServerReflectionResponse};

/// The service's name, as all who have it name it today.
pub(super) const SERVICE: &str = "grpc.reflection.v1.ServerReflection";

/// Both versions have the same messages.
const VERSIONS: [&str; 2] = [
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// Longest answer, in bytes: far more than any file needs, with all that it imports.
const LONGEST: usize = 16 << 20;

/// How many questions a session has: far more than any schema needs, and an end for a server that always knows of more.
const MOST_QUESTIONS: usize = 10_000;

/// Why a question has no answer.
#[derive(Debug)]
pub(in crate::grpc) enum Unanswered {
    /// The server has no reflection.
    NoReflection,
    /// It does not know what was asked for.
    NotFound,
    /// The call or the question failed.
    Failed(Status),
}

/// A server's reflection service.
#[derive(Debug)]
pub(in crate::grpc) struct Reflection {
    channel: Channel,
    metadata: MetadataMap,
    /// The versions that are still to be tried: the first one, once it has answered.
    versions: &'static [&'static str],
    questions_left: usize,
    stream: Option<(mpsc::Sender<ServerReflectionRequest>, Streaming<ServerReflectionResponse>)>,
}

impl Reflection {
    pub(in crate::grpc) fn new(channel: Channel, metadata: MetadataMap) -> Self {
        Self { channel, metadata, versions: &VERSIONS, questions_left: MOST_QUESTIONS, stream: None }
    }

    /// The full names of the services, in alphabetical order.
    pub(in crate::grpc) async fn services(&mut self) -> Result<Vec<String>, Unanswered> {
        match self.ask(MessageRequest::ListServices("*".into())).await? {
            MessageResponse::ListServicesResponse(list) => {
                let mut names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
                names.sort();
                Ok(names)
            }
            other => Err(unexpected(&other)),
        }
    }

    /// The file that has a symbol, and perhaps others that it needs, encoded.
    pub(in crate::grpc) async fn file_of_symbol(&mut self, symbol: &str) -> Result<Vec<Bytes>, Unanswered> {
        self.files(MessageRequest::FileContainingSymbol(symbol.to_owned())).await
    }

    pub(in crate::grpc) async fn file(&mut self, name: &str) -> Result<Vec<Bytes>, Unanswered> {
        self.files(MessageRequest::FileByFilename(name.to_owned())).await
    }

    /// The numbers of all extensions of a message.
    pub(in crate::grpc) async fn extensions(&mut self, message: &str) -> Result<Vec<i32>, Unanswered> {
        match self.ask(MessageRequest::AllExtensionNumbersOfType(message.to_owned())).await? {
            MessageResponse::AllExtensionNumbersResponse(numbers) => Ok(numbers.extension_number),
            other => Err(unexpected(&other)),
        }
    }

    pub(in crate::grpc) async fn file_of_extension(
        &mut self,
        message: &str,
        number: i32,
    ) -> Result<Vec<Bytes>, Unanswered> {
        let extension = ExtensionRequest { containing_type: message.to_owned(), extension_number: number };
        self.files(MessageRequest::FileContainingExtension(extension)).await
    }

    async fn files(&mut self, question: MessageRequest) -> Result<Vec<Bytes>, Unanswered> {
        let answer = match self.ask(question).await {
            // Some servers end the call with it, as does a gateway without that agent: only the latter cannot tell more.
            Err(Unanswered::Failed(status)) if status.code() == Code::NotFound => {
                let there = self.ask(MessageRequest::ListServices("*".into())).await.is_ok();
                return Err(if there { Unanswered::NotFound } else { Unanswered::Failed(status) });
            }
            answer => answer?,
        };
        match answer {
            MessageResponse::FileDescriptorResponse(files) => {
                Ok(files.file_descriptor_proto.into_iter().map(Bytes::from).collect())
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn ask(&mut self, question: MessageRequest) -> Result<MessageResponse, Unanswered> {
        self.questions_left = self.questions_left.checked_sub(1).ok_or_else(|| {
            let why = format!("the schema takes more than {MOST_QUESTIONS} questions: pass -proto or -protoset");
            Unanswered::Failed(Status::resource_exhausted(why))
        })?;
        let question = ServerReflectionRequest { host: String::new(), message_request: Some(question) };
        let answer = match self.ask_on_stream(question.clone()).await {
            Some(answer) => answer,
            // There is no stream yet, or the server has ended it after its last answer.
            None => self.ask_anew(question).await?,
        };
        match answer.message_response {
            Some(MessageResponse::ErrorResponse(error)) => match Code::from(error.error_code) {
                Code::NotFound => Err(Unanswered::NotFound),
                code => Err(Unanswered::Failed(Status::new(code, error.error_message))),
            },
            Some(response) => Ok(response),
            None => Err(Unanswered::Failed(Status::internal("reflection has answered with nothing"))),
        }
    }

    async fn ask_on_stream(&mut self, question: ServerReflectionRequest) -> Option<ServerReflectionResponse> {
        let (questions, answers) = self.stream.as_mut()?;
        questions.send(question).await.ok()?;
        answers.message().await.ok()?
    }

    async fn ask_anew(&mut self, question: ServerReflectionRequest) -> Result<ServerReflectionResponse, Unanswered> {
        loop {
            let [path, others @ ..] = self.versions else { return Err(Unanswered::NoReflection) };
            match self.open(path, question.clone()).await {
                Err(status) if status.code() == Code::Unimplemented => self.versions = others,
                Err(status) => return Err(Unanswered::Failed(status)),
                Ok(answer) => return Ok(answer),
            }
        }
    }

    /// Opens a stream with a question: some servers say nothing before there is one.
    async fn open(
        &mut self,
        path: &'static str,
        question: ServerReflectionRequest,
    ) -> Result<ServerReflectionResponse, Status> {
        let (questions, asked) = mpsc::channel(1);
        let _ = questions.try_send(question); // there is room for one
        let mut request = Request::new(ReceiverStream::new(asked));
        *request.metadata_mut() = self.metadata.clone();
        let mut grpc = Grpc::new(self.channel.clone()).max_decoding_message_size(LONGEST);
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let path = http::uri::PathAndQuery::from_static(path);
        let codec: ProstCodec<ServerReflectionRequest, ServerReflectionResponse> = ProstCodec::default();
        let mut answers = grpc.streaming(request, path, codec).await?.into_inner();
        let answer = answers.message().await?;
        let answer = answer.ok_or_else(|| Status::internal("reflection has ended without an answer"))?;
        self.stream = Some((questions, answers));
        Ok(answer)
    }
}

fn unexpected(response: &MessageResponse) -> Unanswered {
    // Only its kind: the rest may be long.
    let kind = format!("{response:?}");
    let kind = kind.split('(').next().unwrap_or_default();
    Unanswered::Failed(Status::internal(format!("reflection has answered something else: {kind}")))
}
