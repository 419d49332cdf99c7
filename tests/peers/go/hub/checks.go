package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"dialback.test/peers/echo"
)

type check struct {
	name string
	run  func(context.Context, echo.Client) error
}

var checks = []check{
	{"unary", unary},
	{"metadata", returnsMetadata},
	{"status", statusWithDetails},
	{"deadline", deadline},
	{"cancel", cancel},
	{"large", large},
	{"download", download},
	{"upload", upload},
	{"chat", chat},
	{"concurrent", concurrent},
}

func checkNames() []string {
	var names []string
	for _, check := range checks {
		names = append(names, check.name)
	}
	return names
}

func unary(ctx context.Context, client echo.Client) error {
	for _, sent := range [][]byte{[]byte("hello"), nil} {
		if err := echoes(ctx, client, sent); err != nil {
			return err
		}
	}
	return nil
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
	blob := string([]byte{0, 255, 10})
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

func statusWithDetails(ctx context.Context, client echo.Client) error {
	ctx = metadata.AppendToOutgoingContext(ctx, "echo-status", "9", "echo-message", "not now", "echo-details", "1")
	_, err := client.Unary(ctx, nil)
	if err := isTheStatus(err); err != nil {
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
	if err := isTheStatus(err); err != nil {
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

func deadline(ctx context.Context, client echo.Client) error {
	ctx, done := context.WithTimeout(metadata.AppendToOutgoingContext(ctx, "echo-hang", "1"), 200*time.Millisecond)
	defer done()
	_, err := client.Unary(ctx, nil)
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

func download(ctx context.Context, client echo.Client) error {
	const count, size = 1000, 1000
	ctx = metadata.AppendToOutgoingContext(ctx, "echo-count", fmt.Sprint(count), "echo-size", fmt.Sprint(size), "x-word", "one")
	stream, err := client.Download(ctx)
	if err != nil {
		return err
	}
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
