// Package bench does the work of benches/tunnel and benches/compare, as their work.rs and service.rs have it.
package bench

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

// Orders does what lines on standard input say, answers each with one line of JSON, and ends with the last:
//
//	first                     {} once a call has been answered
//	unary CALLS               {"p50": µs, "p99": µs} of calls one after the other
//	callers COUNT MILLIS      {"rate": calls/s, "calls": calls, "p50", "p99", "p99.9": µs} of so many callers, for so long
//	down BYTES SIZE           {"rate": MB/s} of bytes that come in messages of a size
//	up BYTES SIZE             {"rate": MB/s} of bytes that go
//	chat BYTES SIZE           {"rate": MB/s} of bytes that go and come back, counted once
//	downs STREAMS BYTES SIZE  as down, of several streams together
//	beside MILLIS BYTES SIZE  as callers of one caller beside a stream, and {"bulk": MB/s} of the stream
//	gap LEAST MOST            {"calling": 1} at once; after so many milliseconds of calls, {"gap": ms}, the most that
//	                          passed between two answers, or {} when none came for so long
func Orders(ctx context.Context, through grpc.ClientConnInterface) error {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		figures, err := bench(ctx, echo.Client{Conn: through}, lines.Text())
		if err != nil {
			return fmt.Errorf("%s: %w", lines.Text(), err)
		}
		if err := tell(figures); err != nil {
			return err
		}
	}
	return lines.Err()
}

func tell(figures figures) error {
	answer, err := json.Marshal(figures)
	if err == nil {
		fmt.Println(string(answer))
	}
	return err
}

type figures map[string]float64

func bench(ctx context.Context, client echo.Client, line string) (figures, error) {
	var what string
	var first, second, third int
	// What is missing is 0, which the work refuses.
	_, _ = fmt.Sscan(line, &what, &first, &second, &third)
	needed := map[string]int{"first": 0, "unary": 1, "downs": 3, "beside": 3}
	least, known := needed[what]
	if !known {
		least = 2
	}
	for _, number := range []int{first, second, third}[:least] {
		if number <= 0 {
			return nil, errors.New("not the numbers that it needs")
		}
	}
	millis := func(count int) time.Duration { return time.Duration(count) * time.Millisecond }
	switch what {
	case "first":
		for !attempt(ctx, client) {
			time.Sleep(time.Millisecond)
		}
		return figures{}, nil
	case "unary":
		return latencies(ctx, client, first)
	case "callers":
		return throughput(ctx, client, first, millis(second))
	case "down":
		return down(ctx, client, first, second)
	case "up":
		return up(ctx, client, first, second)
	case "chat":
		return chat(ctx, client, first, second)
	case "downs":
		return downs(ctx, client, first, second, third)
	case "beside":
		return beside(ctx, client, millis(first), second, third)
	case "gap":
		if err := tell(figures{"calling": 1}); err != nil {
			return nil, err
		}
		return gap(ctx, client, millis(first), millis(second)), nil
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
	return percentiles(times), nil
}

func percentiles(times []time.Duration) figures {
	slices.Sort(times)
	at := func(thousandths int) float64 {
		if len(times) == 0 {
			return 0
		}
		return float64(times[len(times)*thousandths/1000].Nanoseconds()) / 1000
	}
	return figures{"p50": at(500), "p99": at(990), "p99.9": at(999)}
}

func throughput(ctx context.Context, client echo.Client, callers int, duration time.Duration) (figures, error) {
	started := time.Now()
	type result struct {
		times []time.Duration
		err   error
	}
	results := make(chan result, callers)
	for range callers {
		go func() {
			var r result
			for r.err == nil && time.Since(started) < duration {
				begun := time.Now()
				r.err = oneCall(ctx, client)
				r.times = append(r.times, time.Since(begun))
			}
			results <- r
		}()
	}
	var times []time.Duration
	var all error
	for range callers {
		r := <-results
		times = append(times, r.times...)
		all = errors.Join(all, r.err)
	}
	took := time.Since(started).Seconds()
	told := percentiles(times)
	told["calls"], told["rate"] = float64(len(times)), float64(len(times))/took
	return told, all
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

func chat(ctx context.Context, client echo.Client, size, each int) (figures, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	count, started := size/each, time.Now()
	stream, err := client.Chat(ctx)
	if err != nil {
		return nil, err
	}
	sent := make(chan error, 1)
	go func() {
		message := bytes.Repeat([]byte{0x5a}, each)
		for range count {
			if err := stream.Send(message); err != nil {
				sent <- err
				return
			}
		}
		sent <- stream.CloseSend()
	}()
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
	if err := <-sent; err != nil {
		return nil, err
	}
	return rate(got, count*each, started)
}

func downs(ctx context.Context, client echo.Client, streams, size, each int) (figures, error) {
	part, started := max(size/streams, each), time.Now()
	results := make(chan error, streams)
	for range streams {
		go func() {
			_, err := down(ctx, client, part, each)
			results <- err
		}()
	}
	var all error
	for range streams {
		all = errors.Join(all, <-results)
	}
	if all != nil {
		return nil, all
	}
	got := part / each * each * streams
	return rate(got, got, started)
}

func beside(ctx context.Context, client echo.Client, duration time.Duration, size, each int) (figures, error) {
	type result struct {
		rate float64
		err  error
	}
	bulk, started := make(chan result, 1), time.Now()
	go func() {
		got := 0
		for time.Since(started) < duration {
			if _, err := down(ctx, client, size, each); err != nil {
				bulk <- result{err: err}
				return
			}
			got += size / each * each
		}
		bulk <- result{rate: float64(got) / 1e6 / time.Since(started).Seconds()}
	}()
	told, err := throughput(ctx, client, 1, duration)
	stream := <-bulk
	if err := errors.Join(err, stream.err); err != nil {
		return nil, err
	}
	told["bulk"] = stream.rate
	return told, nil
}

// attempt is a call where the path may be down.
func attempt(ctx context.Context, client echo.Client) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return oneCall(ctx, client) == nil
}

func gap(ctx context.Context, client echo.Client, least, most time.Duration) figures {
	started := time.Now()
	answered, longest := started, time.Duration(0)
	for time.Since(answered) < most {
		if attempt(ctx, client) {
			longest = max(longest, time.Since(answered))
			answered = time.Now()
			if time.Since(started) >= least {
				return figures{"gap": longest.Seconds() * 1000}
			}
		}
		time.Sleep(time.Millisecond)
	}
	return figures{}
}

// rate is in millions of bytes.
func rate(got, wanted int, started time.Time) (figures, error) {
	if got != wanted {
		return nil, fmt.Errorf("%d bytes arrived instead of %d", got, wanted)
	}
	return figures{"rate": float64(got) / 1e6 / time.Since(started).Seconds()}, nil
}

// Register adds the service that is measured: an Echo whose Download is told by its request what to answer.
func Register(to grpc.ServiceRegistrar) {
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
	chat := func(_ any, stream grpc.ServerStream) error {
		for {
			var message wrapperspb.BytesValue
			err := stream.RecvMsg(&message)
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			if err := stream.SendMsg(&message); err != nil {
				return err
			}
		}
	}
	to.RegisterService(&grpc.ServiceDesc{
		ServiceName: echo.Name,
		HandlerType: (*any)(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "Unary", Handler: unary}},
		Streams: []grpc.StreamDesc{
			{StreamName: "Download", Handler: download, ServerStreams: true},
			{StreamName: "Upload", Handler: upload, ClientStreams: true},
			{StreamName: "Chat", Handler: chat, ServerStreams: true, ClientStreams: true},
		},
	}, struct{}{})
}
