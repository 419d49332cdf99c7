package main

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// demoService is that of the Python library's examples. Its messages are a google.protobuf.StringValue on the wire.
const demoService = "test.EchoService"

// demo makes of a role one that has this service: its agent prints "request TEXT" for each call and answers "Echo: TEXT",
// and its hub makes three calls and then five at once, and prints "answer TEXT" for each.
func demo(role func(context.Context, peer) error) func(context.Context, peer) error {
	return func(told context.Context, p peer) error {
		p.register = registerDemo
		p.call = callDemo
		return role(told, p)
	}
}

func registerDemo(to grpc.ServiceRegistrar) {
	answer := func(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		var request wrapperspb.StringValue
		if err := decode(&request); err != nil {
			return nil, err
		}
		fmt.Println("request", request.GetValue())
		return wrapperspb.String("Echo: " + request.GetValue()), nil
	}
	to.RegisterService(&grpc.ServiceDesc{
		ServiceName: demoService,
		HandlerType: (*any)(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "Echo", Handler: answer}},
	}, struct{}{})
}

func callDemo(ctx context.Context, through grpc.ClientConnInterface) error {
	call := func(text string) error {
		var answer wrapperspb.StringValue
		if err := through.Invoke(ctx, "/"+demoService+"/Echo", wrapperspb.String(text), &answer); err != nil {
			return err
		}
		fmt.Println("answer", answer.GetValue())
		return nil
	}
	for number := range 3 {
		if err := call(fmt.Sprint("call ", number+1)); err != nil {
			return err
		}
	}
	results := make(chan error)
	for number := range 5 {
		go func() { results <- call(fmt.Sprint("call at once ", number+1)) }()
	}
	var all error
	for range 5 {
		all = errors.Join(all, <-results)
	}
	return all
}
