// Package echo is dialback.echo.v1.Echo without generated code: its Payload is a google.protobuf.BytesValue on the wire.
//
// The service does what the Rust one does; tests/common/echo.rs lists the metadata that steers it.
package echo

import (
	"context"
	"encoding/binary"
	"hash/fnv"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// MaxMessage is the largest message client and server take: more than any test sends.
const MaxMessage = 64 << 20

// Name is the service's.
const Name = "dialback.echo.v1.Echo"

var (
	download = grpc.StreamDesc{StreamName: "Download", ServerStreams: true}
	upload   = grpc.StreamDesc{StreamName: "Upload", ClientStreams: true}
	chat     = grpc.StreamDesc{StreamName: "Chat", ServerStreams: true, ClientStreams: true}
)

// Payload makes a message of some bytes.
func Payload(data []byte) *wrapperspb.BytesValue {
	return wrapperspb.Bytes(data)
}

// Pattern is the bytes of Download's message number index.
func Pattern(index, size int) []byte {
	data := make([]byte, size)
	for i := range data {
		data[i] = byte((index + i) % 251)
	}
	return data
}

// Details is what a status carries when echo-details asks for it.
func Details() *errdetails.ErrorInfo {
	return &errdetails.ErrorInfo{Reason: "ECHO", Domain: "dialback.test", Metadata: map[string]string{"key": "value"}}
}

// Digest is what Upload answers: the length and the FNV-1a checksum of all bytes.
func Digest(chunks ...[]byte) []byte {
	var length uint64
	sum := fnv.New64a()
	for _, chunk := range chunks {
		length += uint64(len(chunk))
		sum.Write(chunk)
	}
	return sum.Sum(binary.BigEndian.AppendUint64(nil, length))
}

// Client calls the service.
type Client struct {
	Conn grpc.ClientConnInterface
}

// Unary sends some bytes and gives those of the answer.
func (c Client) Unary(ctx context.Context, data []byte, opts ...grpc.CallOption) ([]byte, error) {
	var answer wrapperspb.BytesValue
	err := c.Conn.Invoke(ctx, "/"+Name+"/Unary", Payload(data), &answer, opts...)
	return answer.GetValue(), err
}

// Download starts a server stream.
func (c Client) Download(ctx context.Context, opts ...grpc.CallOption) (Stream, error) {
	return c.DownloadOf(ctx, nil, opts...)
}

// DownloadOf starts a server stream with some bytes as the request.
func (c Client) DownloadOf(ctx context.Context, data []byte, opts ...grpc.CallOption) (Stream, error) {
	stream, err := c.Conn.NewStream(ctx, &download, "/"+Name+"/Download", opts...)
	if err != nil {
		return Stream{}, err
	}
	if err := stream.SendMsg(Payload(data)); err != nil {
		return Stream{}, err
	}
	return Stream{stream}, stream.CloseSend()
}

// Upload starts a client stream.
func (c Client) Upload(ctx context.Context, opts ...grpc.CallOption) (Stream, error) {
	stream, err := c.Conn.NewStream(ctx, &upload, "/"+Name+"/Upload", opts...)
	return Stream{stream}, err
}

// Chat starts a stream both ways.
func (c Client) Chat(ctx context.Context, opts ...grpc.CallOption) (Stream, error) {
	stream, err := c.Conn.NewStream(ctx, &chat, "/"+Name+"/Chat", opts...)
	return Stream{stream}, err
}

// Stream is the caller's side of a streaming call.
type Stream struct {
	grpc.ClientStream
}

// Send sends a message of some bytes.
func (s Stream) Send(data []byte) error {
	return s.SendMsg(Payload(data))
}

// Recv receives the bytes of a message.
func (s Stream) Recv() ([]byte, error) {
	var message wrapperspb.BytesValue
	err := s.RecvMsg(&message)
	return message.GetValue(), err
}
