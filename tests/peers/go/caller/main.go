// Caller is an ordinary client of a gateway: it calls the Echo of an agent with grpc-go, over HTTP/2, plain or in TLS.
//
// It prints one line for each check: "ok NAME" or "FAIL NAME: why", and exits with 0 when all were ok. The check "leave"
// prints "hangs" when a call of each kind is under way and "left" when it has cancelled them, and after each of the two
// waits for SIGUSR1.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"dialback.test/peers/checks"
	"dialback.test/peers/echo"
)

type client struct {
	gateway, agent, authority, ca, certificate, token string
}

func main() {
	var c client
	flag.StringVar(&c.gateway, "gateway", "", "the gateway's `address`")
	flag.StringVar(&c.agent, "metadata", "", "name the agent by metadata, as this `id`")
	flag.StringVar(&c.authority, "authority", "", "name the agent by this `authority`")
	flag.StringVar(&c.ca, "ca", "", "speak TLS, with a gateway that has a certificate of the authority in this `file`")
	flag.StringVar(&c.certificate, "certificate", "", "show the certificate in this `file`.crt, with the key in file.key")
	flag.StringVar(&c.token, "token", "", "show this bearer `token`")
	names := flag.String("checks", strings.Join(checks.Names(checks.All), ","), "the `checks` to run, in this order")
	dir := flag.String("issue", "", "make certificates in this `directory` for a gateway whose suffix is the authority, and end")
	patience := flag.Duration("timeout", time.Minute, "for everything")
	flag.Parse()
	log.SetFlags(0)
	time.AfterFunc(*patience, func() { log.Fatalf("not done after %v", *patience) })

	var err error
	if *dir != "" {
		err = issue(*dir, c.authority)
	} else {
		err = c.run(strings.Split(*names, ","))
	}
	if err != nil {
		log.Fatal(err)
	}
}

func (c client) run(names []string) error {
	security, err := c.security()
	if err != nil {
		return err
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(security),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(echo.MaxMessage)),
		grpc.WithStatsHandler(checks.Observer{}),
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn,
			invoke grpc.UnaryInvoker, opts ...grpc.CallOption,
		) error {
			return invoke(c.say(ctx), method, request, reply, conn, opts...)
		}),
		grpc.WithStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn,
			method string, stream grpc.Streamer, opts ...grpc.CallOption,
		) (grpc.ClientStream, error) {
			return stream(c.say(ctx), desc, conn, method, opts...)
		}),
	}
	if c.authority != "" {
		options = append(options, grpc.WithAuthority(c.authority))
	}
	dial := func() (*grpc.ClientConn, error) { return grpc.NewClient("passthrough:///"+c.gateway, options...) }
	conn, err := dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	own := []checks.Check{
		{Name: "leave", Run: leave},
		{Name: "slow", Run: slow},
		{Name: "storm", Run: func(ctx context.Context, client echo.Client) error {
			return spread(dial, 10, func(clients []echo.Client) error { return storm(ctx, client, clients) })
		}},
		{Name: "burst", Run: func(ctx context.Context, client echo.Client) error {
			return burst(ctx, client, []echo.Client{client}, 100)
		}},
		{Name: "burst-spread", Run: func(ctx context.Context, client echo.Client) error {
			return spread(dial, 20, func(clients []echo.Client) error { return burst(ctx, client, clients, 15) })
		}},
		{Name: "unauthenticated", Run: fails(codes.Unauthenticated)},
		{Name: "denied", Run: fails(codes.PermissionDenied)},
	}
	all := slices.Concat(checks.All, checks.Gzip, own)
	return checks.Run(echo.Client{Conn: conn}, all, names)
}

func (c client) security() (credentials.TransportCredentials, error) {
	if c.ca == "" {
		return insecure.NewCredentials(), nil
	}
	authority, err := os.ReadFile(c.ca)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{RootCAs: x509.NewCertPool()}
	if !config.RootCAs.AppendCertsFromPEM(authority) {
		return nil, fmt.Errorf("%s has no certificate", c.ca)
	}
	if c.certificate != "" {
		pair, err := tls.LoadX509KeyPair(c.certificate+".crt", c.certificate+".key")
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return credentials.NewTLS(config), nil
}

// say adds who is called, and who calls.
func (c client) say(ctx context.Context) context.Context {
	if c.agent != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "dialback-agent", c.agent)
	}
	if c.token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+c.token)
	}
	return ctx
}

// burst begins many calls on each of some connections and gives them all up at once, as a group of requests does when one
// of them fails, while another call stands.
func burst(ctx context.Context, client echo.Client, clients []echo.Client, count int) error {
	stream, err := client.Chat(ctx)
	if err != nil {
		return err
	}
	for round := range 30 {
		group, leave := context.WithCancel(metadata.AppendToOutgoingContext(ctx, "echo-hang", "1"))
		var calls sync.WaitGroup
		for _, client := range clients {
			for range count {
				calls.Go(func() {
					// It is given up; whether the connection is, is told by the other call.
					_, _ = client.Unary(group, []byte("hello"))
				})
			}
		}
		time.Sleep(time.Duration(round) * 200 * time.Microsecond)
		leave()
		calls.Wait()
		if err := stream.Send([]byte("still")); err != nil {
			_, why := stream.Recv()
			return fmt.Errorf("in round %d: %w, %w", round, err, why)
		}
		if answer, err := stream.Recv(); err != nil || string(answer) != "still" {
			return fmt.Errorf("in round %d: %q, %w", round, answer, err)
		}
	}
	return stream.CloseSend()
}

