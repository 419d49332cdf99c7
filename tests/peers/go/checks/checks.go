// Package checks calls an Echo with grpc-go, and tells what is wrong with its answers.
package checks

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"dialback.test/peers/echo"
)

// Check is a promise of a tunnel.
type Check struct {
	Name string
	Run  func(context.Context, echo.Client) error
}

// All is every check that an Echo on any agent passes, but for gzip.
var All = []Check{
	{"unary", unary},
	{"empty", empty},
	{"metadata", returnsMetadata},
	{"metadata-large", returnsLargeMetadata},
	{"status", statusWithDetails},
	{"refused", refused},
	{"deadline", deadline},
	{"deadline-stream", deadlineOfStream},
	{"cancel", cancel},
	{"large", large},
	{"large-download", largeDownload},
	{"download", download},
	{"upload", upload},
	{"chat", chat},
	{"early-headers", earlyHeaders},
	{"half-close", halfClose},
	{"early-status", earlyStatus},
	{"early-status-flood", earlyStatusInFlood},
	{"early-status-large", earlyStatusAfterLarge},
	{"too-large", tooLarge},
	{"concurrent", concurrent},
	{"crowd", crowd},
}

// Gzip is for a tonic agent without its gzip feature or a Go agent with its gzip package, in this order. It needs Observer.
var Gzip = []Check{
	{"gzip-refused", gzipRefused},
	{"gzip", gzipped},
}

// No check may take longer, but for Bulk.
const limit = 20 * time.Second

// Names gives the names of some checks.
func Names(checks []Check) []string {
	var names []string
	for _, check := range checks {
		names = append(names, check.Name)
	}
	return names
}

// Run runs the named ones of some checks, and prints "ok NAME" or "FAIL NAME: why" for each.
func Run(client echo.Client, checks []Check, names []string) error {
	failed := 0
	for _, name := range names {
		index := slices.IndexFunc(checks, func(c Check) bool { return c.Name == name })
		if index < 0 {
			return fmt.Errorf("no check is called %q", name)
		}
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		err := checks[index].Run(ctx, client)
		cancel()
		if err != nil {
			failed++
			fmt.Printf("FAIL %s: %s\n", name, strings.ReplaceAll(err.Error(), "\n", "; "))
			continue
		}
		fmt.Println("ok", name)
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d checks failed", failed, len(names))
	}
	return nil
}

func unary(ctx context.Context, client echo.Client) error {
	return echoes(ctx, client, []byte("hello"))
}

func empty(ctx context.Context, client echo.Client) error {
	if err := echoes(ctx, client, nil); err != nil {
		return err
	}
	stream, err := client.Download(metadata.AppendToOutgoingContext(ctx, "echo-count", "3", "x-word", "one"))
	if err != nil {
		return err
	}
	for range 3 {
		if answer, err := stream.Recv(); err != nil || len(answer) > 0 {
			return fmt.Errorf("got %d bytes, %v", len(answer), err)
		}
	}
	return endsWell(stream)
}

func echoes(ctx context.Context, client echo.Client, sent []byte) error {
	answer, err := client.Unary(ctx, sent)
	if err != nil {
		return err
	}
	if !bytes.Equal(answer, sent) {
		return fmt.Errorf("sent %d bytes, got %d others", len(sent), len(answer))
	}
	return nil
}

func returnsMetadata(ctx context.Context, client echo.Client) error {
	return returns(ctx, client, string([]byte{0, 255, 10}))
}

func returns(ctx context.Context, client echo.Client, blob string) error {
	ctx = metadata.AppendToOutgoingContext(ctx, "x-word", "one", "x-word", "two", "x-blob-bin", blob)
	var header, trailer metadata.MD
	if _, err := client.Unary(ctx, nil, grpc.Header(&header), grpc.Trailer(&trailer)); err != nil {
		return err
	}
	for place, found := range map[string]metadata.MD{"headers": header, "trailers": trailer} {
		if !slices.Equal(found.Get("x-word"), []string{"one", "two"}) || !slices.Equal(found.Get("x-blob-bin"), []string{blob}) {
			return fmt.Errorf("the %s are %v", place, found)
		}
	}
	return nil
}

