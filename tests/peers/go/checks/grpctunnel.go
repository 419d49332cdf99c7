package checks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"dialback.test/peers/echo"
)

// Grpctunnel is every check that an Echo passes when it is called through github.com/jhump/grpctunnel. Version 0.3.0 of it
// differs from grpc-go: metadata that is not UTF-8 ends the whole tunnel, the details of a status are nowhere but in the
// status, no message is too large, and who sends to a call that has ended gets context.Canceled.
var Grpctunnel = []Check{
	{"unary", unary},
	{"empty", empty},
	{"metadata-text", returnsText},
	{"metadata-large", returnsLargeMetadata},
	{"status-tunnelled", statusTunnelled},
	{"refused", refused},
	{"deadline", deadline},
	{"deadline-stream", deadlineOfStream},
	{"cancel", cancel},
	{"sizes", sizes},
	{"sizes-streamed", sizesStreamed},
	{"large-download", largeDownload},
	{"download", download},
	{"upload", upload},
	{"chat", chat},
	{"early-headers", earlyHeaders},
	{"half-close", halfClose},
	{"early-status-tunnelled", earlyStatusTunnelled},
	{"early-status-large", earlyStatusAfterLarge},
	{"concurrent", concurrent},
	{"crowd", crowd},
}

// returnsText has a binary key, too, whose value happens to be UTF-8.
func returnsText(ctx context.Context, client echo.Client) error {
	return returns(ctx, client, "\x00é\n")
}

func statusTunnelled(ctx context.Context, client echo.Client) error {
	return endsWithDetails(ctx, client, func(err error, _ metadata.MD) error { return isTheStatus(err) })
}

// earlyStatusTunnelled ends a call whose caller waits for room.
func earlyStatusTunnelled(ctx context.Context, client echo.Client) error {
	stream, err := client.Chat(metadata.AppendToOutgoingContext(ctx, ends...))
	if err != nil {
		return err
	}
	piece := echo.Pattern(0, 10_000)
	for err == nil {
		err = stream.Send(piece)
	}
	if !errors.Is(err, io.EOF) && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("the flood ended with %v", err)
	}
	if answer, err := stream.Recv(); err != nil || !bytes.Equal(answer, piece) {
		return fmt.Errorf("before the status: %d bytes, %v", len(answer), err)
	}
	_, err = stream.Recv()
	return hasCode(err, codes.Aborted)
}

// aroundSizes has the sizes of messages at which a tunnel's work changes. A Payload is up to 5 bytes longer than what is
// in it, so that both are a chunk or a window, and one byte more and less.
func aroundSizes() []int {
	sizes := []int{0, 1}
	for _, edge := range []int{16 << 10, 64 << 10} {
		for size := edge - 6; size <= edge+1; size++ {
			sizes = append(sizes, size)
		}
	}
	return append(sizes, 8<<20)
}

func sizes(ctx context.Context, client echo.Client) error {
	for _, size := range aroundSizes() {
		if err := echoes(ctx, client, echo.Pattern(size, size)); err != nil {
			return fmt.Errorf("%d bytes: %w", size, err)
		}
	}
	return nil
}

// sizesStreamed sends all of them through one call.
func sizesStreamed(ctx context.Context, client echo.Client) error {
	stream, err := client.Chat(ctx)
	if err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() {
		for _, size := range aroundSizes() {
			if err := stream.Send(echo.Pattern(size, size)); err != nil {
				sent <- fmt.Errorf("sending %d bytes: %w", size, err)
				return
			}
		}
		sent <- stream.CloseSend()
	}()
	for _, size := range aroundSizes() {
		if answer, err := stream.Recv(); err != nil || !bytes.Equal(answer, echo.Pattern(size, size)) {
			return fmt.Errorf("of %d bytes came %d: %v", size, len(answer), err)
		}
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("wanted the end, got %v", err)
	}
	return <-sent
}
