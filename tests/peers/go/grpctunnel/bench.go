package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"dialback.test/peers/echo"
)

// benches makes of a role one that does the work of benches/tunnel, as work.rs and service.rs have it.
//
// What calls is told by lines on standard input what to do, answers each with one line of JSON, and ends with the last:
//
//	unary CALLS           {"p50": µs, "p99": µs} of calls one after the other
//	callers COUNT MILLIS  {"rate": calls/s} of so many callers, for so long
//	down BYTES SIZE       {"rate": MB/s} of bytes that come in messages of a size
//	up BYTES SIZE         {"rate": MB/s} of bytes that go
func benches(role func(context.Context, peer) error) func(context.Context, peer) error {
	return func(told context.Context, p peer) error {
		p.register = registerBench
		p.call = func(ctx context.Context, through grpc.ClientConnInterface) error {
			lines := bufio.NewScanner(os.Stdin)
			for lines.Scan() {
				figures, err := bench(ctx, echo.Client{Conn: through}, lines.Text())
				if err != nil {
					return fmt.Errorf("%s: %w", lines.Text(), err)
				}
				answer, err := json.Marshal(figures)
				if err != nil {
					return err
				}
				fmt.Println(string(answer))
			}
			return lines.Err()
		}
		return role(told, p)
	}
}

type figures map[string]float64

func bench(ctx context.Context, client echo.Client, line string) (figures, error) {
	var what string
	var first, second int
	// What is missing is 0, which the work refuses.
	_, _ = fmt.Sscan(line, &what, &first, &second)
	if first <= 0 || (what != "unary" && second <= 0) {
		return nil, errors.New("not the numbers that it needs")
	}
	switch what {
	case "unary":
		return latencies(ctx, client, first)
	case "callers":
		return throughput(ctx, client, first, time.Duration(second)*time.Millisecond)
	case "down":
		return down(ctx, client, first, second)
	case "up":
		return up(ctx, client, first, second)
	}
	return nil, errors.New("no such work")
}

// small is what a unary call carries.
var small = bytes.Repeat([]byte{7}, 100)

func oneCall(ctx context.Context, client echo.Client) error {
	answer, err := client.Unary(ctx, small)
	if err == nil && len(answer) != len(small) {
		err = errors.New("the answer is not what was sent")
	}
	return err
}

func latencies(ctx context.Context, client echo.Client, calls int) (figures, error) {
	times := make([]time.Duration, calls)
	for i := range times {
		started := time.Now()
		if err := oneCall(ctx, client); err != nil {
			return nil, err
		}
		times[i] = time.Since(started)
	}
	slices.Sort(times)
	micros := func(t time.Duration) float64 { return float64(t.Nanoseconds()) / 1000 }
	return figures{"p50": micros(times[calls/2]), "p99": micros(times[calls*99/100])}, nil
}

func throughput(ctx context.Context, client echo.Client, callers int, duration time.Duration) (figures, error) {
	started := time.Now()
	type result struct {
		calls int
		err   error
	}
	results := make(chan result, callers)
	for range callers {
		go func() {
			var r result
			for r.err == nil && time.Since(started) < duration {
				r.err = oneCall(ctx, client)
				r.calls++
			}
			results <- r
		}()
	}
	calls := 0
	var all error
	for range callers {
		r := <-results
		calls += r.calls
		all = errors.Join(all, r.err)
	}
	return figures{"rate": float64(calls) / time.Since(started).Seconds()}, all
}

func down(ctx context.Context, client echo.Client, size, each int) (figures, error) {
	count, started := size/each, time.Now()
	order := binary.BigEndian.AppendUint64(nil, uint64(count))
	stream, err := client.DownloadOf(ctx, binary.BigEndian.AppendUint64(order, uint64(each)))
	if err != nil {
		return nil, err
	}
	got := 0
	for {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		got += len(message)
	}
	return rate(got, count*each, started)
}

func up(ctx context.Context, client echo.Client, size, each int) (figures, error) {
	count, started := size/each, time.Now()
	stream, err := client.Upload(ctx)
	if err != nil {
		return nil, err
	}
	message := bytes.Repeat([]byte{0x5a}, each)
	for range count {
		if err := stream.Send(message); err != nil {
			return nil, err
		}
	}
	if err := stream.CloseSend(); err != nil {
		return nil, err
	}
	answer, err := stream.Recv()
	if err != nil || len(answer) != 8 {
		return nil, fmt.Errorf("got %d bytes: %v", len(answer), err)
	}
	return rate(int(binary.BigEndian.Uint64(answer)), count*each, started)
}

// rate is in millions of bytes.
func rate(got, wanted int, started time.Time) (figures, error) {
	if got != wanted {
		return nil, fmt.Errorf("%d bytes arrived instead of %d", got, wanted)
	}
	return figures{"rate": float64(got) / 1e6 / time.Since(started).Seconds()}, nil
}

// registerBench adds the service that is measured: an Echo whose Download is told by its request what to answer.
func registerBench(to grpc.ServiceRegistrar) {
	unary := func(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		var message wrapperspb.BytesValue
		return &message, decode(&message)
	}
	download := func(_ any, stream grpc.ServerStream) error {
		var request wrapperspb.BytesValue
		if err := stream.RecvMsg(&request); err != nil {
			return err
		}
		order := request.GetValue()
		if len(order) != 16 {
			return status.Error(codes.InvalidArgument, "not a count and a size")
		}
		message := echo.Payload(bytes.Repeat([]byte{0x5a}, int(binary.BigEndian.Uint64(order[8:]))))
		for range binary.BigEndian.Uint64(order) {
			if err := stream.SendMsg(message); err != nil {
				return err
			}
		}
		return nil
	}
	upload := func(_ any, stream grpc.ServerStream) error {
		var length uint64
		for {
			var message wrapperspb.BytesValue
			err := stream.RecvMsg(&message)
			if errors.Is(err, io.EOF) {
				return stream.SendMsg(echo.Payload(binary.BigEndian.AppendUint64(nil, length)))
			}
			if err != nil {
				return err
			}
			length += uint64(len(message.GetValue()))
		}
	}
	to.RegisterService(&grpc.ServiceDesc{
		ServiceName: echo.Name,
		HandlerType: (*any)(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "Unary", Handler: unary}},
		Streams: []grpc.StreamDesc{
			{StreamName: "Download", Handler: download, ServerStreams: true},
			{StreamName: "Upload", Handler: upload, ClientStreams: true},
		},
	}, struct{}{})
}