// returnsLargeMetadata is near what tonic takes by default: 16 KiB in all.
func returnsLargeMetadata(ctx context.Context, client echo.Client) error {
	words := []string{strings.Repeat("a", 4000), strings.Repeat("b", 8000)}
	ctx = metadata.AppendToOutgoingContext(ctx, "x-word", words[0], "x-word", words[1])
	var header, trailer metadata.MD
	if _, err := client.Unary(ctx, nil, grpc.Header(&header), grpc.Trailer(&trailer)); err != nil {
		return err
	}
	if !slices.Equal(header.Get("x-word"), words) || !slices.Equal(trailer.Get("x-word"), words) {
		return errors.New("it came back changed")
	}
	return nil
}

func statusWithDetails(ctx context.Context, client echo.Client) error {
	return endsWithDetails(ctx, client, func(err error, trailer metadata.MD) error {
		return errors.Join(isTheStatus(err), hasBytesOfDetails(trailer))
	})
}

// endsWithDetails ends two calls with a status, and hands on what they end with.
func endsWithDetails(ctx context.Context, client echo.Client, isTheEnd func(error, metadata.MD) error) error {
	ctx = metadata.AppendToOutgoingContext(ctx, "echo-status", "9", "echo-message", "not now", "echo-details", "1")
	var trailer metadata.MD
	_, err := client.Unary(ctx, nil, grpc.Trailer(&trailer))
	if err := isTheEnd(err, trailer); err != nil {
		return fmt.Errorf("unary: %w", err)
	}
	stream, err := client.Download(metadata.AppendToOutgoingContext(ctx, "echo-count", "9", "echo-status-after", "2"))
	if err != nil {
		return err
	}
	for range 2 {
		if _, err := stream.Recv(); err != nil {
			return fmt.Errorf("before the status: %w", err)
		}
	}
	_, err = stream.Recv()
	if err := isTheEnd(err, stream.Trailer()); err != nil {
		return fmt.Errorf("stream: %w", err)
	}
	return nil
}

func isTheStatus(err error) error {
	found := status.Convert(err)
	details := found.Details()
	if found.Code() != codes.FailedPrecondition || found.Message() != "not now" || len(details) != 1 {
		return fmt.Errorf("got %v with details %v", found, details)
	}
	if info, ok := details[0].(proto.Message); !ok || !proto.Equal(info, echo.Details()) {
		return fmt.Errorf("got the details %v", details)
	}
	return nil
}

// hasBytesOfDetails compares the details as they are on the wire.
func hasBytesOfDetails(trailer metadata.MD) error {
	whole, err := status.New(codes.FailedPrecondition, "not now").WithDetails(echo.Details())
	if err != nil {
		return err
	}
	wanted, err := proto.Marshal(whole.Proto())
	if err != nil {
		return err
	}
	if sent := trailer.Get("grpc-status-details-bin"); !slices.Equal(sent, []string{string(wanted)}) {
		return fmt.Errorf("the bytes of the details are %q, not %q", sent, wanted)
	}
	return nil
}

// refused wants a status without a response before it: trailers only.
func refused(ctx context.Context, client echo.Client) error {
	ctx = metadata.AppendToOutgoingContext(ctx, "echo-status", "7", "echo-message", "no: 100 %", "x-word", "one")
	stream, err := client.Download(ctx)
	if err != nil {
		return err
	}
	if header, err := stream.Header(); len(header) > 0 {
		return fmt.Errorf("there are headers before the status: %v, %v", header, err)
	}
	_, err = stream.Recv()
	if err := hasCode(err, codes.PermissionDenied); err != nil {
		return err
	}
	if message := status.Convert(err).Message(); message != "no: 100 %" {
		return fmt.Errorf("the message is %q", message)
	}
	if words := stream.Trailer().Get("x-word"); !slices.Equal(words, []string{"one"}) {
		return fmt.Errorf("the trailers are %v", stream.Trailer())
	}
	return nil
}

func deadline(ctx context.Context, client echo.Client) error {
	ctx, done := context.WithTimeout(metadata.AppendToOutgoingContext(ctx, "echo-hang", "1"), 200*time.Millisecond)
	defer done()
	_, err := client.Unary(ctx, nil)
	return hasCode(err, codes.DeadlineExceeded)
}

func deadlineOfStream(ctx context.Context, client echo.Client) error {
	ctx = metadata.AppendToOutgoingContext(ctx, "echo-hang", "1", "echo-count", "2")
	ctx, done := context.WithTimeout(ctx, 500*time.Millisecond)
	defer done()
	stream, err := client.Download(ctx)
	if err != nil {
		return err
	}
	for range 2 {
		if _, err := stream.Recv(); err != nil {
			return fmt.Errorf("before the deadline: %w", err)
		}
	}
	_, err = stream.Recv()
	return hasCode(err, codes.DeadlineExceeded)
}

