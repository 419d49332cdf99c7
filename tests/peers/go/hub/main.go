// Hub waits for one agent and calls its Echo service with grpc-go, over SSH channels it opens back to the agent. With -bench it
// lets others in after that one, too, and does not call them.
//
// It prints "host-key KEY" and "listening ADDRESS", then "agent ID" when one has authenticated, then one line for each
// check: "ok NAME" or "FAIL NAME: why", then "rekeys N". It exits with 0 when all were ok.
package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"dialback.test/peers/bench"
	"dialback.test/peers/checks"
	"dialback.test/peers/echo"
	"dialback.test/peers/tunnel"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "the `address` to listen on")
	authorized := flag.String("authorized-key", "", "the agent's public `key`, as an OpenSSH line")
	mode := flag.String("mode", "private", "how channels are opened: `private` (type grpc-tunnel, at once) or "+
		"streamlocal (as sshd does, when the agent has asked for it)")
	names := flag.String("checks", strings.Join(checks.Names(checks.All), ","), "the `checks` to run, in this order")
	bulk := flag.Int("bulk", 64, "how many `MiB` the check bulk sends, which runs only if it is named")
	rekey := flag.Uint64("rekey", 0, "renew keys after so many `bytes`, each way; 0 for what is usual")
	benches := flag.Bool("bench", false, "instead of checks, do the work of benches/compare that standard input orders, and keep other agents")
	patience := flag.Duration("timeout", time.Minute, "for everything")
	flag.Parse()
	log.SetFlags(0)
	time.AfterFunc(*patience, func() { log.Fatalf("not done after %v", *patience) })

	known := append(checks.All, checks.Bulk(*bulk))
	work := func(client *grpc.ClientConn) error {
		return checks.Run(echo.Client{Conn: client}, known, strings.Split(*names, ","))
	}
	if *benches {
		work = func(client *grpc.ClientConn) error { return bench.Orders(context.Background(), client) }
	}
	if err := run(*listen, *authorized, *mode, *rekey, *benches, work); err != nil {
		log.Fatal(err)
	}
}

func run(address, authorized, mode string, rekey uint64, more bool, work func(*grpc.ClientConn) error) error {
	config, exchanges, err := serverConfig(authorized, rekey)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	fmt.Println("listening", listener.Addr())

	tcp, err := listener.Accept()
	if err != nil {
		return err
	}
	conn, channels, requests, err := ssh.NewServerConn(tcp, config)
	if err != nil {
		return fmt.Errorf("no agent: %w", err)
	}
	defer conn.Close()
	fmt.Println("agent", conn.User())
	if more {
		go keep(listener, config)
	}

	go reject(channels)
	dial := func() (ssh.Channel, <-chan *ssh.Request, error) { return conn.OpenChannel(tunnel.Private, nil) }
	switch mode {
	case "private":
		// Keepalives are answered here: with a failure, which is an answer.
		go ssh.DiscardRequests(requests)
	case "streamlocal":
		if err := awaitForward(requests); err != nil {
			return err
		}
		payload := ssh.Marshal(tunnel.ForwardedPayload{Path: tunnel.Path})
		dial = func() (ssh.Channel, <-chan *ssh.Request, error) { return conn.OpenChannel(tunnel.Forwarded, payload) }
	default:
		return fmt.Errorf("no mode is called %q", mode)
	}

	client, err := grpc.NewClient("passthrough:///"+conn.User(),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(echo.MaxMessage)),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			channel, requests, err := dial()
			if err != nil {
				return nil, err
			}
			return tunnel.NewConn(channel, requests, conn), nil
		}))
	if err != nil {
		return err
	}
	defer client.Close()
	err = work(client)
	fmt.Println("rekeys", exchanges.Load()-1)
	return err
}

// counted counts its signatures: a host key makes one in each key exchange.
type counted struct {
	crypto.Signer
	signatures *atomic.Int64
}

func (c counted) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	c.signatures.Add(1)
	return c.Signer.Sign(rand, digest, opts)
}

// serverConfig gives the number of key exchanges, too.
func serverConfig(authorized string, rekey uint64) (*ssh.ServerConfig, *atomic.Int64, error) {
	agentKey, _, _, _, err := ssh.ParseAuthorizedKey([]byte(authorized))
	if err != nil {
		return nil, nil, fmt.Errorf("-authorized-key: %w", err)
	}
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	exchanges := new(atomic.Int64)
	hostKey, err := ssh.NewSignerFromSigner(counted{private, exchanges})
	if err != nil {
		return nil, nil, err
	}
	fmt.Printf("host-key %s", ssh.MarshalAuthorizedKey(hostKey.PublicKey()))

	config := &ssh.ServerConfig{
		Config: ssh.Config{RekeyThreshold: rekey},
		PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			if !bytes.Equal(key.Marshal(), agentKey.Marshal()) {
				return nil, errors.New("the key is not the authorized one")
			}
			return nil, nil
		},
	}
	config.AddHostKey(hostKey)
	return config, exchanges, nil
}

func reject(channels <-chan ssh.NewChannel) {
	for channel := range channels {
		channel.Reject(ssh.Prohibited, "this hub serves nothing")
	}
}

// keep lets more agents in, which are not called.
func keep(listener net.Listener, config *ssh.ServerConfig) {
	for {
		tcp, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer tcp.Close()
			conn, channels, requests, err := ssh.NewServerConn(tcp, config)
			if err != nil {
				return
			}
			go reject(channels)
			if err := awaitForward(requests); err != nil {
				return
			}
			conn.Wait()
		}()
	}
}

// awaitForward returns when the agent may be dialled back; requests are answered for ever.
func awaitForward(requests <-chan *ssh.Request) error {
	for request := range requests {
		var payload tunnel.ForwardPayload
		if request.Type != tunnel.Forward || ssh.Unmarshal(request.Payload, &payload) != nil || payload.Path != tunnel.Path {
			request.Reply(false, nil)
			continue
		}
		if err := request.Reply(true, nil); err != nil {
			return err
		}
		go ssh.DiscardRequests(requests)
		return nil
	}
	return errors.New("the agent left before it asked to be dialled back")
}
