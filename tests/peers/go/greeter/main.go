// The greeter of the README's five minutes, in Go: an ordinary gRPC server, with reflection, that knows nothing of dialback.
//
//	greeter -listen 127.0.0.1:50051 -descriptors proto/gen/dialback.greeter.v1.bin
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/reflection"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

// greeter makes messages by what the descriptors say, so that no generated code is needed.
type greeter struct {
	request, reply protoreflect.MessageDescriptor
}

func (g *greeter) hello(name string, rest string) proto.Message {
	reply := dynamicpb.NewMessage(g.reply)
	reply.Set(g.reply.Fields().ByName("message"), protoreflect.ValueOfString("Hello "+name+rest))
	return reply
}

func (g *greeter) name(request *dynamicpb.Message) string {
	return request.Get(g.request.Fields().ByName("name")).String()
}

func sayHello(server any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	g := server.(*greeter)
	request := dynamicpb.NewMessage(g.request)
	if err := decode(request); err != nil {
		return nil, err
	}
	return g.hello(g.name(request), ", this is Go"), nil
}

func lotsOfReplies(server any, stream grpc.ServerStream) error {
	g := server.(*greeter)
	request := dynamicpb.NewMessage(g.request)
	if err := stream.RecvMsg(request); err != nil {
		return err
	}
	for n := 1; n <= 3; n++ {
		if err := stream.SendMsg(g.hello(g.name(request), fmt.Sprintf(", number %d", n))); err != nil {
			return err
		}
	}
	return nil
}

func chat(server any, stream grpc.ServerStream) error {
	g := server.(*greeter)
	for {
		request := dynamicpb.NewMessage(g.request)
		err := stream.RecvMsg(request)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := stream.SendMsg(g.hello(g.name(request), "")); err != nil {
			return err
		}
	}
}

// load registers what the file says, where reflection finds it.
func load(path string) (*greeter, error) {
	encoded, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	set := &descriptorpb.FileDescriptorSet{}
	if err := proto.Unmarshal(encoded, set); err != nil {
		return nil, err
	}
	files, err := protodesc.NewFiles(set)
	if err != nil {
		return nil, err
	}
	file, err := files.FindFileByPath("greeter.proto")
	if err != nil {
		return nil, err
	}
	messages := file.Messages()
	return &greeter{messages.ByName("HelloRequest"), messages.ByName("HelloReply")}, protoregistry.GlobalFiles.RegisterFile(file)
}

func main() {
	listen := flag.String("listen", "127.0.0.1:50051", "where to listen")
	descriptors := flag.String("descriptors", "", "the file with what greeter.proto says")
	flag.Parse()
	g, err := load(*descriptors)
	if err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer()
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "dialback.greeter.v1.Greeter",
		HandlerType: (*any)(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "SayHello", Handler: sayHello}},
		Streams: []grpc.StreamDesc{
			{StreamName: "LotsOfReplies", Handler: lotsOfReplies, ServerStreams: true},
			{StreamName: "Chat", Handler: chat, ServerStreams: true, ClientStreams: true},
		},
		Metadata: "greeter.proto",
	}, g)
	reflection.Register(server)
	fmt.Printf("greeter: listening on %s\n", listener.Addr())
	log.Fatal(server.Serve(listener))
}