func fails(code codes.Code) func(context.Context, echo.Client) error {
	return func(ctx context.Context, client echo.Client) error {
		if _, err := client.Unary(ctx, nil); status.Code(err) != code {
			return fmt.Errorf("wanted %v, got %v", code, err)
		}
		return nil
	}
}

// spread makes some more connections for a check.
func spread(dial func() (*grpc.ClientConn, error), count int, run func([]echo.Client) error) error {
	var clients []echo.Client
	for range count {
		conn, err := dial()
		if err != nil {
			return err
		}
		defer conn.Close()
		clients = append(clients, echo.Client{Conn: conn})
	}
	return run(clients)
}

// storm leaves calls of each kind at any point of their life. Those that end otherwise end well.
func storm(ctx context.Context, client echo.Client, clients []echo.Client) error {
	const calls = 200
	results := make(chan error)
	for caller, client := range clients {
		random := rand.New(rand.NewPCG(1, uint64(caller)))
		go func() {
			for range calls {
				ctx, leave := leaving(ctx, time.Duration(random.IntN(20_000))*time.Microsecond, random)
				err := anyCall(ctx, client, random)
				leave()
				if code := status.Code(err); code != codes.OK && code != codes.DeadlineExceeded && code != codes.Canceled {
					results <- err
					return
				}
			}
			results <- nil
		}()
	}
	var all error
	for range clients {
		all = errors.Join(all, <-results)
	}
	if all != nil {
		return all
	}
	if answer, err := client.Unary(ctx, []byte("on")); err != nil || string(answer) != "on" {
		return errors.Join(fmt.Errorf("the next call got %q", answer), err)
	}
	return nil
}

// leaving leaves by a deadline or by a reset.
func leaving(ctx context.Context, after time.Duration, random *rand.Rand) (context.Context, context.CancelFunc) {
	if random.IntN(2) == 0 {
		return context.WithTimeout(ctx, after)
	}
	ctx, leave := context.WithCancel(ctx)
	time.AfterFunc(after, leave)
	return ctx, leave
}

func anyCall(ctx context.Context, client echo.Client, random *rand.Rand) error {
	message := echo.Pattern(0, random.IntN(200_000))
	steering := []string{"echo-count", "10", "echo-size", fmt.Sprint(len(message)), "x-word", "one"}
	ctx = metadata.AppendToOutgoingContext(ctx, steering...)
	var stream echo.Stream
	var err error
	kind := random.IntN(4)
	switch kind {
	case 0:
		_, err := client.Unary(ctx, message)
		return err
	case 1:
		stream, err = client.Download(ctx)
	case 2:
		stream, err = client.Upload(ctx)
	case 3:
		stream, err = client.Chat(ctx)
	}
	if err != nil {
		return err
	}
	if kind > 1 {
		for range random.IntN(5) {
			// What has gone wrong is told by the answer.
			_ = stream.Send(message)
		}
		if random.IntN(2) == 0 {
			_ = stream.CloseSend()
		}
	}
	for {
		if _, err := stream.Recv(); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}

// leave cancels a call of each kind. The connection lives on, so that their handlers learn it by nothing else.
func leave(ctx context.Context, client echo.Client) error {
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGUSR1)
	goOn := func(said string) error {
		fmt.Println(said)
		select {
		case <-told:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("%s, and nobody said to go on", said)
		}
	}

	hanging := metadata.AppendToOutgoingContext(ctx, "echo-hang", "1")
	calls := []struct {
		method string
		// begin returns when the call is under way, with what waits for its end.
		begin func(context.Context) (func() error, error)
	}{
		{"Unary", func(ctx context.Context) (func() error, error) {
			ended := make(chan error, 1)
			go func() {
				_, err := client.Unary(ctx, nil)
				ended <- err
			}()
			return func() error { return <-ended }, nil
		}},
		{"Download", func(ctx context.Context) (func() error, error) {
			stream, err := client.Download(ctx)
			return answering(stream, err)
		}},
		{"Upload", func(ctx context.Context) (func() error, error) {
			stream, err := client.Upload(ctx)
			if err != nil {
				return nil, err
			}
			return func() error { _, err := stream.Recv(); return err }, stream.Send([]byte("one"))
		}},
		{"Chat", func(ctx context.Context) (func() error, error) {
			stream, err := client.Chat(ctx)
			if err == nil {
				err = stream.Send([]byte("one"))
			}
			return answering(stream, err)
		}},
	}
	var leaves []func() error
	for _, call := range calls {
		ctx, cancel := context.WithCancel(hanging)
		defer cancel()
		end, err := call.begin(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", call.method, err)
		}
		leaves = append(leaves, func() error {
			cancel()
			if err := end(); status.Code(err) != codes.Canceled {
				return fmt.Errorf("%s ended with %v", call.method, err)
			}
			return nil
		})
	}
	if err := goOn("hangs"); err != nil {
		return err
	}
	for _, leave := range leaves {
		if err := leave(); err != nil {
			return err
		}
	}
	if err := goOn("left"); err != nil {
		return err
	}
	if answer, err := client.Unary(ctx, []byte("on")); err != nil || string(answer) != "on" {
		return errors.Join(fmt.Errorf("the next call got %q", answer), err)
	}
	return nil
}

// slow is answered after a while.
func slow(ctx context.Context, client echo.Client) error {
	answer, err := client.Unary(metadata.AppendToOutgoingContext(ctx, "echo-delay-ms", "1500"), []byte("at last"))
	if err != nil || string(answer) != "at last" {
		return errors.Join(fmt.Errorf("got %q", answer), err)
	}
	return nil
}

// answering waits for the first answer.
func answering(stream echo.Stream, err error) (func() error, error) {
	if err == nil {
		_, err = stream.Recv()
	}
	return func() error { _, err := stream.Recv(); return err }, err
}
