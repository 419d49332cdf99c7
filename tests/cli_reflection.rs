//! The command's client against servers whose reflection tells too much, or nonsense.
#![cfg(feature = "cli")]

mod common;

use std::pin::Pin;

use common::command::run;
use prost::Message as _;
use prost_types::{DescriptorProto, FileDescriptorProto, MethodDescriptorProto, ServiceDescriptorProto};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::server_reflection_server::{ServerReflection, ServerReflectionServer};
use tonic_reflection::pb::v1::{
    ErrorResponse, FileDescriptorResponse, ListServiceResponse, ServerReflectionRequest, ServerReflectionResponse,
    ServiceResponse,
};

/// What a server answers to a question for a file, by its name or a symbol in it. None is NOT_FOUND.
type Files = fn(&str) -> Option<Vec<FileDescriptorProto>>;

#[derive(Clone)]
struct Reflection(Files, usize);

#[tonic::async_trait]
impl ServerReflection for Reflection {
    type ServerReflectionInfoStream =
        Pin<Box<dyn Stream<Item = Result<ServerReflectionResponse, Status>> + Send + 'static>>;

    async fn server_reflection_info(
        &self,
        questions: Request<Streaming<ServerReflectionRequest>>,
    ) -> Result<Response<Self::ServerReflectionInfoStream>, Status> {
        let Self(files, services) = *self;
        let answer = move |question: Result<ServerReflectionRequest, Status>| {
            let asked = question?.message_request.ok_or_else(|| Status::invalid_argument("no question"))?;
            let answer = match &asked {
                MessageRequest::ListServices(_) => {
                    let service = |number| ServiceResponse { name: format!("a.S{number}") };
                    let service = (0..services).map(service).collect();
                    MessageResponse::ListServicesResponse(ListServiceResponse { service })
                }
                MessageRequest::FileByFilename(name) | MessageRequest::FileContainingSymbol(name) => {
                    match files(name) {
                        Some(files) => MessageResponse::FileDescriptorResponse(FileDescriptorResponse {
                            file_descriptor_proto: files.iter().map(|file| file.encode_to_vec()).collect(),
                        }),
                        None => not_found(),
                    }
                }
                _ => not_found(),
            };
            Ok(ServerReflectionResponse { message_response: Some(answer), ..Default::default() })
        };
        Ok(Response::new(Box::pin(questions.into_inner().map(answer))))
    }
}

fn not_found() -> MessageResponse {
    MessageResponse::ErrorResponse(ErrorResponse { error_code: 5, error_message: "not found".into() })
}

async fn start(files: Files, services: usize) -> (JoinHandle<()>, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let service = ServerReflectionServer::new(Reflection(files, services));
    let server = tonic::transport::Server::builder().add_service(service);
    let incoming = TcpListenerStream::new(listener);
    (tokio::spawn(async move { server.serve_with_incoming(incoming).await.unwrap() }), address)
}

fn file(name: &str, imports: &[&str]) -> FileDescriptorProto {
    FileDescriptorProto {
        name: Some(name.into()),
        package: Some("a".into()),
        dependency: imports.iter().map(ToString::to_string).collect(),
        syntax: Some("proto3".into()),
        ..Default::default()
    }
}

/// `a.S0` with a method for `a.M`, and `a.M`.
fn service(name: &str, imports: &[&str]) -> FileDescriptorProto {
    let method = MethodDescriptorProto {
        name: Some("Do".into()),
        input_type: Some(".a.M".into()),
        output_type: Some(".a.M".into()),
        ..Default::default()
    };
    FileDescriptorProto {
        message_type: vec![DescriptorProto { name: Some("M".into()), ..Default::default() }],
        service: vec![ServiceDescriptorProto { name: Some("S0".into()), method: vec![method], ..Default::default() }],
        ..file(name, imports)
    }
}

const DESCRIBED: &str = "a.S0 is a service:\nservice S0 {\n  rpc Do ( .a.M ) returns ( .a.M );\n}\n";

#[tokio::test]
async fn imports_without_end_are_given_up() {
    // Each file imports one that nobody has seen yet, and none has the message that the service needs.
    let next = |name: &str| {
        let number: usize = name.parse().unwrap_or(0);
        let mut service = service("0", &["1"]);
        service.message_type.clear();
        Some(vec![if number == 0 { service } else { file(name, &[&(number + 1).to_string()]) }])
    };
    let (_server, address) = start(next, 1).await;
    let answer = run(&["describe", "-plaintext", &address, "a.S0"]).await;
    answer.fails(1, &["the schema takes more than 10000 questions: pass -proto"]);
}

#[tokio::test]
async fn long_chains_of_imports_are_followed() {
    // All in one answer, the last first.
    let all = |_: &str| {
        let middle = (1..3000).rev().map(|number| file(&number.to_string(), &[&(number + 1).to_string()]));
        let last = std::iter::once(file("3000", &[]));
        Some(last.chain(middle).chain([service("0", &["1"])]).collect())
    };
    let (_server, address) = start(all, 1).await;
    assert_eq!(run(&["describe", "-plaintext", &address, "a.S0"]).await.text(), DESCRIBED);
}

#[tokio::test]
async fn imports_in_a_circle_are_followed_once() {
    let circle = |_: &str| {
        let public = |file| FileDescriptorProto { public_dependency: vec![0, 1], ..file };
        Some(vec![public(service("x", &["x", "y"])), public(file("y", &["x", "y"]))])
    };
    let (_server, address) = start(circle, 1).await;
    assert_eq!(run(&["describe", "-plaintext", &address, "a.S0"]).await.text(), DESCRIBED);
}

#[tokio::test]
async fn public_imports_are_seen_however_far_they_are() {
    let far = |_: &str| {
        let public = |file| FileDescriptorProto { public_dependency: vec![0], ..file };
        let mut first = service("0", &["1"]);
        let message = std::mem::take(&mut first.message_type);
        let last = FileDescriptorProto { message_type: message, ..file("3", &[]) };
        Some(vec![first, public(file("1", &["2"])), public(file("2", &["3"])), last])
    };
    let (_server, address) = start(far, 1).await;
    assert_eq!(run(&["describe", "-plaintext", &address, "a.S0"]).await.text(), DESCRIBED);
}

#[tokio::test]
async fn services_without_end_are_not_all_asked_for() {
    let each = |name: &str| {
        let mut service = service(name, &[]);
        service.service[0].name = Some(name.trim_start_matches("a.").into());
        service.message_type[0].name = Some(format!("M{name}").replace('.', "_"));
        for method in &mut service.service[0].method {
            method.input_type = Some(format!(".a.{}", service.message_type[0].name()));
            method.output_type = method.input_type.clone();
        }
        Some(vec![service])
    };
    let (_server, address) = start(each, 20_000).await;
    let answer = run(&["describe", "-plaintext", &address]).await;
    assert!(answer.code == 1 && answer.err.contains("than 10000"), "{} {}", answer.code, answer.err);
}
