// Grpctunnel is one end of tunnels of github.com/jhump/grpctunnel, with the Echo service or its caller behind it. The first
// argument is its role:
//
//	forward-server  listens, and serves Echo through each tunnel that is opened to it
//	forward-client  dials -server, opens a tunnel, and calls Echo through it
//	reverse-hub     listens, waits for so many -tunnels, and calls Echo through them
//	reverse-agent   dials -server, opens so many -tunnels, and serves Echo through them
//	demo-hub, demo-agent
//	                the last two, but what is called is test.EchoService, as in the examples
//	bench-server, bench-client, bench-hub, bench-agent
//	                the four, but they do the work of benches/tunnel and benches/compare
//
// What listens prints "listening ADDRESS", and "tunnel ID" and "gone ID" for each tunnel, with the id of who opened it. An
// agent prints "ready" for each tunnel that was accepted and "closed: WHY" at its end, and fails when one was not. What serves prints "hanging METHOD"
// for each call that was told not to end, and "cancelled METHOD" for each call whose caller left. What calls prints one
// line for each check, "ok NAME" or "FAIL NAME: why", and then exits, with 0 when all were ok. SIGTERM ends the others,
// with 0.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jhump/grpctunnel"
	"github.com/jhump/grpctunnel/tunnelpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"dialback.test/peers/bench"
	"dialback.test/peers/checks"
	"dialback.test/peers/echo"
)

type peer struct {
	listen, server, id, key, token string
	tunnels                        int
	names                          []string
	// register adds the service, and call calls it.
	register func(grpc.ServiceRegistrar)
	call     func(context.Context, grpc.ClientConnInterface) error
}

var roles = map[string]func(context.Context, peer) error{
	"forward-server": forwardServer,
	"forward-client": forwardClient,
	"reverse-hub":    reverseHub,
	"reverse-agent":  reverseAgent,
	"demo-hub":       demo(reverseHub),
	"demo-agent":     demo(reverseAgent),
	"bench-server":   benches(forwardServer),
	"bench-client":   benches(forwardClient),
	"bench-hub":      benches(reverseHub),
	"bench-agent":    benches(reverseAgent),
}

func main() {
	var p peer
	flag.StringVar(&p.listen, "listen", "127.0.0.1:0", "the `address` to listen on")
	flag.StringVar(&p.server, "server", "", "the `address` to dial")
	flag.StringVar(&p.id, "id", "laptop-1", "the x-agent-id that a tunnel is opened with")
	flag.StringVar(&p.key, "key", "", "call only through tunnels with this x-agent-`id`")
	flag.StringVar(&p.token, "token", "", "the bearer `token` that a tunnel is opened with, and that is needed for it")
	flag.IntVar(&p.tunnels, "tunnels", 1, "`how many`")
	names := flag.String("checks", strings.Join(checks.Names(checks.Grpctunnel), ","), "the `checks` to run, in this order")
	patience := flag.Int("timeout", 180, "`seconds` for everything")
	log.SetFlags(0)
	if len(os.Args) < 2 || roles[os.Args[1]] == nil {
		log.Fatal("the first argument is no role")
	}
	// It exits when this fails.
	_ = flag.CommandLine.Parse(os.Args[2:])
	time.AfterFunc(time.Duration(*patience)*time.Second, func() { log.Fatalf("not done after %d s", *patience) })
	told, forget := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer forget()

	p.names = strings.Split(*names, ",")
	service := echo.Server{
		Cancelled: func(method string) { fmt.Println("cancelled", method) },
		Hanging:   func(method string) { fmt.Println("hanging", method) },
	}
	p.register = service.Register
	p.call = p.check
	if err := roles[os.Args[1]](told, p); err != nil {
		log.Fatal(err)
	}
}

func (p peer) check(_ context.Context, through grpc.ClientConnInterface) error {
	own := []checks.Check{
		{Name: "spread", Run: func(ctx context.Context, _ echo.Client) error { return p.spread(ctx, through) }},
	}
	return checks.Run(echo.Client{Conn: through}, slices.Concat(checks.Grpctunnel, own), p.names)
}

// benches makes of a role one that does the work of the benchmarks.
func benches(role func(context.Context, peer) error) func(context.Context, peer) error {
	return func(told context.Context, p peer) error {
		p.register, p.call = bench.Register, bench.Orders
		return role(told, p)
	}
}

func forwardServer(told context.Context, p peer) error {
	handler := grpctunnel.NewTunnelServiceHandler(grpctunnel.TunnelServiceHandlerOptions{NoReverseTunnels: true})
	p.register(handler)
	server, err := p.serve(handler, p.admit(func(who string, serve func() error) error {
		fmt.Println("tunnel", who)
		defer fmt.Println("gone", who)
		return serve()
	}))
	if err != nil {
		return err
	}
	<-told.Done()
	server.Stop()
	return nil
}

func forwardClient(told context.Context, p peer) error {
	conn, err := p.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	channel, err := grpctunnel.NewChannel(tunnelpb.NewTunnelServiceClient(conn)).Start(p.says(told))
	if err != nil {
		return err
	}
	defer channel.Close()
	return p.call(told, channel)
}

