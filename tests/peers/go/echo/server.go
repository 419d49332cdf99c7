package echo

import (
	"context"
	"errors"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Server is the service.
type Server struct {
	// Cancelled is told of each call whose caller left before its end, with the method's name.
	Cancelled func(method string)
	// Hanging is told of each call that will not end of itself, with the method's name.
	Hanging func(method string)
}

// Register adds the service to a gRPC server.
func (s *Server) Register(to grpc.ServiceRegistrar) {
	streams := []grpc.StreamDesc{download, upload, chat}
	for i, handler := range []func(grpc.ServerStream, plan) error{s.download, s.upload, s.chat} {
		method := streams[i].StreamName
		streams[i].Handler = func(_ any, stream grpc.ServerStream) error {
			ctx := stream.Context()
			defer s.watch(ctx, method)
			plan, err := read(ctx)
			if err != nil {
				return err
			}
			s.tell(plan, method)
			return handler(stream, plan)
		}
	}
	unary := grpc.MethodDesc{MethodName: "Unary", Handler: s.unary}
	to.RegisterService(&grpc.ServiceDesc{
		ServiceName: Name,
		HandlerType: (*any)(nil),
		Methods:     []grpc.MethodDesc{unary},
		Streams:     streams,
	}, s)
}

func (s *Server) watch(ctx context.Context, method string) {
	if ctx.Err() != nil && s.Cancelled != nil {
		s.Cancelled(method)
	}
}

func (s *Server) tell(plan plan, method string) {
	if plan.hang && s.Hanging != nil {
		s.Hanging(method)
	}
}

func (s *Server) unary(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	defer s.watch(ctx, "Unary")
	var message wrapperspb.BytesValue
	if err := decode(&message); err != nil {
		return nil, err
	}
	plan, err := read(ctx)
	if err != nil {
		return nil, err
	}
	s.tell(plan, "Unary")
	// A header would make a refusal more than trailers.
	if plan.status == nil {
		if err := grpc.SetHeader(ctx, plan.returned); err != nil {
			return nil, err
		}
	}
	if err := grpc.SetTrailer(ctx, plan.returned); err != nil {
		return nil, err
	}
	if err := plan.pause(ctx); err != nil {
		return nil, err
	}
	return &message, plan.end(ctx)
}

func (s *Server) download(stream grpc.ServerStream, plan plan) error {
	var request wrapperspb.BytesValue
	if err := stream.RecvMsg(&request); err != nil {
		return err
	}
	index := 0
	return plan.answer(stream, func() (*wrapperspb.BytesValue, error) {
		if index == plan.count {
			return nil, io.EOF
		}
		index++
		return Payload(Pattern(index-1, plan.size)), nil
	})
}

func (s *Server) upload(stream grpc.ServerStream, plan plan) error {
	var chunks [][]byte
	for {
		var message wrapperspb.BytesValue
		err := stream.RecvMsg(&message)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		chunks = append(chunks, message.GetValue())
	}
	if plan.status == nil {
		if err := stream.SetHeader(plan.returned); err != nil {
			return err
		}
	}
	stream.SetTrailer(plan.returned)
	ctx := stream.Context()
	if err := plan.pause(ctx); err != nil {
		return err
	}
	if err := plan.end(ctx); err != nil {
		return err
	}
	return stream.SendMsg(Payload(Digest(chunks...)))
}

func (s *Server) chat(stream grpc.ServerStream, plan plan) error {
	return plan.answer(stream, func() (*wrapperspb.BytesValue, error) {
		var message wrapperspb.BytesValue
		err := stream.RecvMsg(&message)
		return &message, err
	})
}

// plan is what the metadata asks for.
type plan struct {
	returned metadata.MD
	status   error
	after    int
	count    int
	size     int
	delay    time.Duration
	hang     bool
}

func read(ctx context.Context) (plan, error) {
	sent, _ := metadata.FromIncomingContext(ctx)
	returned := metadata.MD{}
	for key, values := range sent {
		if strings.HasPrefix(key, "x-") {
			returned[key] = values
		}
	}
	var failed error
	number := func(key string, otherwise int) int {
		values := sent.Get(key)
		if len(values) == 0 {
			return otherwise
		}
		n, err := strconv.Atoi(values[0])
		if err != nil || n < 0 {
			failed = status.Errorf(codes.InvalidArgument, "%s is not a fitting number: %q", key, values[0])
		}
		return n
	}
	plan := plan{
		returned: returned,
		after:    math.MaxInt,
		count:    number("echo-count", 1),
		size:     number("echo-size", 0),
		delay:    time.Duration(number("echo-delay-ms", 0)) * time.Millisecond,
		hang:     number("echo-hang", 0) != 0,
	}
	if len(sent.Get("echo-status")) > 0 && !plan.hang {
		message := strings.Join(sent.Get("echo-message"), "")
		ending := status.New(codes.Code(number("echo-status", 0)), message)
		if number("echo-details", 0) != 0 {
			ending, _ = ending.WithDetails(Details())
		}
		plan.status, plan.after = ending.Err(), number("echo-status-after", 0)
	}
	return plan, failed
}

// answer sends the headers at once, then answers until there are no more, then does as end does.
func (p plan) answer(stream grpc.ServerStream, next func() (*wrapperspb.BytesValue, error)) error {
	stream.SetTrailer(p.returned)
	if p.status != nil && p.after == 0 {
		return p.status
	}
	if err := stream.SendHeader(p.returned); err != nil {
		return err
	}
	for sent := 0; sent < p.after; sent++ {
		message, err := next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if err := p.pause(stream.Context()); err != nil {
			return err
		}
		if err := stream.SendMsg(message); err != nil {
			return err
		}
	}
	return p.end(stream.Context())
}

func (p plan) pause(ctx context.Context) error {
	if p.delay == 0 {
		return nil
	}
	select {
	case <-time.After(p.delay):
		return nil
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
}

func (p plan) end(ctx context.Context) error {
	if p.hang {
		<-ctx.Done()
		return status.FromContextError(ctx.Err()).Err()
	}
	return p.status
}