// cancel leaves one cancelled Download and one cancelled Chat, which the agent's own test can look for.
func cancel(ctx context.Context, client echo.Client) error {
	hanging := metadata.AppendToOutgoingContext(ctx, "echo-hang", "1")
	ctx, cancel := context.WithCancel(hanging)
	defer cancel()
	stream, err := client.Download(ctx)
	if err != nil {
		return err
	}
	if _, err := stream.Recv(); err != nil {
		return err
	}
	chat, err := client.Chat(ctx)
	if err != nil {
		return err
	}
	if _, err := chat.Header(); err != nil {
		return err
	}
	cancel()
	_, err = stream.Recv()
	_, chatErr := chat.Recv()
	return errors.Join(hasCode(err, codes.Canceled), hasCode(chatErr, codes.Canceled))
}

func hasCode(err error, want codes.Code) error {
	if status.Code(err) != want {
		return fmt.Errorf("wanted %v, got %v", want, err)
	}
	return nil
}

func large(ctx context.Context, client echo.Client) error {
	return echoes(ctx, client, echo.Pattern(0, 4<<20))
}

// tooLarge is refused by the first bytes, and what it says is still what the caller hears.
func tooLarge(ctx context.Context, client echo.Client) error {
	for range 5 {
		_, err := client.Unary(ctx, make([]byte, echo.MaxMessage+1))
		// tonic calls it so since 0.5, grpc-go the other.
		if code := status.Code(err); code != codes.OutOfRange && code != codes.ResourceExhausted {
			return fmt.Errorf("got %v", err)
		}
	}
	return echoes(ctx, client, []byte("on"))
}

func largeDownload(ctx context.Context, client echo.Client) error {
	const count, size = 3, 4 << 20
	ctx = metadata.AppendToOutgoingContext(ctx, "echo-count", fmt.Sprint(count), "echo-size", fmt.Sprint(size), "x-word", "one")
	stream, err := client.Download(ctx)
	if err != nil {
		return err
	}
	return downloads(stream, count, size)
}

func download(ctx context.Context, client echo.Client) error {
	const count, size = 500, 2000
	ctx = metadata.AppendToOutgoingContext(ctx, "echo-count", fmt.Sprint(count), "echo-size", fmt.Sprint(size), "x-word", "one")
	stream, err := client.Download(ctx)
	if err != nil {
		return err
	}
	return downloads(stream, count, size)
}

func downloads(stream echo.Stream, count, size int) error {
	for index := range count {
		message, err := stream.Recv()
		if err != nil {
			return fmt.Errorf("message %d: %w", index, err)
		}
		if !bytes.Equal(message, echo.Pattern(index, size)) {
			return fmt.Errorf("message %d is another one", index)
		}
	}
	return endsWell(stream)
}

// endsWell wants no further message, and the metadata the call was sent in the trailers.
func endsWell(stream echo.Stream) error {
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("wanted the end, got %v", err)
	}
	if !slices.Equal(stream.Trailer().Get("x-word"), []string{"one"}) {
		return fmt.Errorf("the trailers are %v", stream.Trailer())
	}
	return nil
}

