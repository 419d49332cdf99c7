// Laptop is an agent in Go: it dials a hub, authenticates, asks to be dialled back at /grpc-tunnel, and serves Echo there
// with grpc-go.
//
// It prints "ready" when the hub may call, "hanging METHOD" for each call that was told not to end, "cancelled METHOD" for
// each call whose caller left, and "rekeys N" and "closed: WHY" at its end. It takes gzip, and answers with it who used it.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
	"google.golang.org/grpc"
	_ "google.golang.org/grpc/encoding/gzip"

	"dialback.test/peers/bench"
	"dialback.test/peers/echo"
	"dialback.test/peers/tunnel"
)

func main() {
	hub := flag.String("hub", "127.0.0.1:2222", "the hub's `address`")
	id := flag.String("id", "laptop-1", "the agent `id`")
	key := flag.String("key", "", "the `file` of the agent's private key, in OpenSSH format")
	hostKey := flag.String("host-key", "", "the hub's host `key`: an OpenSSH public key line, or its SHA256:… fingerprint")
	rekey := flag.Uint64("rekey", 0, "renew keys after so many `bytes`, each way; 0 for what is usual")
	benches := flag.Bool("bench", false, "serve what benches/compare calls instead of Echo")
	flag.Parse()
	log.SetFlags(0)

	connection, err := dial(*hub, *id, *key, *hostKey, *rekey)
	if err != nil {
		log.Fatalf("cannot connect to %s: %v", *hub, err)
	}
	register := service().Register
	if *benches {
		register = bench.Register
	}
	if err := serve(connection, register); err != nil {
		log.Fatal(err)
	}
	why := connection.Wait()
	fmt.Println("rekeys", connection.exchanges.Load()-1)
	fmt.Println("closed:", why)
}

type connection struct {
	ssh.Conn
	channels <-chan ssh.NewChannel
	// How often the host key was checked, which happens in each key exchange.
	exchanges *atomic.Int64
}

func dial(hub, id, keyFile, hostKey string, rekey uint64) (connection, error) {
	pem, err := os.ReadFile(keyFile)
	if err != nil {
		return connection{}, err
	}
	signer, err := ssh.ParsePrivateKey(pem)
	if err != nil {
		return connection{}, err
	}
	tcp, err := net.DialTimeout("tcp", hub, 10*time.Second)
	if err != nil {
		return connection{}, err
	}
	exchanges, check := new(atomic.Int64), pinned(hostKey)
	conn, channels, requests, err := ssh.NewClientConn(tcp, hub, &ssh.ClientConfig{
		Config: ssh.Config{RekeyThreshold: rekey},
		User:   id,
		Auth:   []ssh.AuthMethod{ssh.PublicKeys(signer)},
		HostKeyCallback: func(host string, remote net.Addr, key ssh.PublicKey) error {
			exchanges.Add(1)
			return check(host, remote, key)
		},
		Timeout: 10 * time.Second,
	})
	if err != nil {
		return connection{}, err
	}
	// Keepalives are answered here: with a failure, which is an answer.
	go ssh.DiscardRequests(requests)
	return connection{conn, channels, exchanges}, nil
}

// pinned accepts one host key: as a line, or as a fingerprint.
func pinned(want string) ssh.HostKeyCallback {
	return func(_ string, _ net.Addr, key ssh.PublicKey) error {
		if want == ssh.FingerprintSHA256(key) {
			return nil
		}
		line, _, _, _, err := ssh.ParseAuthorizedKey([]byte(want))
		if err == nil && bytes.Equal(line.Marshal(), key.Marshal()) {
			return nil
		}
		return fmt.Errorf("the host key %s is not the one expected", ssh.FingerprintSHA256(key))
	}
}

// serve returns when the connection ends.
func serve(conn connection, register func(grpc.ServiceRegistrar)) error {
	listener := tunnel.Listen(conn, conn.channels)
	ok, _, err := conn.SendRequest(tunnel.Forward, true, ssh.Marshal(tunnel.ForwardPayload{Path: tunnel.Path}))
	if err != nil {
		return err
	}
	if !ok {
		return errors.New("the hub refused to forward " + tunnel.Path)
	}
	fmt.Println("ready")

	server := grpc.NewServer(grpc.MaxRecvMsgSize(echo.MaxMessage))
	register(server)
	// It fails when the SSH connection ends, and only then: why is told by the connection.
	_ = server.Serve(listener)
	server.Stop()
	return nil
}

func service() *echo.Server {
	return &echo.Server{
		Cancelled: func(method string) { fmt.Println("cancelled", method) },
		Hanging:   func(method string) { fmt.Println("hanging", method) },
	}
}