func reverseHub(told context.Context, p peer) error {
	opened := make(chan struct{}, p.tunnels)
	handler := grpctunnel.NewTunnelServiceHandler(grpctunnel.TunnelServiceHandlerOptions{
		AffinityKey: func(channel grpctunnel.TunnelChannel) any { return opener(channel.Context()) },
		OnReverseTunnelOpen: func(channel grpctunnel.TunnelChannel) {
			fmt.Println("tunnel", opener(channel.Context()))
			select {
			case opened <- struct{}{}:
			default: // enough are there
			}
		},
		OnReverseTunnelClose: func(channel grpctunnel.TunnelChannel) {
			fmt.Println("gone", opener(channel.Context()))
		},
	})
	server, err := p.serve(handler, p.admit(func(_ string, serve func() error) error { return serve() }))
	if err != nil {
		return err
	}
	defer server.Stop()
	for range p.tunnels {
		select {
		case <-opened:
		case <-told.Done():
			return nil
		}
	}
	through := handler.AsChannel()
	if p.key != "" {
		through = handler.KeyAsChannel(p.key)
	}
	// It is told of a tunnel before that is used.
	if err := through.WaitForReady(told); err != nil {
		return err
	}
	return p.call(told, through)
}

// spread wants calls that take all the tunnels in turn.
func (p peer) spread(ctx context.Context, through grpc.ClientConnInterface) error {
	taken := map[grpctunnel.TunnelChannel]int{}
	for range 10 * p.tunnels {
		var by grpctunnel.TunnelChannel
		client := echo.Client{Conn: through}
		if _, err := client.Unary(ctx, []byte("hello"), grpctunnel.WithTunnelChannel(&by)); err != nil {
			return err
		}
		taken[by]++
	}
	if len(taken) != p.tunnels {
		return fmt.Errorf("the calls took %d tunnels", len(taken))
	}
	for _, calls := range taken {
		if calls != 10 {
			return fmt.Errorf("a tunnel took %d calls", calls)
		}
	}
	return nil
}

func reverseAgent(told context.Context, p peer) error {
	conn, err := p.dial(grpc.WithStreamInterceptor(announce))
	if err != nil {
		return err
	}
	defer conn.Close()
	agent := grpctunnel.NewReverseTunnelServer(tunnelpb.NewTunnelServiceClient(conn))
	p.register(agent)
	ended := make(chan error, p.tunnels)
	for range p.tunnels {
		go func() {
			accepted := new(atomic.Bool)
			ctx := context.WithValue(p.says(context.Background()), acceptedKey{}, accepted)
			// That it was started is said of a tunnel that was refused, too.
			_, err := agent.Serve(ctx)
			if accepted.Load() {
				fmt.Println("closed:", err)
				err = nil
			} else {
				err = fmt.Errorf("refused: %w", err)
			}
			ended <- err
		}()
	}
	context.AfterFunc(told, agent.Stop)
	var all error
	for range p.tunnels {
		all = errors.Join(all, <-ended)
	}
	return all
}

func (p peer) dial(options ...grpc.DialOption) (*grpc.ClientConn, error) {
	options = append(options, grpc.WithTransportCredentials(insecure.NewCredentials()))
	return grpc.NewClient("passthrough:///"+p.server, options...)
}

// says who opens a tunnel.
func (p peer) says(ctx context.Context) context.Context {
	ctx = metadata.AppendToOutgoingContext(ctx, "x-agent-id", p.id, "dialback-agent-id", p.id)
	if p.token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+p.token)
	}
	return ctx
}

func opener(ctx context.Context) string {
	said, _ := metadata.FromIncomingContext(ctx)
	return strings.Join(said.Get("x-agent-id"), ",")
}

func (p peer) serve(handler *grpctunnel.TunnelServiceHandler, options ...grpc.ServerOption) (*grpc.Server, error) {
	listener, err := net.Listen("tcp", p.listen)
	if err != nil {
		return nil, err
	}
	server := grpc.NewServer(options...)
	tunnelpb.RegisterTunnelServiceServer(server, handler.Service())
	// It fails when it is stopped, and only then.
	go func() { _ = server.Serve(listener) }()
	fmt.Println("listening", listener.Addr())
	return server, nil
}

// admit lets a tunnel be opened by who has the token, if there is one.
func (p peer) admit(open func(who string, serve func() error) error) grpc.ServerOption {
	return grpc.StreamInterceptor(func(service any, stream grpc.ServerStream, _ *grpc.StreamServerInfo,
		handle grpc.StreamHandler,
	) error {
		said, _ := metadata.FromIncomingContext(stream.Context())
		if p.token != "" && !slices.Equal(said.Get("authorization"), []string{"Bearer " + p.token}) {
			return status.Error(codes.Unauthenticated, "the token is not the one expected")
		}
		return open(opener(stream.Context()), func() error { return handle(service, stream) })
	})
}

type acceptedKey struct{}

// announce prints "ready" when a tunnel is accepted, which the library does not tell.
func announce(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, stream grpc.Streamer,
	opts ...grpc.CallOption,
) (grpc.ClientStream, error) {
	opened, err := stream(ctx, desc, conn, method, opts...)
	if err != nil {
		return nil, err
	}
	return announced{opened, ctx.Value(acceptedKey{}).(*atomic.Bool)}, nil
}

type announced struct {
	grpc.ClientStream
	accepted *atomic.Bool
}

func (a announced) Header() (metadata.MD, error) {
	header, err := a.ClientStream.Header()
	if err == nil && header != nil && !a.accepted.Swap(true) {
		fmt.Println("ready")
	}
	return header, err
}