func upload(ctx context.Context, client echo.Client) error {
	stream, err := client.Upload(ctx)
	if err != nil {
		return err
	}
	var sent [][]byte
	for index := range 200 {
		sent = append(sent, echo.Pattern(index, 10_000))
		if err := stream.Send(sent[index]); err != nil {
			return err
		}
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	answer, err := stream.Recv()
	if err != nil {
		return err
	}
	if want := echo.Digest(sent...); !bytes.Equal(answer, want) {
		return fmt.Errorf("wanted the digest %x, got %x", want, answer)
	}
	return nil
}

func chat(ctx context.Context, client echo.Client) error {
	stream, err := client.Chat(metadata.AppendToOutgoingContext(ctx, "x-word", "one"))
	if err != nil {
		return err
	}
	header, err := stream.Header()
	if err != nil || !slices.Equal(header.Get("x-word"), []string{"one"}) {
		return fmt.Errorf("before the first message the headers are %v, %v", header, err)
	}
	for index := range 20 {
		sent := echo.Pattern(index, 100)
		if err := stream.Send(sent); err != nil {
			return err
		}
		if answer, err := stream.Recv(); err != nil || !bytes.Equal(answer, sent) {
			return fmt.Errorf("message %d: got %d bytes, %v", index, len(answer), err)
		}
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	return endsWell(stream)
}

// concurrent gives the first failure of 50 callers.
func concurrent(ctx context.Context, client echo.Client) error {
	const callers = 50
	results := make(chan error, callers)
	for caller := range callers {
		go func() {
			for call := range 10 {
				if err := echoes(ctx, client, echo.Pattern(caller, 1000*call)); err != nil {
					results <- fmt.Errorf("caller %d, call %d: %w", caller, call, err)
					return
				}
			}
			results <- nil
		}()
	}
	for range callers {
		if err := <-results; err != nil {
			return err
		}
	}
	return nil
}

// crowd has more calls in flight than a connection may.
func crowd(ctx context.Context, client echo.Client) error {
	const callers = 2500
	ctx = metadata.AppendToOutgoingContext(ctx, "echo-delay-ms", "300")
	results := make(chan error, callers)
	for caller := range callers {
		go func() { results <- echoes(ctx, client, echo.Pattern(caller, 100)) }()
	}
	for range callers {
		if err := <-results; err != nil {
			return err
		}
	}
	return nil
}

// earlyHeaders says nothing at all before they are here.
func earlyHeaders(ctx context.Context, client echo.Client) error {
	ctx, leave := context.WithCancel(metadata.AppendToOutgoingContext(ctx, "x-word", "early"))
	defer leave()
	stream, err := client.Chat(ctx)
	if err != nil {
		return err
	}
	header, err := stream.Header()
	if err != nil || !slices.Equal(header.Get("x-word"), []string{"early"}) {
		return fmt.Errorf("the headers are %v, %v", header, err)
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("wanted the end, got %v", err)
	}
	return nil
}

// halfClose has nothing more to say before the first answer leaves.
func halfClose(ctx context.Context, client echo.Client) error {
	stream, err := client.Chat(metadata.AppendToOutgoingContext(ctx, "echo-delay-ms", "20", "x-word", "one"))
	if err != nil {
		return err
	}
	for size := range 5 {
		if err := stream.Send(echo.Pattern(0, size+1)); err != nil {
			return err
		}
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	for size := range 5 {
		if answer, err := stream.Recv(); err != nil || len(answer) != size+1 {
			return fmt.Errorf("answer %d has %d bytes: %v", size, len(answer), err)
		}
	}
	return endsWell(stream)
}

var ends = []string{"echo-status", "10", "echo-message", "enough", "echo-status-after", "1"}

// earlyStatus ends a call whose caller still talks.
func earlyStatus(ctx context.Context, client echo.Client) error {
	stream, err := client.Chat(metadata.AppendToOutgoingContext(ctx, ends...))
	if err != nil {
		return err
	}
	if err := stream.Send([]byte("one")); err != nil {
		return err
	}
	if answer, err := stream.Recv(); err != nil || string(answer) != "one" {
		return fmt.Errorf("before the status: %q, %v", answer, err)
	}
	if _, err = stream.Recv(); hasCode(err, codes.Aborted) != nil || status.Convert(err).Message() != "enough" {
		return fmt.Errorf("wanted the status, got %v", err)
	}
	// The caller learns that nobody listens.
	for err == nil || !errors.Is(err, io.EOF) {
		if ctx.Err() != nil {
			return fmt.Errorf("it could go on talking: %v", err)
		}
		err = stream.Send([]byte("two"))
	}
	return nil
}

// earlyStatusInFlood frees a caller that waits for room.
func earlyStatusInFlood(ctx context.Context, client echo.Client) error {
	stream, err := client.Chat(metadata.AppendToOutgoingContext(ctx, ends...))
	if err != nil {
		return err
	}
	piece := echo.Pattern(0, 64<<10)
	for err == nil {
		err = stream.Send(piece)
	}
	if !errors.Is(err, io.EOF) {
		return fmt.Errorf("the flood ended with %v", err)
	}
	if answer, err := stream.Recv(); err != nil || !bytes.Equal(answer, piece) {
		return fmt.Errorf("before the status: %d bytes, %v", len(answer), err)
	}
	_, err = stream.Recv()
	return hasCode(err, codes.Aborted)
}

// earlyStatusAfterLarge has more on the way than fits into a window when the server has said all.
func earlyStatusAfterLarge(ctx context.Context, client echo.Client) error {
	for range 10 {
		stream, err := client.Chat(metadata.AppendToOutgoingContext(ctx, ends...))
		if err != nil {
			return err
		}
		large := echo.Pattern(3, 2<<20)
		if err := stream.Send(large); err != nil {
			return err
		}
		if answer, err := stream.Recv(); err != nil || !bytes.Equal(answer, large) {
			return fmt.Errorf("before the status: %d bytes, %v", len(answer), err)
		}
		if _, err = stream.Recv(); hasCode(err, codes.Aborted) != nil {
			return fmt.Errorf("wanted the status, got %v", err)
		}
	}
	return nil
}

func gzipped(ctx context.Context, client echo.Client) error {
	ctx, encodings := watchEncodings(ctx)
	use := grpc.UseCompressor(gzip.Name)
	sent := echo.Pattern(0, 1<<20)
	if answer, err := client.Unary(ctx, sent, use); err != nil || !bytes.Equal(answer, sent) {
		return fmt.Errorf("unary: %d bytes, %v", len(answer), err)
	}
	const count, size = 5, 100_000
	steering := []string{"echo-count", fmt.Sprint(count), "echo-size", fmt.Sprint(size), "x-word", "one"}
	stream, err := client.Download(metadata.AppendToOutgoingContext(ctx, steering...), use)
	if err != nil {
		return err
	}
	if err := downloads(stream, count, size); err != nil {
		return err
	}
	if found := encodings.all(); !slices.Equal(found, []string{gzip.Name, gzip.Name}) {
		return fmt.Errorf("the answers were in %q", found)
	}
	return nil
}

// gzipRefused wants tonic's words, and what it says it would take.
func gzipRefused(ctx context.Context, client echo.Client) error {
	var trailer metadata.MD
	_, err := client.Unary(ctx, echo.Pattern(0, 100), grpc.UseCompressor(gzip.Name), grpc.Trailer(&trailer))
	if err := hasCode(err, codes.Unimplemented); err != nil {
		return err
	}
	if message := status.Convert(err).Message(); message != "Content is compressed with `gzip` which isn't supported" {
		return fmt.Errorf("the message is %q", message)
	}
	if taken := trailer.Get("grpc-accept-encoding"); !slices.Equal(taken, []string{"identity"}) {
		return fmt.Errorf("the trailers are %v", trailer)
	}
	return nil
}

// Bulk sends so many MiB through one Chat and wants them back, both at once. An answer has to come within 10 s.
func Bulk(mib int) Check {
	return Check{"bulk", func(_ context.Context, client echo.Client) error {
		const size, patience = 64 << 10, 10 * time.Second
		ctx, leave := context.WithCancelCause(context.Background())
		defer leave(nil)
		late := time.AfterFunc(patience, func() { leave(fmt.Errorf("no answer for %v", patience)) })
		stream, err := client.Chat(ctx)
		if err != nil {
			return err
		}
		count, rest := mib<<20/size, echo.Pattern(0, size-8)
		message := func(number int) []byte {
			return append(binary.BigEndian.AppendUint64(make([]byte, 0, size), uint64(number)), rest...)
		}
		go func() {
			for number := range count {
				if stream.Send(message(number)) != nil {
					return // why is told by Recv
				}
			}
			_ = stream.CloseSend()
		}()
		for number := range count {
			answer, err := stream.Recv()
			if err != nil {
				return fmt.Errorf("instead of answer %d: %w, %w", number, err, context.Cause(ctx))
			}
			if !bytes.Equal(answer, message(number)) {
				return fmt.Errorf("answer %d came changed", number)
			}
			late.Reset(patience)
		}
		if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
			return fmt.Errorf("wanted the end, got %v", err)
		}
		return nil
	}}
}

// Observer is needed by the checks of gzip: it sees how answers are encoded.
type Observer struct{}

type encodingsKey struct{}

type seen struct {
	mutex     sync.Mutex
	encodings []string
}

func watchEncodings(ctx context.Context) (context.Context, *seen) {
	seen := &seen{}
	return context.WithValue(ctx, encodingsKey{}, seen), seen
}

func (s *seen) all() []string {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return slices.Clone(s.encodings)
}

// TagRPC does nothing.
func (Observer) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

// HandleRPC takes down the encoding of an answer that is watched.
func (Observer) HandleRPC(ctx context.Context, event stats.RPCStats) {
	header, isHeader := event.(*stats.InHeader)
	seen, isWatched := ctx.Value(encodingsKey{}).(*seen)
	if isHeader && isWatched {
		seen.mutex.Lock()
		defer seen.mutex.Unlock()
		seen.encodings = append(seen.encodings, header.Compression)
	}
}

// TagConn does nothing.
func (Observer) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleConn does nothing.
func (Observer) HandleConn(context.Context, stats.ConnStats) {}
